package main

import (
	"strings"
	"testing"
	"time"
)

func TestGetAndList_Consistency_ReachesTheStoreOrIsRefused(t *testing.T) {
	for _, verb := range []string{"get hello", "list hello"} {
		for _, c := range []struct {
			flags string
			want  readOptions
			code  int
		}{
			{"", readOptions{}, 0},
			{"--consistency linearizable", readOptions{}, 0},
			{"--consistency any", readOptions{Consistency: anyNode}, 0},
			{"--consistency stale", readOptions{Consistency: stale}, 0},
			{"--max-age 250ms", readOptions{Consistency: stale, MaxAge: 250 * time.Millisecond}, 0},
			{"--consistency stale --max-age 1s", readOptions{Consistency: stale, MaxAge: time.Second}, 0},
			{"--consistency none", readOptions{}, exitUsage},
			{"--consistency any --max-age 1s", readOptions{}, exitUsage},
			{"--consistency linearizable --max-age 1s", readOptions{}, exitUsage},
			{"--max-age 0s", readOptions{}, exitUsage},
			{"--max-age 1us", readOptions{}, exitUsage},
			{"--revision 44040192", readOptions{Revision: 44040192}, 0},
		} {
			s := sampleStore()
			code, _, errs := cli(t, s, "", strings.Fields(verb+" "+c.flags)...)
			if code != c.code || s.read != c.want {
				t.Errorf("kvctl %s %s: exit %d, read with %+v, stderr %q", verb, c.flags, code, s.read, errs)
			}
		}
	}
}
