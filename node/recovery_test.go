package node

import (
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kvstore/wire"
)

// A node that joined a cluster after a recovery replays the history before it. Until its state is of the history that
// took it in, it shows the others that one, and afterwards whatever its state says.
func TestIdentity_HistoryOfTheClusterThatWasJoined_IsShownUntilTheStateHasIt(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	s := n.shard
	until(t, "the cluster has its identity", func() bool { _, _, ok := s.engine.Identity(); return ok })
	_, original, _ := s.engine.Identity()
	recoverTo := func(history [16]byte) {
		t.Helper()
		in := wire.Recover{HistoryID: history, BaseRaise: wire.RecoverBaseRaise, At: time.Now().UnixMicro(), Text: "{}"}
		until(t, "the recovery is applied", func() bool {
			r := s.propose(t.Context(), &wire.Op{Op: wire.OpRecover}, wire.AppendRecover(nil, &in))
			return r.Status == wire.StatusOK
		})
	}
	shown := func(want [16]byte, when string) {
		t.Helper()
		if _, got, ok := s.identity(); !ok || got != want {
			t.Errorf("%s: history %x, want %x", when, got[:2], want[:2])
		}
	}
	first, second := [16]byte{1}, [16]byte{2}
	shown(original, "nothing is claimed")
	s.claimed = first
	shown(first, "before the state has it")
	recoverTo(first)
	shown(first, "when the state has it")
	recoverTo(second)
	shown(second, "when the state has gone on")
	// Started again: the state is of a later history than the one that was joined.
	s.reached.Store(false)
	shown(second, "after a restart")
}

func TestRecover_WhatIsNoSurvivor_IsRefusedAndLeftAlone(t *testing.T) {
	empty := t.TempDir()
	lone := t.TempDir()
	closeNode(t, openNode(t, lone, nil))
	fresh := t.TempDir()
	if _, _, err := loadIdentity(fresh, "node-1"); err != nil {
		t.Fatal(err)
	}
	broken := t.TempDir()
	closeNode(t, openNode(t, broken, nil))
	if err := os.WriteFile(filepath.Join(broken, recoveryFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	ill := t.TempDir()
	closeNode(t, openNode(t, ill, nil))
	if err := (&quarantine{Format: quarantineFormat, Pending: true, Reason: "its digest differs"}).write(ill); err != nil {
		t.Fatal(err)
	}
	for name, x := range map[string]struct{ dir, says string }{
		"in quarantine":      {ill, "its digest differs"},
		"an empty directory": {empty, "not one of a node"}, "the only voter": {lone, "only voter of its cluster already"},
		"a new directory": {fresh, "never took part"}, "a damaged recovery": {broken, "cannot read"},
	} {
		_, err := Recover(t.Context(), RecoverOptions{DataDir: x.dir, Lost: []string{"node-2"}, Confirm: "x"})
		if err == nil || errors.Is(err, ErrUnconfirmed) || !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s: %v, want %q", name, err, x.says)
		}
	}
	if _, err := os.Stat(filepath.Join(lone, recoveryFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refused recovery left a file: %v", err)
	}
	// A damaged file keeps the node from starting, too.
	if _, err := openRecovery(broken); err == nil {
		t.Error("a damaged file was passed over")
	}
}

// What a node says wins over nothing, and one whose machine is gone holds nothing open.
func TestHoldsOpen_OnlyWhoKeepsAConnection(t *testing.T) {
	slow(t)
	n := openNode(t, t.TempDir(), nil)
	addrs := []string{n.info.Listen, n.info.Raft}
	for _, a := range addrs {
		if !holdsOpen(t.Context(), a) {
			t.Errorf("%s: a running node was not found", a)
		}
	}
	closeNode(t, n)
	for _, a := range addrs {
		if holdsOpen(t.Context(), a) {
			t.Errorf("%s: a stopped node was found", a)
		}
	}
}

// From its first moment on a survivor shows the others the history that its recovery begins: those that were given up
// are refused before the log holds the recovery. What it is asked before that it does not answer.
func TestRecover_Survivor_IsOfTheNewHistoryFromItsStart(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.start(c.ids...)
	leader, _ := c.leader()
	recorded(t, leader)
	if r := put(t, leader, "k", "v"); r.Status != wire.StatusOK {
		t.Fatal(r.Status)
	}
	c.same()
	cluster, old, _ := leader.shard.engine.Identity()
	for _, id := range c.ids {
		c.stop(id)
	}
	o := c.options("node-1")
	report, err := Recover(t.Context(), RecoverOptions{DataDir: o.DataDir, Lost: []string{"node-2"}, Confirm: hex.EncodeToString(cluster[:]), Engine: o.Engine, Consensus: o.Consensus})
	if err != nil {
		t.Fatal(err)
	}
	r, err := openRecovery(o.DataDir)
	if err != nil || r == nil || r.report.NewHistoryID != report.NewHistoryID {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := c.open("node-1", nil); err != nil {
		t.Fatal(err)
	}
	n := c.node("node-1")
	if n.shard.claimed != r.history || n.shard.claimed == old {
		t.Errorf("it holds itself to history %x, want %x", n.shard.claimed, r.history)
	}
	c.ready("node-1")
	until(t, "the recovery is put on record", n.shard.recovery.over)
	if _, now, _ := n.shard.engine.Identity(); now != r.history {
		t.Errorf("history %x, want %x", now, r.history)
	}
	if m, ok := n.shard.engine.Member("node-2"); !ok || !m.Removed {
		t.Errorf("the record of the node that was given up: %+v, %v", m, ok)
	}
	all := n.shard.engine.Recoveries()
	if len(all) != 1 || !strings.Contains(all[0].Text, `"node-2"`) || all[0].HistoryID != r.history {
		t.Errorf("the log's report: %+v", all)
	}
	if got := do(t, n, wire.OpGet, nil, "k", nil); string(got.Payload) != "v" {
		t.Errorf("%s %q", got.Status, got.Payload)
	}
}
