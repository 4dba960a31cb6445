package bench

import (
	"math"
	"testing"
)

// What is read as an assertion says the same when it is read again, and judges a report the same way each time: one
// that no number can fail, or none can meet, is no demand.
func FuzzParseAssertion(f *testing.F) {
	for _, s := range []string{"p99(put)<5ms", "errors==0", "ops_per_second(get)>100000", "p99.9( get ) ≤ 1s", "ops/s >= 1e3", "errors!=nan", "p50<1ms", "mean(put)<-1h", "ops>inf"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := ParseAssertion(text)
		if err != nil {
			return
		}
		again, err := ParseAssertion(a.Text)
		if err != nil || again != a {
			t.Fatalf("%+v comes back as %+v, %v", a, again, err)
		}
		if math.IsNaN(a.Value) {
			t.Fatalf("%q compares with a value that no value compares with", text)
		}
		rep := &Report{Operations: map[string]*OpReport{a.Op: {Ops: 1, P50: a.Value, P95: a.Value, P99: a.Value, P999: a.Value, Max: a.Value, Mean: a.Value}}}
		v := rep.verdict(a)
		if equal := a.Compare == "<=" || a.Compare == ">=" || a.Compare == "=="; v.latency && v.Pass != equal {
			t.Fatalf("%q: %v for a value that is equal", text, v.Pass)
		}
	})
}
