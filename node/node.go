package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"kvstore/gateway"
	"kvstore/internal/diskguard"
	"kvstore/netloop"
)

// nodeInfo is what the node tells about itself.
type nodeInfo struct {
	NodeID, Version, Commit                 string
	Advertise, HTTPAdvertise, RaftAdvertise string
	DataDir, Incarnation, ReadMode          string
	StartedAt                               time.Time
	// Bound addresses.
	Listen, HTTP, Metrics string
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
	doors   doors
	rest    *gateway.Server
	http    *http.Server // serves rest
	ops     *http.Server

	// ready turns true when every door is open and false when a stop begins.
	ready atomic.Bool
}

// Open starts a node and returns once it serves. When it fails it closes what it had opened.
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
	if n.lock, err = lockDir(o.DataDir); err != nil {
		return err
	}
	id, fresh, err := loadIdentity(o.DataDir, o.NodeID)
	if err != nil {
		return err
	}
	n.fresh = fresh
	if err := id.checkNotEmptied(o.DataDir); err != nil {
		return err
	}
	// The ports next, before time goes into replay: a port in use should be known at once.
	var ls [3]net.Listener // set to nil where a server has taken it over
	defer func() {
		if err != nil {
			for _, l := range ls {
				if l != nil {
					err = errors.Join(err, l.Close())
				}
			}
		}
	}()
	for i, l := range []struct{ name, addr string }{{"listen", o.Listen}, {"http-listen", o.HTTPListen}, {"metrics-listen", o.MetricsListen}} {
		if ls[i], err = net.Listen("tcp", l.addr); err != nil {
			return fmt.Errorf("cannot listen on %s: %w: stop what uses the port, or choose another with --%s", l.addr, err, l.name)
		}
	}
	n.info = n.describe(id, ls)

	do := o.Disk
	do.Dir, do.Logger = o.DataDir, o.Logger
	if n.guard, err = diskguard.Open(do); err != nil {
		return err
	}
	if n.shard, err = openShard(o, 1, n.guard, &n.doors); err != nil {
		return err
	}
	n.service = newService(o.Service, n.shard, n.info)
	n.rest = gateway.New(gateway.Options{Service: n.service, Principal: n.service.Anonymous(), Logger: o.Logger})
	// Health and metrics answer from here on, while the group is still on its way to leading.
	n.ops = gateway.NewOps(opsView{n})
	n.serve("metrics", n.ops, newLimitListener(ls[2], opsConnsMax))
	ls[2] = nil
	start, cancel := context.WithTimeout(ctx, o.StartTimeout)
	defer cancel()
	if err := n.shard.begin(start); err != nil {
		return err
	}
	if !id.Served {
		id.Served = true
		if err := id.write(o.DataDir); err != nil {
			return err
		}
	}

	no := o.Net
	no.Listener, no.Handler, no.Logger = ls[0], n.service, o.Logger
	native, err := netloop.Start(no)
	if err != nil {
		return err
	}
	ls[0] = nil
	n.doors.open.Store(&door{native, native.ReleaseFlush})
	n.http = n.rest.HTTPServer()
	n.serve("rest", n.http, newLimitListener(ls[1], restConnsMax))
	ls[1] = nil
	n.ready.Store(true)
	return nil
}

func (n *Node) describe(id identity, ls [3]net.Listener) *nodeInfo {
	o := &n.o
	dir, err := filepath.Abs(o.DataDir)
	if err != nil {
		dir = o.DataDir // no working directory: what was given must do
	}
	in := &nodeInfo{
		NodeID: o.NodeID, Version: o.Version, Commit: o.Commit, DataDir: dir,
		Advertise: o.Advertise, HTTPAdvertise: o.HTTPAdvertise, RaftAdvertise: o.RaftAdvertise,
		Incarnation: id.Incarnation, ReadMode: o.ReadMode, StartedAt: time.Now(),
		Listen: ls[0].Addr().String(), HTTP: ls[1].Addr().String(), Metrics: ls[2].Addr().String(),
	}
	if in.Advertise == "" {
		in.Advertise = in.Listen
	}
	if in.HTTPAdvertise == "" {
		in.HTTPAdvertise = in.HTTP
	}
	return in
}

// serve runs an HTTP server on l until it is shut down. A server that ends by itself ends the node: a
// node without its doors only looks alive.
func (n *Node) serve(name string, s *http.Server, l net.Listener) {
	go func() { // owned by the Node; ends when Close shuts s down
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
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

// Addresses are where a node listens, and what it keeps where.
type Addresses struct {
	Native, HTTP, Metrics, DataDir string
	// Fresh: the data directory was made by this start.
	Fresh bool
}

// Addresses tells where the node listens.
func (n *Node) Addresses() Addresses {
	return Addresses{Native: n.info.Listen, HTTP: n.info.HTTP, Metrics: n.info.Metrics, DataDir: n.info.DataDir, Fresh: n.fresh}
}

// Close stops the node: no new work, what is under way is answered, a last checkpoint, files closed.
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
	if n.service != nil {
		n.service.draining.Store(true)
	}
	n.drainDoors(ctx, keep)
	if n.service != nil {
		n.service.reads.close()
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

// drainDoors drains both doors at once, so that a slow client of one costs the other nothing, and leaves a
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
	if n.http != nil {
		if err := n.http.Shutdown(ctx); err != nil {
			keep("rest server", errors.Join(cutOff("rest", err), n.http.Close()))
		}
	}
	if s != nil {
		keep("binary protocol", <-native)
		keep("binary protocol", s.Close())
	}
}
