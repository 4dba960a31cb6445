package consensus

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"kvstore/internal/clock"
)

func fixedVoters(ids ...raft.ServerID) func([]raft.ServerID) []raft.ServerID {
	return func(dst []raft.ServerID) []raft.ServerID { return append(dst, ids...) }
}

func TestAckBook_Confirmed_IsTheMajoritysNewestSendTime(t *testing.T) {
	for _, c := range []struct {
		name   string
		voters []raft.ServerID
		acks   []ack
		want   int64
	}{
		{"no voters", nil, nil, neverConfirmed},
		{"alone", []raft.ServerID{"me"}, nil, alwaysConfirmed},
		{"two, silent", []raft.ServerID{"me", "a"}, nil, neverConfirmed},
		{"two", []raft.ServerID{"me", "a"}, []ack{{"a", 5, 70, 0}}, 70},
		{"three, one silent", []raft.ServerID{"me", "a", "b"}, []ack{{"b", 5, 70, 0}}, 70},
		{"three", []raft.ServerID{"me", "a", "b"}, []ack{{"a", 5, 60, 0}, {"b", 5, 70, 0}}, 70},
		{"four need two others", []raft.ServerID{"me", "a", "b", "c"}, []ack{{"a", 5, 60, 0}, {"b", 5, 70, 0}}, 60},
		{"five", []raft.ServerID{"me", "a", "b", "c", "d"}, []ack{{"a", 5, 60, 0}, {"b", 5, 70, 0}, {"c", 5, 80, 0}}, 70},
		{"removed itself", []raft.ServerID{"a", "b"}, []ack{{"a", 5, 60, 0}, {"b", 5, 70, 0}}, 60},
		{"learners do not count", []raft.ServerID{"me", "a", "b"}, []ack{{"learner", 5, 90, 0}}, neverConfirmed},
		{"an earlier term", []raft.ServerID{"me", "a", "b"}, []ack{{"a", 4, 90, 0}}, neverConfirmed},
		{"a later term", []raft.ServerID{"me", "a", "b"}, []ack{{"a", 6, 90, 0}}, neverConfirmed},
		{"the newest of each counts", []raft.ServerID{"me", "a", "b"}, []ack{{"a", 5, 90, 0}, {"a", 5, 40, 0}, {"a", 4, 99, 0}}, 90},
	} {
		b := newAckBook("me", fixedVoters(c.voters...))
		for _, a := range c.acks {
			b.record(a)
		}
		if got := b.confirmed(5); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

func TestAckBook_RandomAcks_EqualsTheDefinition(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	ids := []raft.ServerID{"me", "a", "b", "c", "d", "e", "f"}
	for range 2000 {
		voters := slices.Clone(ids)
		rnd.Shuffle(len(voters), func(i, j int) { voters[i], voters[j] = voters[j], voters[i] })
		voters = voters[:1+rnd.IntN(len(voters))]
		b := newAckBook("me", fixedVoters(voters...))
		const term = 3
		newest := map[raft.ServerID]int64{}
		for range rnd.IntN(20) {
			a := ack{peer: ids[1+rnd.IntN(len(ids)-1)], term: term - uint64(rnd.IntN(2)), sentAt: int64(rnd.IntN(100))}
			b.record(a)
			if at, ok := newest[a.peer]; a.term == term && (!ok || a.sentAt > at) {
				newest[a.peer] = a.sentAt
			}
		}
		// The largest t of all that are worth trying, for which a majority answered something sent at t or
		// later.
		want := int64(neverConfirmed)
		for _, try := range append([]int64{alwaysConfirmed}, valuesOf(newest)...) {
			n := 0
			for _, v := range voters {
				if at, ok := newest[v]; v == "me" || ok && at >= try {
					n++
				}
			}
			if n > len(voters)/2 {
				want = max(want, try)
			}
		}
		if got := b.confirmed(term); got != want {
			t.Fatalf("voters %v, acks %v: %d, want %d", voters, newest, got, want)
		}
	}
}

func valuesOf(m map[raft.ServerID]int64) (out []int64) {
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

// at says that a majority was confirmed at q.
func at(q int64) func(uint64) int64 { return func(uint64) int64 { return q } }

func TestLease_Span_EndsWithTimeTermAndRevocation(t *testing.T) {
	c := clock.NewManual(time.Time{})
	c.Advance(time.Second)
	l := lease{clock: c, duration: int64(500 * time.Millisecond)}
	now := func() int64 { return int64(c.Boot()) }
	if l.holds(1) {
		t.Error("held before any acknowledgement")
	}
	l.extend(1, at(now()))
	if !l.holds(1) || l.holds(2) {
		t.Errorf("term 1: %v, term 2: %v", l.holds(1), l.holds(2))
	}
	c.Advance(499 * time.Millisecond)
	if !l.holds(1) {
		t.Error("ended early")
	}
	l.extend(1, at(now()-int64(300*time.Millisecond))) // sent long before it was answered
	l.extend(1, at(now()-int64(400*time.Millisecond))) // and one that was overtaken
	c.Advance(199 * time.Millisecond)
	if !l.holds(1) {
		t.Error("an older acknowledgement took the lease back")
	}
	c.Advance(time.Millisecond)
	if l.holds(1) {
		t.Error("held at its end")
	}
	l.extend(2, at(now()))
	l.extend(1, at(now())) // late news of an earlier term
	if !l.holds(2) || l.holds(1) {
		t.Error("a later term's lease was lost")
	}
	if !l.revoke(2) || l.revoke(2) || l.revoke(1) {
		t.Error("revoke does not tell news from repetition")
	}
	l.extend(2, at(now()))
	if l.holds(2) {
		t.Error("a revoked lease came back")
	}
	l.extend(3, at(now()))
	if !l.holds(3) {
		t.Error("revoking term 2 hit term 3")
	}
	for _, q := range []int64{neverConfirmed, alwaysConfirmed} {
		l.extend(4, at(q))
		if l.holds(4) {
			t.Errorf("a lease from %d", q)
		}
	}
	never := lease{clock: c, duration: -1}
	never.extend(1, at(now()))
	if never.holds(1) {
		t.Error("a forbidden lease is held")
	}
	if n := testing.AllocsPerRun(100, func() { l.holds(3) }); n != 0 {
		t.Errorf("holds allocates %v times", n)
	}
}

// leaseModel plays a leader that sends heartbeats to followers over a network that delays, reorders and
// loses them, and followers that refuse to vote for heartbeat after each that they have processed, by
// clocks that run fast by drift. It returns how often the lease was held and how often it was held while
// a majority was free to elect another leader.
func leaseModel(rnd *rand.Rand, voters int, heartbeat, duration time.Duration, drift float64) (held, broken int) {
	c := clock.NewManual(time.Time{})
	c.Advance(time.Second)
	var ids []raft.ServerID
	for i := range voters {
		ids = append(ids, raft.ServerID(rune('a'+i)))
	}
	b := newAckBook(ids[0], fixedVoters(ids...))
	l := lease{clock: c, duration: int64(duration)}
	type message struct {
		to              int
		sent            int64
		arrives, answer int64
		processed       bool
	}
	var wire []*message
	promise := make([]int64, voters) // until when each follower refuses to vote
	lossy := rnd.IntN(2) == 0
	for range 400 {
		now := int64(c.Boot())
		for i := 1; i < voters; i++ {
			if rnd.IntN(10) == 0 {
				delay := func() int64 { return int64(rnd.Float64() * rnd.Float64() * float64(heartbeat)) }
				m := &message{to: i, sent: now}
				m.arrives = now + delay()
				m.answer = m.arrives + delay()
				if lossy && rnd.IntN(3) == 0 {
					m.answer = 1 << 62 // lost on the way back: the promise stands, unknown to the leader
				}
				wire = append(wire, m)
			}
		}
		rest := wire[:0]
		for _, m := range wire {
			if !m.processed && m.arrives <= now {
				m.processed = true
				promise[m.to] = max(promise[m.to], m.arrives+int64(float64(heartbeat)/(1+drift)))
			}
			if m.answer <= now {
				b.record(ack{peer: ids[m.to], term: 1, sentAt: m.sent})
				l.extend(1, b.leased)
				continue
			}
			rest = append(rest, m)
		}
		wire = rest
		if l.holds(1) {
			held++
			free := 0
			for i := 1; i < voters; i++ {
				if promise[i] <= now {
					free++
				}
			}
			if free > voters/2 {
				broken++
			}
		}
		c.Advance(time.Duration(rnd.IntN(int(heartbeat) / 20)))
	}
	return held, broken
}

func TestLease_AnyNetwork_NoMajorityIsFreeWhileItIsHeld(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	const heartbeat = 600 * time.Millisecond
	held, broken, badly := 0, 0, 0
	for range 1500 { // a lease that is too long shows in one of about a hundred
		voters := 2 + rnd.IntN(6)
		h, b := leaseModel(rnd, voters, heartbeat, heartbeat*9/10, 0.1)
		held, broken = held+h, broken+b
		_, b = leaseModel(rnd, voters, heartbeat, heartbeat*3/2, 0.1)
		badly += b
	}
	if broken > 0 || held == 0 {
		t.Errorf("held %d times, %d times wrongly", held, broken)
	}
	if badly == 0 {
		t.Error("the model does not notice a lease that is too long")
	}
}

func TestConfirmed_VotersAndAcknowledgements_AreOfOneMoment(t *testing.T) {
	var b *ackBook
	b = newAckBook("a", func(ids []raft.ServerID) []raft.ServerID {
		if b.mu.TryLock() {
			b.mu.Unlock()
			t.Error("an acknowledgement could come between the configuration and its use")
		}
		return append(ids, "a", "b", "c")
	})
	b.record(ack{peer: "b", term: 3, sentAt: 7})
	if q := b.confirmed(3); q != 7 {
		t.Errorf("confirmed at %d", q)
	}
}
