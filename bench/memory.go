package bench

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// allocations are heap objects allocated since the start of each process.
type allocations struct {
	client uint64
	// server is the sum over all nodes; valid only when serverKnown.
	server      uint64
	serverKnown bool
}

// allocationsAtStart and allocationsAtEnd count what this process and all nodes have allocated; when one node does not
// tell, their sum is unknown. Asking a node costs both sides thousands of allocations (the text of a heap profile), which
// must not count as those of the window: a node counts before it makes its answer, so only the answers at the start
// matter. The second of two tells what the first has cost, and so what itself will.
func allocationsAtStart(ctx context.Context, metrics []string) (a allocations) {
	for _, endpoint := range metrics {
		first, err := ServerMallocs(ctx, endpoint)
		if err == nil {
			var second uint64
			second, err = ServerMallocs(ctx, endpoint)
			a.server += second + (second - first)
		}
		if err != nil {
			return allocations{client: ownMallocs()}
		}
		a.serverKnown = true
	}
	a.client = ownMallocs()
	return a
}

func allocationsAtEnd(ctx context.Context, metrics []string) allocations {
	a := allocations{client: ownMallocs()}
	for _, endpoint := range metrics {
		n, err := ServerMallocs(ctx, endpoint)
		if err != nil {
			return allocations{client: a.client}
		}
		a.server += n
		a.serverKnown = true
	}
	return a
}

func ownMallocs() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Mallocs
}

// ServerMallocs asks the metrics port of a node (HOST:PORT) how many heap objects the process has allocated since its
// start. It reads runtime.MemStats at the end of the heap profile's text, where net/http/pprof puts them.
func ServerMallocs(ctx context.Context, endpoint string) (n uint64, err error) {
	page, err := fetch(ctx, endpoint, "/debug/pprof/heap?debug=1", 5*time.Second)
	if err != nil {
		return 0, err
	}
	const label = "# Mallocs = "
	if at := bytes.LastIndex(page, []byte(label)); at >= 0 {
		if _, err := fmt.Sscanf(string(page[at:min(len(page), at+64)]), label+"%d", &n); err == nil {
			return n, nil
		}
	}
	return 0, fmt.Errorf("cannot read the allocations of %s: its heap profile does not tell them", endpoint)
}

// setAllocations spreads the allocations of the window over its operations, failed ones included.
func (rep *Report) setAllocations(before, after allocations) {
	n := float64(rep.Ops + rep.Errors)
	if n == 0 {
		return
	}
	// The cost of asking is an estimate, which may exceed what an idle server has allocated.
	perOp := func(from, to uint64) *float64 {
		v := math.Round(float64(to-min(from, to))/n*1000) / 1000
		return &v
	}
	rep.ClientAllocsPerOp = perOp(before.client, after.client)
	if before.serverKnown && after.serverKnown {
		rep.ServerAllocsPerOp = perOp(before.server, after.server)
	}
}

// readRSSAnon gives the anonymous memory of each process; none when one of them cannot be read.
func readRSSAnon(pids []int) []int64 {
	all := make([]int64, 0, len(pids))
	for _, pid := range pids {
		n, err := RSSAnon(pid)
		if err != nil {
			return nil
		}
		all = append(all, n)
	}
	return all
}

// RSSAnon returns the resident anonymous memory of process pid in bytes: heap and stacks, without mapped files, which the
// kernel can drop.
func RSSAnon(pid int) (int64, error) {
	file := filepath.Join("/proc", fmt.Sprint(pid), "status")
	text := procValue(file, "RssAnon")
	var kb int64
	if _, err := fmt.Sscanf(text, "%d kB", &kb); err != nil {
		if _, serr := os.Stat(file); serr != nil {
			err = serr
		}
		return 0, fmt.Errorf("cannot read the anonymous memory of process %d from %q: %w", pid, strings.TrimSpace(text), err)
	}
	return kb << 10, nil
}
