package bench

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// FailoverReport is the result of Failover; all times are microseconds.
type FailoverReport struct {
	Machine  Machine `json:"machine"`
	Target   string  `json:"target,omitempty"`
	Nodes    int     `json:"nodes"`
	Interval float64 `json:"interval_us"`
	// Kills has one entry for each leader that was killed.
	Kills []KillReport `json:"kills"`
	// P50, P99 and Max are those of KillReport.Gap, by nearest rank: below 100 kills P99 is the longest.
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
	// WriteP50 and WriteP99 are those of KillReport.LongestWrite.
	WriteP50 float64 `json:"write_p50"`
	WriteP99 float64 `json:"write_p99"`
	// Writes counts what was acknowledged, Lost what of it could not be read at the end.
	Writes uint64 `json:"writes"`
	Lost   uint64 `json:"lost"`
	// LostKey is one of the lost.
	LostKey string `json:"lost_key,omitempty"`
	// Errors counts writes that failed, Unknown those among them that may or may not be applied, NotSent
	// those that were due and not sent, since too many were waiting.
	Errors       uint64            `json:"errors"`
	Unknown      uint64            `json:"unknown"`
	NotSent      uint64            `json:"not_sent"`
	ErrorsByKind map[string]uint64 `json:"errors_by_kind,omitempty"`
	ErrorSamples map[string]string `json:"error_samples,omitempty"`
}

// KillReport is one fail-over; times are microseconds.
type KillReport struct {
	Leader string `json:"leader"`
	Term   uint64 `json:"term"`
	// Gap runs from just before the kill to the first answer to a write that began after the leader was
	// gone: an answer that the dead leader left in a socket is none.
	Gap float64 `json:"gap"`
	// LongestWrite is the longest that a caller waited for a write which succeeded across this kill.
	LongestWrite float64 `json:"longest_write"`
}

// WriteJSON writes the report as one line of JSON.
func (rep *FailoverReport) WriteJSON(w io.Writer) error { return writeJSON(w, rep) }

// WriteTable writes the report for people.
func (rep *FailoverReport) WriteTable(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nfail-over of %d nodes, the leader killed under one write each %s\n", rep.Machine, rep.Nodes, latencyText(rep.Interval))
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "KILL\tLEADER\tTERM\tNEXT WRITE AFTER\tLONGEST WRITE")
	for i, k := range rep.Kills {
		fmt.Fprintf(tw, "%d\t%s\t%d\t%s\t%s\n", i+1, k.Leader, k.Term, latencyText(k.Gap), latencyText(k.LongestWrite))
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("cannot write report: %w", err)
	}
	fmt.Fprintf(&b, "next acknowledged write after a kill: p50 %s, p99 %s, max %s\n", latencyText(rep.P50), latencyText(rep.P99), latencyText(rep.Max))
	if rep.WriteP50 > 0 { // reports of earlier versions lack it
		fmt.Fprintf(&b, "longest write across it: p50 %s, p99 %s\n", latencyText(rep.WriteP50), latencyText(rep.WriteP99))
	}
	fmt.Fprintf(&b, "%d writes acknowledged, %d of them lost, %d failed (%d of them unknown), %d not sent\n", rep.Writes, rep.Lost, rep.Errors, rep.Unknown, rep.NotSent)
	if rep.Lost > 0 {
		fmt.Fprintf(&b, "LOST, such as: %s\n", rep.LostKey)
	}
	for k := range kindCount {
		if n := rep.ErrorsByKind[k.String()]; n > 0 {
			fmt.Fprintf(&b, "errors: %d %s, such as: %s\n", n, k, rep.ErrorSamples[k.String()])
		}
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("cannot write report: %w", err)
	}
	return nil
}
