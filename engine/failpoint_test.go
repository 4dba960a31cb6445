//go:build failpoints

package engine

import (
	"fmt"
	"strings"
	"testing"

	"kvstore/internal/failpoint"
)

// TestFailpoints_EachPlace_IsReachedAndLeavesTheOldStateOrTheNew fails at each place that can fail, and opens
// the directory again.
func TestFailpoints_EachPlace_IsReachedAndLeavesTheOldStateOrTheNew(t *testing.T) {
	for _, name := range []string{
		failpoint.CommitBefore, failpoint.CommitAfter, failpoint.CheckpointBefore, failpoint.CheckpointRename, failpoint.CheckpointAfter,
	} {
		t.Run(name, func(t *testing.T) {
			t.Cleanup(func() {
				if err := failpoint.Set(name + "=off"); err != nil {
					t.Error(err)
				}
			})
			var fatal []error
			o := engineOptions(t, t.TempDir())
			o.Fatal = func(err error) { fatal = append(fatal, err) }
			d := newDriver(t, o)
			d.put("a", "1")
			if err := d.e.CheckpointNow(t.Context()); err != nil {
				t.Fatal(err)
			}
			durable := d.index
			if err := failpoint.Set(name + "=error(struck)"); err != nil {
				t.Fatal(err)
			}
			entry := sealEntry(d.now, putOp("a", []byte("2"), nil))
			d.index++
			results := d.e.Apply(d.index, 1, entry)
			if strings.HasPrefix(name, "badger.") {
				if results != nil || d.e.Applied().Index != durable {
					t.Fatalf("an entry that could not be stored: %v, applied %d", results, d.e.Applied().Index)
				}
				d.wantValue("a", "1")
			} else if err := d.e.CheckpointNow(t.Context()); err == nil {
				t.Fatal("a checkpoint that failed")
			}
			if len(fatal) != 1 || !strings.Contains(fatal[0].Error(), "struck") {
				t.Fatalf("fatal %v", fatal)
			}
			if err := d.e.Close(); err != nil {
				t.Fatal(err)
			}
			if err := failpoint.Set(name + "=off"); err != nil {
				t.Fatal(err)
			}
			d.e = mustOpen(t, o)
			want := durable
			if name == failpoint.CheckpointAfter {
				want = d.index
			}
			if got := d.e.Applied().Index; got != want {
				t.Fatalf("opened at %d, want %d", got, want)
			}
			if want < d.index && len(d.e.Apply(d.index, 1, entry)) != 1 {
				t.Fatal("the entry can't be applied again")
			}
			d.wantValue("a", "2")
			if err := d.e.VerifyDigest(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestFailpoints_AroundAnEntry_AreReached has both places of an entry panic.
func TestFailpoints_AroundAnEntry_AreReached(t *testing.T) {
	for name, applied := range map[string]uint64{failpoint.ApplyBefore: 1, failpoint.ApplyAfter: 2} {
		d := newDriver(t, engineOptions(t, t.TempDir()))
		if err := failpoint.Set(name + "=panic"); err != nil {
			t.Fatal(err)
		}
		func() {
			defer func() {
				if v := recover(); !strings.Contains(fmt.Sprint(v), name) {
					t.Errorf("%s: recovered %v", name, v)
				}
			}()
			d.put("a", "1")
		}()
		if got := d.e.Applied().Index; got != applied {
			t.Errorf("%s: %d is applied, want %d", name, got, applied)
		}
		if err := failpoint.Set(name + "=off"); err != nil {
			t.Fatal(err)
		}
	}
}
