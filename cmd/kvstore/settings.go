package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"kvstore/internal/config"
	"kvstore/node"
)

const defaultListen = "127.0.0.1:7001"

// settings are the options as a person gives them.
type settings struct {
	nodeID, dataDir                                             string
	listen, grpcListen, httpListen, raftListen, metricsListen   string
	advertise, grpcAdvertise, httpAdvertise, raftAdvertise      string
	initialCluster, join                                        string
	insecure, checkConfig, version, autoCreate                  bool
	readMode, logLevel                                          string
	heartbeat, election, lease                                  time.Duration
	checkpointInterval, snapshotInterval                        time.Duration
	startTimeout, drainTimeout, writeStall, proposalTimeout     time.Duration
	scrubInterval                                               time.Duration
	scrubRate                                                   int64
	feedRetain, feedSegment, feedMemory                         int64
	memoryLimit                                                 int64
	priorityAfter, deadAfter                                    time.Duration
	leaderPriority                                              int
	idleTimeout, helloTimeout, partialTimeout, history          time.Duration
	snapshotThreshold, trailingLogs, loops, readWorkers         int
	maxConns, inFlight, batchOps, memtables, compactors         int
	segment, batchBytes, memtable, cache, checkpointBytes       int64
	diskFloor, ballast, queueBytes, readQueueBytes, historySize int64
	logKeep, logKeepMax, logCache, snapshotRate                 int64
	queueAge, snapshotGrace                                     time.Duration
	doorRate, doorClientRate, requestLogSample, requestLogRate  int
	requestLog, requestLogFile                                  string

	// ignored names the options that say nothing because the data directory belongs to a cluster already.
	// Set by check.
	ignored []string
	// expected is the list of initial-cluster where that is ignored.
	expected []node.Founder
}

const head = `kvstore starts a node of KVStore, a durable, replicated, linearizable key-value store.

Examples:
  kvstore                                  one durable node on loopback, data in ./kvstore-data
  kvstore --data-dir /data --config /etc/kvstore/kvstore.yaml
  kvstore --node-id node-1 --raft-listen 10.0.0.1:7000 … --insecure \
          --initial-cluster node-1=10.0.0.1:7000,node-2=10.0.0.2:7000,node-3=10.0.0.3:7000
                                           one of three nodes of a new cluster; the same list on each, started
                                           in any order (make cluster does all of it on this machine)
  kvstore --node-id node-4 … --join 10.0.0.1:7003,10.0.0.2:7003
                                           a further node of a running cluster
  kvstore --check-config --config kvstore.yaml
  kvstore recover --data-dir /data --lost node-2,node-3
                                           the last resort after the loss of a majority; see kvstore recover --help

Options:`

// declare lists every option with its default, bounds and meaning, below head.
func (c *settings) declare(head string) *config.Set {
	s := config.New("kvstore", "KVSTORE_", head)
	s.String(&c.nodeID, "node-id", "node-1", "unique, stable name of this node")
	s.String(&c.dataDir, "data-dir", "./kvstore-data", "everything this node keeps")
	s.Bool(&c.insecure, "insecure", false, "allow listeners beyond loopback although there are neither TLS nor users")
	s.Bool(&c.checkConfig, "check-config", false, "check the configuration and everything it points at, then exit 0 or 1")
	s.Bool(&c.version, "version", false, "print the version and exit")
	s.Choice(&c.logLevel, "log-level", "warn", []string{"debug", "info", "warn", "error"}, "least severe log line that is written")
	s.Duration(&c.drainTimeout, "drain-timeout", 20*time.Second, time.Second, 10*time.Minute, "longest graceful stop")

	s.Duration(&c.startTimeout, "start-timeout", 5*time.Minute, time.Second, 24*time.Hour, "longest wait for the other founders, or for a member that takes this node in")
	s.FlagOnly("check-config", "version")

	s.Section("Addresses")
	s.String(&c.listen, "listen", defaultListen, "binary protocol")
	s.String(&c.httpListen, "http-listen", "127.0.0.1:7003", "REST")
	s.String(&c.metricsListen, "metrics-listen", "127.0.0.1:2112", "/metrics, /livez, /readyz, /debug/pprof")
	s.String(&c.raftListen, "raft-listen", "127.0.0.1:7000", "between nodes")
	s.String(&c.grpcListen, "grpc-listen", "127.0.0.1:7002", "gRPC; empty: no such door")
	s.String(&c.advertise, "advertise", "", "address that others use for --listen, where it differs")
	s.String(&c.httpAdvertise, "http-advertise", "", "the same for --http-listen")
	s.String(&c.raftAdvertise, "raft-advertise", "", "the same for --raft-listen")
	s.String(&c.grpcAdvertise, "grpc-advertise", "", "the same for --grpc-listen")

	s.Section("Cluster")
	s.String(&c.initialCluster, "initial-cluster", "", "NAME=HOST:RAFTPORT,…: all nodes of a new cluster, this one included, the same list on each; ignored once the data directory has a cluster")
	s.String(&c.join, "join", "", "HOST:HTTPPORT,… of running members: ask them to take this node in, as a learner that votes once it has caught up; ignored once the data directory has a cluster")
	s.Int(&c.leaderPriority, "leader-priority", 0, 0, 100, "how much this node is wished for as the leader: a leader of lower priority hands over to it once it has been well for priority-after; 0: no wish of its own, so that what kvctl member priority has set counts")
	s.Duration(&c.priorityAfter, "priority-after", time.Minute, time.Second, 24*time.Hour, "how long a node must have kept up with a leader of lower priority before it is handed the leadership")
	s.Duration(&c.deadAfter, "dead-after", 10*time.Minute, 0, 365*24*time.Hour, "silence after which a voter loses its vote by itself, so that the majority is counted without it; it stays a member and votes again once it has caught up, and of three voters none loses its vote; 0: never")
	s.Choice(&c.readMode, "read-mode", "lease", []string{"lease", "readindex"}, "how linearizable reads are served: by the leader alone while it holds its lease, or each bunch confirmed by a majority, which trusts no clock")
	s.Duration(&c.heartbeat, "heartbeat-timeout", 600*time.Millisecond, 50*time.Millisecond, time.Minute, "silence of the leader after which an election begins; the same on all nodes")
	s.Duration(&c.election, "election-timeout", 600*time.Millisecond, 50*time.Millisecond, time.Minute, "length of one election; at least heartbeat-timeout")
	s.Duration(&c.lease, "lease-duration", 0, 0, time.Minute, "how long after it was sent a heartbeat that a majority answered lets the leader serve reads; at most 9/10 of heartbeat-timeout, and what is between them must cover how differently two clocks run; 0: 5/6 of heartbeat-timeout")

	s.Section("Log and group commit")
	s.Bytes(&c.segment, "log-segment-size", 512<<20, 1<<20, 1<<30, "size of one log file")
	s.Int(&c.snapshotThreshold, "snapshot-threshold", 2048, 16, 1<<30, "entries between two compactions of the log")
	s.Duration(&c.snapshotInterval, "snapshot-interval", 15*time.Second, 100*time.Millisecond, time.Hour, "how often a compaction is considered")
	s.Int(&c.trailingLogs, "trailing-logs", 128, 1, 1<<30, "entries kept in the log behind a compaction")
	s.Bytes(&c.logKeep, "log-keep-size", 256<<20, 0, 1<<40, "bytes of the log kept behind a compaction, besides trailing-logs, so that a node that was away is brought up without a copy of the whole state; 0: none")
	s.Bytes(&c.logKeepMax, "log-keep-size-max", 1<<30, 0, 1<<40, "the same where sending a copy of the state takes so long that more is written meanwhile: up to this much, so that a node that was just restored needs no second copy; not below log-keep-size; 0: no more than that")
	s.Bytes(&c.logCache, "log-cache-size", 32<<20, 0, 1<<40, "newest entries of the log kept in memory for the other nodes; 0: none")
	s.Duration(&c.writeStall, "write-stall-timeout", 5*time.Second, 100*time.Millisecond, 10*time.Minute, "a write to the log that takes longer ends the node: its disk hangs")
	s.Duration(&c.proposalTimeout, "proposal-timeout", 10*time.Second, 100*time.Millisecond, 10*time.Minute, "when a write without an answer from the log is reported as unknown")
	s.Bytes(&c.batchBytes, "batch-size", 256<<10, 1<<10, 1<<20, "size at which an entry of the log is closed; entries grow with load up to it")
	s.Int(&c.batchOps, "batch-operations", 4096, 1, 16384, "most operations of one entry")
	s.Int(&c.inFlight, "batch-inflight", 4, 1, 32, "entries proposed and unanswered")
	s.Bytes(&c.queueBytes, "queue-size", 64<<20, 20<<20, 4<<30, "bytes of writes that may wait for the log; beyond it the answer is BUSY")

	s.Duration(&c.queueAge, "queue-age", 500*time.Millisecond, time.Millisecond, time.Minute, "how long writes may wait for the log while more come than can be done; beyond it the answer is BUSY, from half of it on for connections that have more waiting than others")
	s.Duration(&c.snapshotGrace, "snapshot-grace", time.Minute, time.Millisecond, 24*time.Hour, "how long the log that continues a copy of the state is kept after the copy was sent: the node that got it must put it in place before it asks for more")
	s.Bytes(&c.snapshotRate, "snapshot-rate", 64<<20, 0, 1<<40, "bytes per second at most of a copy of the state that goes to, or comes from, another node, at least 64KiB; 0: no bound")

	s.Section("Engine")
	s.Bytes(&c.memtable, "memtable-size", 64<<20, 1<<20, 1<<30, "size of one memtable")
	s.Int(&c.memtables, "memtables", 3, 1, 16, "full memtables that may wait for their flush")
	s.Int(&c.compactors, "compactors", 0, 0, 16, "compaction workers, at least 3; 0: by the number of processors")
	s.Bytes(&c.memoryLimit, "memory-limit", 0, 0, 1<<50, "memory that this process should stay below: its garbage is collected more often near it; at least 64MiB; 0: nine tenths of the control group's limit, if it has one. GOMEMLIMIT and GOGC in the environment count more")
	s.Bytes(&c.cache, "cache-size", 64<<20, 0, 1<<40, "hot records kept in memory; 0: none")
	s.Duration(&c.checkpointInterval, "checkpoint-interval", 30*time.Second, 10*time.Millisecond, 10*time.Minute, "longest time between two durable checkpoints under load: what a restart after a crash replays")
	s.Bytes(&c.checkpointBytes, "checkpoint-size", 0, 0, 1<<30, "bytes in memory after which a checkpoint is made earlier, at least 1MiB; up to three times as much may stand there; 0: a 24th of the memory limit, or of the machine's memory without one, 32MiB to 256MiB")
	s.Duration(&c.history, "history-window", time.Minute, 0, 24*time.Hour, "how far back past revisions stay readable")
	s.Bytes(&c.historySize, "history-size", 8<<20, 1<<20, 1<<40, "bytes stored after which the past is given up earlier; more costs throughput where keys are written over and over")

	s.Bytes(&c.feedRetain, "feed-retain-bytes", 1<<30, 1<<20, 1<<42, "bytes of past changes that a watch can begin at, or catch up with; the oldest segment goes when there are more")
	s.Bytes(&c.feedSegment, "feed-segment-bytes", 64<<20, 64<<10, 1<<30, "size of one segment of the change feed")
	s.Bytes(&c.feedMemory, "feed-memory-bytes", 32<<20, 64<<10, 1<<36, "newest changes kept in memory for watches that keep up, more or less")

	s.Duration(&c.scrubInterval, "scrub-interval", 24*time.Hour, 0, 365*24*time.Hour, "how often all that is stored is read and checked, so that damage is found while other nodes have the data; the first time 10 to 60 minutes after the start, or after the interval if that is shorter; 0: only when asked for")
	s.Bytes(&c.scrubRate, "scrub-rate", 16<<20, 1<<20, 1<<40, "bytes that this reads in a second at most")

	s.Section("Request log")
	s.Choice(&c.requestLog, "request-log", "errors", []string{"off", "errors", "sampled", "all"}, "requests by REST and gRPC that are logged, as a line of JSON each, without keys, values, tags and queries: those that failed for the server's part (5xx, and what gRPC has for it); one in request-log-sample of the others too; or all")
	s.String(&c.requestLogFile, "request-log-file", "-", "file that they are appended to, which may be moved away at any time: a new one is begun then; -: standard error")
	s.Int(&c.requestLogSample, "request-log-sample", 1000, 1, 1e9, "of how many requests that did not fail one is logged by request-log=sampled")
	s.Int(&c.requestLogRate, "request-log-rate", 100, 1, 1e6, "lines a second at most of failures, and as many of others; the next line tells how many were dropped")

	s.Section("Limits")
	s.Bool(&c.autoCreate, "auto-create-namespaces", false, "create a namespace when a write names one that does not exist, and let reads in such a one find nothing, instead of refusing both; the same on all nodes")
	s.Int(&c.doorRate, "gateway-requests-per-second", 0, 0, 1e9, "requests that this node takes by REST and gRPC in a second, from all clients together; a second's worth may come at once; beyond it the answer is LIMITED (429), with the pause after which to try again; 0: no bound")
	s.Int(&c.doorClientRate, "gateway-client-requests-per-second", 0, 0, 1e9, "the same for each client, which is an IPv4 address or a /64 of IPv6: clients behind one proxy are one; 0: no bound")
	s.Bytes(&c.diskFloor, "disk-floor", 0, 0, 1<<50, "free space below which writes are refused, while deletes and reads go on; 0: the least there may be, 128MiB + 16 x memtable-size")
	s.Bytes(&c.ballast, "disk-ballast", 64<<20, 0, 1<<40, "space kept aside for deletes on a full disk; 0: none")
	s.Int(&c.maxConns, "max-connections", 0, 0, 1<<20, "connections of the binary protocol; 0: by the limit on open files")
	s.Int(&c.loops, "event-loops", 0, 0, 256, "event loops of the binary protocol; 0: half the processors, and two of two")
	s.Int(&c.readWorkers, "read-workers", 0, 0, 256, "goroutines that read from disk; 0: one for each processor")
	s.Bytes(&c.readQueueBytes, "read-queue-size", 16<<20, 1<<20, 1<<30, "bytes of reads that may wait for a worker")
	s.Duration(&c.helloTimeout, "hello-timeout", 5*time.Second, 10*time.Millisecond, time.Minute, "time for a new connection to say HELLO")
	s.Duration(&c.partialTimeout, "frame-timeout", 10*time.Second, 10*time.Millisecond, 10*time.Minute, "time for a frame to arrive, extended for large ones")
	s.Duration(&c.idleTimeout, "idle-timeout", 5*time.Minute, 10*time.Millisecond, 24*time.Hour, "silence after which a connection is closed")
	return s
}

// compactorsLeast is the smallest number of compaction workers that the engine takes.
const compactorsLeast = 3

// check finds faults that a single option does not show.
func (c *settings) check() error {
	var errs []error
	if c.lease > c.heartbeat/10*9 {
		errs = append(errs, fmt.Errorf("lease-duration %s is above nine tenths of heartbeat-timeout %s: clocks that run differently could let two nodes answer reads", c.lease, c.heartbeat))
	}
	if c.election < c.heartbeat {
		errs = append(errs, fmt.Errorf("election-timeout %s is below heartbeat-timeout %s", c.election, c.heartbeat))
	}
	errs = append(errs, c.checkCluster())
	if least := c.diskFloorLeast(); c.diskFloor != 0 && c.diskFloor < least {
		errs = append(errs, fmt.Errorf("disk-floor %s is below %s (128MiB + 16 x memtable-size): a compaction writes its output before it frees its input, and a full disk kills the node", config.FormatBytes(c.diskFloor), config.FormatBytes(least)))
	}
	if c.compactors != 0 && c.compactors < compactorsLeast {
		errs = append(errs, fmt.Errorf("compactors %d is below %d: only the third worker compacts the last level, without which deleted keys keep their space", c.compactors, compactorsLeast))
	}
	if c.memoryLimit != 0 && c.memoryLimit < memoryFloor {
		errs = append(errs, fmt.Errorf("memory-limit %s is below %s: the node would do little but collect garbage", config.FormatBytes(c.memoryLimit), config.FormatBytes(memoryFloor)))
	}
	if c.checkpointBytes != 0 && c.checkpointBytes < checkpointSizeMin {
		errs = append(errs, fmt.Errorf("checkpoint-size %s is below %s: a checkpoint would follow each few writes", config.FormatBytes(c.checkpointBytes), config.FormatBytes(checkpointSizeMin)))
	}
	errs = append(errs, c.checkRequestLog())
	if c.checkConfig {
		errs = append(errs, checkWritable(c.dataDir))
	}
	o := c.options()
	errs = append(errs, o.Check())
	return errors.Join(errs...)
}

// checkRequestLog finds a request-log-file that nothing but a change of the configuration can make good. A full disk is
// none: the node serves without its log.
func (c *settings) checkRequestLog() error {
	if c.requestLog == "off" || c.requestLogFile == "" || c.requestLogFile == "-" {
		return nil
	}
	if st, err := os.Stat(c.requestLogFile); err == nil && st.IsDir() {
		return fmt.Errorf("request-log-file: %s is a directory", c.requestLogFile)
	}
	if st, err := os.Stat(filepath.Dir(c.requestLogFile)); err != nil || !st.IsDir() {
		return fmt.Errorf("request-log-file: there is no directory %s: make it first", filepath.Dir(c.requestLogFile))
	}
	return nil
}

// checkCluster finds faults of the options by which a node comes to its cluster, as far as the list of nodes
// and the list of addresses can be read; what they must be, the node's options check.
func (c *settings) checkCluster() error {
	has, err := node.HasCluster(c.dataDir)
	if err != nil {
		return nil // whoever opens the directory meets this too, and says what to do
	}
	if has {
		for _, o := range []struct{ name, value string }{{"initial-cluster", c.initialCluster}, {"join", c.join}} {
			if o.value != "" {
				c.ignored = append(c.ignored, o.name)
			}
		}
		// What can't be read of a list that is ignored is no fault.
		c.expected, _ = node.ParseInitialCluster(c.initialCluster)
		c.initialCluster, c.join = "", ""
	}
	if c.initialCluster == "" {
		return nil
	}
	if _, err := node.ParseInitialCluster(c.initialCluster); err != nil {
		return fmt.Errorf("initial-cluster: %w", err)
	}
	return nil
}

// diskFloorLeast is the smallest free space at which writes may still be taken: what has been accepted
// must be flushed, and the largest compaction be written, without filling the disk, since Badger maps its
// files and dies of SIGBUS where a page has no block. Measured with memtables of 4 MiB: 64 MiB were too
// few, 128 MiB held.
func (c *settings) diskFloorLeast() int64 { return 128<<20 + 16*c.memtable }

// checkWritable reports whether the data directory could be used: it, or its nearest existing parent,
// takes a new file.
func checkWritable(dir string) error {
	at := filepath.Clean(dir)
	for {
		st, err := os.Stat(at)
		if err == nil {
			if !st.IsDir() {
				return fmt.Errorf("data-dir: %s is not a directory", at)
			}
			break
		}
		if !errors.Is(err, os.ErrNotExist) || at == filepath.Dir(at) {
			return fmt.Errorf("data-dir: %w", err)
		}
		at = filepath.Dir(at)
	}
	f, err := os.CreateTemp(at, ".kvstore-check-*")
	if err != nil {
		return fmt.Errorf("data-dir: cannot write in %s: %w", at, err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// options turns the settings into those of the node.
func (c *settings) options() node.Options {
	o := node.Options{
		NodeID: c.nodeID, DataDir: c.dataDir, Insecure: c.insecure, DrainTimeout: c.drainTimeout, StartTimeout: c.startTimeout, ReadMode: c.readMode,
		Listen: c.listen, HTTPListen: c.httpListen, GRPCListen: c.grpcListen, MetricsListen: c.metricsListen, RaftListen: c.raftListen,
		Advertise: c.advertise, HTTPAdvertise: c.httpAdvertise, GRPCAdvertise: c.grpcAdvertise, RaftAdvertise: c.raftAdvertise,
	}
	o.Expected = c.expected
	o.LeaderPriority, o.PriorityAfter, o.DeadAfter = c.leaderPriority, c.priorityAfter, time.Duration(orNone(int64(c.deadAfter)))
	if c.initialCluster != "" {
		// A list that can't be read was found by check.
		o.InitialCluster, _ = node.ParseInitialCluster(c.initialCluster)
	}
	o.Feed.RetainBytes, o.Feed.SegmentBytes, o.Feed.RingBytes = c.feedRetain, c.feedSegment, c.feedMemory
	o.ScrubInterval, o.ScrubRate = time.Duration(orNone(int64(c.scrubInterval))), c.scrubRate
	if c.join != "" {
		o.Join = strings.Split(c.join, ",")
	}
	o.Service.AutoCreateNamespaces = c.autoCreate
	o.Service.ReadWorkers, o.Service.ReadQueueBytes = c.readWorkers, int(c.readQueueBytes)

	b := &o.Batcher
	b.EntryBytesTarget, b.EntryOpsMax, b.InFlightMax, b.QueueBytesMax = int(c.batchBytes), c.batchOps, c.inFlight, int(c.queueBytes)
	b.QueueAgeMax = c.queueAge

	r := &o.Consensus
	r.HeartbeatTimeout, r.ElectionTimeout, r.SegmentBytes = c.heartbeat, c.election, int(c.segment)
	r.SnapshotThreshold, r.SnapshotInterval, r.TrailingLogs = uint64(c.snapshotThreshold), c.snapshotInterval, uint64(c.trailingLogs)
	r.WriteStallTimeout, r.ProposalTimeout = c.writeStall, c.proposalTimeout
	r.LeaseDuration, r.LogKeepBytes, r.LogCacheBytes = c.lease, orNone(c.logKeep), orNone(c.logCache)
	if r.LogKeepBytesMax = max(c.logKeep, c.logKeepMax); c.logKeep == 0 {
		r.LogKeepBytesMax = -1 // none is none
	}
	r.SnapshotRateBytes, r.SnapshotGrace = orNone(c.snapshotRate), c.snapshotGrace

	e := &o.Engine
	e.MemtableBytes, e.NumMemtables, e.NumCompactors = c.memtable, c.memtables, c.compactors
	e.CacheBytes, e.HistoryWindow = orNone(c.cache), time.Duration(orNone(int64(c.history)))
	e.CheckpointInterval, e.CheckpointBytes, e.HistoryBytes = c.checkpointInterval, c.checkpointBytes, c.historySize

	n := &o.Net
	n.Loops, n.MaxConns = c.loops, c.maxConns
	n.HandshakeTimeout, n.PartialTimeout, n.IdleTimeout = c.helloTimeout, c.partialTimeout, c.idleTimeout

	g := &o.Gateway
	g.RequestsPerSecond, g.ClientRequestsPerSecond = uint64(c.doorRate), uint64(c.doorClientRate)
	g.RequestLog, g.RequestLogFile = c.requestLog, c.requestLogFile
	g.RequestLogSample, g.RequestLogRate = c.requestLogSample, c.requestLogRate

	d := &o.Disk
	d.FloorBytes, d.BallastBytes = uint64(max(c.diskFloor, c.diskFloorLeast())), orNone(c.ballast)
	return o
}

// raftAddress is where other nodes reach this one, as far as the options say.
func (c *settings) raftAddress() string { return cmp.Or(c.raftAdvertise, c.raftListen) }

// orNone turns a setting's 0 ("none") into the negative number by which the parts say none, since their
// zero means the default.
func orNone(n int64) int64 {
	if n == 0 {
		return -1
	}
	return n
}

// isBuilt reports whether path exists below the working directory.
func isBuilt(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
