package test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"kvstore/internal/testcluster"
)

// recovered runs kvstore recover on a node's directory, and gives its exit code and what it said.
func recovered(t *testing.T, n *testcluster.Node, args ...string) (code int, said string) {
	t.Helper()
	all := append([]string{"recover", "--data-dir", n.DataDir(), "--memtable-size", n.Flag("memtable-size"), "--log-segment-size", n.Flag("log-segment-size")}, args...)
	cmd := exec.Command(testcluster.Binary(t, "kvstore"), all...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("kvstore recover: %v", err)
	}
	return cmd.ProcessState.ExitCode(), out.String()
}

// found lists the files of a node's directory that match.
func found(t *testing.T, n *testcluster.Node, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(n.DataDir(), pattern))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// mustRefuse runs kvstore recover, which must refuse, and say so.
func mustRefuse(t *testing.T, n *testcluster.Node, code int, says string, args ...string) {
	t.Helper()
	got, said := recovered(t, n, args...)
	if got != code || !strings.Contains(said, says) {
		t.Errorf("kvstore recover %s: exit %d, want %d and %q:\n%s", strings.Join(args, " "), got, code, says, said)
	}
	if files := found(t, n, "RECOVERY*"); len(files) != 0 {
		t.Errorf("kvstore recover %s was refused and left %v", strings.Join(args, " "), files)
	}
}

// TestRecover_TwoOfThreeLostForGood_TheThirdGoesOn loses the majority of a cluster for good, with writes that only
// the lost two have. The survivor is made the cluster by an explicit command, which refuses as long as it can't be
// sure; then it has everything that it had, a history of its own, revisions above all that were given, and new nodes
// join it. A lost node that turns up again stays out.
func TestRecover_TwoOfThreeLostForGood_TheThirdGoesOn(t *testing.T) {
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{})
	var b blobs
	b.write(t, c, 60)
	c.MustConverge()
	i := follower(c)
	n := c.Node(i)
	lost := []int{(i + 1) % 3, (i + 2) % 3}
	names := c.ID(lost[0]) + "," + c.ID(lost[1])

	// What the others acknowledge from here on, the survivor never hears of.
	c.Net().Isolate(c.ID(i))
	cut := openAt(t, []string{c.Node(lost[0]).Addr(), c.Node(lost[1]).Addr()})
	last, err := cut.Put(context.Background(), "lost", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	closeClient(t, cut)
	before := n.MustStatus()
	cluster := before.ClusterID

	mustRefuse(t, n, 1, "in use by another process", "--lost", names, "--yes-really", cluster)
	n.Kill()
	c.Net().Heal()
	mustRefuse(t, n, 1, "is not lost: it answers", "--lost", names, "--yes-really", cluster)
	// A process that hangs may go on: it is not lost.
	for _, j := range lost {
		if err := c.Node(j).Freeze(); err != nil {
			t.Fatal(err)
		}
	}
	mustRefuse(t, n, 1, "if the node hangs, end its process", "--lost", names, "--yes-really", cluster)
	var aside []string
	for _, j := range lost {
		c.Kill(j)
		aside = append(aside, setAside(t, c.Node(j), ".lost"))
	}
	mustRefuse(t, n, 1, "must name exactly the other voters, which are "+min(c.ID(lost[0]), c.ID(lost[1]))+", "+max(c.ID(lost[0]), c.ID(lost[1])), "--lost", c.ID(lost[0]), "--yes-really", cluster)
	mustRefuse(t, n, 1, "and names none", "--yes-really", cluster)
	mustRefuse(t, n, 1, "belongs to node", "--node-id", c.ID(lost[0]), "--lost", names, "--yes-really", cluster)
	mustRefuse(t, n, 2, "--yes-really "+cluster, "--lost", names)
	mustRefuse(t, n, 2, "is not the id of this cluster", "--lost", names, "--yes-really", strings.Repeat("0", 32))

	code, said := recovered(t, n, "--lost", names, "--yes-really", cluster)
	if code != 0 || !strings.Contains(said, "are lost") {
		t.Fatalf("kvstore recover: exit %d:\n%s", code, said)
	}
	t.Log(said)
	if code, said := recovered(t, n, "--lost", names, "--yes-really", cluster); code != 1 || !strings.Contains(said, "done already") {
		t.Errorf("a second time: exit %d:\n%s", code, said)
	}
	n.Start()
	b.mustBeAt(t, c.ID(i), n)
	after := n.MustStatus()
	if after.ClusterID != cluster || after.HistoryID == before.HistoryID || !after.IsLeader || len(after.CurrentConfig) != 1 {
		t.Errorf("after the recovery: %+v, before %+v", after, before)
	}
	alone := openAt(t, []string{n.Addr()})
	v, err := alone.Put(context.Background(), "since", []byte("y"))
	if err != nil {
		t.Fatal(err)
	}
	if v <= last {
		t.Errorf("a revision %d after the recovery, %d was given before", v, last)
	}
	if _, err := alone.Get(context.Background(), "lost"); err == nil {
		t.Error("what the survivor never had is there")
	}
	closeClient(t, alone)
	eventually(t, "the recovery is put on record", func() (bool, error) {
		return len(found(t, n, "RECOVERY.json")) == 0 && len(found(t, n, "recovery-*.json")) == 1, nil
	})
	if report, err := os.ReadFile(found(t, n, "recovery-*.json")[0]); err != nil || !bytes.Contains(report, []byte(after.HistoryID)) || !bytes.Contains(report, []byte(c.ID(lost[0]))) {
		t.Errorf("its report: %v\n%s", err, report)
	}

	// A lost node turns up again, as it was: it stays out, and says why. The survivor goes on, though it was started
	// with the list that names it.
	back := c.Node(lost[0])
	putBack(t, back, aside[0])
	back.Launch()
	ended(t, back, "different histories", "--join")
	// That it never stops can't be seen, only that it doesn't in the time in which a node makes up its mind that it is
	// in the wrong place, which is 3 s.
	time.Sleep(5 * time.Second)
	if !n.Running() || n.MustStatus().LeaderID != c.ID(i) {
		t.Errorf("the survivor was disturbed:\n%s", n.LastOutput())
	}

	// The survivor restarts, and the cluster grows again.
	n.Kill()
	n.Start()
	for _, j := range lost {
		node := c.Node(j)
		if err := os.RemoveAll(node.DataDir()); err != nil {
			t.Fatal(err)
		}
		node.Unset("initial-cluster")
		node.Set("join", n.HTTPAddr())
		node.Start()
		waitVoter(t, n, c.ID(j))
	}
	b.write(t, c, 10)
	b.everywhere(t, c)
	for _, node := range c.Nodes() {
		if s := node.MustStatus(); s.HistoryID != after.HistoryID || s.ClusterID != cluster || len(s.CurrentConfig) != 3 {
			t.Errorf("%s: %+v", s.NodeID, s)
		}
	}
	// And it survives what a cluster of three survives, with the log from before the recovery behind it.
	c.KillAll()
	c.Launch()
	c.MustBeReady()
	b.everywhere(t, c)
	revision, err := strconv.ParseUint(n.MustStatus().Revision, 10, 64)
	if err != nil || revision < uint64(v) {
		t.Errorf("revision %d, %v", revision, err)
	}
}

// TestRecover_CutShort_TheSameCommandFinishes stops a recovery at its first write, as a crash does: the node does not
// start in the middle, and the same command finishes it; where the lost nodes turn up meanwhile, it takes it back.
func TestRecover_CutShort_TheSameCommandFinishes(t *testing.T) {
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{})
	var b blobs
	b.write(t, c, 20)
	c.MustConverge()
	i := follower(c)
	n := c.Node(i)
	lost := []int{(i + 1) % 3, (i + 2) % 3}
	names := c.ID(lost[0]) + "," + c.ID(lost[1])
	cluster := n.MustStatus().ClusterID
	c.KillAll()
	whole := copyDir(t, n.DataDir())
	if code, said := recovered(t, n, "--lost", names, "--yes-really", cluster); code != 0 {
		t.Fatalf("exit %d:\n%s", code, said)
	}
	report, err := os.ReadFile(filepath.Join(n.DataDir(), "RECOVERY.json"))
	if err != nil {
		t.Fatal(err)
	}
	begun := bytes.Replace(report, []byte(`"stage": "done"`), []byte(`"stage": "begun"`), 1)
	if bytes.Equal(begun, report) {
		t.Fatalf("no stage in %s", report)
	}
	write := func() {
		t.Helper()
		if err := os.WriteFile(filepath.Join(n.DataDir(), "RECOVERY.json"), begun, 0o600); err != nil {
			t.Fatal(err)
		}
		n.Launch()
		refusedWith(t, n, 1, "cut short", "kvstore recover")
	}
	// After the log was changed.
	write()
	if code, said := recovered(t, n, "--lost", names, "--yes-really", cluster); code != 0 {
		t.Fatalf("exit %d:\n%s", code, said)
	}
	n.Start()
	b.mustBeAt(t, c.ID(i), n)
	n.Kill()
	// Before that, and the lost are not lost.
	putBack(t, n, whole)
	write()
	for _, j := range lost {
		c.Node(j).Launch()
	}
	for _, j := range lost {
		if err := c.Node(j).WaitReady(); err != nil {
			t.Fatal(err)
		}
	}
	if code, said := recovered(t, n, "--lost", names, "--yes-really", cluster); code != 1 || !strings.Contains(said, "is taken back") {
		t.Errorf("exit %d:\n%s", code, said)
	}
	n.Start()
	b.write(t, c, 5)
	b.everywhere(t, c)
	oneCluster(t, c)
}
