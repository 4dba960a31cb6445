package engine

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// mutantEnv names the mutant that a changed build of this test is.
const mutantEnv = "KVSTORE_TEST_ENGINE_MUTANT"

// mutant is a mistake that makes replicas differ: one place of the source, changed.
type mutant struct {
	name, file string
	from, to   string
	// logs is how many random logs may be needed to find it; 0: the tests of the tables of sessions and of idempotency keys
	// judge.
	logs int
}

const (
	judgeOfLogs   = "^TestDeterminism_SameLogAnyReplica_SameStateAndAnswers$"
	judgeOfTables = "^Test(Session|Idempotency)Table_RandomPrograms_AgreeWithTheModel$"
)

// mutants are mistakes of the kinds that have made replicas of other systems differ.
var mutants = []mutant{
	{"expiry by the local clock", "record.go",
		"r.Meta.ExpiresAt != 0 && r.Meta.ExpiresAt <= t }",
		"r.Meta.ExpiresAt != 0 && (r.Meta.ExpiresAt <= t || MUTANT && r.Meta.ExpiresAt <= mutantNow()) }", 20},
	{"a leader's time is cut to the local clock", "apply.go",
		"	a.now = max(a.last.time, t)",
		"	if a.now = max(a.last.time, t); MUTANT {\n		a.now = max(a.last.time, min(t, mutantNow()))\n	}", 20},
	{"answers of sessions are forgotten at a restart", "session.go",
		"		return true, t.loadJournal(key, b)",
		"		if MUTANT {\n			return true, nil\n		}\n		return true, t.loadJournal(key, b)", 20},
	{"the floor of a session is forgotten at a restart", "session.go",
		"		t.byID[s.id] = s\n		return true, nil",
		"		if MUTANT {\n			s.floor = 0\n		}\n		t.byID[s.id] = s\n		return true, nil", 60},
	{"which session makes room is decided by order of use", "session.go",
		"longest == nil || s.id < longest.id", "longest == nil || !MUTANT && s.id < longest.id", 100},
	{"the order of a map decides what expires first", "expiry.go",
		"	for _, recordKey := range due {",
		"	if MUTANT {\n		byKey := make(map[string][]byte)\n		for _, k := range due {\n			byKey[string(k)] = k\n		}\n		due = due[:0]\n		for _, k := range byKey {\n			due = append(due, k)\n		}\n	}\n	for _, recordKey := range due {", 40},
	{"what the cache doesn't hold is taken for absent", "load.go",
		"	case cacheAbsent:\n		return\n	}",
		"	case cacheAbsent:\n		return\n	case cacheMiss:\n		if MUTANT && a.in.cache != nil && a.last.index > 8 {\n			return\n		}\n	}", 20},
	{"the cache isn't told what has left the tail", "instance.go",
		"	in.cache.update(hash, key, ts, value)\n", "	if !MUTANT {\n		in.cache.update(hash, key, ts, value)\n	}\n", 40},
	{"what was deleted is passed over in the tail", "tail.go",
		"	if value, known = t.active.get(hash, key, ts); !known && t.sealed != nil {",
		"	if value, known = t.active.get(hash, key, ts); MUTANT && value == nil {\n		known = false\n	}\n	if !known && t.sealed != nil {", 40},
	{"numbering goes on from entry to entry", "session.go",
		"	t.part, t.partUsed = 0, 0\n", "	if !MUTANT {\n		t.part, t.partUsed = 0, 0\n	}\n", 40},
	{"log time is forgotten at a restart", "marker.go",
		"		time:      int64(u64(32)),", "		time:      mutantTime(MUTANT, int64(u64(32))),", 60},
	{"the layout of a value is part of the digest", "digest.go",
		"	binary.LittleEndian.PutUint32(b[4:], r.valueLen)",
		"	binary.LittleEndian.PutUint32(b[4:], r.valueLen)\n	if MUTANT {\n		b[3] = byte(r.chunks)\n	}", 40},
	{"what a namespace holds is forgotten at a restart", "usage.go",
		"		n.used, n.stored = u, u\n", "		if n.used, n.stored = u, u; MUTANT {\n			n.used = usage{}\n		}\n", 60},
	{"what a transaction has begun stays", "usage.go",
		"		st.exists, st.dirty, st.now = u.exists, u.dirty, u.now\n", "		if !MUTANT {\n			st.exists, st.dirty, st.now = u.exists, u.dirty, u.now\n		}\n", 40},
	{"a transaction that was undone counts for the quota", "usage.go",
		"	a.positions, a.space.used = s.positions, s.used\n", "	if a.positions = s.positions; !MUTANT {\n		a.space.used = s.used\n	}\n", 60},
	{"a quota binds what is stored, not what was sent", "record.go",
		"uint64(len(r.Ext)) + uint64(r.valueLen)\n", "uint64(len(r.Ext)) + uint64(r.valueLen) + mutantBytes(MUTANT, uint64(r.chunks))\n", 40},
	{"a namespace's id is given again after a restart", "namespace.go",
		"		t.next = binary.LittleEndian.Uint32(rec.Value)\n", "		if t.next = binary.LittleEndian.Uint32(rec.Value); MUTANT && t.next > 2 {\n			t.next--\n		}\n", 60},
	{"a level is what the build knows", "level.go",
		"	switch a.identity.level {\n	case levelNone:", "	level := a.identity.level\n	if MUTANT && level > 0 && a.index%7 == 0 && a.in.store.o.MemtableBytes == 1<<20 {\n		level = LevelNewest\n	}\n	switch level {\n	case levelNone:", 20},
	{"a session ends at its time, not behind it", "session.go",
		"now-s.last > sessionTTL;", "(now-s.last > sessionTTL || MUTANT && now-s.last == sessionTTL);", 0},
	{"the window of numbers is one too wide", "session.go",
		"seq-s.floor > wire.SessionWindow {", "seq-s.floor > wire.SessionWindow && !(MUTANT && seq-s.floor == wire.SessionWindow+1) {", 0},
	{"what is to be asked again is kept as an answer", "session.go",
		"res.Status.Class() == wire.ClassRetry {", "res.Status.Class() == wire.ClassRetry && !MUTANT {", 0},
	{"answers that nobody wants stay stored", "session.go",
		"j.live == 0 && j.stored {", "j.live == 0 && j.stored && !MUTANT {", 0},
	{"what is known of stored answers is written over while they are wanted", "session.go",
		"	d.add(j.digest)\n", "	if d.add(j.digest); MUTANT {\n		t.reuse(j)\n	}\n", 0},
	{"numbers that meet in a window are taken for one", "window.go",
		"		if a.seq == seq {\n			return &a.kept", "		if a.seq == seq || MUTANT {\n			return &a.kept", 0},
	{"a window that grows or shrinks forgets what has met", "window.go",
		"			at = a.next\n		}\n	}\n", "			if at = a.next; MUTANT {\n				at = 0\n			}\n		}\n	}\n", 0},
	{"a write doesn't keep its session alive", "session.go",
		"	t.touch(s, now)\n	t.raiseFloor(s, floor)", "	if !MUTANT {\n		t.touch(s, now)\n	}\n	t.mark(s)\n	t.raiseFloor(s, floor)", 0},
	{"answers to idempotency keys are forgotten at a restart", "instance.go",
		"			once, err = loadIdempotency(r)\n", "			if once, err = loadIdempotency(r); MUTANT {\n				once = newIdempotency()\n			}\n", 20},
	{"what the answers to idempotency keys take is counted anew at a restart", "idempotency.go",
		"	t.link(k)\n	return nil\n", "	if t.link(k); MUTANT {\n		t.bytes = 0\n	}\n	return nil\n", 60},
	{"a full table of idempotency keys forgets the oldest", "idempotency.go",
		"		return wire.Result{Status: wire.StatusRetryLater, Payload: []byte(idempotencyFullText)}, true\n",
		"		if k = t.oldest.next; !MUTANT || k == &t.oldest || k.digest == (digest{}) {\n			return wire.Result{Status: wire.StatusRetryLater, Payload: []byte(idempotencyFullText)}, true\n		}\n		t.drop(k)\n", 0},
	{"an idempotency key is forgotten at its time, not behind it", "idempotency.go",
		"now-k.at > idempotencyTTL }", "now-k.at > idempotencyTTL || MUTANT && now-k.at == idempotencyTTL }", 0},
	{"another request with the same idempotency key gets the first one's answer", "idempotency.go",
		"k.fingerprint != fingerprint:", "k.fingerprint != fingerprint && !MUTANT:", 0},
}

// mutantSource stands beside the changed files.
const mutantSource = `package engine

import (
	"os"
	"time"
)

var mutantName = os.Getenv("` + mutantEnv + `")

func mutantNow() int64 { return time.Now().UnixMicro() }

func mutantBytes(mutant bool, n uint64) uint64 {
	if mutant {
		return n
	}
	return 0
}

func mutantTime(mutant bool, t int64) int64 {
	if mutant {
		return 0
	}
	return t
}
`

// buildMutants builds this package's tests once, with all mutants in them; mutantEnv awakens one.
func buildMutants(t *testing.T) (program string) {
	t.Helper()
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	sources := map[string]string{"mutant.go": mutantSource}
	for _, m := range mutants {
		if sources[m.file] == "" {
			b, err := os.ReadFile(m.file)
			if err != nil {
				t.Fatal(err)
			}
			sources[m.file] = string(b)
		}
		if strings.Count(sources[m.file], m.from) != 1 {
			t.Fatalf("%s does not hold %q once: the mutant %q must learn how it is written now", m.file, m.from, m.name)
		}
		to := strings.ReplaceAll(m.to, "MUTANT", fmt.Sprintf("(mutantName == %q)", m.name))
		sources[m.file] = strings.Replace(sources[m.file], m.from, to, 1)
	}
	replace := make(map[string]string)
	for file, source := range sources {
		replace[filepath.Join(here, file)] = filepath.Join(dir, file)
		if err := os.WriteFile(filepath.Join(dir, file), []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	program = filepath.Join(dir, "mutants.test")
	if out, err := exec.Command("go", "test", "-c", "-o", program, "-overlay", filepath.Join(dir, "overlay.json"), ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

// verdict is the line in which a test says what was wrong.
var verdict = regexp.MustCompile(`seed \d+[^\n]*: [^\n]*|entry \d+: [^\n]*|[^\n]* differ: [^\n]*`)

// TestDeterminism_Mutants_AreCaught builds engines with one mistake each, and one without, and lets the test of
// determinism judge them. It shows that the test can fail, and on what.
func TestDeterminism_Mutants_AreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package once more")
	}
	if os.Getenv(mutantEnv) != "" {
		t.Skip("this is a mutant itself")
	}
	program := buildMutants(t)
	judge := func(t *testing.T, name string, logs int) (out string, caught bool) {
		run := judgeOfLogs
		if logs == 0 {
			run = judgeOfTables
		}
		cmd := exec.CommandContext(t.Context(), program, "-test.run="+run, "-seed=1", fmt.Sprintf("-chronicles=%d", logs))
		cmd.Env = append(os.Environ(), mutantEnv+"="+name)
		b, err := cmd.CombinedOutput()
		return string(b), err != nil
	}
	for _, logs := range []int{0, 5} {
		t.Run("none", func(t *testing.T) {
			t.Parallel()
			if out, caught := judge(t, "none", logs); caught {
				t.Errorf("an engine without a mistake: %s", out)
			}
		})
	}
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			out, caught := judge(t, m.name, m.logs)
			told := verdict.FindString(out)
			if !caught || told == "" {
				t.Fatalf("%d logs did not show it\n%s", m.logs, out)
			}
			t.Log(told)
		})
	}
}
