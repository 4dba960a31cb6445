//go:build failpoints

package failpoint

import (
	"maps"
	"testing"
)

// Whatever is written into the terms, an error leaves all places as they were, and what is accepted is a term of a
// known place within its bounds.
func FuzzSet(f *testing.F) {
	name := Names()[0]
	for _, s := range []string{"", name + "=error(x)@3", name + "=sleep(1ms)%50", name + "=off;" + name + "=kill", name + "=error(a@b)", name + "=panic%nan", name + "=kill@0", "nowhere=off", ";;"} {
		f.Add(s)
	}
	acts := func() map[string]*action {
		mu.Lock()
		defer mu.Unlock()
		out := make(map[string]*action)
		for n, p := range places {
			out[n] = p.act
		}
		return out
	}
	f.Fuzz(func(t *testing.T, s string) {
		before := acts()
		defer func() {
			mu.Lock()
			defer mu.Unlock()
			for _, p := range places {
				p.act = nil
			}
		}()
		err := Set(s)
		after := acts()
		if err != nil && !maps.Equal(before, after) {
			t.Fatalf("%v, and the places were changed", err)
		}
		for n, a := range after {
			switch {
			case before[n] == a || a == nil:
			case a.percent != 0 && !(a.percent > 0 && a.percent <= 100), a.at != 0 && a.percent != 0, a.kind == "error" && a.text == "":
				t.Fatalf("%q became %+v", s, a)
			}
		}
	})
}
