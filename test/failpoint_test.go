package test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/internal/failpoint"
	"kvstore/internal/testcluster"
)

// who comes by a place.
type who int

const (
	anyNode   who = iota // the leader, or a follower
	theLeader            // it alone
	aFollower            // those that do not lead
)

// runningPlace is a place that lies on the path of a running cluster.
type runningPlace struct {
	name string
	who  who
	// most bounds the hit at which the node is struck: about as many come within a second or two.
	most int
	// provoke makes a node come by.
	provoke provocation
}

// provocation is what makes nodes come by a place.
type provocation int

const (
	byLoad     provocation = iota // whatever clients write
	byTransfer                    // a new leader: an election, in which all vote
	byChange                      // a change of the configuration
)

// runningPlaces are all named places but those of watches, which nothing serves yet, of the switch to a new
// generation, which TestInstall… strikes, and of a snapshot on its way, which strikeSnapshots strikes.
func runningPlaces() []runningPlace {
	return []runningPlace{
		{failpoint.LogAppendBefore, anyNode, 100, byLoad},
		{failpoint.LogAppendAfter, anyNode, 100, byLoad},
		{failpoint.LogFsyncBefore, anyNode, 100, byLoad},
		{failpoint.LogFsyncAfter, anyNode, 100, byLoad},
		// Not the leader: it keeps the log behind a snapshot that it has sent for a minute.
		{failpoint.LogTruncateBefore, aFollower, 2, byLoad},
		{failpoint.LogTruncateAfter, aFollower, 2, byLoad},
		{failpoint.VoteBefore, anyNode, 2, byTransfer},
		{failpoint.VoteAfter, anyNode, 2, byTransfer},
		{failpoint.AckBefore, aFollower, 100, byLoad},
		{failpoint.AckAfter, theLeader, 100, byLoad},
		{failpoint.ApplyBefore, anyNode, 100, byLoad},
		{failpoint.ApplyAfter, anyNode, 100, byLoad},
		{failpoint.CommitBefore, anyNode, 100, byLoad},
		{failpoint.CommitAfter, anyNode, 100, byLoad},
		{failpoint.CheckpointBefore, anyNode, 8, byLoad},
		{failpoint.CheckpointRename, anyNode, 8, byLoad},
		{failpoint.CheckpointAfter, anyNode, 8, byLoad},
		{failpoint.SnapshotPersistBefore, anyNode, 3, byLoad},
		{failpoint.SnapshotPersistAfter, anyNode, 3, byLoad},
		{failpoint.LeaseGrant, theLeader, 100, byLoad},
		{failpoint.MembershipBefore, theLeader, 2, byChange},
		{failpoint.MembershipAfter, theLeader, 2, byChange},
	}
}

// struckCluster is a cluster under load whose nodes are struck one at a time. A fourth node, if there is one, has no
// vote but for moments, and is struck by snapshots alone.
type struckCluster struct {
	*testcluster.Cluster
	t    *testing.T
	rng  *rand.Rand
	load *load
	// promote: the next change makes the fourth node a voter, else a learner.
	promote bool
	struck  []string
}

func startStruck(t *testing.T, seed uint64, nodes int) *struckCluster {
	t.Helper()
	settings := shortLog()
	settings["write-stall-timeout"] = hangLimit
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{Nodes: nodes, Settings: settings, Binary: failpoints(t)})
	s := &struckCluster{Cluster: c, t: t, rng: random(seed, 0), load: startGentleLoad(t, c.Addrs(), seed)}
	s.settle()
	s.load.waitAckedBy(t, 100, c.Nodes()...)
	return s
}

// hangLimit is the --write-stall-timeout of tests whose disks hang: shorter than the default, and longer than any write
// on a disk that only is busy.
const hangLimit = "3s"

// startGentleLoad is startLoadAt with pauses and without large values: nodes that come back get all of the state, so
// that it must not grow by megabytes a second.
func startGentleLoad(t *testing.T, addrs []string, seed uint64) *load {
	t.Helper()
	l := &load{ledger: newLedger(t, seed), stop: make(chan struct{})}
	for k, opts := range [][]client.Option{
		{client.WithTimeout(30 * time.Second)},
		{client.WithTimeout(30 * time.Second), client.WithoutSession()},
	} {
		c := openAt(t, addrs, opts...)
		var writers sync.WaitGroup
		for i := range 4 {
			w := &writer{l: l.ledger, name: fmt.Sprintf("gentle-%d-%d", k, i), c: c, rng: random(seed, 1+8*k+i), patient: k == 0}
			writers.Go(func() { // ends when stop is closed
				for !l.stopped() {
					w.gentleStep()
					time.Sleep(time.Duration(w.rng.IntN(10_000)) * time.Microsecond)
				}
			})
		}
		l.done.Go(func() { // ends after the writers
			writers.Wait()
			if err := c.Close(); err != nil {
				t.Errorf("cannot close the client: %v", err)
			}
		})
	}
	t.Cleanup(l.end)
	return l
}

// gentleStep is step with small values.
func (w *writer) gentleStep() {
	switch p := w.rng.IntN(100); {
	case p < 40:
		w.put(w.newKey(), 16+w.rng.IntN(1000), 0)
	case p < 55:
		w.overwrite()
	case p < 65:
		w.delete()
	case p < 75:
		w.batch(true)
	case p < 90:
		w.increment()
	default:
		w.read()
	}
}

// transfer has the leader hand over to another voter: an election, in which all vote.
func (s *struckCluster) transfer() { s.admin("/api/v1/admin/leader") }

// changeMember has the fourth node get a vote and lose it again, in turn.
func (s *struckCluster) changeMember() {
	action := "demote"
	if s.promote {
		action = "promote"
	}
	s.promote = !s.promote
	s.admin("/api/v1/admin/members/node-4/" + action)
}

// admin asks any of the three voters for a change. It may fail: the node that makes it may die of it.
func (s *struckCluster) admin(target string) {
	i := s.rng.IntN(3)
	if r, err := openREST(s.t, s.Node(i), 5*time.Second).do(s.t.Context(), http.MethodPost, target, nil, nil); err != nil || r.status != http.StatusOK {
		s.t.Logf("%s at %s: %v, %v", target, s.ID(i), r, err)
	}
}

// settle waits until the fourth node, if there is one, has no vote.
func (s *struckCluster) settle() {
	s.t.Helper()
	if s.Size() < 4 {
		return
	}
	eventually(s.t, "node-4 is a learner", func() (bool, error) {
		if roleAt(s.t, s.Node(0), "node-4") == "learner" {
			return true, nil
		}
		s.promote = false
		s.changeMember()
		return false, nil
	})
	s.promote = true
}

// pick chooses the node that is struck.
func (s *struckCluster) pick(w who) (i int, leads bool) {
	leader := s.MustLead()
	if w == theLeader || w == anyNode && s.rng.IntN(2) == 0 {
		return leader, true
	}
	for {
		if i := s.rng.IntN(3); i != leader {
			return i, false
		}
	}
}

// strike arms a place at a random hit and returns the node once it has ended there. What does not strike fails the test.
func (s *struckCluster) strike(p runningPlace, action string) (i, hit int) {
	s.t.Helper()
	hit = 1 + s.rng.IntN(p.most)
	began := time.Now()
	i, led := s.pick(p.who)
	s.set(i, fmt.Sprintf("%s=%s@%d", p.name, action, hit))
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		switch p.provoke {
		case byTransfer:
			s.transfer()
		case byChange:
			s.changeMember()
		}
		select {
		case <-s.Node(i).Exited():
			role := "follower"
			if led {
				role = "leader"
			}
			s.struck = append(s.struck, fmt.Sprintf("%s %s@%d after %v", role, p.name, hit, time.Since(began).Round(100*time.Millisecond)))
			return i, hit
		case <-time.After(time.Second):
		}
		if p.who == theLeader && s.MustLead() != i && s.Node(i).Running() {
			s.t.Logf("%s leads no more before it came by %s: it shall lead again", s.ID(i), p.name)
			s.admin("/api/v1/admin/leader")
		}
	}
	hits, struck, err := s.Node(i).FailpointHits(p.name)
	s.t.Fatalf("%s was never struck at hit %d of %s: the test hit nothing (%d hits, %d strikes, %v)\n%s", s.ID(i), hit, p.name, hits, struck, err, s.Node(i).LastOutput())
	return 0, 0
}

// set arms a place of a running node.
func (s *struckCluster) set(i int, term string) {
	s.t.Helper()
	if err := s.Node(i).SetFailpoints(term); err != nil {
		s.t.Fatal(err)
	}
}

// killed checks that the i-th node has ended by the SIGKILL of a failpoint, which it must do soon.
func (s *struckCluster) killed(i int, where string) {
	s.t.Helper()
	select {
	case <-s.Node(i).Exited():
	case <-time.After(patience):
		s.t.Fatalf("%s was never struck at %s: the test hit nothing\n%s", s.ID(i), where, s.Node(i).LastOutput())
	}
	if code := s.Node(i).WaitExit(); code != -1 { // -1: by a signal
		s.t.Fatalf("at %s %s ended with %d instead of by its kill\n%s", where, s.ID(i), code, s.Node(i).LastOutput())
	}
}

// strikeSnapshots has the fourth node need a snapshot, and kills leaders that are about to send one, and the node itself
// while it receives and installs it. REQUIRES: no leader has sent a snapshot within the last minute, for it would keep
// the log behind that.
func (s *struckCluster) strikeSnapshots() {
	s.t.Helper()
	const fourth = 3
	n := s.Node(fourth)
	last := n.MustStatus().LastIndex
	n.Kill()
	gone(s.t, s.Cluster, fourth, last)
	come := func(place string, hit int) {
		n.SetEnv(fmt.Sprintf("KVSTORE_FAILPOINTS=%s=kill@%d", place, hit))
		n.Launch()
	}
	for _, place := range []string{failpoint.SnapshotCreateBefore, failpoint.SnapshotCreateAfter} {
		leader := s.MustLead()
		s.set(leader, place+"=kill@1")
		come(failpoint.SnapshotInstallBefore, 1)
		s.killed(leader, place)
		// The next leader sends its own, which the fourth node must not get to install yet.
		s.killed(fourth, failpoint.SnapshotInstallBefore)
		s.load.waitAckedBy(s.t, 10, s.Node((leader+1)%3), s.Node((leader+2)%3))
		s.Node(leader).Start()
		s.struck = append(s.struck, "leader "+place, "learner "+failpoint.SnapshotInstallBefore)
	}
	for _, place := range []string{failpoint.SnapshotReceive, failpoint.SnapshotInstallAfter} {
		come(place, 1)
		s.killed(fourth, place)
		s.struck = append(s.struck, "learner "+place)
	}
	n.SetEnv()
	n.Start()
}

// resume sees the others go on without the node, and starts it again.
func (s *struckCluster) resume(i int) {
	s.t.Helper()
	began := time.Now()
	s.load.waitAckedBy(s.t, 1+int64(s.rng.IntN(50)), others(s.Cluster, i)...)
	gap := time.Since(began)
	s.Node(i).Launch()
	s.MustBeReady()
	ready := time.Since(began) - gap
	s.settle()
	if time.Since(began) > slowResume {
		s.t.Logf("after %s: the others went on after %v, %s was ready after %v more; it said:\n%s", s.struck[len(s.struck)-1], gap, s.ID(i), ready, s.Node(i).LastOutput())
	}
}

// slowResume is beyond what an election, a start and a change of a member take: such a case is told in full.
const slowResume = 8 * time.Second

// finish ends the load and checks everything, once more after all were killed and started again.
func (s *struckCluster) finish() {
	s.t.Helper()
	s.load.waitAckedBy(s.t, 100, s.Nodes()...)
	s.load.end()
	s.load.noneSurfaced(s.t)
	s.KillAll()
	s.Launch()
	s.MustBeReady()
	s.load.finish(s.t, s.Cluster)
}

// ordered gives n of the places, each once before any of them twice.
func ordered(rng *rand.Rand, all []runningPlace, n int) (places []runningPlace) {
	for len(places) < n {
		for _, i := range rng.Perm(len(all)) {
			places = append(places, all[i])
		}
	}
	return places[:n]
}

// TestFailpoints_NodeKilledAtEachPlace_NothingIsLostAndNobodyNotices has one node at a time kill itself at a named place
// of its running path, at a random hit, under load: sometimes the leader, sometimes a follower. The others go on, it is
// started again, and in the end every acknowledged write is there everywhere, once.
func TestFailpoints_NodeKilledAtEachPlace_NothingIsLostAndNobodyNotices(t *testing.T) {
	all := runningPlaces()
	n := count(t, "FAILPOINT_KILLS", len(all), 4)
	seed := seed(t)
	s := startStruck(t, seed, 4)
	s.strikeSnapshots()
	for _, p := range ordered(s.rng, all, n) {
		i, hit := s.strike(p, "kill")
		s.killed(i, fmt.Sprintf("hit %d of %s", hit, p.name))
		s.resume(i)
	}
	t.Logf("%d kills: %s", len(s.struck), strings.Join(s.struck, ", "))
	s.finish()
	if t.Failed() {
		t.Logf("FAILPOINT_KILLS=%d %s=%d go test ./test -run TestFailpoints_NodeKilled -count=1", n, seedEnv, seed)
	}
}

// failingPlaces are those at which a write to the disk can fail.
func failingPlaces() []runningPlace {
	return []runningPlace{
		{failpoint.LogAppendBefore, anyNode, 100, byLoad},
		{failpoint.LogFsyncBefore, anyNode, 100, byLoad},
		{failpoint.LogFsyncAfter, anyNode, 100, byLoad},
		{failpoint.LogTruncateBefore, aFollower, 2, byLoad},
		{failpoint.VoteBefore, anyNode, 2, byTransfer},
		{failpoint.CommitBefore, anyNode, 100, byLoad},
		{failpoint.CheckpointBefore, anyNode, 8, byLoad},
		{failpoint.CheckpointRename, anyNode, 8, byLoad},
	}
}

// TestFailpoints_WriteToTheDiskFails_NodeStopsAndTheOthersGoOn lets a write, an fsync or a rename of one node fail. Nobody
// knows then what is on its disk: it must end by itself, with the reason, and never go on as if nothing was.
func TestFailpoints_WriteToTheDiskFails_NodeStopsAndTheOthersGoOn(t *testing.T) {
	const reason = "the disk says no"
	all := failingPlaces()
	n := count(t, "FAILPOINT_ERRORS", len(all), 2)
	seed := seed(t)
	s := startStruck(t, seed, 3)
	for _, p := range ordered(s.rng, all, n) {
		i, hit := s.strike(p, "error("+reason+")")
		out := s.Node(i).LastOutput()
		if code := s.Node(i).WaitExit(); code != 1 || !strings.Contains(out, "the node may not go on") || !strings.Contains(out, reason) {
			t.Fatalf("after an error at hit %d of %s %s ended with %d, want 1 and the reason\n%s", hit, p.name, s.ID(i), code, out)
		}
		s.resume(i)
	}
	t.Logf("%d nodes stopped by themselves: %s", len(s.struck), strings.Join(s.struck, ", "))
	s.finish()
	if t.Failed() {
		t.Logf("FAILPOINT_ERRORS=%d %s=%d go test ./test -run TestFailpoints_WriteToTheDiskFails -count=1", n, seedEnv, seed)
	}
}

// TestFailpoints_FsyncOfTheLeaderHangs_AnotherLeads lets one fsync of the leader take far longer than the watch on writes
// allows. Its heartbeats go on meanwhile, so that nobody else would take over: it must end by itself.
func TestFailpoints_FsyncOfTheLeaderHangs_AnotherLeads(t *testing.T) {
	const hangs = 10 * time.Minute
	seed := seed(t)
	s := startStruck(t, seed, 3)
	s.load.ledger.quiet()
	began := time.Now()
	i, hit := s.strike(runningPlace{failpoint.LogFsyncBefore, theLeader, 100, byLoad}, "sleep("+hangs.String()+")")
	if code := s.Node(i).WaitExit(); code != 1 || !strings.Contains(s.Node(i).LastOutput(), "the disk hangs") {
		t.Fatalf("the leader ended with %d at hit %d, want 1 because its disk hangs\n%s", code, hit, s.Node(i).LastOutput())
	}
	ended := time.Since(began)
	s.resume(i)
	t.Logf("the leader ended %v after the fault was set; longest time without an acknowledged write was %v", ended.Round(time.Millisecond), s.load.ledger.longestGap().Round(time.Millisecond))
	s.finish()
	if t.Failed() {
		t.Logf("%s=%d go test ./test -run TestFailpoints_FsyncOfTheLeader -count=1", seedEnv, seed)
	}
}
