package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/pprof/profile"
)

func TestRun_TwoProfiles_AddedUpAndNamelessOfTheMachine(t *testing.T) {
	var paths []string
	for i, n := range []int64{3, 4} {
		f := &profile.Function{ID: 1, Name: "kvstore/engine.Apply", SystemName: "kvstore/engine.Apply", Filename: "/home/of/somebody/apply.go"}
		m := &profile.Mapping{ID: 1, Start: 0x1000, Limit: 0x9000, File: "/home/of/somebody/kvstore", BuildID: "one build"}
		l := &profile.Location{ID: 1, Address: 0x2000, Mapping: m, Line: []profile.Line{{Function: f, Line: 7}}}
		p := &profile.Profile{
			SampleType: []*profile.ValueType{{Type: "samples", Unit: "count"}}, PeriodType: &profile.ValueType{Type: "cpu", Unit: "nanoseconds"}, Period: 1,
			Sample: []*profile.Sample{{Location: []*profile.Location{l}, Value: []int64{n}}}, Location: []*profile.Location{l},
			Function: []*profile.Function{f}, Mapping: []*profile.Mapping{m},
		}
		var b bytes.Buffer
		if err := p.Write(&b); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, filepath.Join(t.TempDir(), string(rune('a'+i))))
		if err := os.WriteFile(paths[i], b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if err := run(paths, &out); err != nil {
		t.Fatal(err)
	}
	got, err := profile.ParseData(out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Sample) != 1 || got.Sample[0].Value[0] != 7 || got.Function[0].Name != "kvstore/engine.Apply" || got.Sample[0].Location[0].Line[0].Line != 7 {
		t.Errorf("not the sum of both: %v", got)
	}
	if got.Function[0].Filename != "" || got.Mapping[0].File != "" || got.Mapping[0].BuildID != "" {
		t.Errorf("it names the machine: %v", got)
	}
}

func TestRun_NoProfile_SaysSo(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(bad, []byte("no profile"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, paths := range [][]string{nil, {bad}, {filepath.Join(t.TempDir(), "none")}} {
		if err := run(paths, &bytes.Buffer{}); err == nil {
			t.Errorf("%v: no error", paths)
		}
	}
}
