package consensus

import (
	"fmt"
	"testing"
	"time"
)

func TestDamper_SameComplaintOfTheSameNode_IsWrittenOnceInAWhile(t *testing.T) {
	now := time.Unix(0, 0)
	d := newDamper(func() time.Time { return now })
	say := func(peer string) (int, bool) {
		return d.pass("failed to heartbeat to", []any{"peer", peer, "error", now.String()})
	}
	if _, ok := say("a"); !ok {
		t.Fatal("the first is not written")
	}
	for range 3 {
		now = now.Add(time.Second)
		if _, ok := say("a"); ok {
			t.Fatal("a repetition is written")
		}
	}
	if _, ok := say("b"); !ok {
		t.Fatal("the same of another node is not written")
	}
	if _, ok := d.pass("failed to contact", []any{"peer", "a"}); !ok {
		t.Fatal("another complaint of the same node is not written")
	}
	now = now.Add(repeatEvery)
	if omitted, ok := say("a"); !ok || omitted != 3 {
		t.Fatalf("after a while: written %v, %d omitted", ok, omitted)
	}
}

func TestDamper_MoreComplaintsThanItKeeps_AreWritten(t *testing.T) {
	now := time.Unix(0, 0)
	d := newDamper(func() time.Time { return now })
	for i := range 3 * complaintsMax {
		if _, ok := d.pass(fmt.Sprint(i), nil); !ok {
			t.Fatalf("complaint %d is not written", i)
		}
	}
	if len(d.seen) > complaintsMax {
		t.Fatalf("it keeps %d", len(d.seen))
	}
	now = now.Add(repeatEvery)
	d.pass("new", nil)
	if len(d.seen) != 1 {
		t.Fatalf("it keeps %d that are over", len(d.seen))
	}
}
