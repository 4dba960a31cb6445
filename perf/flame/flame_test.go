package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/pprof/profile"
)

// Three stacks, one with an inlined function, one too small to be seen: the bars have their shares, stand above their
// callers, and names are escaped.
func TestRun_KnownProfile_BarsHaveTheirShares(t *testing.T) {
	fn := func(id uint64, name string) *profile.Function { return &profile.Function{ID: id, Name: name} }
	main, get, put, inlined, tiny := fn(1, "main.main"), fn(2, "kvstore/engine.(*Store).Get"), fn(3, "put<K>"), fn(4, "inlined"), fn(5, "tiny")
	locations := []*profile.Location{
		{ID: 1, Line: []profile.Line{{Function: main}}}, {ID: 2, Line: []profile.Line{{Function: get}}},
		{ID: 3, Line: []profile.Line{{Function: inlined}, {Function: put}}}, {ID: 4, Line: []profile.Line{{Function: tiny}}},
	}
	stack := func(v int64, at ...int) *profile.Sample {
		s := &profile.Sample{Value: []int64{1, v}}
		for _, i := range at {
			s.Location = append(s.Location, locations[i])
		}
		return s
	}
	p := &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "samples", Unit: "count"}, {Type: "cpu", Unit: "nanoseconds"}},
		Function:   []*profile.Function{main, get, put, inlined, tiny}, Location: locations,
		Sample: []*profile.Sample{stack(3e9, 1, 0), stack(999_900_000, 2, 0), stack(100_000, 3, 0)},
	}
	file := filepath.Join(t.TempDir(), "cpu.pprof")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.Write(f), f.Close()); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := run([]string{file}, &b); err != nil {
		t.Fatal(err)
	}
	svg := b.String()
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("the picture is no XML: %v\n%s", err, svg)
		}
	}
	bar := func(title string) (x, y, wide float64) {
		m := regexp.MustCompile(regexp.QuoteMeta("<title>"+title) + `[^<]*</title><rect x="([\d.]+)" y="(\d+)" width="([\d.]+)"`).FindStringSubmatch(svg)
		if m == nil {
			t.Fatalf("no bar %q in\n%s", title, svg)
		}
		var v [3]float64
		for i := range v {
			if v[i], err = strconv.ParseFloat(m[i+1], 64); err != nil {
				t.Fatal(err)
			}
		}
		return v[0], v[1], v[2]
	}
	_, mainY, mainWide := bar("main.main: 4.00 s, 100.0 %")
	getX, getY, getWide := bar("kvstore/engine.(*Store).Get: 3.00 s, 75.0 %")
	putX, putY, putWide := bar("put&lt;K&gt;: 1.00 s, 25.0 %")
	_, inlinedY, inlinedWide := bar("inlined: 1.00 s")
	if mainWide != width || getWide != 0.75*width || putWide != 0.25*width || inlinedWide != putWide || getX != 0 || putX != getWide {
		t.Errorf("widths %v %v %v %v, places %v %v", mainWide, getWide, putWide, inlinedWide, getX, putX)
	}
	if getY != mainY-rowHeight || putY != getY || inlinedY != putY-rowHeight {
		t.Errorf("rows %v %v %v %v", mainY, getY, putY, inlinedY)
	}
	if strings.Contains(svg, "tiny") || !strings.Contains(svg, "cpu, total 4.00 s") {
		t.Error(svg)
	}
	if run(nil, io.Discard) == nil || run([]string{file + "x"}, io.Discard) == nil {
		t.Error("no file, and no error")
	}
}
