package consensus

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Whoever is no member any more may have gone on with another history: it is not asked for the state, however well
// this node knows it.
func TestRebuild_OnlyAFormerMemberRuns_IsNotAsked(t *testing.T) {
	c := newTestCluster(t, 3, func(o *Options) { o.TrailingLogs = 2 })
	c.start()
	c.writeMany("a", 10)
	c.converge()
	c.compacted()
	leader := c.leader()
	n, former := c.others(leader)[0], c.others(leader)[1]
	if err := leader.g.Remove(testContext(t), former.id); err != nil {
		t.Fatal(err)
	}
	c.writeMany("b", 3)
	for deadline := time.Now().Add(time.Minute); n.m.Applied() < leader.m.Applied(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the follower does not keep up")
		}
	}
	n.kill()
	leader.kill()
	n.lose()
	n.rebuilding()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := n.open(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("with a former member alone: %v", err)
	}
	n.g = nil
	leader.start()
	n.start()
	if got := n.g.Metrics().SnapshotsFetched.Load(); got != 1 {
		t.Errorf("%d fetched from a member", got)
	}
}

// The checkpoint of a state that is to be given up is the only witness that the log has lost its end.
func TestInspect_LogLostItsEnd_IsRefused(t *testing.T) {
	c := newTestCluster(t, 3)
	c.start()
	c.writeMany("a", 5)
	c.converge()
	n := c.others(c.leader())[0]
	files, err := filepath.Glob(filepath.Join(n.dir, "log", "*.wal"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	then, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	c.writeMany("b", 5)
	c.converge()
	if err := n.m.checkpoint(); err != nil {
		t.Fatal(err)
	}
	d, _ := n.m.Durable()
	n.kill()
	look := func() (Inspection, error) { return Inspect(n.options(t, nil), &d) }
	if in, err := look(); err != nil || in.Last < d.Index || in.Reach != 0 {
		t.Fatalf("with the whole log: %+v, %v", in, err)
	}
	other := d
	other.Term++
	if _, err := Inspect(n.options(t, nil), &other); !errors.Is(err, ErrContradiction) {
		t.Errorf("with a log of another history: %v", err)
	}
	other.Installed = true
	if in, err := Inspect(n.options(t, nil), &other); err != nil || in.Reach != d.Index {
		t.Errorf("with a copy beside a log of another history: %+v, %v", in, err)
	}
	if err := os.WriteFile(files[0], then, 0o600); err != nil {
		t.Fatal(err)
	}
	if in, err := look(); !errors.Is(err, ErrContradiction) || !strings.Contains(err.Error(), "lost entries") {
		t.Errorf("with a log that lost its end: %+v, %v", in, err)
	}
	d.Installed = true
	if in, err := look(); err != nil || in.Reach != d.Index {
		t.Errorf("with a copy that the log was not emptied for yet: %+v, %v; the copy is of %d", in, err, d.Index)
	}
	if in, err := Inspect(n.options(t, nil), nil); err != nil || in.Reach != 0 {
		t.Errorf("without a checkpoint: %+v, %v", in, err)
	}
}
