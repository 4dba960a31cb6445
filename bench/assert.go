package bench

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Assertion is a demand on a report, such as p99(put)<5ms.
type Assertion struct {
	// Metric is p50, p95, p99, p999, max, mean, ops, ops_per_second, errors, unknown or misses.
	Metric string
	// Op names an operation; empty means the whole run, which has no latencies of its own.
	Op string
	// Compare is <, <=, >, >=, == or !=.
	Compare string
	// Value is microseconds for latencies.
	Value float64
	// Text is the assertion as written.
	Text string
}

// Verdict is the result of one Assertion.
type Verdict struct {
	Text  string  `json:"text"`
	Value float64 `json:"value"`
	Pass  bool    `json:"pass"`
	// Reason says why there was nothing to compare; such an assertion fails.
	Reason string `json:"reason,omitempty"`

	latency bool
}

// String is the line of the table.
func (v Verdict) String() string {
	word := "FAIL"
	if v.Pass {
		word = "PASS"
	}
	switch {
	case v.Reason != "":
		return fmt.Sprintf("%s %s: %s", word, v.Text, v.Reason)
	case v.latency:
		return fmt.Sprintf("%s %s: %s", word, v.Text, latencyText(v.Value))
	}
	return fmt.Sprintf("%s %s: %s", word, v.Text, strconv.FormatFloat(v.Value, 'f', -1, 64))
}

var (
	assertionForm = regexp.MustCompile(`^([a-z0-9._/]+)\s*(?:\(\s*([a-z_]+)\s*\))?\s*(<=|>=|==|!=|<|>|≤|≥)\s*(\S+)$`)
	latencyNames  = []string{"p50", "p95", "p99", "p999", "max", "mean"}
	countNames    = []string{"ops", "ops_per_second", "errors", "unknown", "misses"}
)

// ParseAssertion reads METRIC(OP) COMPARE VALUE, such as p99(put)<5ms, errors==0 or
// ops_per_second(get)>100000. Latencies take a Go duration; p99.9 is p999, ops/s is ops_per_second.
func ParseAssertion(text string) (Assertion, error) {
	fail := func(why string) (Assertion, error) {
		return Assertion{}, fmt.Errorf("cannot read assertion %q: %s; an example: p99(put)<5ms", text, why)
	}
	m := assertionForm.FindStringSubmatch(strings.TrimSpace(strings.ToLower(text)))
	if m == nil {
		return fail("it is not METRIC(OPERATION) COMPARISON VALUE")
	}
	a := Assertion{Metric: m[1], Op: m[2], Compare: m[3], Text: strings.TrimSpace(text)}
	switch a.Metric {
	case "p99.9":
		a.Metric = "p999"
	case "ops/s":
		a.Metric = "ops_per_second"
	}
	switch a.Compare {
	case "≤":
		a.Compare = "<="
	case "≥":
		a.Compare = ">="
	}
	if a.Op != "" && !slices.Contains(opNames[:], a.Op) {
		return fail(fmt.Sprintf("unknown operation %q, known: %s", a.Op, strings.Join(opNames[:], ", ")))
	}
	switch {
	case slices.Contains(latencyNames, a.Metric):
		if a.Op == "" {
			return fail("a latency needs an operation in parentheses")
		}
		d, err := time.ParseDuration(m[4])
		if err != nil {
			return fail(fmt.Sprintf("%q is no duration such as 5ms", m[4]))
		}
		a.Value = float64(d) / 1000
	case slices.Contains(countNames, a.Metric):
		f, err := strconv.ParseFloat(m[4], 64)
		if err != nil || math.IsNaN(f) { // nothing equals NaN, and everything differs from it
			return fail(fmt.Sprintf("%q is no number", m[4]))
		}
		a.Value = f
	default:
		return fail(fmt.Sprintf("unknown metric %q, known: %s, %s", a.Metric, strings.Join(latencyNames, ", "), strings.Join(countNames, ", ")))
	}
	return a, nil
}

// Check adds a verdict for each assertion to the report and reports whether all hold. An assertion about
// an operation that never succeeded fails.
func (rep *Report) Check(as []Assertion) bool {
	all := true
	for _, a := range as {
		v := rep.verdict(a)
		rep.Assertions = append(rep.Assertions, v)
		all = all && v.Pass
	}
	return all
}

func (rep *Report) verdict(a Assertion) Verdict {
	v := Verdict{Text: a.Text, latency: slices.Contains(latencyNames, a.Metric)}
	var o OpReport
	if a.Op == "" {
		o = OpReport{Ops: rep.Ops, OpsPerSecond: rep.OpsPerSecond, Errors: rep.Errors, Unknown: rep.Unknown}
		for _, p := range rep.Operations {
			o.Misses += p.Misses
		}
	} else if p := rep.Operations[a.Op]; p != nil {
		o = *p
	}
	if v.latency && o.Ops == 0 {
		v.Reason = "no such operation succeeded"
		return v
	}
	v.Value = map[string]float64{
		"p50": o.P50, "p95": o.P95, "p99": o.P99, "p999": o.P999, "max": o.Max, "mean": o.Mean, "ops": float64(o.Ops),
		"ops_per_second": o.OpsPerSecond, "errors": float64(o.Errors), "unknown": float64(o.Unknown), "misses": float64(o.Misses),
	}[a.Metric]
	switch a.Compare {
	case "<":
		v.Pass = v.Value < a.Value
	case "<=":
		v.Pass = v.Value <= a.Value
	case ">":
		v.Pass = v.Value > a.Value
	case ">=":
		v.Pass = v.Value >= a.Value
	case "==":
		v.Pass = v.Value == a.Value
	case "!=":
		v.Pass = v.Value != a.Value
	}
	return v
}
