package test

import (
	"cmp"
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

// A register is one key. Its operations and what their callers were told are checked for linearizability:
// whether there is one order of them that agrees with the moments at which each began and ended, and in
// which each saw what a single store would have shown it.

// registerKind is what an operation does.
type registerKind int

const (
	readRegister registerKind = iota
	writeRegister
	swapRegister // a write on condition of a version
	deleteRegister
)

func (k registerKind) String() string { return [...]string{"get", "put", "cas", "delete"}[k] }

// registerInput is an operation as it was asked for.
type registerInput struct {
	kind  registerKind
	value string // what is written; no two operations write the same
	if_   uint64 // the version that a swap wants
	where string // node and protocol, for people
}

// registerOutput is what the caller was told.
type registerOutput struct {
	unknown bool   // an operation that may have happened or not, or may still
	failed  bool   // a swap whose condition did not hold
	found   bool   // a read that found the key, a delete that removed it
	value   string // of a read
	version uint64 // of a read or an acknowledged write; 0: never told
}

// registerState is the key at one moment. Versions grow with every change, so that the newest one bounds all
// later ones.
type registerState struct {
	present bool
	value   string
	version uint64 // of the value; unseen where nobody was ever told it
	newest  uint64 // highest version of any change that was told
}

// unseen is the version of a write that nobody was told: no condition ever names it.
const unseen = math.MaxUint64

// registerModel is what a key does.
var registerModel = porcupine.Model{
	Init: func() any { return registerState{} },
	Step: func(state, input, output any) (bool, any) {
		s, in, out := state.(registerState), input.(registerInput), output.(registerOutput)
		write := func() (bool, any) {
			if out.version != unseen {
				if out.version <= s.newest {
					return false, s
				}
				s.newest = out.version
			}
			s.present, s.value, s.version = true, in.value, out.version
			return true, s
		}
		switch in.kind {
		case readRegister:
			if !out.found {
				return !s.present, s
			}
			return s.present && s.value == out.value && s.version == out.version, s
		case writeRegister:
			return write()
		case swapRegister:
			holds := s.present && s.version == in.if_
			switch {
			case out.unknown && !holds:
				return true, s
			case out.failed || !holds:
				return out.failed && !holds, s
			}
			return write()
		default:
			if !out.unknown {
				if out.found != s.present || (out.found && out.version <= s.newest) {
					return false, s
				}
				s.newest = max(s.newest, out.version)
			}
			s.present, s.value, s.version = false, "", 0
			return true, s
		}
	},
	DescribeOperation: func(input, output any) string {
		return describe(input.(registerInput), output.(registerOutput))
	},
}

func describe(in registerInput, out registerOutput) string {
	text := in.where + " " + in.kind.String()
	if in.kind == swapRegister {
		text += fmt.Sprintf(" if version is %d", in.if_)
	}
	if in.value != "" {
		text += " " + in.value
	}
	switch {
	case out.unknown:
		text += ": unknown"
	case out.failed:
		text += ": condition failed"
	case in.kind == readRegister && !out.found:
		text += ": absent"
	case in.kind == readRegister:
		text += fmt.Sprintf(": %s, version %d", out.value, out.version)
	case in.kind == deleteRegister && !out.found:
		text += ": nothing there"
	default:
		text += fmt.Sprintf(": version %d", out.version)
	}
	if !out.unknown {
		return text
	}
	return text + ", may have happened or not"
}

// settleVersions enters, for each write whose answer was lost, the version that reads have shown with its
// value. It tells of values that were shown with two versions: their write happened twice.
func settleVersions(history []porcupine.Operation) error {
	versions := make(map[string]uint64)
	for i := range history {
		in, out := history[i].Input.(registerInput), history[i].Output.(registerOutput)
		value := in.value
		if in.kind == readRegister {
			value = out.value
		}
		if value == "" || out.unknown || out.failed || out.version == 0 {
			continue
		}
		if v, ok := versions[value]; ok && v != out.version {
			return fmt.Errorf("one write, of %s, has the versions %d and %d: it happened twice", value, v, out.version)
		}
		versions[value] = out.version
	}
	for i := range history {
		in, out := history[i].Input.(registerInput), history[i].Output.(registerOutput)
		if (in.kind == writeRegister || in.kind == swapRegister) && !out.failed && out.version == 0 {
			if out.version = versions[in.value]; out.version == 0 {
				out.version = unseen
			}
			history[i].Output = out
		}
	}
	return nil
}

// checkTimeout bounds the search of one key. A few hundred operations take milliseconds.
const checkTimeout = 20 * time.Second

// errCheckTooLong: neither right nor wrong is known.
var errCheckTooLong = errors.New("the checker did not end in time: too many operations at once")

// checkRegister tells whether the history of one key is linearizable. An operation of unknown outcome ends
// at the end of time.
func checkRegister(history []porcupine.Operation) error {
	return searchRegister(history, true, checkTimeout)
}

// searchRegister is checkRegister, with the search made short or not, for as long as that.
func searchRegister(history []porcupine.Operation, short bool, limit time.Duration) error {
	history = slices.Clone(history)
	for i := range history {
		if history[i].Output.(registerOutput).unknown {
			history[i].Return = math.MaxInt64
		}
	}
	if err := settleVersions(history); err != nil {
		return &badHistory{why: err.Error(), history: history}
	}
	told := slices.Clone(history)
	if short {
		if i := narrow(history); i >= 0 {
			return &badHistory{why: "versions go back", history: told, stuck: told[i].Return}
		}
		history = thin(history)
	}
	switch res, info := porcupine.CheckOperationsVerbose(registerModel, history, limit); res {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		return errCheckTooLong
	default:
		return &badHistory{why: "not linearizable", history: told, stuck: stuckAt(history, info)}
	}
}

// narrow moves the ends of each operation that showed a version to where its moment can be at all: versions only grow,
// so that it comes after all that showed a lower one have begun, and before the first that showed a higher one has
// ended. No order is lost by that, and the search becomes short, which otherwise tries every subset of the reads that
// were open together, such as those that a frozen node was asked. It gives the number of an operation that has no
// moment left, -1 if there is none.
func narrow(history []porcupine.Operation) int {
	type shown struct {
		i       int
		version uint64
		read    bool
	}
	var all []shown
	for i := range history {
		in, out := history[i].Input.(registerInput), history[i].Output.(registerOutput)
		if v := out.version; v != 0 && v != unseen && !out.failed {
			all = append(all, shown{i, v, in.kind == readRegister})
		}
	}
	// A change comes before the reads that show it.
	slices.SortFunc(all, func(a, b shown) int {
		if c := cmp.Compare(a.version, b.version); c != 0 || a.read == b.read {
			return c
		}
		if b.read {
			return -1
		}
		return 1
	})
	same := func(a, b shown) bool { return a.version == b.version && a.read == b.read }
	began, ended := make([]int64, len(history)), make([]int64, len(history))
	for i := range history {
		began[i], ended[i] = history[i].Call, history[i].Return
	}
	latest := int64(math.MinInt64)
	for from := 0; from < len(all); {
		to := from
		for ; to < len(all) && same(all[from], all[to]); to++ {
			history[all[to].i].Call = max(began[all[to].i], latest)
		}
		for ; from < to; from++ {
			latest = max(latest, began[all[from].i])
		}
	}
	first := int64(math.MaxInt64)
	for to := len(all); to > 0; {
		from := to
		for ; from > 0 && same(all[from-1], all[to-1]); from-- {
			history[all[from-1].i].Return = min(ended[all[from-1].i], first)
		}
		for ; to > from; to-- {
			first = min(first, ended[all[to-1].i])
		}
	}
	for _, s := range all {
		if history[s.i].Call > history[s.i].Return {
			return s.i
		}
	}
	return -1
}

// sight is what an operation shows of the register without a change of it.
type sight struct {
	present bool
	value   string
	version uint64 // of the value; not: any but this one, or none
	not     bool
}

// seenBy gives what an operation shows; ok is false for one that changes the register.
func seenBy(in registerInput, out registerOutput) (s sight, ok bool) {
	switch {
	case in.kind == readRegister:
		return sight{present: out.found, value: out.value, version: out.version}, true
	case out.unknown:
		return s, false
	case in.kind == deleteRegister && !out.found:
		return sight{}, true
	case in.kind == swapRegister && out.failed:
		return sight{version: in.if_, not: true}, true
	}
	return s, false
}

// after gives what can be seen right after an operation; ok is false where that is not known.
func after(in registerInput, out registerOutput) (s sight, ok bool) {
	if s, ok = seenBy(in, out); ok {
		return s, true
	}
	switch {
	case in.kind == deleteRegister:
		return sight{}, !out.unknown
	case out.unknown:
		return s, false // a write that may never happen
	}
	return sight{present: true, value: in.value, version: out.version}, out.version != unseen
}

// shows tells whether whoever sees s at a moment sees t as well.
func (s sight) shows(t sight) bool {
	if !t.not || s.not {
		return s == t
	}
	return !s.present || s.version != t.version
}

// thin leaves out each operation that changes nothing and has, between its call and its return, the whole of another
// one that lets see the same: wherever that one has its moment, there is room for it right behind. The verdict stays,
// and of the many reads that are open together when a node is frozen few remain.
func thin(history []porcupine.Operation) []porcupine.Operation {
	gone := make([]bool, len(history))
	for i := range history {
		s, ok := seenBy(history[i].Input.(registerInput), history[i].Output.(registerOutput))
		for k := range history {
			if !ok || i == k || gone[k] || history[k].Call < history[i].Call || history[k].Return > history[i].Return {
				continue
			}
			if t, ok := after(history[k].Input.(registerInput), history[k].Output.(registerOutput)); ok && t.shows(s) {
				gone[i] = true
				break
			}
		}
	}
	var kept []porcupine.Operation
	for i := range history {
		if !gone[i] {
			kept = append(kept, history[i])
		}
	}
	return kept
}

// badHistory is a history that no single store could have shown.
type badHistory struct {
	why     string
	history []porcupine.Operation
	stuck   int64 // about when it goes wrong; 0: not known
}

func (e *badHistory) Error() string { return e.why + ":\n" + listRegister(e.history) }

// excerpt lists what lies around the moment at which it goes wrong.
func (e *badHistory) excerpt(lines int) string {
	history := slices.Clone(e.history)
	slices.SortFunc(history, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	at, _ := slices.BinarySearchFunc(history, e.stuck, func(op porcupine.Operation, t int64) int { return cmp.Compare(op.Call, t) })
	from := max(0, min(at-lines*2/3, len(history)-lines))
	return listRegister(history[from:min(from+lines, len(history))])
}

// stuckAt gives the end of the first operation that the longest order found has no place for.
func stuckAt(history []porcupine.Operation, info porcupine.LinearizationInfo) int64 {
	placed := make(map[int]bool)
	for _, orders := range info.PartialLinearizations() {
		for _, order := range orders {
			if len(order) > len(placed) {
				clear(placed)
				for _, i := range order {
					placed[i] = true
				}
			}
		}
	}
	stuck := int64(math.MaxInt64)
	for i := range history {
		if !placed[i] {
			stuck = min(stuck, history[i].Return)
		}
	}
	return stuck
}

// listRegister writes a history in the order in which the operations began.
func listRegister(history []porcupine.Operation) string {
	history = slices.Clone(history)
	slices.SortFunc(history, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	var b strings.Builder
	for _, op := range history {
		end := "…"
		if op.Return != math.MaxInt64 {
			end = fmt.Sprintf("%.3f", time.Duration(op.Return).Seconds())
		}
		fmt.Fprintf(&b, "  %8.3f to %8s  %s\n", time.Duration(op.Call).Seconds(), end,
			describe(op.Input.(registerInput), op.Output.(registerOutput)))
	}
	return b.String()
}

// simulate makes a history that is linearizable, as several clients of one register see it: each operation
// takes effect at some moment between its call and its return.
func simulate(rng *rand.Rand, clients, ops int) []porcupine.Operation {
	var s registerState
	version := uint64(0)
	told := make(map[uint64]bool)
	type pending struct {
		op     porcupine.Operation
		effect int64
	}
	free := make([]int64, clients)
	var all []pending
	for i := range ops {
		k := rng.IntN(clients)
		call := free[k] + int64(rng.IntN(20))
		effect := call + int64(rng.IntN(50))
		end := effect + int64(rng.IntN(50))
		free[k] = end + 1
		in := registerInput{kind: registerKind(rng.IntN(4))}
		if in.kind == writeRegister || in.kind == swapRegister {
			in.value = fmt.Sprintf("v%d", i)
		}
		all = append(all, pending{porcupine.Operation{ClientId: k, Input: in, Call: call, Return: end}, effect})
	}
	slices.SortFunc(all, func(a, b pending) int { return int(a.effect - b.effect) })
	history := make([]porcupine.Operation, 0, ops)
	for _, p := range all {
		in, out := p.op.Input.(registerInput), registerOutput{}
		lost := rng.IntN(50) == 0 // the answer
		switch in.kind {
		case readRegister:
			lost = false
			out = registerOutput{found: s.present, value: s.value, version: s.version}
		case swapRegister:
			// A client names only what it was told.
			if in.if_ = s.version; rng.IntN(3) == 0 || !told[s.version] {
				in.if_ += 50_000
			}
			if !s.present || in.if_ != s.version {
				out.failed = true
				break
			}
			fallthrough
		case writeRegister:
			if lost && rng.IntN(2) == 0 {
				break // it never happens
			}
			version++
			out.version = version
			s.present, s.value, s.version = true, in.value, version
		case deleteRegister:
			if lost && rng.IntN(2) == 0 {
				break
			}
			if out.found = s.present; s.present {
				version++
				out.version = version
			}
			s = registerState{}
		}
		if lost {
			out = registerOutput{unknown: true}
		}
		told[out.version] = true
		p.op.Input, p.op.Output = in, out
		history = append(history, p.op)
	}
	return history
}

// TestRegisterChecker_HistoriesOfOneStore_PassAndWrongOnesFail is the control of the checks for
// linearizability: what a single store could have shown passes, with answers lost and operations that
// overlap; the same histories with a read that is stale, a write that is lost, or one that happens twice
// do not.
func TestRegisterChecker_HistoriesOfOneStore_PassAndWrongOnesFail(t *testing.T) {
	s := seed(t)
	rng := random(s, 0)
	found := make(map[string]int)
	for range count(t, "HISTORIES", 200, 40) {
		history := simulate(rng, 6, 150)
		if err := checkRegister(history); err != nil {
			t.Fatalf("a history of one store: %v", err)
		}
		for name, harm := range map[string]func(*rand.Rand, []porcupine.Operation) []porcupine.Operation{
			"stale read": injectStaleRead, "lost write": injectLostWrite, "write done twice": injectSecondVersion,
			"version that goes back": injectOldVersion, "swap against its condition": injectWrongSwap, "value of nobody": injectValueOfNobody,
		} {
			wrong := harm(rng, slices.Clone(history))
			if wrong == nil {
				continue // nothing in this history to harm
			}
			err := checkRegister(wrong)
			if whole := searchRegister(wrong, false, checkTimeout); (err == nil) != (whole == nil) && !errors.Is(err, errCheckTooLong) && !errors.Is(whole, errCheckTooLong) {
				t.Fatalf("a history with a %s: the short search says %v, the whole one %v", name, err, whole)
			}
			switch {
			case err == nil:
				t.Fatalf("a history with a %s passes:\n%s", name, listRegister(wrong))
			case errors.Is(err, errCheckTooLong):
				t.Logf("%s: %v", name, err)
			default:
				found[name]++
			}
		}
	}
	t.Logf("found: %v", found)
	if len(found) != 6 {
		t.Errorf("only %v were ever found", found)
	}
}

// injectStaleRead lets a read find what a write that ended before it began has replaced.
func injectStaleRead(rng *rand.Rand, h []porcupine.Operation) []porcupine.Operation {
	for _, i := range rng.Perm(len(h)) {
		if h[i].Input.(registerInput).kind != readRegister || !h[i].Output.(registerOutput).found {
			continue
		}
		now := h[i].Output.(registerOutput)
		for _, k := range rng.Perm(len(h)) {
			old := h[k].Output.(registerOutput)
			if h[k].Input.(registerInput).kind != readRegister || !old.found || old.version >= now.version {
				continue
			}
			for _, w := range h {
				in, out := w.Input.(registerInput), w.Output.(registerOutput)
				if in.value != "" && !out.failed && !out.unknown && out.version > old.version && w.Return < h[i].Call {
					h[i].Output = old
					return h
				}
			}
		}
	}
	return nil
}

// injectLostWrite lets a read after an acknowledged write find nothing, although nothing was deleted.
func injectLostWrite(_ *rand.Rand, h []porcupine.Operation) []porcupine.Operation {
	for r := range h {
		if out := h[r].Output.(registerOutput); h[r].Input.(registerInput).kind != readRegister || !out.found {
			continue
		}
		for w := range h {
			if out := h[w].Output.(registerOutput); h[w].Input.(registerInput).kind != writeRegister || out.unknown || h[w].Return >= h[r].Call {
				continue
			}
			deleted := false
			for _, d := range h {
				ended := d.Return < h[w].Call && !d.Output.(registerOutput).unknown
				deleted = deleted || d.Input.(registerInput).kind == deleteRegister && d.Call <= h[r].Return && !ended
			}
			if !deleted {
				h[r].Output = registerOutput{}
				return h
			}
		}
	}
	return nil
}

// injectSecondVersion lets a read find the value of a write under a version that is not its own.
func injectSecondVersion(rng *rand.Rand, h []porcupine.Operation) []porcupine.Operation {
	for _, i := range rng.Perm(len(h)) {
		out := h[i].Output.(registerOutput)
		if h[i].Input.(registerInput).kind != readRegister || !out.found {
			continue
		}
		for k := range h {
			if w := h[k].Output.(registerOutput); h[k].Input.(registerInput).value == out.value && !w.unknown {
				out.version += 1000
				h[i].Output = out
				return h
			}
		}
	}
	return nil
}

// injectOldVersion gives a write that nobody read a version below one that was told before it began.
func injectOldVersion(rng *rand.Rand, h []porcupine.Operation) []porcupine.Operation {
	for _, i := range rng.Perm(len(h)) {
		in, out := h[i].Input.(registerInput), h[i].Output.(registerOutput)
		if in.kind != writeRegister || out.unknown {
			continue
		}
		read, before := false, uint64(0)
		for k := range h {
			o := h[k].Output.(registerOutput)
			read = read || o.value == in.value || h[k].Input.(registerInput).if_ == out.version
			if h[k].Return < h[i].Call && h[k].Input.(registerInput).kind == writeRegister {
				before = max(before, o.version)
			}
		}
		if !read && before > 1 {
			out.version = before - 1
			h[i].Output = out
			return h
		}
	}
	return nil
}

// injectValueOfNobody lets a read find what nobody wrote, with the version that is right: one, if there is such, during
// which others saw the same version.
func injectValueOfNobody(rng *rand.Rand, h []porcupine.Operation) []porcupine.Operation {
	at := -1
	for _, i := range rng.Perm(len(h)) {
		out := h[i].Output.(registerOutput)
		if h[i].Input.(registerInput).kind != readRegister || !out.found {
			continue
		}
		around := slices.ContainsFunc(h, func(op porcupine.Operation) bool {
			return op.Call > h[i].Call && op.Return < h[i].Return && op.Output.(registerOutput).version == out.version
		})
		if at = i; around {
			break
		}
	}
	if at < 0 {
		return nil
	}
	out := h[at].Output.(registerOutput)
	out.value = "of nobody"
	h[at].Output = out
	return h
}

// injectWrongSwap lets a swap succeed whose version never was.
func injectWrongSwap(rng *rand.Rand, h []porcupine.Operation) []porcupine.Operation {
	for _, i := range rng.Perm(len(h)) {
		in, out := h[i].Input.(registerInput), h[i].Output.(registerOutput)
		if in.kind == swapRegister && !out.failed && !out.unknown {
			in.if_ += 100_000
			h[i].Input = in
			return h
		}
	}
	return nil
}
