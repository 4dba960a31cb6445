package peer

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"kvstore/internal/clock"
)

// copyPeers copies the file of the known nodes, as a copy of a data directory has it.
func copyPeers(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(from, bookFileName))
	if err == nil {
		err = os.WriteFile(filepath.Join(to, bookFileName), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// copyOf are the options of a process with a copy of o's directory, on another port.
func copyOf(t *testing.T, o Options, starts uint64) Options {
	t.Helper()
	o.Listener, o.Dir, o.Starts = newListener(t), t.TempDir(), starts
	o.Address = raft.ServerAddress(o.Listener.Addr().String())
	return o
}

// refusedWith expects a refusal; final tells of which kind.
func refusedWith(t *testing.T, err error, final bool, text string) {
	t.Helper()
	if err == nil || errors.Is(err, ErrRefused) != final || !strings.Contains(err.Error(), text) {
		t.Fatalf("error = %v, want a refusal, final %v: %q", err, final, text)
	}
}

// Goal: a node that was let in once is not let in with an older copy of its directory, in either direction,
// and not after a restart of the node that remembers.
func TestProcess_OlderCopy_RefusedInBothDirectionsAndAfterARestart(t *testing.T) {
	oa, ob := testOptions(t, 1), testOptions(t, 2)
	oa.Starts, ob.Starts = 5, 1
	a, b := open(t, oa), open(t, ob)
	serve(t, b, agree)
	if err := beat(a, b, 1); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
	ob.Listener, ob.Starts = relisten(t, ob.Address), 2
	b = open(t, ob)
	older := open(t, copyOf(t, oa, 4))
	refusedWith(t, beat(older, b, 1), true, "start 4 of it, node \"node-2\" has met start 5")
	refusedWith(t, beat(b, older, 1), true, "older copy")
	if s := statusOf(t, older, "node-2"); !s.Copied || s.Refused == "" {
		t.Errorf("at the copy: %+v", s)
	}
	if s := statusOf(t, b, "node-1"); s.Rejected == "" || s.Connected {
		t.Errorf("at the other node: %+v", s)
	}
	// The directory itself comes back.
	oa.Listener, oa.Starts = relisten(t, oa.Address), 6
	a = open(t, oa)
	serve(t, a, agree)
	serve(t, b, agree)
	if err := errors.Join(beat(a, b, 1), beat(b, a, 1)); err != nil {
		t.Error(err)
	}
	if s := statusOf(t, b, "node-1"); s.Rejected != "" {
		t.Errorf("still rejected: %q", s.Rejected)
	}
}

func TestProcess_CloneOfTheSameStart_RefusedForGoodInBothDirections(t *testing.T) {
	oa, ob := testOptions(t, 1), testOptions(t, 2)
	oa.Starts = 5
	a, b := open(t, oa), open(t, ob)
	serve(t, b, agree)
	if err := beat(a, b, 1); err != nil {
		t.Fatal(err)
	}
	clone := open(t, copyOf(t, oa, 5))
	refusedWith(t, beat(clone, b, 1), true, "both call this start 5")
	refusedWith(t, beat(b, clone, 1), true, "both call this start 5")
	refusedWith(t, beat(a, clone, 1), true, "") // its own name
	if err := beat(a, b, 1); err != nil {
		t.Errorf("the first one is not let in any more: %v", err)
	}
}

// Goal: a clone that counts on by itself does not get in while the process lives, in either direction, nor
// does it disturb it; when that has ended, it is let in at once.
func TestProcess_CloneOfALaterStart_WaitsUntilTheOtherEnds(t *testing.T) {
	oa, ob := testOptions(t, 1), testOptions(t, 2)
	oa.Starts = 5
	oa.HeartbeatTimeout, ob.HeartbeatTimeout = time.Minute, time.Minute // being silent can't be what lets it in
	a, b := open(t, oa), open(t, ob)
	serve(t, b, agree)
	if err := beat(a, b, 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "pulses go", func() bool {
		return b.conns.heard("node-1", process{oa.Incarnation, 5, a.o.Nonce}, b.o.Clock.Boot()-time.Minute)
	})
	clone := open(t, copyOf(t, oa, 6))
	serve(t, clone, agree)
	refusedWith(t, beat(clone, b, 1), false, "another process runs as node")
	refusedWith(t, beat(b, clone, 1), false, "stop one of them")
	eventually(t, "the status tells", func() bool { // until the first one shakes hands again, which it did only just now
		refusedWith(t, beat(clone, b, 1), false, "another process runs as node")
		s := statusOf(t, b, "node-1")
		return strings.Contains(s.Rejected, "another process runs") && s.Connected
	})
	if err := beat(a, b, 1); err != nil {
		t.Errorf("the first one is not let in any more: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is let in", func() bool { return beat(clone, b, 1) == nil && beat(b, clone, 1) == nil })
	oa.Listener = relisten(t, oa.Address)
	refusedWith(t, beat(open(t, oa), b, 1), true, "older copy")
}

// Goal: whether a process lives is judged by the clock that nobody sets.
func TestProcess_AnotherIsSilentByTheBootClock_CloneIsLetIn(t *testing.T) {
	now := clock.NewManual(time.Unix(1, 0))
	oa, ob := testOptions(t, 1), testOptions(t, 2)
	oa.Starts, ob.Clock = 5, now
	for _, o := range []*Options{&oa, &ob} {
		o.HeartbeatTimeout, o.PulseInterval = time.Minute, 10*time.Second
	}
	a, b := open(t, oa), open(t, ob)
	serve(t, b, agree)
	if err := beat(a, b, 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "pulses go", func() bool {
		return b.conns.heard("node-1", process{oa.Incarnation, 5, a.o.Nonce}, now.Boot()-time.Minute)
	})
	clone := open(t, copyOf(t, oa, 6))
	serve(t, clone, agree)
	now.SetNow(time.Unix(1, 0).Add(time.Hour))
	refusedWith(t, beat(clone, b, 1), false, "another process runs as node")
	eventually(t, "the clone is let in", func() bool { // at the first try, unless a pulse came just now
		now.Advance(b.silence())
		return beat(clone, b, 1) == nil
	})
}

// Goal: a node that comes back without what it acknowledged is let in by nobody that knows.
func TestProcess_AcknowledgedEntriesMissing_RefusedInBothDirections(t *testing.T) {
	oa, ob := testOptions(t, 1), testOptions(t, 2)
	ob.Starts = 5
	ob.LogEnd = func() (uint64, uint64, bool) { return 0, 0, true }
	a, b := open(t, oa), open(t, ob)
	n := newFakeNode(1)
	a.Bind(n)
	serve(t, b, agree)
	req := heartbeat(a, 1)
	req.Entries = []*raft.Log{{Index: 10, Term: 1}}
	var resp raft.AppendEntriesResponse
	if err := a.AppendEntries("node-2", b.LocalAddr(), req, &resp); err != nil {
		t.Fatal(err)
	}
	n.commit.Store(10)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	again := func(starts, last uint64) *Transport {
		o := copyOf(t, ob, starts)
		o.LogEnd = func() (uint64, uint64, bool) { return last, 1, true }
		tr := open(t, o)
		serve(t, tr, agree)
		return tr
	}
	serve(t, a, agree)
	lacks := again(6, 9)
	eventually(t, "refused as forgetful, and for good", func() bool {
		err := beat(lacks, a, 1)
		return errors.Is(err, ErrRefused) && strings.Contains(err.Error(), "held committed entries up to 10")
	})
	refusedWith(t, beat(a, lacks, 1), true, "now holds them only up to 9")
	whole := again(7, 10)
	if err := errors.Join(beat(whole, a, 1), beat(a, whole, 1)); err != nil {
		t.Errorf("a node that lacks nothing: %v", err)
	}
}

// Goal: the count is durable before it counts, and a process is told from the next without a write.
func TestBook_Starts_WrittenOncePerStart(t *testing.T) {
	o := testOptions(t, 2)
	tr := open(t, o)
	writes := 0
	tr.book.mu.Lock()
	write := tr.book.write
	tr.book.write = func(p string, b []byte) error { writes++; return write(p, b) }
	tr.book.mu.Unlock()
	let := func(starts, nonce uint64) *refusal {
		return tr.admit(&Hello{Purpose: PurposeRaft, Target: "node-2", Source: "node-1", Incarnation: incarnation(1), Address: "a:1",
			Cluster: incarnation(0xcc), History: incarnation(0xdd), Heartbeat: tr.o.HeartbeatTimeout, Starts: starts, Nonce: nonce})
	}
	for _, step := range []struct {
		starts, nonce uint64
		writes        int
		code          code
	}{{5, 50, 1, ""}, {5, 50, 1, ""}, {6, 60, 2, ""}, {6, 60, 2, ""}, {6, 61, 2, codeCloned}, {4, 40, 2, codeOlderCopy}, {6, 60, 2, ""}} {
		r := let(step.starts, step.nonce)
		if r == nil != (step.code == "") || r != nil && r.code != step.code {
			t.Errorf("%+v: refusal %+v", step, r)
		}
		if writes != step.writes {
			t.Errorf("%+v: %d writes", step, writes)
		}
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	o.Listener = relisten(t, o.Address)
	tr = open(t, o)
	if r := let(5, 50); r == nil || r.code != codeOlderCopy {
		t.Errorf("after a restart: %+v", r)
	}
	if r := let(6, 61); r == nil || r.code != codeCloned {
		t.Errorf("after a restart: %+v", r)
	}
	if r := let(6, 60); r != nil {
		t.Errorf("after a restart: %s", r.text)
	}
}

// childEnv makes the test program a node of its own: its fields are those of childOptions.
const childEnv = "KVSTORE_PEER_TEST_CHILD"

// child is a node in a process of its own, that can be stopped and killed.
type child struct {
	t   *testing.T
	cmd *exec.Cmd

	mu sync.Mutex
	// Guarded by mu.
	said []string
}

// startChild starts node-1 with a directory, a count, the end of its log, and nodes to beat.
func startChild(t *testing.T, dir string, starts, last uint64, to ...*Transport) *child {
	t.Helper()
	c := &child{t: t, cmd: exec.Command(os.Args[0], "-test.run=^$")}
	fields := []string{dir, strconv.FormatUint(starts, 10), strconv.FormatUint(last, 10)}
	for _, tr := range to {
		fields = append(fields, tr.o.NodeID+"@"+string(tr.o.Address))
	}
	c.cmd.Env = append(os.Environ(), childEnv+"="+strings.Join(fields, ","))
	c.cmd.Stderr = os.Stderr
	out, err := c.cmd.StdoutPipe()
	if err == nil {
		err = c.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() { // owned by the test; ends with the process
		defer close(read)
		for s := bufio.NewScanner(out); s.Scan(); {
			c.mu.Lock()
			c.said = append(c.said, s.Text())
			c.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		c.kill()
		<-read
	})
	return c
}

func (c *child) signal(s syscall.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
}

// kill ends the process at once, whatever state it is in.
func (c *child) kill() {
	if c.cmd.ProcessState == nil {
		c.cmd.Process.Kill() //nolint:errcheck // Wait tells
		c.cmd.Wait()         //nolint:errcheck // it was killed
	}
}

// says waits until the child has written a line with text, and returns all it wrote until then.
func (c *child) says(text string) (lines []string) {
	c.t.Helper()
	eventually(c.t, "the child says "+text, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		lines = c.said
		return strings.Contains(strings.Join(lines, "\n"), text)
	})
	return lines
}

// runChild is main of a child: node-1 sends heartbeats to the nodes that it was given, answers everything, and
// writes what becomes of each.
func runChild(fields string) error {
	f := strings.Split(fields, ",")
	starts, err := strconv.ParseUint(f[1], 10, 64)
	if err != nil {
		return err
	}
	last, err := strconv.ParseUint(f[2], 10, 64)
	if err != nil {
		return err
	}
	o := Options{
		NodeID: "node-1", Incarnation: incarnation(1), Dir: f[0], Starts: starts,
		Logger:  slog.New(slog.NewTextHandler(io.Discard, nil)),
		Cluster: func() (cluster, history [16]byte, ok bool) { return incarnation(0xcc), incarnation(0xdd), true },
		LogEnd:  func() (uint64, uint64, bool) { return last, 1, true },
	}
	if o.Listener, err = listenLocal(); err != nil {
		return err
	}
	o.Address = raft.ServerAddress(o.Listener.Addr().String())
	tr, err := New(o)
	if err != nil {
		return err
	}
	go func() { // ends with the process
		for {
			agree(<-tr.Consumer())
		}
	}()
	for old := map[string]string{}; ; time.Sleep(20 * time.Millisecond) {
		for _, to := range f[3:] {
			id, address, _ := strings.Cut(to, "@")
			var resp raft.AppendEntriesResponse
			text := "let in"
			if err := tr.AppendEntries(raft.ServerID(id), raft.ServerAddress(address), heartbeat(tr, 1), &resp); err != nil {
				text = err.Error()
			}
			if text != old[id] {
				fmt.Printf("%s: %s\n", id, text)
				old[id] = text
			}
		}
	}
}

// Goal: a node that is killed and started again at once is let in at once: the old process's connections have
// ended, however lately they carried something.
func TestProcess_KilledAndStartedAgainAtOnce_IsNeverTakenForAClone(t *testing.T) {
	o := testOptions(t, 2)
	// Were it only silence that shows the end of a process, no start would be let in before the test is over.
	b := open(t, o)
	serve(t, b, agree)
	dir := t.TempDir()
	for starts := uint64(1); starts <= 8; starts++ {
		c := startChild(t, dir, starts, 0, b)
		if lines := c.says("node-2: let in"); len(lines) != 1 {
			t.Fatalf("start %d: %q", starts, lines)
		}
		// In both directions, so that this side holds connections that nobody reads from.
		address := raft.ServerAddress(statusOf(t, b, "node-1").Address)
		var resp raft.AppendEntriesResponse
		if err := b.AppendEntries("node-1", address, heartbeat(b, 1), &resp); err != nil {
			t.Fatal(err)
		}
		eventually(t, "pulses go", func() bool {
			p, _ := b.counted("node-1")
			return b.conns.heard("node-1", p, b.o.Clock.Boot()-b.silence())
		})
		c.kill()
	}
}

// Goal: of a process that is frozen and a clone of it, exactly one is in, whoever was there first, and none
// that lacks what was acknowledged.
func TestProcess_FrozenAndCloned_ExactlyOneIsInAndNothingIsForgotten(t *testing.T) {
	oa, ob := testOptions(t, 3), testOptions(t, 2)
	oa.HeartbeatTimeout, ob.HeartbeatTimeout = 0, 0 // the default, as in the child
	leader, other := open(t, oa), open(t, ob)
	n := newFakeNode(1)
	leader.Bind(n)
	other.Bind(newFakeNode(1))
	serve(t, leader, agree)
	serve(t, other, agree)
	if err := beat(leader, other, 1); err != nil {
		t.Fatal(err)
	}
	dir, copied := t.TempDir(), t.TempDir()
	original := startChild(t, dir, 1, 10, leader, other)
	original.says("node-2: let in")
	original.says("node-3: let in")
	for _, tr := range []*Transport{leader, other} {
		eventually(t, "pulses go", func() bool {
			p, _ := tr.counted("node-1")
			return tr.conns.heard("node-1", p, tr.o.Clock.Boot()-tr.silence())
		})
	}
	copyPeers(t, dir, copied)

	// It acknowledges entry 10, which the other follower does not have.
	req := heartbeat(leader, 1)
	req.Entries = []*raft.Log{{Index: 10, Term: 1}}
	var resp raft.AppendEntriesResponse
	if err := leader.AppendEntries("node-1", raft.ServerAddress(statusOf(t, leader, "node-1").Address), req, &resp); err != nil {
		t.Fatal(err)
	}
	n.commit.Store(10)

	// A copy from before that: refused while the original lives, and when it is frozen for good.
	stale := startChild(t, copied, 2, 9, leader, other)
	for _, id := range []string{"node-2", "node-3"} { // for now: the original lives
		stale.says(id + ": node \"" + id)
	}
	stale.says("another process runs as node")
	original.signal(syscall.SIGSTOP)
	for _, id := range []string{"node-2", "node-3"} {
		for _, line := range stale.says(id + ": refused by node") {
			if strings.Contains(line, "let in") {
				t.Fatalf("the copy that lacks an entry was let in: %q", line)
			}
		}
		stale.says("held committed entries up to 10")
	}
	stale.kill()
	// A copy that lacks nothing takes its place, and the original, continued, is out everywhere.
	whole := startChild(t, copied, 3, 10, leader, other)
	whole.says("node-2: let in")
	whole.says("node-3: let in")
	original.signal(syscall.SIGCONT)
	original.says("node-2: refused by node")
	original.says("node-3: refused by node")
	original.says("older copy")
	for _, line := range whole.says("let in") {
		if !strings.Contains(line, "let in") {
			t.Errorf("the copy was put out again: %q", line)
		}
	}
}
