package test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"kvstore/internal/testcluster"
)

// damagedKind is a kind of file in a data directory with what is promised when one of them is damaged.
type damagedKind struct {
	glob string
	// oldest takes the oldest of several such files, instead of the newest.
	oldest bool
	may    []fate
}

// damagedKinds are all files that a node writes, but those that are there for moments only.
func damagedKinds() []damagedKind {
	return []damagedKind{
		{kindIdentity, false, []fate{fateRefused}},
		{kindLock, false, []fate{fateWhole}},
		{kindBallast, false, []fate{fateWhole}},
		{kindVote, false, []fate{fateRefused}},
		{kindPeers, false, []fate{fateRefused, fateWhole}},
		{kindLogMeta, false, []fate{fateWhole, fateRefused}},
		{kindSegment, true, []fate{fateWhole, fateRefused, fateReported}},
		{kindSegment, false, []fate{fateWhole, fateRefused, fateReported}},
		{kindCheckpoint, false, []fate{fateRebuilt}},
		{kindManifest, false, []fate{fateRebuilt}},
		{kindKeyRegistry, false, []fate{fateWhole, fateRebuilt}},
		{kindDiscard, false, []fate{fateWhole}},
		{kindStoreLock, false, []fate{fateWhole}},
		{kindValueLog, false, []fate{fateWhole, fateRebuilt}},
		{kindMemtable, false, []fate{fateWhole, fateRebuilt}},
		{kindTable, true, []fate{fateRebuilt}},
		{kindTable, false, []fate{fateRebuilt}},
	}
}

// name is for people.
func (k *damagedKind) name() string {
	switch name := filepath.Base(k.glob); {
	case k.oldest:
		return "oldest " + name
	case k.glob == kindStoreLock:
		return "store's " + name
	default:
		return name
	}
}

// harm is what is done to a file; nil without error: there is nothing left of it.
type harm struct {
	name string
	do   func(b []byte) []byte
}

// harms are done to each kind of file.
func harms() []harm {
	flipAt := func(place func(n int) int) func(b []byte) []byte {
		return func(b []byte) []byte {
			n := used(b)
			if n == 0 {
				n = len(b) // nothing but zeros is what it says
			}
			if n == 0 {
				return []byte("something")
			}
			b = slices.Clone(b)
			b[place(n)] ^= 0x20
			return b
		}
	}
	return []harm{
		{"first byte flipped", flipAt(func(int) int { return 0 })},
		{"middle flipped", flipAt(func(n int) int { return n / 2 })},
		{"last byte flipped", flipAt(func(n int) int { return n - 1 })},
		{"last quarter zeroed", func(b []byte) []byte {
			b = slices.Clone(b)
			clear(b[used(b)*3/4:])
			return b
		}},
		{"last byte cut off", func(b []byte) []byte { return b[:max(0, used(b)-1)] }},
		{"cut in half", func(b []byte) []byte { return b[:used(b)/2] }},
		{"empty", func([]byte) []byte { return []byte{} }},
		{"deleted", func([]byte) []byte { return nil }},
	}
}

// servesRight reads all blobs from a node itself: it may refuse, but never say what is not so.
func (b *blobs) servesRight(t *testing.T, n *testcluster.Node) error {
	c := openREST(t, n, patience)
	for i, size := range b.sizes {
		r, err := c.do(t.Context(), http.MethodGet, keyPath(blobKey(i))+"?consistency=stale", nil, nil)
		if err != nil || r.status >= 500 {
			continue // it is going to make its state anew
		}
		if r.status != http.StatusOK || r.version() != b.versions[i] || !slices.Equal(r.body, content(blobKey(i), 0, size)) {
			return fmt.Errorf("it SERVES WRONG DATA: %s has status %d, version %d and %d bytes, and it is version %d and %d bytes", blobKey(i), r.status, r.version(), len(r.body), b.versions[i], size)
		}
	}
	return nil
}

// TestDamage_EachKindOfFile_NeverServesWrong damages each file of a follower's data directory in some of the ways, one at a
// time while the node is down. It must serve what is right, make its state anew, or say why it does not start and how it
// comes back; then it must have changed nothing, so that it starts when the file is as it was.
func TestDamage_EachKindOfFile_NeverServesWrong(t *testing.T) {
	rng, each := random(seed(t), 0), count(t, "DAMAGE_HARMS", 3, 1)
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{Settings: manyTables(shortLog())})
	var b blobs
	b.write(t, c, 120)
	i := follower(c)
	tables(t, c.Node(i), 2)
	table := ""
	defer func() { t.Logf("what becomes of a follower with one damaged file:\n%s", table) }()
	for _, k := range damagedKinds() {
		t.Run(k.name(), func(t *testing.T) {
			all := harms()
			for _, at := range rng.Perm(len(all))[:min(len(all), each)] {
				h := all[at]
				o, why := damageAndMend(t, c, i, &k, &h, &b)
				table += fmt.Sprintf("%-16s %-20s %-9s %.200s\n", k.name(), h.name, o, why)
			}
		})
	}
	b.everywhere(t, c)
}

// damageAndMend does one harm to one file of node i, looks what becomes of it, and sees that all is well after it.
func damageAndMend(t *testing.T, c *testcluster.Cluster, i int, k *damagedKind, h *harm, b *blobs) (o fate, why string) {
	t.Helper()
	n := c.Node(i)
	c.MustConverge()
	n.Kill()
	paths := find(t, n, k.glob)
	if len(paths) == 0 {
		t.Fatalf("there is no %s: the layout has changed, and this test with it must", k.glob)
	}
	slices.Sort(paths)
	path := paths[len(paths)-1]
	if k.oldest {
		path = paths[0]
	}
	was, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if now := h.do(was); now == nil {
		err = os.Remove(path)
	} else {
		err = writeSynced(path, now)
	}
	if err != nil {
		t.Fatal(err)
	}
	o, why, err = becomesOf(n, func() error { return b.servesRight(t, n) })
	switch {
	case err != nil:
		t.Errorf("%s: %v", h.name, err)
	case !slices.Contains(k.may, o):
		t.Errorf("%s: it is %s (%s), and may be %v", h.name, o, why, k.may)
	}
	lost := err != nil || o == fateReported
	if o == fateRefused {
		n.Kill() // it may be kept out
		if err := writeSynced(path, was); err != nil {
			t.Fatal(err)
		}
		n.Launch()
		if err := n.WaitReady(); err != nil {
			t.Errorf("%s: with the file as it was the node does not start any more: %v", h.name, err)
			lost = true
		}
	}
	if lost {
		if err := comeBackEmpty(t, c, i); err != nil {
			t.Fatal(err)
		}
	}
	b.write(t, c, 2)
	c.MustConverge()
	b.mustBeAt(t, c.ID(i), n)
	return o, why
}
