package test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// bankAccount is what somebody was told of an account; the zero value: it is not there.
type bankAccount struct {
	balance int
	token   uint64 // of the transfer that left it so, never 0
	version uint64 // unseen where nobody was told
}

// bankInput is an operation on a group as it was asked for: a transfer, or a reading of all accounts.
type bankInput struct {
	reading  bool
	token    uint64
	from, to int
	seen     [2]bankAccount // what the transfer wants them to be
	left     [2]int         // what it leaves in them
	closes   bool           // it deletes the account that it takes from
	where    string         // for people
}

// bankOutput is what the caller was told.
type bankOutput struct {
	unknown  bool
	failed   bool          // the transfer's conditions did not hold
	versions [2]uint64     // of a transfer; 0: never told
	accounts []bankAccount // of a reading
}

// bankState is a group at one moment.
type bankState struct {
	accounts [bankAccountsMax]bankAccount
	newest   uint64 // highest version of any change that was told
}

// bankModel is what a group of accounts does that began so.
func bankModel(start bankState) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return start },
		Step: func(state, input, output any) (bool, any) {
			s, in, out := state.(bankState), input.(bankInput), output.(bankOutput)
			if in.reading {
				for i, a := range out.accounts {
					if a != s.accounts[i] {
						return false, s
					}
				}
				return true, s
			}
			holds := s.accounts[in.from] == in.seen[0] && s.accounts[in.to] == in.seen[1]
			switch {
			case out.unknown && !holds:
				return true, s
			case out.failed || !holds:
				return out.failed && !holds, s
			}
			for _, v := range out.versions {
				if v == unseen {
					continue
				}
				if v <= s.newest {
					return false, s
				}
				s.newest = v
			}
			s.accounts[in.from] = bankAccount{in.left[0], in.token, out.versions[0]}
			if in.closes {
				s.accounts[in.from] = bankAccount{}
			}
			s.accounts[in.to] = bankAccount{in.left[1], in.token, out.versions[1]}
			return true, s
		},
	}
}

// describeBank tells of an operation.
func describeBank(in bankInput, out bankOutput) string {
	switch {
	case in.reading:
		return fmt.Sprintf("%s: %+v", in.where, out.accounts)
	case out.unknown:
		return fmt.Sprintf("%s %d: %d→%d, leaves %v, if %+v: unknown, may have happened or not", in.where, in.token, in.from, in.to, in.left, in.seen)
	case out.failed:
		return fmt.Sprintf("%s %d: %d→%d, leaves %v, if %+v: condition failed", in.where, in.token, in.from, in.to, in.left, in.seen)
	}
	return fmt.Sprintf("%s %d: %d→%d, leaves %v, if %+v: versions %v", in.where, in.token, in.from, in.to, in.left, in.seen, out.versions)
}

// settleBank enters, for each transfer whose answer was lost, the versions that readings have shown with its token.
// It tells of accounts that were shown with one token and two versions: that transfer happened twice.
func settleBank(history []porcupine.Operation) error {
	type change struct {
		account int
		token   uint64
	}
	versions := make(map[change]uint64)
	note := func(account int, token, version uint64) error {
		c := change{account, token}
		if v, ok := versions[c]; ok && v != version {
			return fmt.Errorf("one transfer, %d, left account %d with the versions %d and %d: it happened twice", token, account, v, version)
		}
		versions[c] = version
		return nil
	}
	for _, op := range history {
		in, out := op.Input.(bankInput), op.Output.(bankOutput)
		for i, a := range out.accounts {
			if a.token != 0 {
				if err := note(i, a.token, a.version); err != nil {
					return err
				}
			}
		}
		if !in.reading && !out.unknown && !out.failed {
			// The version of a deletion is shown to nobody else.
			if err := errors.Join(note(in.from, in.token, out.versions[0]), note(in.to, in.token, out.versions[1])); err != nil {
				return err
			}
		}
	}
	for i := range history {
		in, out := history[i].Input.(bankInput), history[i].Output.(bankOutput)
		if in.reading || !out.unknown {
			continue
		}
		for k, account := range [2]int{in.from, in.to} {
			if out.versions[k] = versions[change{account, in.token}]; out.versions[k] == 0 {
				out.versions[k] = unseen
			}
		}
		history[i].Output = out
	}
	return nil
}

// checkBank tells whether the history of a group is strictly serializable. A transfer of unknown outcome ends at the end
// of time.
func checkBank(start bankState, history []porcupine.Operation) error {
	history = slices.Clone(history)
	for i := range history {
		if history[i].Output.(bankOutput).unknown {
			history[i].Return = math.MaxInt64
		}
	}
	if err := settleBank(history); err != nil {
		return err
	}
	switch porcupine.CheckOperationsTimeout(bankModel(start), history, checkTimeout) {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		return errCheckTooLong
	default:
		return fmt.Errorf("not serializable in the order in which the operations began and ended:\n%s", listBank(start, history))
	}
}

// listBank writes a history in the order in which the operations began.
func listBank(start bankState, history []porcupine.Operation) string {
	slices.SortFunc(history, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
	var b strings.Builder
	fmt.Fprintf(&b, "  in the beginning: %+v\n", start.accounts)
	for _, op := range history {
		end := "…"
		if op.Return != math.MaxInt64 {
			end = fmt.Sprintf("%.3f", time.Duration(op.Return).Seconds())
		}
		fmt.Fprintf(&b, "  %8.3f to %8s  %s\n", time.Duration(op.Call).Seconds(), end, describeBank(op.Input.(bankInput), op.Output.(bankOutput)))
	}
	return b.String()
}

// checkSum tells what is wrong with accounts that were shown together.
func checkSum(accounts []bankAccount, total int) error {
	sum := 0
	for i, a := range accounts {
		if a.balance < 0 {
			return fmt.Errorf("account %d holds %d: %+v", i, a.balance, accounts)
		}
		sum += a.balance
	}
	if sum != total {
		return fmt.Errorf("the sum is %d and not %d: %+v", sum, total, accounts)
	}
	return nil
}

// simulateBank makes a history that is strictly serializable, as several callers of one group see it.
func simulateBank(rng *rand.Rand, n, callers, ops int) (bankState, []porcupine.Operation) {
	var s bankState
	for i := range n {
		s.accounts[i] = bankAccount{bankBalance, 1, uint64(i + 1)}
	}
	s.newest = uint64(n)
	start := s
	type pending struct{ call, effect, end int64 }
	free := make([]int64, callers)
	all := make([]pending, ops)
	for i := range all {
		k := rng.IntN(callers)
		call := free[k] + int64(rng.IntN(20))
		effect := call + int64(rng.IntN(50))
		end := effect + int64(rng.IntN(50))
		free[k] = end + 1
		all[i] = pending{call, effect, end}
	}
	slices.SortFunc(all, func(a, b pending) int { return int(a.effect - b.effect) })
	old := s
	told := make(map[uint64]bool)
	for i := range n {
		told[uint64(i+1)] = true
	}
	var history []porcupine.Operation
	for i, p := range all {
		if rng.IntN(2) == 0 {
			for _, a := range s.accounts[:n] {
				told[a.version] = true
			}
			history = append(history, porcupine.Operation{Input: bankInput{reading: true}, Output: bankOutput{accounts: slices.Clone(s.accounts[:n])}, Call: p.call, Return: p.end})
			continue
		}
		seen := s
		if rng.IntN(4) == 0 {
			seen, old = old, s
		}
		in := bankInput{token: uint64(i + 2), from: rng.IntN(n), to: rng.IntN(n)}
		in.seen = [2]bankAccount{seen.accounts[in.from], seen.accounts[in.to]}
		if in.from == in.to || in.seen[0].balance == 0 || (!told[in.seen[0].version] && in.seen[0].token != 0) || (!told[in.seen[1].version] && in.seen[1].token != 0) {
			continue
		}
		amount := 1 + rng.IntN(in.seen[0].balance)
		in.left = [2]int{in.seen[0].balance - amount, in.seen[1].balance + amount}
		in.closes = in.left[0] == 0
		out := bankOutput{failed: in.seen[0] != s.accounts[in.from] || in.seen[1] != s.accounts[in.to]}
		lost := rng.IntN(20) == 0
		if !out.failed && !(lost && rng.IntN(2) == 0) {
			out.versions = [2]uint64{s.newest + 1, s.newest + 2}
			s.newest += 2
			s.accounts[in.from] = bankAccount{in.left[0], in.token, out.versions[0]}
			if in.closes {
				s.accounts[in.from] = bankAccount{}
			}
			s.accounts[in.to] = bankAccount{in.left[1], in.token, out.versions[1]}
			told[out.versions[0]], told[out.versions[1]] = !lost, !lost
		}
		if lost {
			out = bankOutput{unknown: true}
		}
		history = append(history, porcupine.Operation{Input: in, Output: out, Call: p.call, Return: p.end})
	}
	return start, history
}

// bankHarms are what a store that breaks its promises may show. Each gives nil where a history has nothing to harm.
var bankHarms = map[string]func(rng *rand.Rand, start bankState, h []porcupine.Operation) []porcupine.Operation{
	"money created": func(rng *rand.Rand, _ bankState, h []porcupine.Operation) []porcupine.Operation {
		return harmReading(rng, h, func(_ *porcupine.Operation, a []bankAccount) bool {
			a[rng.IntN(len(a))].balance++
			return true
		})
	},
	"account missing": func(rng *rand.Rand, _ bankState, h []porcupine.Operation) []porcupine.Operation {
		return harmReading(rng, h, func(_ *porcupine.Operation, a []bankAccount) bool {
			i := rng.IntN(len(a))
			was := a[i].token
			a[i] = bankAccount{}
			return was != 0
		})
	},
	"half a transfer": func(rng *rand.Rand, _ bankState, h []porcupine.Operation) []porcupine.Operation {
		// One account as the transfer left it, the other as it was before.
		return harmReading(rng, h, func(_ *porcupine.Operation, a []bankAccount) bool {
			for _, op := range h {
				in, out := op.Input.(bankInput), op.Output.(bankOutput)
				if !in.reading && !out.unknown && !out.failed && a[in.to].token == in.token {
					a[in.from] = in.seen[0]
					return true
				}
			}
			return false
		})
	},
	"stale reading": func(rng *rand.Rand, start bankState, h []porcupine.Operation) []porcupine.Operation {
		return harmReading(rng, h, func(at *porcupine.Operation, a []bankAccount) bool {
			for _, op := range h {
				in, out := op.Input.(bankInput), op.Output.(bankOutput)
				if !in.reading && !out.unknown && !out.failed && op.Return < at.Call {
					copy(a, start.accounts[:len(a)])
					return true
				}
			}
			return false
		})
	},
	"transfer done twice": func(rng *rand.Rand, _ bankState, h []porcupine.Operation) []porcupine.Operation {
		return harmReading(rng, h, func(_ *porcupine.Operation, a []bankAccount) bool {
			for _, op := range h {
				in, out := op.Input.(bankInput), op.Output.(bankOutput)
				if !in.reading && !out.unknown && !out.failed && a[in.to].token == in.token {
					a[in.to].version += 1000
					return true
				}
			}
			return false
		})
	},
	"lost transfer": func(rng *rand.Rand, _ bankState, h []porcupine.Operation) []porcupine.Operation {
		// Acknowledged on condition of what nobody ever had.
		for _, i := range rng.Perm(len(h)) {
			in, out := h[i].Input.(bankInput), h[i].Output.(bankOutput)
			if !in.reading && !out.unknown && !out.failed {
				in.seen[1] = bankAccount{in.seen[1].balance, 100_000, 100_000}
				h[i].Input = in
				return h
			}
		}
		return nil
	},
	"condition that held told as failed": func(rng *rand.Rand, start bankState, h []porcupine.Operation) []porcupine.Operation {
		first := slices.MinFunc(h, func(a, b porcupine.Operation) int { return int(a.Return - b.Return) })
		began := slices.MinFunc(h, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
		// Before anything else has begun.
		return append(h, porcupine.Operation{Input: bankInput{token: 100_000, from: 0, to: 1, left: [2]int{bankBalance - 1, bankBalance + 1},
			seen: [2]bankAccount{start.accounts[0], start.accounts[1]}}, Output: bankOutput{failed: true}, Call: began.Call - 2, Return: min(began.Call, first.Return) - 1})
	},
}

// harmReading changes one reading.
func harmReading(rng *rand.Rand, h []porcupine.Operation, harm func(*porcupine.Operation, []bankAccount) bool) []porcupine.Operation {
	for _, i := range rng.Perm(len(h)) {
		if !h[i].Input.(bankInput).reading {
			continue
		}
		accounts := slices.Clone(h[i].Output.(bankOutput).accounts)
		if harm(&h[i], accounts) {
			h[i].Output = bankOutput{accounts: accounts}
			return h
		}
	}
	return nil
}

// TestBankChecker_HistoriesOfOneBank_PassAndWrongOnesFail is the control of the bank's checkers: what one bank could
// have shown passes, with answers lost and operations that overlap; the same with one harm does not.
func TestBankChecker_HistoriesOfOneBank_PassAndWrongOnesFail(t *testing.T) {
	rng := random(seed(t), 0)
	found := make(map[string]int)
	for range count(t, "HISTORIES", 100, 30) {
		n := 2 + rng.IntN(3)
		start, history := simulateBank(rng, n, 6, 150)
		if err := checkBank(start, history); err != nil {
			t.Fatalf("a history of one bank: %v", err)
		}
		for name, harm := range bankHarms {
			wrong := harm(rng, start, slices.Clone(history))
			if wrong == nil {
				continue
			}
			switch err := checkBank(start, wrong); {
			case err == nil:
				t.Fatalf("a history with a harm, %s, passes:\n%s", name, listBank(start, wrong))
			case errors.Is(err, errCheckTooLong):
				t.Logf("%s: %v", name, err)
			default:
				found[name]++
			}
		}
	}
	t.Logf("found: %v", found)
	for name := range bankHarms {
		if found[name] == 0 {
			t.Errorf("%s was never found", name)
		}
	}
	whole := []bankAccount{{balance: 3}, {balance: 17}}
	if err := checkSum(whole, 2*bankBalance); err != nil {
		t.Errorf("a sum that holds: %v", err)
	}
	for _, wrong := range [][]bankAccount{{{balance: 3}, {balance: 18}}, {{balance: -3}, {balance: 23}}, {{balance: 3}, {}}} {
		if checkSum(wrong, 2*bankBalance) == nil {
			t.Errorf("%+v passes for a sum of %d", wrong, 2*bankBalance)
		}
	}
}
