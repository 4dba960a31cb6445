// Command flame draws a flame graph of a profile in pprof's format: `flame FILE.pprof >FILE.svg`.
//
// What it does. It adds up the samples by their stacks, root at the bottom, and draws each function as a bar whose width is
// its share, callees above callers, in order of names (after B. Gregg, "The Flame Graph", CACM 59(6), 2016). The last
// kind of value counts, as with pprof: CPU time, bytes in use, delay. A bar's tooltip has its full name and share.
//
// What it never does. It needs neither a network nor another program, and the picture holds no script.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"hash/fnv"
	"html"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/google/pprof/profile"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "flame:", err)
		os.Exit(1)
	}
}

func run(args []string, w io.Writer) error {
	if len(args) != 1 {
		return errors.New("usage: flame FILE.pprof >FILE.svg")
	}
	f, err := os.Open(args[0])
	if err != nil {
		return fmt.Errorf("cannot read the profile: %w", err)
	}
	p, err := profile.Parse(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("cannot read the profile %s: %w", args[0], err)
	}
	if len(p.SampleType) == 0 {
		return fmt.Errorf("the profile %s has no kind of value", args[0])
	}
	out := bufio.NewWriter(w)
	draw(out, p)
	if err := out.Flush(); err != nil {
		return fmt.Errorf("cannot write the picture: %w", err)
	}
	return nil
}

// frame is one function as called along one stack.
type frame struct {
	name     string
	value    int64
	children map[string]*frame
}

func (f *frame) child(name string) *frame {
	c := f.children[name]
	if c == nil {
		c = &frame{name: name, children: map[string]*frame{}}
		f.children[name] = c
	}
	return c
}

// tree adds up the samples; inlined functions are frames of their own.
func tree(p *profile.Profile, kind int) *frame {
	root := &frame{name: "all", children: map[string]*frame{}}
	for _, s := range p.Sample {
		v := s.Value[kind]
		if v <= 0 {
			continue
		}
		root.value += v
		at := root
		for _, l := range slices.Backward(s.Location) {
			for _, line := range slices.Backward(l.Line) {
				if line.Function != nil {
					at = at.child(line.Function.Name)
					at.value += v
				}
			}
		}
	}
	return root
}

// Measures of the picture, in pixels.
const (
	width     = 1600
	rowHeight = 17
	charWidth = 6.6
	// barMin: narrower bars are left out, and all above them.
	barMin = 0.5
)

func draw(w io.Writer, p *profile.Profile) {
	kind := len(p.SampleType) - 1
	root := tree(p, kind)
	rows := root.depth(root.value)
	height := (rows + 2) * rowHeight
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="monospace" font-size="11">`+"\n", width, height)
	fmt.Fprintf(w, `<rect width="100%%" height="100%%" fill="#fff"/><text x="4" y="12">%s</text>`+"\n",
		html.EscapeString(fmt.Sprintf("%s, total %s", p.SampleType[kind].Type, amount(root.value, p.SampleType[kind].Unit))))
	root.draw(w, 0, height-rowHeight, root.value, p.SampleType[kind].Unit)
	fmt.Fprintln(w, "</svg>")
}

// depth is how many rows f takes with all above it that is wide enough.
func (f *frame) depth(total int64) int {
	most := 0
	for _, c := range f.children {
		if share(c.value, total)*width >= barMin {
			most = max(most, c.depth(total))
		}
	}
	return 1 + most
}

func (f *frame) draw(w io.Writer, x float64, y int, total int64, unit string) {
	wide := share(f.value, total) * width
	fmt.Fprintf(w, `<g><title>%s: %s, %.1f %%</title><rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s" stroke="#fff" stroke-width="0.5"/>`,
		html.EscapeString(f.name), amount(f.value, unit), 100*share(f.value, total), x, y, wide, rowHeight-1, color(f.name))
	if room := int((wide - 4) / charWidth); room >= 3 {
		fmt.Fprintf(w, `<text x="%.1f" y="%d">%s</text>`, x+2, y+12, html.EscapeString(fit(f.name, room)))
	}
	fmt.Fprintln(w, "</g>")
	names := make([]string, 0, len(f.children))
	for name := range f.children {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		c := f.children[name]
		if share(c.value, total)*width >= barMin {
			c.draw(w, x, y-rowHeight, total, unit)
		}
		x += share(c.value, total) * width
	}
}

func share(part, total int64) float64 {
	if total <= 0 {
		return 1
	}
	return float64(part) / float64(total)
}

// fit shortens a name to its end without the path of its package.
func fit(name string, room int) string {
	name = name[strings.LastIndexByte(name, '/')+1:]
	if r := []rune(name); len(r) > room {
		return string(r[:room-1]) + "…"
	}
	return name
}

// color is warm, and blue for our own packages.
func color(name string) string {
	h := fnv.New32a()
	io.WriteString(h, name) // a hash takes everything
	n := h.Sum32()
	if strings.HasPrefix(name, "kvstore/") {
		return fmt.Sprintf("hsl(210,70%%,%d%%)", 65+n%15)
	}
	return fmt.Sprintf("hsl(%d,75%%,%d%%)", 15+n%40, 62+n/64%14)
}

// amount prints a value with its unit.
func amount(v int64, unit string) string {
	switch unit {
	case "nanoseconds":
		return fmt.Sprintf("%.2f s", float64(v)/1e9)
	case "bytes":
		return fmt.Sprintf("%.1f MB", float64(v)/1e6)
	}
	return fmt.Sprintf("%d %s", v, unit)
}
