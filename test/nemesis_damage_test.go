package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kvstore/internal/testcluster"
)

// Damage to the files of one node, while it is down and all others are well. Whatever is damaged, the node must serve
// what is right, make its state anew from the others, or stay out and say how it comes back; the others go on, and
// nothing that was acknowledged is lost.

// Kinds of files in a data directory.
const (
	kindIdentity    = "identity"
	kindLock        = "LOCK"
	kindBallast     = "ballast"
	kindVote        = "groups/1/log/vote"
	kindPeers       = "groups/1/log/peers"
	kindLogMeta     = "groups/1/log/wal-meta.db"
	kindSegment     = "groups/1/log/*.wal"
	kindCheckpoint  = "groups/1/CHECKPOINT"
	kindManifest    = "groups/1/gen-*/MANIFEST"
	kindKeyRegistry = "groups/1/gen-*/KEYREGISTRY"
	kindDiscard     = "groups/1/gen-*/DISCARD"
	kindStoreLock   = "groups/1/gen-*/LOCK"
	kindValueLog    = "groups/1/gen-*/*.vlog"
	kindMemtable    = "groups/1/gen-*/*.mem"
	kindTable       = "groups/1/gen-*/*.sst"
)

func init() {
	small := []string{kindIdentity, kindVote, kindPeers, kindLogMeta, kindCheckpoint}
	store := []string{kindTable, kindTable, kindMemtable, kindManifest, kindValueLog, kindKeyRegistry}
	for _, n := range []struct {
		name   string
		kinds  []string
		damage func(rng *rand.Rand, path string) (string, error)
	}{
		{"flip-log", []string{kindSegment}, flipSome},
		{"flip-tables", store, flipSome},
		{"flip-small", small, flipSome},
		{"torn-log", []string{kindSegment}, tear},
		{"torn-tables", []string{kindTable, kindMemtable, kindManifest}, tear},
	} {
		nemeses[n.name] = nemesis{name: n.name, strike: func(r *faultRun, rng *rand.Rand) (*fault, error) {
			return damageOne(r, rng, n.kinds[rng.IntN(len(n.kinds))], n.damage)
		}}
	}
	nemeses["wipe"] = nemesis{name: "wipe", strike: wipe}
}

// used is how much of a file's content is in use: what is allocated ahead is zero.
func used(b []byte) int { return len(bytes.TrimRight(b, "\x00")) }

// flipSome changes one to three bits of the part of a file that is in use: near its begin, near its end, or anywhere.
func flipSome(rng *rand.Rand, path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	n := used(b)
	if n == 0 {
		return "", nil
	}
	var at []int
	for range 1 + rng.IntN(3) {
		place := rng.IntN(n)
		switch near := min(n, 64); rng.IntN(4) {
		case 0:
			place = rng.IntN(near)
		case 1:
			place = n - 1 - rng.IntN(near)
		}
		if !slices.Contains(at, place) {
			at = append(at, place)
			b[place] ^= 1 << rng.IntN(8)
		}
	}
	return fmt.Sprintf("bits flipped at %v of %d bytes of %s", at, n, filepath.Base(path)), writeSynced(path, b)
}

// tear takes the end of a file, as far as it is in use: by a few bytes, or by up to all of it. It is cut off, or zero.
func tear(rng *rand.Rand, path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	n := used(b)
	if n == 0 {
		return "", nil
	}
	torn := 1 + rng.IntN(min(n, 200))
	if rng.IntN(3) == 0 {
		torn = 1 + rng.IntN(n)
	}
	if rng.IntN(2) == 0 {
		return fmt.Sprintf("the last %d of %d bytes of %s cut off", torn, n, filepath.Base(path)), writeSynced(path, b[:n-torn])
	}
	clear(b[n-torn:])
	return fmt.Sprintf("the last %d of %d bytes of %s zeroed", torn, n, filepath.Base(path)), writeSynced(path, b)
}

// writeSynced gives a file this content, in place. Zeros at its end stay a hole.
func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b[:used(b)])
	return errors.Join(err, f.Truncate(int64(len(b))), f.Sync(), f.Close())
}

// fate is what became of a node that was damaged.
type fate string

const (
	fateWhole    fate = "whole"    // it serves, and everything that it has was read and is right
	fateRebuilt  fate = "rebuilt"  // it made its state anew, and then the same
	fateReported fate = "reported" // it serves, and says that its log is damaged
	fateRefused  fate = "refused"  // it has ended with the reason, or is kept out by the others and says why
)

// wayBack is in what a node says that the others keep out.
const wayBack = "member remove"

// becomesOf starts a damaged node and waits until it is known what becomes of it. An error is none of those
// that there may be. why is what the node says. look, if there is one, looks at it as soon as it serves, before any
// damage is searched for. REQUIRES: it does not run; nothing else happens to it.
func becomesOf(n *testcluster.Node, look func() error) (o fate, why string, err error) {
	// The file counts how often a node made its state anew within an hour, and the fourth time it is not trusted.
	if err := os.RemoveAll(filepath.Join(n.DataDir(), "QUARANTINE")); err != nil {
		return "", "", err
	}
	n.Set("scrub-rate", "1GiB") // so that it takes no time to read everything
	n.Launch()
	died, asked := 0, false
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		_, said, _ := strings.Cut(n.LastOutput(), "\n") // the first line is its command
		if !n.Running() {
			code := n.WaitExit()
			crashed := code != 1 || strings.Contains(said, "\ngoroutine ")
			switch {
			case !crashed && (strings.Contains(withoutLog(said), n.DataDir()) || strings.Contains(said, wayBack)):
				return fateRefused, lastLine(said), nil
			case crashed && strings.Contains(said, "github.com/dgraph-io/badger/") && died < 3:
				// A panic in a goroutine of Badger's can't be caught. The next starts tell it apart.
				died, asked = died+1, false
				n.Launch()
				continue
			}
			return "", "", fmt.Errorf("it ended with exit code %d, %d deaths before:\n%s", code, died, lastLines(said, 60))
		}
		s, err := n.Status()
		if err != nil || !serves(n) {
			// The others may keep it out, and it runs on; or it is about to end.
			if strings.Contains(said, wayBack) {
				select {
				case <-n.Exited():
				case <-time.After(3 * time.Second):
					return fateRefused, "kept out: " + lineWith(said, wayBack), nil
				}
			}
			continue
		}
		if look != nil {
			if err := look(); err != nil {
				return "", "", err
			}
			look = nil
		}
		if !asked {
			// Damage in what nobody reads is found by reading everything.
			asked = askScrub(n) == nil
			continue
		}
		if !s.Scrub.Running && s.Scrub.FinishedAt == "" {
			asked = false // it has started itself again since it was asked
			continue
		}
		if s.Scrub.Running || s.Scrub.Error != "" || s.Scrub.DamagedCount > 0 || s.Damage != "" {
			continue
		}
		switch {
		case s.Scrub.LogError != "":
			return fateReported, s.Scrub.LogError, nil
		case s.Scrub.Digest == nil || !*s.Scrub.Digest:
			continue // it makes its state anew
		case s.Quarantine != nil:
			return fateRebuilt, s.Quarantine.Reason, nil
		}
		return fateWhole, "", nil
	}
	s, err := n.Status()
	return "", "", fmt.Errorf("after %v it is not well and does not say why not: ready %v, scrub asked for %v, state %+v, %v:\n%s", patience, serves(n), asked, s, err, lastLines(n.LastOutput(), 60))
}

// withoutLog leaves out the lines of the log: they name the directory at each start, whatever happens.
func withoutLog(said string) string {
	return strings.Join(slices.DeleteFunc(strings.Split(said, "\n"), func(line string) bool { return strings.HasPrefix(line, "time=") }), "\n")
}

// lineWith gives the last line that holds a text.
func lineWith(text, part string) string {
	at := strings.LastIndex(text, part)
	from := strings.LastIndexByte(text[:at], '\n') + 1
	line, _, _ := strings.Cut(text[from:], "\n")
	return line
}

// serves asks once whether the node serves.
func serves(n *testcluster.Node) bool {
	c := http.Client{Timeout: 5 * time.Second}
	resp, err := c.Get("http://" + n.MetricsAddr() + "/readyz")
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return errors.Join(err, resp.Body.Close()) == nil && resp.StatusCode == http.StatusOK
}

// askScrub has a node read and check all that it has stored.
func askScrub(n *testcluster.Node) error { return askAdmin(n, http.MethodPost, "scrub") }

// askAdmin asks a node for a change of the cluster.
func askAdmin(n *testcluster.Node, method, what string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+n.HTTPAddr()+"/api/v1/admin/"+what, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %s", method, what, resp.Status, b)
	}
	return err
}

// comeBackEmpty takes the way back that a node is told which does not come back with its data directory: it is removed,
// and joins with an empty one. REQUIRES: a majority of the others serves.
func comeBackEmpty(t *testing.T, c *testcluster.Cluster, i int) error {
	n, other := c.Node(i), c.Node((i+1)%c.Size())
	n.Kill()
	var err error
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		// Asked again it goes on with what was begun. Once the node is gone, it is no member.
		if err = askAdmin(other, http.MethodDelete, "members/"+c.ID(i)); err == nil || roleAt(t, other, c.ID(i)) == "" {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("cannot remove the damaged node: %w", err)
		}
	}
	if err := os.RemoveAll(n.DataDir()); err != nil {
		return err
	}
	n.Unset("initial-cluster")
	n.Set("join", c.JoinAddrs(n))
	n.Launch()
	if err := n.WaitReady(); err != nil {
		return err
	}
	waitVoter(t, other, c.ID(i))
	return nil
}

// well tells whether all nodes run, serve, and apply what is written now: nothing that is acknowledged rests on one
// node alone, and each way between them is open.
func (r *faultRun) well() bool {
	r.control.Lock()
	defer r.control.Unlock()
	target := uint64(0)
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		all, errs := r.c.Statuses(ctx)
		cancel()
		least, newest := ^uint64(0), uint64(0)
		for _, s := range all {
			least, newest = min(least, s.AppliedIndex), max(newest, s.LastIndex)
		}
		switch {
		case errors.Join(errs...) != nil:
		case target == 0:
			target = newest
		case least > target && !slices.ContainsFunc(r.c.Nodes(), func(n *testcluster.Node) bool { return !serves(n) }):
			return true
		}
	}
	return false
}

// enter counts one more of something and gives all counts.
func (r *faultRun) enter(what string) map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tally[what]++
	return maps.Clone(r.tally)
}

// damagedStore tells whether a file of Badger's was damaged on node i. Badger panics on some of that in goroutines of its
// own; becomesOf judges it.
func (r *faultRun) damagedStore(i int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tally["store of "+r.c.ID(i)] > 0
}

// damageOne ends a node, damages one of its files, and starts it again. It stands for itself: it is made only while all
// nodes are well, and no other fault begins before it is known what becomes of the node.
func damageOne(r *faultRun, rng *rand.Rand, kind string, damage func(*rand.Rand, string) (string, error)) (*fault, error) {
	i := r.anyNode(rng)
	later := kind == kindSegment || rng.IntN(2) == 0
	lasts := between(rng, 0, 500*time.Millisecond)
	if !r.well() {
		return nil, nil
	}
	n, was := r.c.Node(i), r.describe(i)
	r.control.Lock()
	defer r.control.Unlock()
	n.Kill()
	paths, err := filepath.Glob(filepath.Join(n.DataDir(), kind))
	if err != nil {
		return nil, err
	}
	what := ""
	for _, k := range rng.Perm(len(paths)) {
		if what, err = damage(rng, paths[k]); err != nil {
			return nil, err
		}
		if what != "" {
			break
		}
	}
	if what == "" { // no file of this kind has any content
		return nil, r.upLocked(i)
	}
	r.note("%s: %s", was, what)
	if strings.HasPrefix(kind, "groups/1/gen-") {
		r.enter("store of " + r.c.ID(i))
	}
	if later {
		// Its log may have lost what it had acknowledged last. Nobody could tell that from a write that was torn, and its
		// vote would count: what was acknowledged with its help is safe once a leader has it that was elected without it.
		if err := r.waitWrites(10); err != nil {
			return nil, err
		}
	}
	o, why, err := becomesOf(n, nil)
	if err != nil {
		// It goes on without this node's directory, so that the rest of the run tells what it can.
		r.anomaly("%s, after %s: %v", r.c.ID(i), what, err)
		o = fateRefused
	}
	r.note("%s is %s: %s; so far %v", r.c.ID(i), o, why, r.enter(filepath.Base(kind)+" "+string(o)))
	if o == fateRefused || o == fateReported {
		err = comeBackEmpty(r.t, r.c, i)
	}
	return &fault{what: what, lasts: lasts, mend: func() error { return r.up(i) }}, err
}

// wipe deletes the data directory of a node. What it had acknowledged was counted on, so it must not come back as the
// one it was: it is refused, until it is removed and joins anew.
func wipe(r *faultRun, rng *rand.Rand) (*fault, error) {
	i := r.anyNode(rng)
	if !r.well() {
		return nil, nil
	}
	n, what := r.c.Node(i), "data directory of "+r.describe(i)+" deleted"
	r.control.Lock()
	defer r.control.Unlock()
	n.Kill()
	if err := os.RemoveAll(n.DataDir()); err != nil {
		return nil, err
	}
	o, why, err := becomesOf(n, nil)
	switch {
	case err != nil:
		r.anomaly("%s, wiped: %v", r.c.ID(i), err)
	case o != fateRefused:
		r.anomaly("%s, wiped, was let in again with nothing of what it had acknowledged: it is %s", r.c.ID(i), o)
	}
	r.note("%s, wiped, is %s: %s", r.c.ID(i), o, why)
	return &fault{what: what, mend: func() error { return r.up(i) }}, comeBackEmpty(r.t, r.c, i)
}
