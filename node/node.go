package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"kvstore/consensus"
	"kvstore/gateway"
	"kvstore/internal/diskguard"
	"kvstore/netloop"
	"kvstore/wire"
)

// nodeInfo is what the node tells about itself.
type nodeInfo struct {
	NodeID, Version, Commit                   string
	Advertise, DataDir, Incarnation, ReadMode string
	StartedAt                                 time.Time
	// Bound addresses.
	Listen, HTTP, GRPC, Metrics, Raft string
	// GRPCAdvertise is where others reach the gRPC door; "": there is none.
	GRPCAdvertise string
	// member is the node's own record.
	member wire.Member
}

// Node is a running node.
type Node struct {
	// Immutable after Open.
	o     Options
	info  *nodeInfo
	fresh bool

	// Set in order by Open, undone in the opposite order by Close.
	lock    *os.File
	guard   *diskguard.Guard
	shard   *Shard
	service *Service
	backups *backups
	doors   doors
	door    *gateway.Door // what rest shares with other doors
	rest    *gateway.Server
	http    *http.Server  // serves rest
	grpc    *gateway.GRPC // nil: there is none
	ops     *http.Server

	// opened turns true when shard, service and rest are set.
	opened atomic.Bool
	// ready turns true when every door is open and false when a stop begins.
	ready atomic.Bool
	// awaits is what the node waited for last.
	awaits atomic.Pointer[string]
}

// Open starts a node and returns once its doors are open; Ready tells when it serves. It returns the error of
// ctx when that ends first. When it fails it closes what it had opened.
func Open(ctx context.Context, o Options) (*Node, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("cannot start node: %w", err)
	}
	n := &Node{o: o}
	if err := n.open(ctx); err != nil {
		ctx, cancel := context.WithTimeout(context.Background(), o.DrainTimeout)
		defer cancel()
		return nil, errors.Join(err, n.Close(ctx))
	}
	return n, nil
}

func (n *Node) open(ctx context.Context) (err error) {
	o := &n.o
	// The directory first: nothing may be touched that another process uses.
	if n.lock, err = lockDir(ctx, o.DataDir); err != nil {
		return err
	}
	id, fresh, err := loadIdentity(o.DataDir, o.NodeID)
	if err != nil {
		return err
	}
	n.fresh = fresh
	if err := id.checkNotRefused(o.DataDir); err != nil {
		return err
	}
	if err := id.checkNotEmptied(o.DataDir); err != nil {
		return err
	}
	// The ports next, before time goes into replay: a port in use should be known at once.
	var ls listeners // each set to nil where something else has taken it over
	defer func() { err = errors.Join(err, ls.close(err)) }()
	if err := ls.open(o); err != nil {
		return err
	}
	if n.info, err = n.describe(&id, &ls); err != nil {
		return err
	}
	self := n.info.member
	roster := newRoster(self)
	// Health, metrics and REST answer from here on, whatever the node still waits for.
	n.progress("opening")
	late := &lateService{awaits: func() string { return *n.awaits.Load() }}
	do := o.Gateway
	do.Service, do.Backups, do.Principal, do.Logger = late, late, anonymous, o.Logger
	do.Metrics = opsView{n}.WriteMetrics
	n.door = gateway.NewDoor(do)
	n.rest = gateway.NewREST(n.door)
	n.ops, n.http = gateway.NewOps(opsView{n}), n.rest.HTTPServer()
	n.serve("metrics", n.ops, newLimitListener(ls.take(&ls.metrics), opsConnsMax))
	n.serve("rest", n.http, newLimitListener(ls.take(&ls.http), restConnsMax))
	if ls.grpc != nil {
		n.grpc = gateway.NewGRPC(n.door, opsView{n}.ready)
		n.serve("grpc", n.grpc, newLimitListener(ls.take(&ls.grpc), grpcConnsMax))
	}

	gu := o.Disk
	gu.Dir, gu.Logger = o.DataDir, o.Logger
	if n.guard, err = diskguard.Open(gu); err != nil {
		return err
	}
	start, cancel := context.WithTimeout(ctx, o.StartTimeout)
	defer cancel()
	if !id.Served && id.Joined == nil && len(o.Join) != 0 {
		n.progress("asking to be taken in by " + strings.Join(o.Join, ", "))
		if id.Joined, err = join(start, o.Join, &self, n.progress); err != nil {
			return n.gaveUp(start, err)
		}
		// Before the log knows anything: after a crash the node goes on as the member that it is now.
		if err := id.write(o.DataDir); err != nil {
			return err
		}
	}
	stopWatching := n.watchFounders(&id, roster)
	n.shard, err = openShard(start, o, &shardOptions{
		id: 1, identity: &id, raft: ls.take(&ls.raft), roster: roster, guard: n.guard, doors: &n.doors, progress: n.progress, unbounded: ctx,
		starting: func() error { return id.setServed(o.DataDir) },
	})
	stopWatching()
	if err != nil {
		return n.gaveUp(start, err)
	}
	n.service = newService(o.Service, n.shard, n.info)
	n.backups = newBackups(n.service, o.DataDir, n.guard, o.Logger)
	late.backups.Store(n.backups)
	late.service.Store(n.service)
	n.opened.Store(true)

	no := o.Net
	no.Listener, no.Handler, no.Logger = ls.native, n.service, o.Logger
	native, err := netloop.Start(no)
	if err != nil {
		return err
	}
	ls.native = nil
	n.doors.open.Store(&door{native, native.ReleaseFlush})
	n.ready.Store(true)
	n.progress("waiting for a leader")
	n.shard.begin(func(err error) {
		if errors.Is(err, consensus.ErrCopied) {
			err = errors.Join(err, id.setRefused(o.DataDir, err.Error()))
		}
		o.Fatal(err)
	})
	return nil
}

// gaveUp adds to an error what the node waited for when its time to start was over.
func (n *Node) gaveUp(start context.Context, err error) error {
	if !errors.Is(err, context.DeadlineExceeded) || start.Err() == nil {
		return err
	}
	return fmt.Errorf("gave up after %s (--start-timeout), %s: %w", n.o.StartTimeout, *n.awaits.Load(), err)
}

// progress notes what the node waits for.
func (n *Node) progress(text string) {
	if old := n.awaits.Swap(&text); (old == nil || *old != text) && n.o.Progress != nil {
		n.o.Progress(text)
	}
}

// watchFounders tells, until stop is called, which founders of a new cluster have not been met yet.
func (n *Node) watchFounders(id *identity, r *roster) (stop func()) {
	if id.Served || id.Joined != nil || len(n.o.InitialCluster) < 2 {
		n.progress("reading the log")
		return func() {}
	}
	end, done := make(chan struct{}), make(chan struct{})
	go func() { // owned by open, which ends it by stop
		defer close(done)
		for {
			if missing := r.missing(n.o.InitialCluster); len(missing) != 0 {
				n.progress("waiting for " + strings.Join(missing, ", "))
			} else {
				n.progress("founding the cluster")
			}
			select {
			case <-end:
				return
			case <-r.news:
			}
		}
	}()
	return func() {
		close(end)
		<-done
	}
}

// listeners are the node's ports.
type listeners struct{ native, http, grpc, metrics, raft net.Listener }

// open takes all ports.
func (ls *listeners) open(o *Options) (err error) {
	for _, l := range []struct {
		to         *net.Listener
		name, addr string
	}{
		{&ls.native, "listen", o.Listen}, {&ls.http, "http-listen", o.HTTPListen},
		{&ls.metrics, "metrics-listen", o.MetricsListen}, {&ls.raft, "raft-listen", o.RaftListen},
		{&ls.grpc, "grpc-listen", o.GRPCListen},
	} {
		if l.addr == "" {
			continue // validate lets that through for gRPC alone
		}
		if *l.to, err = net.Listen("tcp", l.addr); err != nil {
			*l.to = nil
			return fmt.Errorf("cannot listen on %s: %w: stop what uses the port, or choose another with --%s", l.addr, err, l.name)
		}
	}
	return nil
}

// take gives a listener to somebody else.
func (ls *listeners) take(l *net.Listener) net.Listener {
	taken := *l
	*l = nil
	return taken
}

// close closes what nobody has taken, if the start failed.
func (ls *listeners) close(failed error) error {
	if failed == nil {
		return nil
	}
	var errs []error
	for _, l := range []net.Listener{ls.native, ls.http, ls.grpc, ls.metrics, ls.raft} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}

func (n *Node) describe(id *identity, ls *listeners) (*nodeInfo, error) {
	o := &n.o
	dir, err := filepath.Abs(o.DataDir)
	if err != nil {
		dir = o.DataDir // no working directory: what was given must do
	}
	bits, err := id.bits()
	if err != nil {
		return nil, fmt.Errorf("cannot use the identity of data directory %s: incarnation %w", dir, err)
	}
	in := &nodeInfo{
		NodeID: o.NodeID, Version: o.Version, Commit: o.Commit, DataDir: dir,
		Advertise: cmp.Or(o.Advertise, ls.native.Addr().String()), Incarnation: id.Incarnation, ReadMode: o.ReadMode, StartedAt: time.Now(),
		Listen: ls.native.Addr().String(), HTTP: ls.http.Addr().String(), Metrics: ls.metrics.Addr().String(), Raft: ls.raft.Addr().String(),
	}
	if ls.grpc != nil {
		in.GRPC = ls.grpc.Addr().String()
		in.GRPCAdvertise = cmp.Or(o.GRPCAdvertise, in.GRPC)
	}
	in.member = wire.Member{
		ID: o.NodeID, Incarnation: bits, RaftAddress: cmp.Or(o.RaftAdvertise, advertised(o.RaftListen, ls.raft)),
		Address: in.Advertise, HTTPAddress: cmp.Or(o.HTTPAdvertise, in.HTTP), Version: clipVersion(o.Version), Level: o.level, Priority: uint8(o.LeaderPriority),
	}
	return in, nil
}

// advertised is the address of a listener as its option has it, so that a name stays a name; a port that the
// system chose is filled in.
func advertised(option string, l net.Listener) string {
	if _, port, err := net.SplitHostPort(option); err == nil && port != "0" {
		return option
	}
	return l.Addr().String()
}

// serve runs a server on l until it is shut down. A server that ends by itself ends the node: a
// node without its doors only looks alive.
func (n *Node) serve(name string, s interface{ Serve(net.Listener) error }, l net.Listener) {
	go func() { // owned by the Node; ends when Close shuts s down
		if err := s.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			n.o.Fatal(fmt.Errorf("%s server on %s ended: %w", name, l.Addr(), err))
		}
	}()
}

// doors holds back the wake-ups of the binary protocol's loops while an entry's operations are answered.
type doors struct{ open atomic.Pointer[door] }

type door struct {
	*netloop.Server
	release func() // ReleaseFlush, as a value made once
}

// hold begins a bracket and returns what ends it: nothing while the door is not open yet, even if it
// opens meanwhile.
func (d *doors) hold() (end func()) {
	s := d.open.Load()
	if s == nil {
		return func() {}
	}
	s.HoldFlush()
	return s.release
}

// Ready is closed when the node has known a leader and caught up with it for the first time.
func (n *Node) Ready() <-chan struct{} { return n.shard.keeper.settled }

// Leader gives the id of the leader as this node knows it, "" while there is none.
func (n *Node) Leader() string {
	id, _, _ := n.shard.group.Leader()
	return id
}

// Members lists the ids of the cluster's nodes, sorted.
func (n *Node) Members() []string {
	var ids []string
	for _, m := range n.shard.group.Status().Configuration {
		ids = append(ids, m.ID)
	}
	slices.Sort(ids)
	return ids
}

// Addresses are where a node listens, and what it keeps where.
type Addresses struct {
	Native, HTTP, Metrics, Raft, DataDir string
	// GRPC is "" where there is no such door.
	GRPC string
	// RaftAdvertise is what the other nodes are told to use instead of Raft.
	RaftAdvertise string
	// Fresh: the data directory was made by this start.
	Fresh bool
}

// Addresses tells where the node listens.
func (n *Node) Addresses() Addresses {
	return Addresses{Native: n.info.Listen, HTTP: n.info.HTTP, GRPC: n.info.GRPC, Metrics: n.info.Metrics, Raft: n.info.Raft, RaftAdvertise: n.info.member.RaftAddress, DataDir: n.info.DataDir, Fresh: n.fresh}
}

// Close stops the node: the leadership goes to another, no new work, what is under way is answered, a last checkpoint, files closed.
// Clients have three quarters of ctx's time to take their answers and are cut off then: how they behave
// decides neither whether the store is closed in order nor what Close returns. When ctx itself ends, what
// remains is cut short; nothing that was acknowledged is lost by that.
func (n *Node) Close(ctx context.Context) error {
	n.ready.Store(false)
	var errs []error
	keep := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("cannot stop %s cleanly: %w", what, err))
		}
	}
	if n.shard != nil {
		// While the doors are still open: clients are told of the new leader at once.
		n.shard.group.HandOver(ctx)
	}
	if n.service != nil {
		n.service.draining.Store(true)
		n.service.streams.drain()
	}
	n.drainDoors(ctx, keep)
	if n.door != nil {
		n.door.Close()
	}
	if n.service != nil {
		n.service.newcomers.close()
		n.service.admin.close()
		n.service.board.close()
		n.service.reads.close()
		n.service.streams.close()
	}
	if n.shard != nil {
		keep("shard", n.shard.close(ctx))
	}
	if n.guard != nil {
		n.guard.Close()
	}
	if n.ops != nil {
		// Whoever takes a profile does not hold up the stop.
		soon, cancel := context.WithTimeout(context.Background(), opsGrace)
		defer cancel()
		if n.ops.Shutdown(soon) != nil {
			keep("metrics server", n.ops.Close())
		}
	}
	if n.lock != nil {
		keep("lock of the data directory", n.lock.Close())
	}
	return errors.Join(errs...)
}

// opsGrace is how long a scrape under way may take when the node stops.
const opsGrace = time.Second

// drainDoors drains all doors at once, so that a slow client of one costs the others nothing, and leaves a
// quarter of ctx's time to the store behind them.
func (n *Node) drainDoors(ctx context.Context, keep func(what string, err error)) {
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(end)*3/4)
		defer cancel()
	}
	// cutOff passes over an error that only says that clients took too long.
	cutOff := func(door string, err error) error {
		if err == nil || ctx.Err() == nil || !errors.Is(err, ctx.Err()) {
			return err
		}
		n.o.Logger.Warn("clients did not finish in time and were cut off", "door", door, "error", err)
		return nil
	}
	native := make(chan error, 1)
	s := n.doors.open.Load()
	if s != nil {
		go func() { native <- cutOff("binary protocol", s.Drain(ctx)) }() // owned by this call, which waits for it
	}
	grpc := make(chan error, 1)
	if n.grpc != nil {
		go func() { grpc <- cutOff("grpc", n.grpc.Shutdown(ctx)) }() // owned by this call, which waits for it
	}
	if n.http != nil {
		if err := n.http.Shutdown(ctx); err != nil {
			keep("rest server", errors.Join(cutOff("rest", err), n.http.Close()))
		}
	}
	if n.grpc != nil {
		keep("grpc", <-grpc)
	}
	if s != nil {
		keep("binary protocol", <-native)
		keep("binary protocol", s.Close())
	}
}
