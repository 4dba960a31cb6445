package test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/internal/failpoint"
	"kvstore/internal/testcluster"
	"kvstore/wire"
)

// followerChannel reads from one node, with consistency 2, and nowhere else: what that node answers is what counts,
// a refusal included. It writes through the leader. Reads are GET, MULTIGET and SCAN by turns.
func (l *linear) followerChannel(n *testcluster.Node, name string, timeout time.Duration) *channel {
	t := l.t
	t.Helper()
	c := l.binaryChannel([]string{n.Addr()}, name, timeout)
	f := openForwarder(t, name)
	write := c.apply
	var turn atomic.Int64
	c.apply = func(key string, in registerInput) (registerOutput, bool) {
		if in.kind != readRegister {
			return write(key, in)
		}
		r := &wire.Request{Op: wire.OpGet, Ext: wire.AppendExtU8(nil, wire.ExtConsistency, wire.ConsistencyAnyNode), TimeoutMs: uint32(timeout.Milliseconds())}
		switch turn.Add(1) % 4 {
		case 0:
			r.Op = wire.OpMultiGet
			r.Payload = wire.AppendItem(wire.AppendGroupHeader(nil, 0, 1), &wire.Item{Op: wire.OpGet, Key: []byte(key)})
		case 1:
			r.Op = wire.OpScan
			r.Payload = wire.AppendScanRequest(nil, &wire.ScanRequest{Prefix: []byte(key)})
		default:
			r.Key = []byte(key)
		}
		a := f.Do(context.Background(), n.Addr(), r)
		out, ok, err := readOutput(r.Op, &a)
		if err != nil {
			l.broken("%s: %s: %v", name, r.Op, err)
		}
		return out, ok
	}
	return c
}

// readOutput reads what an answer says of the one key that was asked for; ok is false when it says nothing.
func readOutput(op wire.Opcode, a *wire.Response) (out registerOutput, ok bool, err error) {
	ext, value := a.Ext, a.Payload
	switch {
	case a.Status == wire.StatusNotFound:
		return out, true, nil
	case a.Status.Class() == wire.ClassRetry:
		return out, false, nil
	case a.Status != wire.StatusOK:
		return out, false, fmt.Errorf("%s %s", a.Status, a.Payload)
	case op != wire.OpGet:
		var items []byte
		if op == wire.OpMultiGet {
			_, _, items, err = wire.DecodeResult(a.Payload)
		} else {
			var page wire.ScanPage
			if err = wire.DecodeScanPage(a.Payload, &page); page.Count == 0 {
				return out, err == nil, err
			}
			items = page.Items
		}
		var it wire.Item
		if err == nil {
			_, err = wire.NextItem(items, &it)
		}
		if err != nil || it.Status == wire.StatusNotFound {
			return out, err == nil, err
		}
		ext, value = it.Ext, it.Value
	}
	v, err := versionOf(ext)
	return registerOutput{found: true, value: string(value), version: v}, err == nil, err
}

// versionOf reads the version out of the elements of a record.
func versionOf(ext []byte) (uint64, error) {
	t, v, _, err := wire.NextExt(ext)
	if err != nil || t != wire.ExtMeta || len(v) < 8 {
		return 0, fmt.Errorf("no metadata in % x: %w", ext, errors.Join(err))
	}
	return binary.LittleEndian.Uint64(v), nil
}

// anyNodeChannel reads with the Go client, which spreads its reads over the nodes.
func (l *linear) anyNodeChannel(c *testcluster.Cluster) *channel {
	l.t.Helper()
	ch := l.binaryChannel([]string{c.Node(0).Addr()}, "all nodes", linearTimeout)
	cl := openAt(l.t, c.Addrs(), client.WithTimeout(linearTimeout))
	write := ch.apply
	ch.apply = func(key string, in registerInput) (registerOutput, bool) {
		if in.kind != readRegister {
			return write(key, in)
		}
		v, err := cl.Get(context.Background(), key, client.AnyNode())
		if errors.Is(err, client.ErrNotFound) {
			return registerOutput{}, true
		}
		return registerOutput{found: true, value: string(v.Data), version: uint64(v.Version)}, err == nil
	}
	return ch
}

// followerFaults are what a node meets that does not lead.
func followerFaults() []linearFault {
	all := linearFaults(rand.New(rand.NewPCG(0, 0)))
	cut := all[2]
	cut.mend = func(c *testcluster.Cluster, _ int) error { c.Net().Heal(); return nil }
	behind := linearFault{name: "entries come late", silent: true,
		// It hears its leader and lags behind it by half a second: each of its answers has to wait.
		strike: func(c *testcluster.Cluster, node int) error {
			c.Net().Delay(c.ID(c.MustLead()), c.ID(node), 400*time.Millisecond)
			return nil
		},
		struck: func(*testcluster.Cluster, int) error { return nil },
		mend:   cut.mend,
	}
	return []linearFault{cut, behind, all[1], all[0]} // partition, lag, SIGSTOP, kill
}

// TestFollowerReads_FaultsUnderLoad_EveryAnswerFitsOneOrder lets callers read from every node what must be
// linearizable, while others write at the leader, and while followers and leaders are cut off, frozen for longer
// than any lease, and killed. Nodes ask each other over the binary port, which no cut closes: a follower that gets
// no entries still gets the leader's word, and one that follows a deposed leader still asks it.
func TestFollowerReads_FaultsUnderLoad_EveryAnswerFitsOneOrder(t *testing.T) {
	for _, mode := range []string{"lease", "readindex"} {
		if testing.Short() && mode != "lease" {
			continue
		}
		t.Run(mode, func(t *testing.T) {
			s := seed(t)
			faults, behind := linearFaults(random(s, 0)), followerFaults()
			if mode != "lease" {
				faults, behind = faults[1:3], behind[:2]
			} else if testing.Short() {
				faults, behind = faults[:3], behind[:2]
			}
			l, served := runFollowers(t, s, testcluster.ClusterOptions{Settings: map[string]string{"read-mode": mode}}, faults, behind)
			for _, err := range l.check() {
				t.Error(err)
			}
			if served < 500 {
				t.Errorf("followers answered only %d reads: the test proves little", served)
			}
			if t.Failed() {
				t.Logf("%s=%d go test ./test -run TestFollowerReads_Faults/%s -count=1", seedEnv, s, mode)
			}
		})
	}
}

// TestFollowerReads_WrongOnes_AreFoundOut is the control: followers that do not ask, and followers that ask and take
// no heed of the answer. The same load, a follower's faults and the same checker must see it.
func TestFollowerReads_WrongOnes_AreFoundOut(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the store anew")
	}
	for name, wrong := range map[string]change{
		"asks nobody":   {"node/followerread.go", "\treturn viaLeader\n", "\treturn viaNothing\n"},
		"heeds nothing": {"node/followerread.go", "f.start(r, w.point.Index)", "r.revision = 0\n\tf.start(r, 0)"},
	} {
		t.Run(name, func(t *testing.T) {
			s := seed(t)
			o := testcluster.ClusterOptions{Binary: buildChanged(t, wrong), Quiet: true}
			l, served := runFollowers(t, s, o, nil, followerFaults()[1:2])
			found := l.check()
			if len(found) == 0 {
				t.Error("stale reads were not found out: the load, the fault or the checker proves nothing")
			}
			t.Logf("%d keys with a wrong answer, as it must be, in %d reads", len(found), served)
		})
	}
}

// TestFollowerReads_LeaderAppliesLast_NothingIsShownBeforeItHasIt has the leader apply each entry later than the others
// do. What they have and the leader doesn't show yet, they may not show either: a later read at the leader
// would lack it. The control shows whatever they have, and must be found out.
func TestFollowerReads_LeaderAppliesLast_NothingIsShownBeforeItHasIt(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the store anew, twice")
	}
	for _, control := range []bool{false, true} {
		t.Run(fmt.Sprintf("control=%v", control), func(t *testing.T) {
			s := seed(t)
			from := change{"node/followerread.go", "it.pin = r.revision", "it.pin = r.revision"}
			if control {
				from.to = "it.pin = 0"
			}
			c := testcluster.NewCluster(t, testcluster.ClusterOptions{Binary: buildChangedWith(t, []string{"-tags", "failpoints"}, from), Quiet: control})
			slow := c.Node(0)
			slow.SetEnv("KVSTORE_FAILPOINTS=" + failpoint.ApplyBefore + "=sleep(30ms)")
			c.Launch()
			c.MustBeReady()
			admin := openAt(t, c.Addrs())
			eventually(t, "the slow node leads", func() (bool, error) {
				if _, err := admin.Admin(context.Background(), fmt.Appendf(nil, `{"action":"transfer","id":%q}`, c.ID(0))); err != nil {
					return false, err
				}
				return c.MustLead() == 0, nil
			})
			l := newLinear(t, s)
			never := make(chan struct{})
			channels := []*channel{l.binaryChannel([]string{slow.Addr()}, "leader", linearTimeout)}
			for i, n := range c.Nodes() {
				channels = append(channels, l.followerChannel(n, c.ID(i)+" follower", linearTimeout))
			}
			for _, ch := range channels {
				l.drive(ch, never)
			}
			l.waitGood(1500)
			if c.MustLead() != 0 {
				t.Error("the slow node leads no more: the test proves nothing")
			}
			l.end()
			l.work.Wait()
			wrong := l.check()
			switch {
			case control && len(wrong) == 0:
				t.Error("reads that run ahead of the leader were not found out")
			case control:
				t.Logf("%d keys with a wrong answer, as it must be", len(wrong))
			default:
				for _, err := range wrong {
					t.Error(err)
				}
			}
		})
	}
}

// runFollowers puts a cluster under load and lets followers, and then leaders, meet faults. It gives the number of
// reads that nodes answered while another one led.
func runFollowers(t *testing.T, s uint64, o testcluster.ClusterOptions, faults, behind []linearFault) (l *linear, served int64) {
	c := testcluster.StartCluster(t, o)
	l = newLinear(t, s)
	t.Logf("second 0 of all times is %s", l.began.Format("15:04:05.000000"))
	never := make(chan struct{})
	channels := []*channel{l.anyNodeChannel(c)}
	for i, n := range c.Nodes() {
		channels = append(channels, l.followerChannel(n, c.ID(i)+" follower", linearTimeout))
	}
	for _, ch := range channels {
		l.drive(ch, never)
	}
	rng := random(s, 1)
	for i, f := range behind {
		node := (c.MustLead() + 1 + rng.IntN(c.Size()-1)) % c.Size()
		l.strikeFollower(c, f, channels, node)
		if i == 0 {
			served += followerReads(t, c)
		}
	}
	for i, f := range faults {
		l.strike(c, f, channels, fmt.Sprint(i))
	}
	l.end()
	l.work.Wait()
	c.MustConverge()
	return l, served + followerReads(t, c)
}

// strikeFollower lets a node that does not lead meet one fault.
func (l *linear) strikeFollower(c *testcluster.Cluster, f linearFault, channels []*channel, node int) {
	t := l.t
	l.waitGood(200)
	before := askedOf(channels, c.ID(node))
	began := time.Now()
	if err := f.strike(c, node); err != nil {
		t.Fatal(err)
	}
	l.waitGood(300)
	eventually(t, "the fault has lasted", func() (bool, error) { return time.Since(began) > 3*time.Second, nil })
	if err := f.struck(c, node); err != nil {
		t.Errorf("%s of %s never struck: %v", f.name, c.ID(node), err)
	}
	asked := askedOf(channels, c.ID(node)) - before
	if asked < 10 {
		t.Errorf("%s of %s proves nothing: the node was asked only %d times meanwhile", f.name, c.ID(node), asked)
	}
	if err := f.mend(c, node); err != nil {
		t.Fatalf("%s of %s: %v", f.name, c.ID(node), err)
	}
	l.waitGood(200)
	t.Logf("%.3f to %.3f: %s of the follower %s, which was asked %d times meanwhile", began.Sub(l.began).Seconds(), time.Since(l.began).Seconds(), f.name, c.ID(node), asked)
}

// followerReads sums up how many reads the nodes have answered without leading, since each was started.
func followerReads(t *testing.T, c *testcluster.Cluster) (n int64) {
	t.Helper()
	for i := range c.Size() {
		r, err := http.Get("http://" + c.Node(i).MetricsAddr() + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r.Body)
		if err := errors.Join(err, r.Body.Close()); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			var v float64
			if _, err := fmt.Sscanf(line, "kvstore_follower_reads_total %g", &v); err == nil {
				n += int64(v)
			}
		}
	}
	return n
}
