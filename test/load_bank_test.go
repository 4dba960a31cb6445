package test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"

	"kvstore/client"
)

// The bank: groups of accounts, and transfers between two accounts of a group by transactions on condition of the
// versions that the caller has read. No transfer changes the sum of a group, so whatever shows a group at one moment
// shows that sum: a listing of one page or of several, many keys in one read, a transaction that only reads, the past,
// at the leader and at followers. Each group's history is checked for strict serializability as well: there must be one
// order of all transfers and readings that agrees with the moments at which each began and ended.
//
// An account with nothing in it is deleted at times: then its next change wants it to be absent.

func init() { workloads["bank"] = func() workload { return new(bankLoad) } }

const (
	bankSlots       = 3   // groups in use at once
	bankOpsMax      = 250 // operations of one group: more make the checker slow
	bankAccountsMax = 12
	bankBalance     = 10 // of each account in the beginning: small, so that accounts become empty
)

// loadTimeout is the patience of a caller that would rather wait than not know: longer than any fault.
const loadTimeout = 30 * time.Second

// hastyTimeout is that of callers who give up early, so that outcomes stay unknown.
const hastyTimeout = 700 * time.Millisecond

// callAs does one step after the other until the loads end. A step that failed is followed by a longer pause: what is
// down is not asked in a tight loop.
func (r *faultRun) callAs(name string, least, most time.Duration, step func(rng *rand.Rand) (ok bool)) {
	rng := r.stream(name)
	r.work.Go(func() { // ends with r.ctx
		for r.ctx.Err() == nil {
			pause := between(rng, least, most)
			if !step(rng) {
				pause = max(10*pause, 50*time.Millisecond)
			}
			if !r.sleepRun(pause) {
				return
			}
		}
	})
}

// wrote sorts the error of a write. failed: a condition did not hold.
func (r *faultRun) wrote(what string, err error) (o outcome, failed bool) {
	switch {
	case err == nil:
		r.tick()
		return acked, false
	case errors.Is(err, client.ErrConditionFailed):
		return refused, true
	case errors.Is(err, client.ErrMaybeApplied):
		return unknown, false
	case !errors.Is(err, client.ErrNotApplied):
		r.anomaly("%s: an error of a write that is neither ErrNotApplied nor ErrMaybeApplied: %v", what, err)
		return unknown, false
	}
	return refused, false
}

// readError sorts the error of a read that told nothing: only the breach of the protocol is one of a promise.
func (r *faultRun) readError(what string, err error) {
	if errors.Is(err, client.ErrProtocol) || errors.Is(err, client.ErrBadRequest) {
		r.anomaly("%s: %v", what, err)
	}
}

// bankGroup is some accounts whose sum never changes.
type bankGroup struct {
	// Immutable.
	name  string
	n     int
	start bankState

	mu sync.Mutex
	// Guarded by mu.
	calls   int // operations begun
	pending int // of these, not ended
	history []porcupine.Operation
	last    client.Version // the newest revision that anybody was told
	seen    []bankAccount  // what somebody read a while ago
}

func (g *bankGroup) total() int { return g.n * bankBalance }

// key of account i.
func (g *bankGroup) key(i int) string { return fmt.Sprintf("%s%02d", g.name, i) }

func (g *bankGroup) keys() []string {
	keys := make([]string, g.n)
	for i := range keys {
		keys[i] = g.key(i)
	}
	return keys
}

func bankValue(balance int, token uint64) []byte { return fmt.Appendf(nil, "%d %d", balance, token) }

// account reads what a value says.
func (g *bankGroup) account(key string, v *client.Value) (i int, a bankAccount, err error) {
	if _, err := fmt.Sscanf(strings.TrimPrefix(key, g.name), "%d", &i); err != nil || i < 0 || i >= g.n || g.key(i) != key {
		return 0, a, fmt.Errorf("%q is no account of %s", key, g.name)
	}
	if _, err := fmt.Sscanf(string(v.Data), "%d %d", &a.balance, &a.token); err != nil || a.token == 0 {
		return 0, a, fmt.Errorf("%s holds %q, which nobody wrote", key, v.Data)
	}
	a.version = uint64(v.Version)
	return i, a, nil
}

// bankLoad is the workload.
type bankLoad struct {
	r     *faultRun // set by drive
	total atomic.Int64
	names atomic.Int64 // groups begun
	done  atomic.Int64
	lost  atomic.Int64 // transfers whose outcome stayed unknown
	sums  atomic.Int64 // readings whose sum was checked, and which are in no history
	ops   atomic.Int64 // operations in histories that were checked
	late  atomic.Int64 // histories that the checker could not judge in time
	ended atomic.Int64 // histories that were checked

	mu sync.Mutex
	// Guarded by mu.
	slots   [bankSlots]*bankGroup
	opening [bankSlots]bool
	sizes   map[string]int // accounts of each group ever opened
}

func (b *bankLoad) name() string { return "bank" }

func (b *bankLoad) figures() figures {
	return figures{done: b.done.Load(), unknown: b.lost.Load(), checked: b.ops.Load(), least: 50}
}

func (b *bankLoad) drive(r *faultRun) {
	b.r, b.sizes = r, make(map[string]int)
	patient := openAt(r.t, r.c.Addrs(), client.WithTimeout(loadTimeout), client.WithName("bank"))
	hasty := openAt(r.t, r.c.Addrs(), client.WithTimeout(hastyTimeout), client.WithoutSession(), client.WithName("bank, hasty"))
	for i := range 6 {
		c := patient
		if i == 0 {
			c = hasty
		}
		r.callAs(fmt.Sprintf("bank %d", i), 2*time.Millisecond, 8*time.Millisecond, func(rng *rand.Rand) bool { return b.step(c, rng) })
	}
}

// pick gives a group to work on, or the number of a slot for which the caller must open one, or neither.
func (b *bankLoad) pick(rng *rand.Rand) (g *bankGroup, slot int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := rng.IntN(bankSlots)
	if g = b.slots[i]; g != nil {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.calls < bankOpsMax {
			g.calls++
			g.pending++
			return g, -1
		}
		b.slots[i] = nil
	}
	if b.opening[i] {
		return nil, -1
	}
	b.opening[i] = true
	return nil, i
}

// open makes a fresh group.
func (b *bankLoad) open(c *client.Client, rng *rand.Rand, slot int) bool {
	g := &bankGroup{name: fmt.Sprintf("bank/%06d/", b.names.Add(1)), n: []int{2, 3, 4, bankAccountsMax}[rng.IntN(4)]}
	tx := c.Txn()
	token := uint64(b.total.Add(1))
	for _, key := range g.keys() {
		tx.Put(key, bankValue(bankBalance, token), client.IfAbsent())
	}
	res, err := tx.Commit(context.Background())
	o, failed := b.r.wrote("opening of "+g.name, err)
	if failed {
		b.r.anomaly("%s was there before anybody had opened it: %v", g.name, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opening[slot] = false
	if o != acked || res.Truncated {
		return false // its name is used by nobody
	}
	for i := range g.n {
		v := uint64(res.Results[i].Version)
		g.start.accounts[i] = bankAccount{bankBalance, token, v}
		g.start.newest = max(g.start.newest, v)
	}
	g.last = client.Version(g.start.newest)
	g.seen = slices.Clone(g.start.accounts[:g.n])
	b.slots[slot], b.sizes[g.name] = g, g.n
	return true
}

// step reads a group in one way, and moves money.
func (b *bankLoad) step(c *client.Client, rng *rand.Rand) bool {
	g, slot := b.pick(rng)
	if slot >= 0 {
		return b.open(c, rng, slot)
	}
	if g == nil {
		return false
	}
	defer b.leave(g)
	way := bankWays[rng.IntN(len(bankWays))]
	call := time.Since(b.r.began)
	g.mu.Lock()
	last := g.last
	g.mu.Unlock()
	seen, err := way.read(c, g, last)
	back := time.Since(b.r.began)
	if err != nil {
		if errors.Is(err, errBankShown) {
			b.r.anomaly("%s by %s: %v", g.name, way.name, err)
		}
		b.r.readError("bank, "+way.name, err)
		return false
	}
	b.done.Add(1)
	// A stale state may be one from before the group was opened.
	unborn := way.stale && !slices.ContainsFunc(seen, func(a bankAccount) bool { return a.token != 0 })
	if err := checkSum(seen, g.total()); err != nil && !unborn {
		b.r.anomaly("%s by %s: %v", g.name, way.name, err)
		return false
	}
	if way.stale || way.past {
		b.sums.Add(1)
		return true
	}
	g.mu.Lock()
	g.history = append(g.history, porcupine.Operation{Input: bankInput{reading: true, where: way.name}, Output: bankOutput{accounts: seen}, Call: int64(call), Return: int64(back)})
	if rng.IntN(10) == 0 {
		seen, g.seen = g.seen, seen // one that was read long ago: its conditions should not hold
	}
	g.mu.Unlock()
	return b.transfer(c, rng, g, seen)
}

// transfer moves a random amount between two accounts.
func (b *bankLoad) transfer(c *client.Client, rng *rand.Rand, g *bankGroup, seen []bankAccount) bool {
	from, to := rng.IntN(g.n), rng.IntN(g.n-1)
	if to >= from {
		to++
	}
	if seen[from].balance == 0 {
		from, to = to, from
	}
	if seen[from].balance == 0 {
		return true
	}
	amount := 1 + rng.IntN(seen[from].balance)
	if rng.IntN(4) == 0 {
		amount = seen[from].balance
	}
	in := bankInput{token: uint64(b.total.Add(1)), from: from, to: to, seen: [2]bankAccount{seen[from], seen[to]}, where: "transfer",
		left: [2]int{seen[from].balance - amount, seen[to].balance + amount}}
	in.closes = in.left[0] == 0 && rng.IntN(2) == 0
	cond := func(i int) client.Condition {
		if seen[i].token == 0 {
			return client.IfAbsent()
		}
		return client.IfVersion(client.Version(seen[i].version))
	}
	tx := c.Txn()
	places := [2]int{0, 1}
	if rng.IntN(3) == 0 { // the conditions on their own, in front
		tx.If(g.key(to), cond(to)).If(g.key(from), cond(from))
		places = [2]int{2, 3}
	}
	if in.closes {
		tx.Delete(g.key(from), cond(from))
	} else {
		tx.Put(g.key(from), bankValue(in.left[0], in.token), cond(from))
	}
	tx.Put(g.key(to), bankValue(in.left[1], in.token), cond(to))
	call := time.Since(b.r.began)
	res, err := tx.Commit(context.Background())
	back := time.Since(b.r.began)
	o, failed := b.r.wrote("transfer", err)
	out := bankOutput{unknown: o == unknown, failed: failed}
	switch {
	case o == acked && res.Truncated:
		b.r.anomaly("transfer %d: an answer of two versions was not kept for the second attempt", in.token)
		return false
	case o == acked:
		b.done.Add(1)
		out.versions = [2]uint64{uint64(res.Results[places[0]].Version), uint64(res.Results[places[1]].Version)}
	case failed:
		b.done.Add(1)
	case o == unknown:
		b.lost.Add(1)
	default:
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last = max(g.last, client.Version(out.versions[1]))
	g.history = append(g.history, porcupine.Operation{Input: in, Output: out, Call: int64(call), Return: int64(back)})
	return o != unknown
}

// leave ends an operation on a group. The last one checks the whole history.
func (b *bankLoad) leave(g *bankGroup) {
	g.mu.Lock()
	g.pending--
	over := g.pending == 0 && g.calls >= bankOpsMax
	g.mu.Unlock()
	if over {
		b.check(g)
	}
}

// check judges a group on which nobody works any more, and forgets its history.
func (b *bankLoad) check(g *bankGroup) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch err := checkBank(g.start, g.history); {
	case errors.Is(err, errCheckTooLong):
		b.late.Add(1)
	case err != nil:
		b.r.anomaly("%s, %d accounts: %v", g.name, g.n, err)
	default:
		b.ops.Add(int64(len(g.history)))
	}
	b.ended.Add(1)
	g.history = nil
}

// verify checks the groups that were still in use, and the sum of each group that ever was, in a listing of all.
func (b *bankLoad) verify(r *faultRun) {
	for _, g := range b.slots {
		if g != nil {
			b.check(g)
		}
	}
	if late := b.late.Load(); late*10 > b.ended.Load() {
		r.t.Errorf("%d of %d groups could not be checked in time", late, b.ended.Load())
	}
	c := openAt(r.t, r.c.Addrs(), client.WithTimeout(loadTimeout))
	for _, read := range [][]client.GetOption{nil, {client.AnyNode()}} {
		sums := make(map[string]int)
		for e, err := range c.List(context.Background(), client.ListOptions{Prefix: "bank/", Read: read}) {
			if err != nil {
				r.t.Errorf("cannot list the bank in the end: %v", err)
				return
			}
			name := e.Key[:strings.LastIndexByte(e.Key, '/')+1]
			g := bankGroup{name: name, n: bankAccountsMax}
			_, a, err := g.account(e.Key, &e.Value)
			if err != nil || a.balance < 0 {
				r.anomaly("in the end: %s holds %q (%v)", e.Key, e.Data, err)
			}
			sums[name] += a.balance
		}
		for name, n := range b.sizes {
			if sums[name] != n*bankBalance {
				r.anomaly("in the end the sum of %s is %d and not %d", name, sums[name], n*bankBalance)
			}
		}
	}
	r.note("bank: %d groups checked, %d of them not in time; %d readings of the past or of a stale state besides", b.ended.Load(), b.late.Load(), b.sums.Load())
}

// bankWay shows all accounts of a group at one moment.
type bankWay struct {
	name  string
	stale bool // what it shows may be older than anything that anybody was told
	past  bool // what it shows is of the past, and not older than the group
	read  func(c *client.Client, g *bankGroup, last client.Version) ([]bankAccount, error)
}

// errBankShown: what came can't be.
var errBankShown = errors.New("what is shown can't be")

var bankWays = []bankWay{
	{name: "listing", read: listBankWith()},
	{name: "listing at any node", read: listBankWith(client.AnyNode())},
	{name: "stale listing", stale: true, read: listBankWith(client.Stale())},
	{name: "listing in pages", read: pagesOfBank},
	{name: "listing in pages at any node", read: pagedBankWith(client.AnyNode())},
	{name: "stale listing in pages", stale: true, read: pagedBankWith(client.Stale())},
	{name: "many keys", read: manyOfBank()},
	{name: "many keys at any node", read: manyOfBank(client.AnyNode())},
	{name: "many keys, stale", stale: true, read: manyOfBank(client.Stale())},
	{name: "transaction", read: txnOfBank},
	{name: "many keys of the past", past: true, read: func(c *client.Client, g *bankGroup, last client.Version) ([]bankAccount, error) {
		return manyOfBank(client.AtRevision(last))(c, g, last)
	}},
}

type bankReader = func(c *client.Client, g *bankGroup, last client.Version) ([]bankAccount, error)

// fill enters the entries of a listing.
func (g *bankGroup) fill(all []bankAccount, entries []client.Entry) error {
	for k := range entries {
		i, a, err := g.account(entries[k].Key, &entries[k].Value)
		if err != nil {
			return fmt.Errorf("%w: %w", errBankShown, err)
		}
		if all[i].token != 0 {
			return fmt.Errorf("%w: %s stands twice in one listing", errBankShown, entries[k].Key)
		}
		all[i] = a
	}
	return nil
}

func listBankWith(read ...client.GetOption) bankReader {
	return func(c *client.Client, g *bankGroup, _ client.Version) ([]bankAccount, error) {
		p, err := c.ListPage(context.Background(), client.ListOptions{Prefix: g.name, Read: read}, nil)
		if err != nil {
			return nil, err
		}
		if len(p.Cursor) > 0 {
			return nil, fmt.Errorf("%w: a page of %d of at most %d short entries has a cursor", errBankShown, len(p.Entries), g.n)
		}
		all := make([]bankAccount, g.n)
		return all, g.fill(all, p.Entries)
	}
}

func pagedBankWith(read ...client.GetOption) bankReader {
	return func(c *client.Client, g *bankGroup, _ client.Version) ([]bankAccount, error) {
		all := make([]bankAccount, g.n)
		for e, err := range c.List(context.Background(), client.ListOptions{Prefix: g.name, PageSize: 1 + g.n/3, Read: read}) {
			if err != nil {
				return nil, err
			}
			if err := g.fill(all, []client.Entry{e}); err != nil {
				return nil, err
			}
		}
		return all, nil
	}
}

// pagesOfBank asks the leader for each page, whoever leads by then.
func pagesOfBank(c *client.Client, g *bankGroup, _ client.Version) ([]bankAccount, error) {
	all := make([]bankAccount, g.n)
	o := client.ListOptions{Prefix: g.name, PageSize: 1 + g.n/3, Reverse: g.n%2 == 0}
	var cursor []byte
	var revision client.Version
	for {
		p, err := c.ListPage(context.Background(), o, cursor)
		if err != nil {
			return nil, err
		}
		if revision == 0 {
			revision = p.Revision
		}
		if p.Revision != revision {
			return nil, fmt.Errorf("%w: pages of one listing have the revisions %d and %d", errBankShown, revision, p.Revision)
		}
		if err := g.fill(all, p.Entries); err != nil {
			return nil, err
		}
		if cursor = p.Cursor; len(cursor) == 0 {
			return all, nil
		}
	}
}

func manyOfBank(read ...client.GetOption) bankReader {
	return func(c *client.Client, g *bankGroup, _ client.Version) ([]bankAccount, error) {
		res, err := c.BatchGet(context.Background(), g.keys(), read...)
		if err != nil {
			return nil, err
		}
		return g.results(res.Items)
	}
}

func txnOfBank(c *client.Client, g *bankGroup, _ client.Version) ([]bankAccount, error) {
	tx := c.Txn()
	for _, key := range g.keys() {
		tx.Get(key)
	}
	res, err := tx.Commit(context.Background())
	if err != nil {
		return nil, err
	}
	if res.Truncated {
		return nil, errors.New("the answer was lost")
	}
	return g.results(res.Results)
}

// results reads one result for each account.
func (g *bankGroup) results(items []client.ItemResult) ([]bankAccount, error) {
	all := make([]bankAccount, g.n)
	for i := range items {
		switch it := &items[i]; {
		case errors.Is(it.Err, client.ErrNotFound):
		case it.Err != nil:
			return nil, it.Err
		default:
			_, a, err := g.account(g.key(i), it.Value)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", errBankShown, err)
			}
			all[i] = a
		}
	}
	return all, nil
}
