package test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A mutant is the store with one planted defect. The suite as it is must find it: the same runs, the same faults and
// the same checkers, in a process of its own.
type mutant struct {
	name string
	what string // what is broken
	// changes of the source; the functions give those that need more than a text.
	changes func(t *testing.T) []change
	scene   string
	kinds   string // the faults that bring it to light; empty: all of the scene
	// inBuild: it is among the mutants that every build runs.
	inBuild bool
}

func textual(changes ...change) func(*testing.T) []change {
	return func(*testing.T) []change { return changes }
}

func mutants() []mutant {
	return []mutant{
		{
			name: "lease-without-end", what: "a leader serves reads until it hears of a newer term, instead of for the length of its lease", inBuild: true,
			changes: textual(change{"consensus/lease.go", "	if term == 0 {\n		return false\n",
				"	if term == 0 {\n		s := g.lease.span.Load()\n		return s != nil && s.term == g.raft.CurrentTerm()\n"}),
			scene: "Network", kinds: "isolate-leader,one-way",
		},
		{
			name: "ack-before-fsync", what: "fsync does nothing", inBuild: true,
			changes: withoutFsyncChanges, scene: "Disks", kinds: "power-all",
		},
		{
			name: "lost-dedup", what: "a write that is sent again by its session is executed again", inBuild: true,
			changes: textual(change{"engine/session.go", "	if k := s.results.get(seq); k != nil {\n		return s, wire.Result", "	if k := s.results.get(seq); k != nil && k.rev == 0 {\n		return s, wire.Result"}),
			scene:   "Processes",
		},
		{
			name: "clock-in-apply", what: "each replica expires records by its own clock", inBuild: true,
			changes: textual(change{"engine/apply.go", "	a.now = max(a.last.time, t)", "	a.now = max(a.last.time, t, time.Now().UnixMicro())"}),
			scene:   "Processes",
		},
		{
			name: "lease-kept-on-transfer", what: "a leader keeps its lease while it hands its leadership over", inBuild: true,
			changes: textual(change{"consensus/lease.go", "	if g.o.broken.revocation {", "	if true {"}),
			scene:   "Network", kinds: "transfer-deaf",
		},
		{
			name: "wiped-node-accepted", what: "a node that lost its data directory is let in again", inBuild: true,
			changes: textual(
				change{"consensus/peer/trust.go", "	case known != [16]byte{}:", "	case false:"},
				change{"consensus/peer/trust.go", "	case t.running() && h.Cluster == [16]byte{}:", "	case false:"}),
			scene: "Damage", kinds: "wipe",
		},
		{
			name: "condition-ignored", what: "a condition on a version holds for every version",
			changes: textual(change{"engine/mutate.go", "return live && c.HasVersion(st.now.Meta.Version)", "return live"}),
			scene:   "Processes",
		},
		{
			name: "follower-asks-nobody", what: "a follower answers linearizable reads from what it has",
			changes: textual(change{"node/followerread.go", "\treturn viaLeader\n", "\treturn viaNothing\n"}),
			scene:   "Network", kinds: "isolate-any,delay",
		},
		{
			name: "lease-from-the-answer", what: "a lease counts from when an answer came, not from when it was asked for",
			changes: textual(change{"consensus/network.go", "			if g.o.broken.sendTime {", "			if true {"}),
			scene:   "Network", kinds: "late-answers",
		},
		{
			name: "transaction-conditions-ignored", what: "a transaction is executed although a condition does not hold",
			changes: textual(change{"engine/txn.go", "func (g *group) failedConditions() (failed []wire.FailedCondition) {\n", "func (g *group) failedConditions() (failed []wire.FailedCondition) {\n	if g.count > 0 {\n		return nil\n	}\n"}),
			scene:   "Processes", kinds: "kill-any",
		},
		{
			name: "pages-of-many-revisions", what: "each page of a listing shows the newest revision",
			changes: textual(
				change{"engine/scan.go", "		at = wire.RevisionTS(s.from.rev)", "		at = 0"},
				change{"engine/scan.go", "	s.at = s.from.rev\n", "	s.at = 0\n"},
				change{"engine/scan.go", "		s.from.rev != 0 && (s.from.rev != s.p.revision || s.from.time != s.p.time)", "		false"}),
			scene: "Processes", kinds: "kill-any",
		},
		{
			name: "expired-is-readable", what: "a record is shown after its deadline, until it is removed",
			changes: textual(
				change{"engine/get.go", "		if !r.expired(p.time) {", "		if true {"},
				change{"engine/get.go", "	case !l.found || l.rec.expired(l.p.time):", "	case !l.found:"}),
			scene: "Processes", kinds: "kill-any",
		},
		{
			name: "feed-not-synced", what: "a checkpoint does not make the change feed durable",
			changes: textual(change{"node/feed.go", "func (k *feedSink) Sync(p engine.Point) error { return k.feed.Sync(p.Index) }", "func (k *feedSink) Sync(engine.Point) error { return nil }"}),
			scene:   "Disks", kinds: "power-all",
		},
		{
			name: "event-lost", what: "the change feed loses a write now and then",
			changes: textual(change{"node/feed.go", "	k.feed.Append(p.Index,", "	if p.Index%64 == 0 {\n		k.events = k.events[:0]\n	}\n	k.feed.Append(p.Index,"}),
			scene:   "Processes", kinds: "kill-any",
		},
		{
			name: "watch-repeats", what: "a watch begins with the event that it is to begin behind",
			changes: textual(change{"node/watch.go", "	o.Request.After = x.after\n", "	o.Request.After = max(x.after, 1) - 1\n"}),
			scene:   "Processes", kinds: "kill-any",
		},
		{
			name: "quota-ignored", what: "a namespace may hold more keys than its quota",
			changes: textual(change{"engine/usage.go", "	case s.KeysMax > 0 && after.records", "	case false && after.records"}),
			scene:   "Processes", kinds: "kill-any",
		},
		{
			name: "unknown-told-as-refused", what: "a write whose outcome is unknown is called surely not applied",
			changes: textual(change{"consensus/propose.go", `return fmt.Errorf("%w: %w", ErrUnknown, err)`, `return fmt.Errorf("%w: %w", ErrNotProposed, err)`}),
			scene:   "Processes", kinds: "kill-leader,stop-leader",
		},
	}
}

// finding matches what a run says of a broken promise: an anomaly with its second, or nodes that have diverged.
var finding = regexp.MustCompile(`ANOMALY [^\n]*|the nodes have diverged[^\n]*`)

// TestMutants_EachIsFoundOut builds the store with each planted defect and has the suite look for it. MUTANTS names
// them; "all" are all.
func TestMutants_EachIsFoundOut(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the store anew, many times")
	}
	wanted := os.Getenv("MUTANTS")
	for _, m := range mutants() {
		if wanted == "" && !m.inBuild || wanted != "" && wanted != "all" && !slices.Contains(strings.Split(wanted, ","), m.name) {
			continue
		}
		t.Run(m.name, func(t *testing.T) { findOut(t, &m) })
	}
}

// findOut runs the suite against a mutant, with up to a few seeds.
func findOut(t *testing.T, m *mutant) {
	binary := buildChanged(t, m.changes(t)...)
	s := seed(t)
	began := time.Now()
	const tries = 4
	var out string
	for i := range tries {
		mine := s + uint64(i)
		out = runAgainst(t, m, binary, mine)
		found := ""
		for _, f := range finding.FindAllString(out, -1) {
			if found == "" && !strings.Contains(f, cantGoOn) {
				found = f
			}
		}
		if found != "" {
			t.Logf("MUTANT %s: %s: %s, seed %d, run %d, %.0f s in all: %s", m.name, m.what, m.scene, mine, i+1, time.Since(began).Seconds(), strings.TrimSpace(found))
			return
		}
	}
	t.Errorf("%s was not found out by %d runs of %s: the load, the faults or the checkers prove nothing about it. The last run:\n%s", m.what, tries, m.scene, lastLines(out, 80))
}

// runAgainst runs one scene against a program, in a process of its own, and gives what it said.
func runAgainst(t *testing.T, m *mutant, binary string, seed uint64) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, exe, "-test.run=^TestFaults_"+m.scene+"$", "-test.v", "-test.count=1", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), binaryEnv+"="+binary, stopEnv+"=1", kindsEnv+"="+m.kinds, "FAULT_TIME=12s",
		seedEnv+"="+strconv.FormatUint(seed, 10), "TMPDIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err == nil && !strings.Contains(string(out), "--- PASS: TestFaults_"+m.scene) {
		t.Skipf("SKIPPED, NOT TESTED: %s", out)
	}
	return string(out)
}

// withoutFsyncChanges make an fsync that does nothing, by a standard library that lacks it.
func withoutFsyncChanges(t *testing.T) []change {
	t.Helper()
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(fmt.Errorf("cannot find Go's own source: %w", err))
	}
	return []change{
		{filepath.Join(strings.TrimSpace(string(goroot)), "src/internal/poll/fd_fsync_posix.go"), "return syscall.Fsync(fd.Sysfd)", "_ = syscall.Fsync; return nil"},
		{"consensus/logfile.go", "syscall.Fdatasync(int(d.Fd()))", "error(nil)"},
		// The disk of the tests has no cache of its own: what was written past the page cache would be there.
		{"internal/directio/file.go", "if errors.Is(err, unix.EINVAL) {\n\t\treturn nil,", "if true {\n\t\treturn nil,"},
	}
}
