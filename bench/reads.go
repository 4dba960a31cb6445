package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// ReadsOptions describes a comparison of reads of one node with reads that all nodes of a cluster share.
type ReadsOptions struct {
	// Cluster names the binary ports of all nodes of a cluster, Lone that of a node which is a cluster of its own.
	Cluster, Lone []string
	// ClusterPIDs and LonePIDs are their processes on this machine. Required.
	ClusterPIDs, LonePIDs []int
	// Callers are those of each client; there are as many clients as the cluster has nodes. Default 64.
	Callers int
	// Keys are loaded on both sides and drawn from. Default 100,000.
	Keys int
	// ValueBytes is the length of each value. Default 128.
	ValueBytes int
	// Duration is the measured time of each part of a round, half a second of warm-up before it not counted. Default 2s.
	Duration time.Duration
	// Rounds is how often all parts are measured. Default 5.
	Rounds int
	// Conns is the number of connections of each client to a node. Default 1.
	Conns int
	// Timeout bounds one operation. Default 10s.
	Timeout time.Duration
	// KeyPrefix keeps the keys apart from others'. Default "kvbench/".
	KeyPrefix string
	// Progress, when set, hears what is about to be measured.
	Progress func(text string)
}

// ReadsReport is the result of Reads.
type ReadsReport struct {
	Machine Machine `json:"machine"`
	// Clients share the load, with Callers each.
	Clients    int     `json:"clients"`
	Callers    int     `json:"callers"`
	Keys       int     `json:"keys"`
	ValueBytes int     `json:"value_bytes"`
	Rounds     int     `json:"rounds"`
	Seconds    float64 `json:"seconds"`
	// Reads has an entry for each way; the first is the lone node.
	Reads []ReadCost `json:"reads"`
}

// ReadCost is what a read costs in one way: medians over the rounds.
type ReadCost struct {
	Way   string `json:"way"`
	Nodes int    `json:"nodes"`
	// CPU is microseconds of user and system time of all servers of this way together for one read.
	CPU          float64 `json:"server_cpu_us"`
	OpsPerSecond float64 `json:"ops_per_second"`
	// Ratio is CPU over that of the lone node in the same round.
	Ratio float64 `json:"ratio"`
	// Failed counts reads that failed or found nothing.
	Failed       uint64 `json:"failed"`
	FailedSample string `json:"failed_sample,omitempty"`
}

// Reads measures linearizable gets of a lone node, of a cluster whose leader answers all, and of a cluster in which
// each client asks a node of its own, in turn and with the same number of clients.
func Reads(ctx context.Context, o ReadsOptions) (_ *ReadsReport, err error) {
	setDefault(&o.Callers, compareCallers)
	setDefault(&o.Keys, compareKeys)
	setDefault(&o.ValueBytes, compareValueBytes)
	setDefault(&o.Duration, compareDuration)
	setDefault(&o.Rounds, compareRounds)
	n := len(o.Cluster)
	run := Options{
		Workload: "get", Keys: o.Keys, ValueBytes: o.ValueBytes, Concurrency: o.Callers * n, Duration: o.Duration, Warmup: compareWarmup, KeyPrefix: o.KeyPrefix,
	}
	if n < 2 || len(o.Lone) == 0 {
		return nil, errors.New("cannot compare reads: a cluster of two nodes or more is needed, and a node of its own beside")
	}
	if err := errors.Join(run.Validate(), checkCompare(o.Rounds, o.ClusterPIDs), checkCompare(o.Rounds, o.LonePIDs)); err != nil {
		return nil, fmt.Errorf("cannot compare reads: %w", err)
	}
	var all []contender
	for _, way := range []struct {
		name string
		pids []int
		open func() (*clients, error)
	}{
		{"one node", o.LonePIDs, func() (*clients, error) {
			return openClients(ctx, n, ClientOptions{Endpoints: o.Lone, Conns: o.Conns, Timeout: o.Timeout})
		}},
		{fmt.Sprintf("%d nodes, the leader answers all", n), o.ClusterPIDs, func() (*clients, error) {
			return openClients(ctx, n, ClientOptions{Endpoints: o.Cluster, Conns: o.Conns, Timeout: o.Timeout})
		}},
		{fmt.Sprintf("%d nodes, each client asks its own", n), o.ClusterPIDs, func() (*clients, error) {
			return openOwnNode(ctx, ClientOptions{Endpoints: o.Cluster, Conns: o.Conns, Timeout: o.Timeout})
		}},
	} {
		c, oerr := way.open()
		if oerr != nil {
			return nil, fmt.Errorf("cannot open clients of %s: %w", way.name, oerr)
		}
		defer func() { err = errors.Join(err, c.close()) }()
		all = append(all, contender{name: way.name, target: c, pids: way.pids})
	}
	// The second way's clients write to the leader; the third's read what it has written.
	for _, c := range all[:2] {
		if err := loadAll(ctx, c.target, run); err != nil {
			return nil, err
		}
	}
	samples, err := interleave(ctx, run, o.Rounds, all, o.Progress)
	if err != nil {
		return nil, err
	}
	rep := &ReadsReport{
		Machine: ReadMachine(""), Clients: n, Callers: o.Callers, Keys: o.Keys, ValueBytes: o.ValueBytes, Rounds: o.Rounds, Seconds: o.Duration.Seconds(),
	}
	for i, c := range all {
		rep.Reads = append(rep.Reads, readCost(c.name, len(c.pids), samples[0], samples[i]))
	}
	return rep, nil
}

// readCost compares the rounds of one way with those of the lone node.
func readCost(way string, nodes int, lone, own []sample) ReadCost {
	c := ReadCost{Way: way, Nodes: nodes, CPU: medianOf(figures(own, cpuOf)), OpsPerSecond: medianOf(figures(own, rateOf))}
	ratios := make([]float64, len(own))
	for i := range own {
		ratios[i] = own[i].cpu / lone[i].cpu
	}
	c.Ratio = medianOf(ratios)
	c.Failed, c.FailedSample = failures(own)
	return c
}

// Failed counts the reads that failed or found nothing.
func (rep *ReadsReport) Failed() (n uint64) {
	for _, r := range rep.Reads {
		n += r.Failed
	}
	return n
}

// WriteJSON writes the report as one line of JSON.
func (rep *ReadsReport) WriteJSON(w io.Writer) error { return writeJSON(w, rep) }

// WriteTable writes the report for people.
func (rep *ReadsReport) WriteTable(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nlinearizable gets, %d clients with %d callers each, values of %d B, %d keys: medians of %d rounds of %gs each, in turn\n",
		rep.Machine, rep.Clients, rep.Callers, rep.ValueBytes, rep.Keys, rep.Rounds, rep.Seconds)
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "READS OF\tGETS/S\tCPU/GET, ALL SERVERS\tOVER ONE NODE\tFAILED")
	for _, r := range rep.Reads {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%.2f ×\t%d\n", r.Way, rateText(r.OpsPerSecond), latencyText(r.CPU), r.Ratio, r.Failed)
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("cannot write report: %w", err)
	}
	for _, r := range rep.Reads {
		if r.Failed > 0 {
			fmt.Fprintf(&b, "%s: %d reads failed, such as: %s\n", r.Way, r.Failed, r.FailedSample)
		}
	}
	return writeText(w, b.String())
}
