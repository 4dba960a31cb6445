package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"kvstore/consensus/peer"
)

// Pauses between two rounds of asking all others for their state.
const (
	rebuildPauseMin = 100 * time.Millisecond
	rebuildPauseMax = 5 * time.Second
	// rebuildTellEvery is how often the progress is told, and rebuildLogEvery how often it is logged.
	rebuildTellEvery = time.Second
	rebuildLogEvery  = 10 * time.Second
)

// rebuild fetches the state from another member, because this node has lost its own, and makes it durable. raft
// does not run yet: this node votes for nobody and acknowledges nothing meanwhile.
//
// Why what it comes back with is enough. Others count on two things that this node once had: the entries that it
// acknowledged, and its votes. The votes are in the vote file. Of the entries it still has those in its log; those
// before it were covered by the lost state, and were committed. So the copy must reach to the beginning of the log.
// Where a copy had taken the log's place, or was about to, it is the copy's checkpoint that tells how far the lost state
// reached (Options.RebuildReach): nothing was acknowledged after it, and whoever gave it holds as much durably. If that
// checkpoint can't be read, and the log is empty, nobody knows. But the copy was of what was committed: a leader that a
// majority confirms now has applied all of that.
//
// What lies behind the copy in the log is applied again as the leader says that it is committed. A copy that reaches
// beyond the log, or is of another history where they overlap, takes the log's place, as after any installation.
func (g *Group) rebuild(ctx context.Context, f found) error {
	w := peer.Want{Reach: f.reach}
	if f.last > 0 {
		w.Reach = max(w.Reach, f.first-1)
	}
	w.Confirmed = w.Reach == 0
	sources, err := g.sources(f)
	if err != nil {
		return err
	}
	others := sources()
	if len(others) == 0 {
		return errors.New("this node has lost its state and knows no other node to fetch it from")
	}
	g.log.Warn("fetching the state from another node", "first_index", f.first, "last_index", f.last, "reach", w.Reach, "term", f.vote.currentTerm)
	if g.o.Unfit != nil {
		if err := sleep(ctx, g.o.HeartbeatTimeout); err != nil { // two pulses of each other node
			return fmt.Errorf("cannot fetch the state from another node: %w", err)
		}
	}
	for wait := rebuildPauseMin; ; wait = min(2*wait, rebuildPauseMax) {
		refused := 0
		for _, other := range others {
			if g.o.Unfit != nil && g.o.Unfit(other.ID) {
				g.log.Warn("the state of this node differs from that of a majority: it is not fetched", "peer", other.ID)
				continue
			}
			err := g.fetch(ctx, other, w)
			switch {
			case err == nil:
				return nil
			case ctx.Err() != nil:
				return fmt.Errorf("cannot fetch the state from another node: %w", err)
			case errors.Is(err, errRebuild):
				return err
			case errors.Is(err, peer.ErrRefused):
				refused++
			}
			g.log.Warn("cannot fetch the state from this node", "peer", other.ID, "address", other.Address, "error", err)
			if refused > len(others)/2 {
				return fmt.Errorf("%w: %w", ErrRefused, err)
			}
		}
		if err := sleep(ctx, wait); err != nil {
			return fmt.Errorf("cannot fetch the state from another node: %w", err)
		}
		others = sources() // a founder may have been heard of meanwhile
	}
}

// sleep waits for d; it returns ctx's error if that ends first.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// sources returns who may be asked for the state: the members of the newest configuration in the log. Others that this
// node ever met were removed since, or given up by a recovery, and then may have gone on with another history: the
// member records that would tell are lost with the state. Only where the log holds no configuration, all are asked.
func (g *Group) sources(f found) (func() []Peer, error) {
	if f.last == 0 {
		return g.transport.others, nil
	}
	c, ok, err := g.logs.newestConfigurationIn(f.first, f.last)
	if err != nil {
		return nil, err
	}
	if !ok {
		return g.transport.others, nil
	}
	return func() []Peer {
		return slices.DeleteFunc(g.transport.others(), func(p Peer) bool {
			return !slices.ContainsFunc(c.members, func(m Member) bool { return m.ID == p.ID })
		})
	}, nil
}

// errRebuild marks failures on this node's own disk, which another try at another node can't mend.
var errRebuild = errors.New("cannot put the fetched state in place")

// fetch takes the state of one other node and installs it.
func (g *Group) fetch(ctx context.Context, other Peer, w peer.Want) error {
	var came *received
	err := g.transport.fetch(ctx, other, w, func(ctx context.Context, o peer.Offer, stream io.Reader) (err error) {
		d := Durable{Index: o.Index, Term: o.Term, Configuration: o.Configuration, ConfigurationIndex: o.ConfigurationIndex}
		if d.Index == 0 || d.Term == 0 || d.Index < w.Reach {
			return fmt.Errorf("it offers the state of entry %d in term %d, and entry %d must be in it", d.Index, d.Term, w.Reach)
		}
		stop := make(chan struct{})
		defer close(stop)
		go g.tellRebuild(stop) // owned by this call; ends with it
		came, err = g.snapshots.take(ctx, other.ID, DirectionFetch, d, o.Size, stream)
		return err
	})
	if err != nil {
		if came != nil {
			came.discard()
		}
		return err
	}
	g.snapshots.crash("fetched")
	if err := g.putInPlace(came); err != nil {
		return fmt.Errorf("%w: %w", errRebuild, err)
	}
	g.metrics.SnapshotsFetched.Add(1)
	g.log.Info("fetched the state from another node", "peer", other.ID, "index", came.durable.Index,
		"stream_bytes", came.transfer.bytes.Load(), "duration", time.Since(came.transfer.started))
	return nil
}

// putInPlace makes the fetched state this node's own. It is the applier: raft does not run.
func (g *Group) putInPlace(came *received) error {
	d := came.durable
	term, err := g.stable.GetUint64([]byte(keyCurrentTerm))
	if err == nil && term < d.Term {
		// First, or after a crash the vote file would look like an older copy. A term without a vote promises
		// nothing.
		err = g.stable.SetUint64([]byte(keyCurrentTerm), d.Term)
	}
	if err != nil {
		came.discard()
		return err
	}
	g.snapshots.crash("raised")
	err = came.state.Install()
	came.transfer.end(err == nil)
	if err != nil {
		return fmt.Errorf("cannot install the state of entry %d: %w", d.Index, err)
	}
	g.snapshots.crash("rebuilt")
	if got, ok := g.sm.Durable(); !ok || got.Index != d.Index || got.Term != d.Term || !got.Installed {
		return fmt.Errorf("BUG: installed the state of entry %d, but the checkpoint is %+v", d.Index, got)
	}
	g.snapshots.last.Store(d.Index)
	return nil
}

// reconsider looks again at what is on disk, with the fetched state in place.
func (g *Group) reconsider() (f found, act action, err error) {
	if f, err = g.inspect(); err != nil {
		return f, act, err
	}
	if act, err = f.decide(g.o.Dir); err != nil {
		return f, act, err
	}
	if act != actionContinue && act != actionEmptyLog {
		return f, act, fmt.Errorf("BUG: after the state of entry %d was fetched, the start would be of kind %d", f.durable.Index, act)
	}
	return f, act, g.logs.adopt(f.durable, f.hasDurable)
}

// tellRebuild tells now and then how far the copy is, until stop is closed.
func (g *Group) tellRebuild(stop <-chan struct{}) {
	ticker := time.NewTicker(rebuildTellEvery)
	defer ticker.Stop()
	logged := time.Now()
	for {
		for _, x := range g.Transfers() {
			g.o.OnRebuild(x)
			if time.Since(logged) >= rebuildLogEvery {
				logged = time.Now()
				g.log.Info("fetching the state", "peer", x.ID, "index", x.Index, "records", x.Records, "records_total", x.TotalRecords,
					"stream_bytes", x.Bytes, "bytes_per_second", x.RateBytes, "streamed", x.Streamed)
			}
		}
		select {
		case <-ticker.C:
		case <-stop:
			return
		}
	}
}

// offer is the other side of rebuild: it opens this node's newest checkpoint for another node, if that is
// enough for it.
func (g *Group) offer(ctx context.Context, w peer.Want) (peer.Offer, io.ReadCloser, error) {
	reach := w.Reach
	if w.Confirmed {
		confirmed := make(chan error, 1)
		g.ReadIndex(func(err error) { confirmed <- err }) // it is always answered, within a bounded time
		if err := <-confirmed; err != nil {
			return peer.Offer{}, nil, fmt.Errorf("only a leader that is sure of it can answer: %w", err)
		}
		reach = max(reach, g.sm.Applied())
	}
	if applied := g.sm.Applied(); applied < reach {
		return peer.Offer{}, nil, fmt.Errorf("this node has applied entries up to %d, not yet %d", applied, reach)
	}
	if err := g.sm.WaitDurable(ctx, reach); err != nil {
		return peer.Offer{}, nil, fmt.Errorf("cannot make entry %d durable: %w", reach, err)
	}
	d, stream, err := g.snapshots.open(ctx)
	if err != nil {
		return peer.Offer{}, nil, err
	}
	return peer.Offer{
		Index: d.Index, Term: d.Term, Configuration: d.Configuration, ConfigurationIndex: d.ConfigurationIndex,
		Size: int64(stream.Progress().TotalBytes),
	}, stream, nil
}

// others implements transport.
func (t networkTransport) others() []Peer {
	var out []Peer
	for _, s := range t.Peers() {
		if s.Address != "" {
			out = append(out, Peer{ID: s.ID, Address: s.Address, Incarnation: s.Incarnation})
		}
	}
	return out
}

// fetch implements transport.
func (t networkTransport) fetch(ctx context.Context, other Peer, w peer.Want, take func(context.Context, peer.Offer, io.Reader) error) error {
	return t.Fetch(ctx, other.ID, other.Address, w, take)
}

// others implements transport.
func (t *soloTransport) others() []Peer { return nil }

// fetch implements transport.
func (t *soloTransport) fetch(context.Context, Peer, peer.Want, func(context.Context, peer.Offer, io.Reader) error) error {
	return errNoPeers
}
