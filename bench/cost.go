package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// CostOptions describes a measurement of what the doors beside the binary protocol cost.
type CostOptions struct {
	// Native is the binary door of the same servers; keys are loaded through it.
	Native Target
	// ServerPIDs are the servers' processes on this machine. Required.
	ServerPIDs []int
	// Doors are compared, each with the empty server of its protocol.
	Doors []CostDoor
	// Callers are how many operations are under way at once. Default 64.
	Callers int
	// Keys are loaded and drawn from. Default 100,000.
	Keys int
	// ValueBytes is the length of each value; those of the echoes must be the same. Default 128.
	ValueBytes int
	// Duration is the measured time of each part of a round, half a second of warm-up before it not counted. Default 2s.
	Duration time.Duration
	// Rounds is how often all parts are measured. Default 5.
	Rounds int
	// KeyPrefix keeps the keys apart from others'. Default "kvbench/".
	KeyPrefix string
	// Progress, when set, hears what is about to be measured.
	Progress func(text string)
}

// CostDoor is a door and its empty server.
type CostDoor struct {
	// Protocol is the door's name.
	Protocol string
	// Own goes through the door, Echo to the empty server, whose process is EchoPID.
	Own, Echo Target
	EchoPID   int
}

// CostTargets are how many times the CPU time of the empty server a get may take, and how many times that of the empty
// server and of the same put through the binary protocol together a put may take.
var CostTargets = struct{ Get, Put float64 }{1.5, 1.2}

// CostReport is the result of Cost. CPU times are microseconds of the servers' user and system time for one operation.
type CostReport struct {
	Machine Machine `json:"machine"`
	// Nodes is how many nodes the cluster has, 0 where that is not known.
	Nodes   int `json:"nodes,omitempty"`
	Callers int `json:"callers"`
	// Connections is how many all callers share, but those of REST, who have one each; 0 where that is not known.
	Connections int     `json:"connections,omitempty"`
	Keys        int     `json:"keys"`
	ValueBytes  int     `json:"value_bytes"`
	Rounds      int     `json:"rounds"`
	Seconds     float64 `json:"seconds"`
	// Costs has an entry for each door and operation.
	Costs []DoorCost `json:"costs"`
}

// DoorCost is what an operation costs through a door: medians over the rounds. A ratio is that of one round.
type DoorCost struct {
	Protocol  string `json:"protocol"`
	Operation string `json:"operation"`
	// Echo is the empty server's, Native that of the same operation through the binary protocol, Own the door's.
	Echo   float64 `json:"echo_cpu_us"`
	Native float64 `json:"native_cpu_us"`
	Own    float64 `json:"own_cpu_us"`
	// NativePaced is that of puts through the binary protocol that come no faster than the door's did: entries of the log
	// hold fewer of them then, so that each costs more. RatioPaced is Own over Echo and NativePaced. Of gets, and where
	// puts failed, both are 0.
	NativePaced float64 `json:"native_same_rate_cpu_us,omitempty"`
	RatioPaced  float64 `json:"ratio_same_rate,omitempty"`
	// Ratio is Own over Echo, of a put over Echo and Native together; RatioMin and RatioMax of the rounds.
	Ratio    float64 `json:"ratio"`
	RatioMin float64 `json:"ratio_min"`
	RatioMax float64 `json:"ratio_max"`
	// Target is the most that Ratio may be.
	Target float64 `json:"target"`
	Met    bool    `json:"met"`
	// Failed counts operations that failed, and reads that found nothing: then the target is not met.
	Failed       uint64 `json:"failed"`
	FailedSample string `json:"failed_sample,omitempty"`
}

// Cost measures gets and then puts through all doors, their echoes and the binary protocol in turn.
func Cost(ctx context.Context, o CostOptions) (*CostReport, error) {
	setDefault(&o.Callers, compareCallers)
	setDefault(&o.Keys, compareKeys)
	setDefault(&o.ValueBytes, compareValueBytes)
	setDefault(&o.Duration, compareDuration)
	setDefault(&o.Rounds, compareRounds)
	run := Options{
		Workload: "get", Keys: o.Keys, ValueBytes: o.ValueBytes, Concurrency: o.Callers, Duration: o.Duration, Warmup: compareWarmup, KeyPrefix: o.KeyPrefix,
	}
	if err := errors.Join(run.Validate(), checkCompare(o.Rounds, o.ServerPIDs)); err != nil {
		return nil, fmt.Errorf("cannot measure costs: %w", err)
	}
	if err := loadAll(ctx, o.Native, run); err != nil {
		return nil, err
	}
	rep := &CostReport{
		Machine: ReadMachine(""), Callers: o.Callers, Keys: o.Keys, ValueBytes: o.ValueBytes, Rounds: o.Rounds, Seconds: o.Duration.Seconds(),
	}
	// All gets come first: what puts leave behind, such as compactions, would be counted as the reads'.
	for _, run.Workload = range []string{"get", "put"} {
		all := []contender{{name: ProtocolNative, target: o.Native, pids: o.ServerPIDs}}
		for _, d := range o.Doors {
			all = append(all, contender{name: "echo of " + d.Protocol, target: d.Echo, pids: []int{d.EchoPID}}, contender{name: d.Protocol, target: d.Own, pids: o.ServerPIDs})
			if run.Workload == "put" {
				all = append(all, contender{name: ProtocolNative + " at the rate of " + d.Protocol, target: o.Native, pids: o.ServerPIDs, paced: 1})
			}
		}
		samples, err := interleave(ctx, run, o.Rounds, all, o.Progress)
		if err != nil {
			return nil, err
		}
		native, of := samples[0], samples[1:]
		for _, d := range o.Doors {
			c := doorCost(d.Protocol, run.Workload, native, of[0], of[1])
			if of = of[2:]; run.Workload == "put" {
				c.addPaced(of[0])
				of = of[1:]
			}
			rep.Costs = append(rep.Costs, c)
		}
	}
	return rep, nil
}

// doorCost compares the rounds of one door.
func doorCost(protocol, op string, native, echo, own []sample) DoorCost {
	c := DoorCost{
		Protocol: protocol, Operation: op, Target: CostTargets.Get,
		Echo: medianOf(figures(echo, cpuOf)), Native: medianOf(figures(native, cpuOf)), Own: medianOf(figures(own, cpuOf)),
	}
	ratios := make([]float64, len(own))
	for i := range own {
		base := echo[i].cpu
		if op == "put" {
			c.Target = CostTargets.Put
			base += native[i].cpu
		}
		ratios[i] = own[i].cpu / base
	}
	c.Ratio, c.RatioMin, c.RatioMax = medianOf(ratios), slices.Min(ratios), slices.Max(ratios)
	c.Failed, c.FailedSample = failures(native, echo, own)
	c.Met = c.Ratio <= c.Target && c.Failed == 0
	return c
}

// addPaced adds what the same puts through the binary protocol cost at the door's rate.
func (c *DoorCost) addPaced(paced []sample) {
	if n, _ := failures(paced); n > 0 {
		return
	}
	c.NativePaced = medianOf(figures(paced, cpuOf))
	c.RatioPaced = c.Own / (c.Echo + c.NativePaced)
}

// Met tells whether all targets are.
func (rep *CostReport) Met() bool {
	return len(rep.Costs) > 0 && !slices.ContainsFunc(rep.Costs, func(c DoorCost) bool { return !c.Met })
}

// WriteJSON writes the report as one line of JSON.
func (rep *CostReport) WriteJSON(w io.Writer) error { return writeJSON(w, rep) }

// WriteTable writes the report for people.
func (rep *CostReport) WriteTable(w io.Writer) error {
	var b strings.Builder
	connections := ""
	if rep.Connections > 0 {
		connections = fmt.Sprintf(", connections: %d, of REST one for each caller", rep.Connections)
	}
	fmt.Fprintf(&b, "%s\nservers' CPU time per operation, %s, %d callers%s, values of %d B, %d keys: medians of %d rounds of %gs each, in turn\n",
		rep.Machine, nodesText(rep.Nodes), rep.Callers, connections, rep.ValueBytes, rep.Keys, rep.Rounds, rep.Seconds)
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "OP\tDOOR\tEMPTY SERVER\tBINARY DOOR\tTHIS DOOR\tRATIO\tROUNDS\tTARGET\tVERDICT\tBINARY, SAME RATE\tRATIO THEN")
	for _, c := range rep.Costs {
		target := fmt.Sprintf("≤ %g × empty", c.Target)
		if c.Operation == "put" {
			target = fmt.Sprintf("≤ %g × (empty + binary)", c.Target)
		}
		verdict := "MISSED"
		if c.Met {
			verdict = "met"
		}
		pacedCPU, pacedRatio := "-", "-"
		if c.NativePaced > 0 {
			pacedCPU, pacedRatio = latencyText(c.NativePaced), fmt.Sprintf("%.2f ×", c.RatioPaced)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%.2f ×\t%.2f to %.2f\t%s\t%s\t%s\t%s\n", c.Operation, c.Protocol, latencyText(c.Echo), latencyText(c.Native), latencyText(c.Own),
			c.Ratio, c.RatioMin, c.RatioMax, target, verdict, pacedCPU, pacedRatio)
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("cannot write report: %w", err)
	}
	for _, c := range rep.Costs {
		if c.Failed > 0 {
			fmt.Fprintf(&b, "%s through %s: %d operations of this comparison failed, such as: %s\n", c.Operation, c.Protocol, c.Failed, c.FailedSample)
		}
	}
	return writeText(w, b.String())
}

// nodesText names a size of cluster.
func nodesText(n int) string {
	switch n {
	case 0:
		return "a cluster of unknown size"
	case 1:
		return "one node"
	}
	return fmt.Sprintf("%d nodes", n)
}

func writeText(w io.Writer, text string) error {
	if _, err := io.WriteString(w, text); err != nil {
		return fmt.Errorf("cannot write report: %w", err)
	}
	return nil
}
