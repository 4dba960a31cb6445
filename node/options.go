package node

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"kvstore/batcher"
	"kvstore/consensus"
	"kvstore/engine"
	"kvstore/feed"
	"kvstore/gateway"
	"kvstore/internal/diskguard"
	"kvstore/netloop"
	"kvstore/wire"
)

// Options configures a node. The zero value of a field means its default; DataDir and the listeners
// have none.
type Options struct {
	// NodeID is this node's unique, stable name. Default node-1.
	NodeID string
	// DataDir is the directory of everything that the node keeps.
	DataDir string
	// Version and Commit name the build, for people.
	Version, Commit string

	// Listen, HTTPListen and MetricsListen are the addresses (host:port) of the binary protocol, of REST,
	// and of metrics, health and profiles; on RaftListen the nodes talk to each other.
	Listen, HTTPListen, MetricsListen, RaftListen string
	// GRPCListen is the address of gRPC; "": there is no such door.
	GRPCListen string
	// Advertise, HTTPAdvertise, GRPCAdvertise and RaftAdvertise are what others are told to use instead of the
	// listeners' own addresses. Default: the listeners.
	Advertise, HTTPAdvertise, GRPCAdvertise, RaftAdvertise string
	// InitialCluster lists all nodes of a new cluster, this one among them; every node gets the same list.
	// It counts until the data directory belongs to a cluster and is ignored then. Empty, with Join empty
	// too: a cluster of this node alone.
	InitialCluster []Founder
	// Expected lists the nodes that this one should find in its cluster although the data directory already
	// belongs to one: InitialCluster of a later start. It changes nothing but this: when a majority of them
	// turns out to belong to another cluster, the node stops and says so.
	Expected []Founder
	// Join lists REST addresses (host:port) of members of a running cluster, which are asked in turn to
	// take this node in. It counts until the data directory belongs to a cluster and is ignored then.
	Join []string
	// ReadMode is how linearizable reads are served: with lease the leader answers by itself as long as it
	// knows that nobody else can lead, with readindex it asks a majority for each bunch of reads, which
	// needs no bound on how differently clocks run. Default lease.
	ReadMode string
	// LeaderPriority is how much this node is wished for as the leader, 1 to 100: a leader of lower priority hands
	// its leadership over once this node has been well for PriorityAfter. Default 0: no wish of the node's own, so
	// that what administrators set counts.
	LeaderPriority int
	// PriorityAfter is how long a voter must have kept up with a leader of lower priority, without a break, before
	// it is handed the leadership. Default 1 min.
	PriorityAfter time.Duration
	// DeadAfter is how long a voter must have been silent before the leader takes its vote by itself, so that the
	// majority is counted without it; it stays a member, and votes again once it has caught up. Of three voters none
	// loses its vote. Default 10 min; negative: never.
	DeadAfter time.Duration
	// Insecure allows listeners beyond loopback although there are neither TLS nor users yet. Without
	// it Open refuses them, since anyone who reaches such a port could read and write everything.
	Insecure bool

	// DrainTimeout bounds a graceful stop. Default 20 s.
	DrainTimeout time.Duration
	// StartTimeout bounds the wait for the other founders, or for a member that takes this node in. Default
	// 5 min.
	StartTimeout time.Duration
	// Progress is told what a starting node waits for, whenever that changes. It must not block. Default:
	// nobody is told.
	Progress func(text string)

	// ScrubInterval is how often everything that is stored is read and checked against its checksums and the state's
	// digest, so that damage is found while there are other copies. Default 24 h; negative: only when it is asked
	// for. The first scrub after a start comes after 10 to 60 minutes, or after the interval if that is shorter.
	ScrubInterval time.Duration
	// ScrubRate is how many bytes a second a scrub reads at most. Default 16 MiB: a data set of 1 GiB takes about
	// a minute, and a disk of 100 MB/s keeps most of its time for others.
	ScrubRate int64

	// Logger receives the node's log lines. Default slog.Default().
	Logger *slog.Logger
	// Fatal is called, once, with a failure after which the node may not go on (a failed write to the
	// log, a damaged store), from any goroutine. One that matches ErrRestart is healed by closing the node and
	// opening it again. Default: log it and exit with status 1.
	Fatal func(error)

	// level is the newest behaviour level that the node claims to know: behaviourLevel but in tests.
	level uint16

	// Service holds the decisions of the doors. As in the structs below, the node fills in directories,
	// names, loggers and joints itself.
	Service ServiceOptions
	// Batcher configures the group commit.
	Batcher batcher.Options
	// Consensus configures the log and its timers.
	Consensus consensus.Options
	// Engine configures the store.
	Engine engine.Options
	// Feed configures the change feed.
	Feed feed.Options
	// Net configures the door of the binary protocol.
	Net netloop.Options
	// Gateway configures the doors beside the binary protocol: REST, and what it shares with others.
	Gateway gateway.Options
	// Disk configures the guard of free space.
	Disk diskguard.Options
}

// withDefaults fills in defaults.
func (o Options) withDefaults() Options {
	def := func(p *string, d string) {
		if *p == "" {
			*p = d
		}
	}
	def(&o.NodeID, "node-1")
	def(&o.Version, "dev")
	def(&o.Commit, "unknown")
	def(&o.ReadMode, readModeLease)
	if o.level == 0 {
		o.level = behaviourLevel
	}
	if o.DrainTimeout == 0 {
		o.DrainTimeout = 20 * time.Second
	}
	if o.PriorityAfter == 0 {
		o.PriorityAfter = priorityAfterDefault
	}
	if o.StartTimeout == 0 {
		o.StartTimeout = 5 * time.Minute
	}
	if o.ScrubInterval == 0 {
		o.ScrubInterval = 24 * time.Hour
	}
	if o.ScrubRate == 0 {
		o.ScrubRate = 16 << 20
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Fatal == nil {
		log := o.Logger
		o.Fatal = func(err error) {
			log.Error("stopping: the node may not go on", "error", err)
			os.Exit(1)
		}
	}
	return o
}

// The read modes.
const (
	readModeLease     = "lease"
	readModeReadIndex = "readindex"
)

// validate lists every fault at once.
func (o *Options) validate() error {
	var errs []error
	if o.DataDir == "" {
		errs = append(errs, errors.New("data-dir is empty"))
	}
	if err := checkNodeID(o.NodeID); err != nil {
		errs = append(errs, fmt.Errorf("node-id: %w", err))
	}
	if o.ReadMode != readModeLease && o.ReadMode != readModeReadIndex {
		errs = append(errs, fmt.Errorf("read-mode %q is neither %s nor %s", o.ReadMode, readModeLease, readModeReadIndex))
	}
	if o.LeaderPriority < 0 || o.LeaderPriority > wire.MemberPriorityMax {
		errs = append(errs, fmt.Errorf("leader-priority %d is outside 0 to %d", o.LeaderPriority, wire.MemberPriorityMax))
	}
	if o.PriorityAfter < 0 {
		errs = append(errs, fmt.Errorf("priority-after %s is negative", o.PriorityAfter))
	}
	if o.ScrubRate < scrubRateMin {
		errs = append(errs, fmt.Errorf("scrub-rate %d is below %d bytes a second", o.ScrubRate, scrubRateMin))
	}
	for _, a := range []struct{ name, addr string }{
		{"advertise", o.Advertise}, {"http-advertise", o.HTTPAdvertise}, {"grpc-advertise", o.GRPCAdvertise}, {"raft-advertise", o.RaftAdvertise},
	} {
		if a.addr == "" {
			continue
		}
		if err := checkAddress(a.addr); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", a.name, err))
		}
	}
	if err := o.Feed.Check(); err != nil {
		errs = append(errs, fmt.Errorf("change feed: %w", err))
	}
	if err := o.Gateway.Check(); err != nil {
		errs = append(errs, err)
	}
	errs = append(errs, o.validateCluster())
	for _, l := range []struct{ name, addr string }{
		{"listen", o.Listen}, {"http-listen", o.HTTPListen}, {"metrics-listen", o.MetricsListen}, {"raft-listen", o.RaftListen}, {"grpc-listen", o.GRPCListen},
	} {
		if l.addr == "" && l.name == "grpc-listen" {
			continue
		}
		host, _, err := net.SplitHostPort(l.addr)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%s: %q is not HOST:PORT", l.name, l.addr))
		case !o.Insecure && !loopback(host):
			errs = append(errs, fmt.Errorf("%s: %q is not a loopback address, and this node has neither TLS nor users: anyone who reaches it could read and write everything. Listen on 127.0.0.1, or say --insecure if the network is closed", l.name, l.addr))
		}
	}
	return errors.Join(errs...)
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// Check reports the faults of o that can be seen without starting a node.
func (o Options) Check() error {
	o = o.withDefaults()
	return o.validate()
}
