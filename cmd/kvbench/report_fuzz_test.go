package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"kvstore/bench"
)

// Whatever lines a file of reports holds, they are refused by their number or shown.
func FuzzReadReports(f *testing.F) {
	for _, s := range []string{
		`{"operations":{"get":{"ops":1,"p50_us":7}},"ops":1}`, `{"operations":{"get":null}}`, `{"tests":[{}]}`, `{"tests":[null]}`, `{"kills":[{}]}`, `{"kills":[null]}`,
		`{"costs":[{}]}`, `{"costs":[null]}`, `{"reads":[{}]}`, `{"growth":[{}]}`, `{"stages":[{}]}`, `{"stages":[{"latency":[{}],"cpu":[{}]}]}`, `{"latencies":[{}]}`, `{"latencies":[null],"latency_us":null}`, `{"growth":null,"keys":-1}`, `{"reads":[{"ratio":-1}],"rounds":-1}`,
		`{"operations":{},"system":"x","value_bytes":-1,"assertions":[{}]}`, "{}", "null", "[]", "", "{\"tests\":[]}\n{",
	} {
		f.Add([]byte(s))
	}
	for _, v := range []any{bench.Report{}, bench.FloorReport{}, bench.FailoverReport{}, bench.CostReport{}, bench.ReadsReport{}} {
		b, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var all bench.Results
		err := readReports(bytes.NewReader(b), &all)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "line ") {
				t.Fatal(err)
			}
			return
		}
		var out bytes.Buffer
		if err := all.WriteTable(&out); err != nil {
			t.Fatal(err)
		}
	})
}
