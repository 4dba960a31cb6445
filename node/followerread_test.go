package node

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"kvstore/wire"
)

var (
	anyNode = wire.AppendExtU8(nil, wire.ExtConsistency, wire.ConsistencyAnyNode)
	stale   = wire.AppendExtU8(nil, wire.ExtConsistency, wire.ConsistencyStale)
)

func staleWithin(ms uint64) []byte {
	return wire.AppendExtU64(stale[:len(stale):len(stale)], wire.ExtMaxAge, ms)
}

// ageOf gives the age in an answer; ok is false when it tells none, not even that it is unknown.
func ageOf(t *testing.T, r *wire.Response) (us uint64, ok bool) {
	t.Helper()
	for ext := r.Ext; len(ext) > 0; {
		e, v, rest, err := wire.NextExt(ext)
		if err != nil {
			t.Fatal(err)
		}
		if ext = rest; e == wire.ExtAge {
			return binary.LittleEndian.Uint64(v), true
		}
	}
	return 0, false
}

// holdQuestions makes n believe that a question is under way until release is called with what came of it; jobs
// that were waiting for it get that word.
func holdQuestions(t *testing.T, n *Node) (release func(leaderWord)) {
	t.Helper()
	f := n.service.follower
	held := &round{sentAt: 1}
	until(t, "no question is under way", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.asked != nil {
			return false
		}
		f.asked = held
		return true
	})
	return func(w leaderWord) { f.answers <- w }
}

func waitingReads(n *Node) int {
	f := n.service.follower
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.items
}

// Whatever was acknowledged before, a follower's linearizable answers hold, of every kind of read; and it asks for
// an index, never for the records.
func TestFollowerRead_RightAfterEachWrite_HoldsIt(t *testing.T) {
	slow(t)
	for _, mode := range []string{readModeLease, readModeReadIndex} {
		t.Run(mode, func(t *testing.T) {
			c := newCluster(t, 3, func(o *Options) { o.ReadMode = mode })
			c.start(c.ids...)
			leader, others := c.leader()
			for i := range 50 {
				value := strconv.Itoa(i)
				if r := put(t, leader, "k", value); r.Status != wire.StatusOK {
					t.Fatal(r.Status)
				}
				n := others[i%2]
				if r := once(t, n, request(t, wire.OpGet, anyNode, "k", nil)); r.Status != wire.StatusOK || string(r.Payload) != value {
					t.Fatalf("write %d: GET gives %s %q", i, r.Status, r.Payload)
				} else if _, told := ageOf(t, &r); told {
					t.Fatal("a linearizable answer tells an age")
				}
				version := leader.shard.engine.Applied().Revision
				r := once(t, n, request(t, wire.OpExists, anyNode, "k", nil))
				var m wire.Meta
				if _, v, _, err := wire.NextExt(r.Ext); err != nil || wire.DecodeMeta(v, &m) != nil || m.Version > version || m.Version < version {
					t.Fatalf("write %d: EXISTS gives %s %+v, not version %d", i, r.Status, m, version)
				}
				r = once(t, n, request(t, wire.OpMultiGet, anyNode, "", group(wire.OpMultiGet, 0, wire.Item{Op: wire.OpGet, Key: []byte("k")})))
				var it wire.Item
				if _, _, items, err := wire.DecodeResult(r.Payload); err != nil || r.Status != wire.StatusOK {
					t.Fatalf("MULTIGET: %s %v", r.Status, err)
				} else if _, err := wire.NextItem(items, &it); err != nil || string(it.Value) != value {
					t.Fatalf("write %d: MULTIGET gives %q", i, it.Value)
				}
				r = once(t, n, request(t, wire.OpScan, anyNode, "", scanPayload("")))
				var page wire.ScanPage
				if err := wire.DecodeScanPage(r.Payload, &page); err != nil || r.Status != wire.StatusOK {
					t.Fatalf("SCAN: %s %v", r.Status, err)
				} else if _, err := wire.NextItem(page.Items, &it); err != nil || string(it.Value) != value {
					t.Fatalf("write %d: SCAN gives %q", i, it.Value)
				}
				// REST's way, whose requests say nothing of other nodes.
				if r := do(t, n, wire.OpGet, nil, "k", nil); string(r.Payload) != value {
					t.Fatalf("write %d: Do gives %s %q", i, r.Status, r.Payload)
				}
			}
			for _, n := range others {
				if k := n.service.forwarded.done.Load(); k != 0 {
					t.Errorf("%s passed %d requests on", n.info.NodeID, k)
				}
				if f := n.service.follower; f.served.Load() == 0 || f.refused.Load() != 0 {
					t.Errorf("%s: %d served, %d refused", n.info.NodeID, f.served.Load(), f.refused.Load())
				}
			}
		})
	}
}

// All reads that come while a question is under way share the next one, and none gets the word that came of the
// one before.
func TestFollowerRead_ManyAtOnce_ShareOneQuestion(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	leader, others := c.leader()
	n := others[0]
	before := leader.shard.readPoint()
	release := holdQuestions(t, n)
	const many = 500
	answers := make(chan wire.Response, many)
	for range many {
		go func() { answers <- once(t, n, request(t, wire.OpGet, anyNode, "k", nil)) }() // each ends with its answer
	}
	until(t, "all reads wait", func() bool { return waitingReads(n) == many })
	if r := put(t, leader, "k", "new"); r.Status != wire.StatusOK {
		t.Fatal(r.Status)
	}
	asked := n.service.follower.questions.Load()
	release(leaderWord{point: before})
	for range many {
		if r := <-answers; r.Status != wire.StatusOK || string(r.Payload) != "new" {
			t.Fatalf("%s %q: the word of an earlier question was taken", r.Status, r.Payload)
		}
	}
	if k := n.service.follower.questions.Load() - asked; k != 1 {
		t.Errorf("%d questions for reads that waited together", k)
	}
}

func TestFollowerRead_BehindTheLeader_WaitsAndGivesUpInTime(t *testing.T) {
	c := newCluster(t, 3, func(o *Options) { o.Service.FollowerReadTimeout = 300 * time.Millisecond })
	c.start(c.ids...)
	leader, others := c.leader()
	n := others[0]
	f := n.service.follower
	// ask puts one read into a question whose answer is made up.
	ask := func(index uint64, timeoutMs uint32) chan wire.Response {
		release := holdQuestions(t, n)
		answer := make(chan wire.Response, 1)
		go func() { // ends with its answer
			r := request(t, wire.OpGet, anyNode, "k", nil)
			r.TimeoutMs = timeoutMs
			answer <- once(t, n, r)
		}()
		until(t, "the read waits", func() bool { return waitingReads(n) == 1 })
		f.mu.Lock()
		f.asked.jobs, f.arrived = f.arrived, nil
		f.mu.Unlock()
		release(leaderWord{point: wire.ReadPoint{Index: index}})
		return answer
	}
	at := leader.shard.engine.Applied().Index
	answer := ask(at+1, 0)
	if r := put(t, leader, "k", "v"); r.Status != wire.StatusOK {
		t.Fatal(r.Status)
	}
	if r := <-answer; string(r.Payload) != "v" {
		t.Errorf("%s %q before the entry was applied", r.Status, r.Payload)
	}
	if r := <-ask(at+1000, 0); r.Status != wire.StatusRetryLater {
		t.Errorf("far behind: %s", r.Status)
	}
	if r := <-ask(at+1000, 100); r.Status != wire.StatusTooLate {
		t.Errorf("past its deadline: %s", r.Status)
	}
	until(t, "nothing waits", func() bool { return waitingReads(n) == 0 })

	// A read is never refused for what became of others.
	if r := once(t, n, request(t, wire.OpGet, anyNode, "k", nil)); string(r.Payload) != "v" {
		t.Errorf("%s %q", r.Status, r.Payload)
	}
}

func TestFollowerRead_Bounds_RefuseAndForgetNothing(t *testing.T) {
	c := newCluster(t, 3, func(o *Options) { o.Service.ReadQueueBytes = 5 << 10 })
	c.start(c.ids...)
	_, others := c.leader()
	n := others[0]
	f := n.service.follower
	release := holdQuestions(t, n)
	f.mu.Lock()
	f.items = followerReadsMax
	f.mu.Unlock()
	if r := once(t, n, request(t, wire.OpGet, anyNode, "k", nil)); r.Status != wire.StatusBusy {
		t.Errorf("one read too many: %s", r.Status)
	}
	f.mu.Lock()
	f.items = 0
	f.mu.Unlock()
	long := fmt.Sprintf("%01000d", 0)
	answers := make(chan wire.Response, 8)
	for range cap(answers) {
		go func() { answers <- once(t, n, request(t, wire.OpGet, anyNode, long, nil)) }() // each ends with its answer
	}
	for range cap(answers) - 4 {
		if r := <-answers; r.Status != wire.StatusBusy {
			t.Errorf("more bytes than may wait: %s", r.Status)
		}
	}
	release(leaderWord{refusal: leaderSilent})
	for range 4 {
		if r := <-answers; r.Status != wire.StatusNotFound {
			t.Errorf("what fits: %s", r.Status)
		}
	}
	if waiting := n.service.reads.bytes.Load(); waiting != 0 {
		t.Errorf("%d bytes are counted while nothing waits", waiting)
	}
}

func TestFollowerRead_Close_RefusesWhatWaits(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	_, others := c.leader()
	n := others[0]
	answers := make(chan wire.Response, 3)
	// A revision that never comes, an entry that never comes, and a question that is never answered.
	far := wire.AppendExtU64(stale[:len(stale):len(stale)], wire.ExtMinRevision, 1<<60)
	go func() { answers <- once(t, n, request(t, wire.OpGet, far, "k", nil)) }() // ends with its answer, as those below
	until(t, "one read waits", func() bool { return waitingReads(n) == 1 })
	release := holdQuestions(t, n)
	go func() { answers <- once(t, n, request(t, wire.OpGet, anyNode, "k", nil)) }()
	until(t, "two reads wait", func() bool { return waitingReads(n) == 2 })
	f := n.service.follower
	f.mu.Lock()
	f.asked.jobs, f.arrived = f.arrived, nil
	f.mu.Unlock()
	release(leaderWord{point: wire.ReadPoint{Index: 1 << 40}})
	until(t, "the word is taken", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.rounds) == 2
	})
	holdQuestions(t, n)
	go func() { answers <- once(t, n, request(t, wire.OpGet, anyNode, "k", nil)) }()
	until(t, "three reads wait", func() bool { return waitingReads(n) == 3 })
	f.close()
	for range cap(answers) {
		if r := <-answers; r.Status != wire.StatusDraining {
			t.Errorf("%s", r.Status)
		}
	}
	if r := once(t, n, request(t, wire.OpGet, anyNode, "k", nil)); r.Status != wire.StatusDraining {
		t.Errorf("after close: %s", r.Status)
	}
	if waiting := n.service.reads.bytes.Load(); waiting != 0 {
		t.Errorf("%d bytes are counted while nothing waits", waiting)
	}
}

// A follower may apply an entry before its leader has: until the leader has it, no linearizable read of any node shows
// it. So what answers is the state that the leader named, and its past, even when a newer one is at hand.
func TestFollowerRead_AheadOfTheLeader_ShowsTheLeadersState(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	leader, others := c.leader()
	n := others[0]
	write3 := func(value string) wire.ReadPoint {
		for _, key := range []string{"k", "other"} {
			if r := put(t, leader, key, value); r.Status != wire.StatusOK {
				t.Fatal(r.Status)
			}
		}
		if r := do(t, leader, wire.OpDelete, nil, "gone by "+value, nil); r.Status.Class() != wire.ClassResult {
			t.Fatal(r.Status)
		}
		return leader.shard.readPoint()
	}
	first := write3("old")
	if r := put(t, leader, "gone by new", "x"); r.Status != wire.StatusOK {
		t.Fatal(r.Status)
	}
	named := leader.shard.readPoint()
	last := write3("new")
	c.same()
	with := func(e wire.ExtType, rev wire.Revision) []byte {
		return wire.AppendExtU64(anyNode[:len(anyNode):len(anyNode)], e, rev)
	}
	for name, test := range map[string]struct {
		r      *wire.Request
		status wire.Status
		want   string
	}{
		"GET":                 {request(t, wire.OpGet, anyNode, "k", nil), wire.StatusOK, "old"},
		"GET of what is gone": {request(t, wire.OpGet, anyNode, "gone by new", nil), wire.StatusOK, "x"},
		"EXISTS":              {request(t, wire.OpExists, anyNode, "gone by new", nil), wire.StatusOK, ""},
		"its past":            {request(t, wire.OpGet, with(wire.ExtAtRevision, first.Revision), "gone by new", nil), wire.StatusNotFound, ""},
		"its future":          {request(t, wire.OpGet, with(wire.ExtAtRevision, last.Revision), "k", nil), wire.StatusFutureRevision, ""},
		"at least this":       {request(t, wire.OpGet, with(wire.ExtMinRevision, named.Revision), "k", nil), wire.StatusOK, "old"},
		"at least more":       {request(t, wire.OpGet, with(wire.ExtMinRevision, last.Revision), "k", nil), wire.StatusRetryLater, ""},
	} {
		release := holdQuestions(t, n)
		f := n.service.follower
		answer := make(chan wire.Response, 1)
		go func() { answer <- once(t, n, test.r) }() // ends with its answer
		until(t, "the read waits", func() bool { return waitingReads(n) == 1 })
		f.mu.Lock()
		f.asked.jobs, f.arrived = f.arrived, nil
		f.mu.Unlock()
		release(leaderWord{point: named})
		if r := <-answer; r.Status != test.status || test.want != "" && string(r.Payload) != test.want {
			t.Errorf("%s: %s %q, want %s %q", name, r.Status, r.Payload, test.status, test.want)
		}
	}
}

// A minimum revision that is not reached yet is waited for, and the wait ends with the deadline.
func TestStaleRead_MinRevision_IsWaitedForOnAFollower(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	leader, others := c.leader()
	c.same()
	n := others[0]
	after := func(entries uint64, consistency []byte) []byte {
		rev := wire.MakeRevision(wire.RevisionTS(leader.shard.engine.Applied().Revision)+entries, 0)
		return wire.AppendExtU64(consistency[:len(consistency):len(consistency)], wire.ExtMinRevision, rev)
	}
	for i := range 3 {
		r := request(t, wire.OpGet, after(1, stale), "k", nil)
		answer := make(chan wire.Response, 1)
		go func() { answer <- once(t, n, r) }() // ends with its answer
		until(t, "the read waits", func() bool { return waitingReads(n) == 1 })
		if r := put(t, leader, "k", strconv.Itoa(i)); r.Status != wire.StatusOK {
			t.Fatal(r.Status)
		}
		if r := <-answer; r.Status != wire.StatusOK || string(r.Payload) != strconv.Itoa(i) {
			t.Errorf("%s %q", r.Status, r.Payload)
		}
	}
	for name, r := range map[string]*wire.Request{
		"far away": request(t, wire.OpGet, after(1000, stale), "k", nil),
		"endless":  request(t, wire.OpGet, wire.AppendExtU64(stale[:len(stale):len(stale)], wire.ExtMinRevision, 1<<64-1), "k", nil),
	} {
		r.TimeoutMs = 150
		if a := once(t, n, r); a.Status != wire.StatusTooLate {
			t.Errorf("%s: %s", name, a.Status)
		}
	}
	until(t, "nothing waits", func() bool { return waitingReads(n) == 0 })
	if r := once(t, leader, request(t, wire.OpGet, after(1000, nil), "k", nil)); r.Status != wire.StatusRetryLater {
		t.Errorf("at the leader: %s", r.Status)
	}
	// Linearizable reads get what the leader would say.
	if r := once(t, n, request(t, wire.OpGet, after(1000, anyNode), "k", nil)); r.Status != wire.StatusRetryLater {
		t.Errorf("in the leader's stead: %s", r.Status)
	}
	if r := once(t, n, request(t, wire.OpGet, after(0, anyNode), "k", nil)); string(r.Payload) != "2" {
		t.Errorf("in the leader's stead: %s %q", r.Status, r.Payload)
	}
}

// Each stale answer that tells an age holds all that was acknowledged that long before it was asked for.
func TestStaleRead_Ages_AreTrue(t *testing.T) {
	slow(t)
	for _, mode := range []string{readModeLease, readModeReadIndex} {
		t.Run(mode, func(t *testing.T) { agesAreTrue(t, mode) })
	}
}

func agesAreTrue(t *testing.T, mode string) {
	c := newCluster(t, 3, func(o *Options) { o.ReadMode = mode })
	c.start(c.ids...)
	leader, others := c.leader()
	type ack struct {
		value int
		at    time.Time
	}
	var mu sync.Mutex
	acks := []ack{{}} // guarded by mu; in order
	var work sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	work.Go(func() { // ends with ctx
		for i := 1; ctx.Err() == nil; i++ {
			if r := put(t, leader, "k", strconv.Itoa(i)); r.Status != wire.StatusOK {
				t.Error(r.Status)
				return
			}
			mu.Lock()
			acks = append(acks, ack{i, time.Now()})
			mu.Unlock()
		}
	})
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	known := make([]int, 3)
	for i, n := range append(others, leader) {
		work.Go(func() { // ends by itself
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); {
				ext, maxMs := stale, uint64(0)
				if rng.IntN(4) == 0 {
					maxMs = 1 + rng.Uint64N(20)
					ext = staleWithin(maxMs)
				}
				asked := time.Now()
				r := once(t, n, request(t, wire.OpGet, ext, "k", nil))
				us, told := ageOf(t, &r)
				if r.Status.Class() != wire.ClassResult || !told {
					t.Errorf("%s: %s, an age: %v", n.info.NodeID, r.Status, told)
					return
				}
				if us == wire.AgeUnknown {
					if maxMs != 0 {
						t.Errorf("%s: an unknown age where %d ms are the most", n.info.NodeID, maxMs)
					}
					continue
				}
				known[i]++
				if maxMs != 0 && us > maxMs*1000 {
					t.Errorf("%s: an age of %d µs where %d ms are the most", n.info.NodeID, us, maxMs)
				}
				got, _ := strconv.Atoi(string(r.Payload)) // absent: 0
				since := asked.Add(-time.Duration(us) * time.Microsecond)
				mu.Lock()
				for j := len(acks) - 1; acks[j].value > got; j-- {
					if acks[j].at.Before(since) {
						t.Errorf("%s: %d with an age of %d µs, though %d was acknowledged %v earlier", n.info.NodeID, got, us, acks[j].value, asked.Sub(acks[j].at))
						break
					}
				}
				mu.Unlock()
				time.Sleep(time.Duration(rng.IntN(3)) * time.Millisecond)
			}
		})
	}
	time.AfterFunc(1600*time.Millisecond, stop)
	work.Wait()
	for i, n := range append(others, leader) {
		if known[i] < 10 {
			t.Errorf("%s: only %d answers with an age", n.info.NodeID, known[i])
		}
	}
}

// Without a leader a bound on the age is kept by refusing; without one, ages grow.
func TestStaleRead_WithoutALeader_AgesGrowAndBoundsHold(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	leader, others := c.leader()
	if r := put(t, leader, "k", "v"); r.Status != wire.StatusOK {
		t.Fatal(r.Status)
	}
	c.same()
	last := others[1]
	if r := once(t, last, request(t, wire.OpGet, stale, "k", nil)); r.Status != wire.StatusOK {
		t.Fatal(r.Status)
	}
	age := func(op wire.Opcode, key string, payload []byte) uint64 {
		r := once(t, last, request(t, op, stale, key, payload))
		us, told := ageOf(t, &r)
		if r.Status.Class() != wire.ClassResult || !told {
			t.Fatalf("%s %q: %s, an age: %v", op, key, r.Status, told)
		}
		return us
	}
	until(t, "the age is known, without anybody's demand", func() bool { return age(wire.OpGet, "k", nil) != wire.AgeUnknown })
	c.stop(others[0].info.NodeID)
	c.stop(leader.info.NodeID)
	until(t, "the last node misses its leader", func() bool { return last.Leader() == "" })
	before := age(wire.OpGet, "k", nil)
	until(t, "the age is above 200 ms", func() bool { return age(wire.OpGet, "k", nil) > 200_000 })
	for _, us := range []uint64{
		age(wire.OpGet, "absent", nil), age(wire.OpExists, "k", nil), age(wire.OpScan, "", scanPayload("")),
		age(wire.OpMultiGet, "", group(wire.OpMultiGet, 0, wire.Item{Op: wire.OpGet, Key: []byte("k")})),
	} {
		if us <= before || us == wire.AgeUnknown {
			t.Errorf("age %d after %d", us, before)
		}
	}
	if r := once(t, last, request(t, wire.OpGet, staleWithin(100), "k", nil)); r.Status != wire.StatusNoLeader && r.Status != wire.StatusRetryLater {
		t.Errorf("older than it may be: %s", r.Status)
	}
	if r := once(t, last, request(t, wire.OpGet, staleWithin(1<<64-1), "k", nil)); r.Status != wire.StatusOK {
		t.Errorf("any age will do: %s", r.Status)
	}
}

func TestReadIndex_OnEachNode_IsTheLeadersWord(t *testing.T) {
	for _, mode := range []string{readModeLease, readModeReadIndex} {
		t.Run(mode, func(t *testing.T) {
			c := newCluster(t, 3, func(o *Options) { o.ReadMode = mode })
			c.start(c.ids...)
			leader, others := c.leader()
			if r := put(t, leader, "k", "v"); r.Status != wire.StatusOK {
				t.Fatal(r.Status)
			}
			before := leader.shard.engine.Applied()
			r := once(t, leader, request(t, wire.OpReadIndex, nil, "", nil))
			p, ok := wire.DecodeReadPoint(r.Payload)
			if !ok || p.Index < before.Index || p.Term < before.Term || p.Revision < before.Revision {
				t.Errorf("%s %+v, applied was %+v", r.Status, p, before)
			}
			recorded(t, others[0])
			if r := once(t, others[0], request(t, wire.OpReadIndex, nil, "", nil)); r.Status != wire.StatusNotLeader || leaderHint(r.Ext) != leader.info.Advertise {
				t.Errorf("on a follower: %s, leader %q", r.Status, leaderHint(r.Ext))
			}
		})
	}
}

// Where leadership is confirmed by a majority for each read, a bound on the age costs that too, and nothing else.
func TestStaleRead_BoundedOnALeaderWithoutALease_IsConfirmed(t *testing.T) {
	c := newCluster(t, 3, func(o *Options) { o.ReadMode = readModeReadIndex })
	c.start(c.ids...)
	leader, _ := c.leader()
	if r := put(t, leader, "k", "v"); r.Status != wire.StatusOK {
		t.Fatal(r.Status)
	}
	confirmed := leader.service.reads.confirmed.Load()
	r := once(t, leader, request(t, wire.OpGet, staleWithin(1), "k", nil))
	if us, told := ageOf(t, &r); r.Status != wire.StatusOK || !told || us > 1000 {
		t.Errorf("%s, age %d %v", r.Status, us, told)
	}
	if leader.service.reads.confirmed.Load() == confirmed && leader.service.follower.reflected.Load() == 0 {
		t.Error("nobody was asked")
	}
}

// What a read says of its consistency costs the leader's hot path nothing.
func TestServe_CachedGetOfEachConsistency_AllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	if r := put(t, n, "k", "v"); r.Status != wire.StatusOK {
		t.Fatal(r.Status)
	}
	for name, ext := range map[string][]byte{"linearizable": nil, "any node": anyNode, "stale": stale, "bounded": staleWithin(1)} {
		reqs := []wire.Request{*request(t, wire.OpGet, ext, "k", nil), *request(t, wire.OpGet, ext, "k", nil)}
		var s sink
		if allocs := testing.AllocsPerRun(1000, func() { n.service.Serve(&s, anonymous, reqs) }); allocs != 0 {
			t.Errorf("%s: %v allocations", name, allocs)
		}
		if s.failed != 0 || s.ok == 0 {
			t.Errorf("%s: %d answers, %d failures", name, s.ok, s.failed)
		}
	}
}
