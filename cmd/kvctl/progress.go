package main

import (
	"fmt"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

// progressEvery is the pause between progress lines where there is no terminal for a bar.
const progressEvery = 5 * time.Second

// progress tells on stderr how far a bulk operation is: a bar on a terminal, else a line every 5 s. Safe
// for concurrent use.
type progress struct {
	a     *app
	verb  string
	total int64
	start time.Time

	mu sync.Mutex
	// Guarded by mu.
	count int64
	bytes int64
	last  time.Time
	bar   *progressbar.ProgressBar
}

// newProgress starts; total is in bytes, 0 when it is not known.
func (a *app) newProgress(verb string, total int64, silent bool) *progress {
	p := &progress{a: a, verb: verb, total: total, start: a.now()}
	p.last = p.start
	if a.errTTY && !silent {
		n := total
		if n == 0 {
			n = -1
		}
		p.bar = progressbar.NewOptions64(n, progressbar.OptionSetWriter(a.err), progressbar.OptionSetDescription(verb),
			progressbar.OptionShowBytes(true), progressbar.OptionSetWidth(30), progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionShowCount(), progressbar.OptionClearOnFinish())
	}
	return p
}

// add counts items and bytes that are done.
func (p *progress) add(items, bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count += items
	p.bytes += bytes
	if p.bar != nil {
		p.draw(bytes)
		return
	}
	if now := p.a.now(); now.Sub(p.last) >= progressEvery {
		p.last = now
		of := ""
		if p.total > 0 {
			of = fmt.Sprintf(" of %s (%d %%)", bytesText(p.total), p.bytes*100/p.total)
		}
		p.a.talk("%s: %d keys, %s%s, %.0f keys/s\n", p.verb, p.count, bytesText(p.bytes), of, p.rate(now))
	}
}

// draw moves the bar; a terminal that is gone must not stop the work. REQUIRES: mu held.
func (p *progress) draw(bytes int64) {
	if p.bar.Add64(bytes) != nil {
		p.bar = nil
	}
}

func (p *progress) items() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}

func (p *progress) rate(now time.Time) float64 {
	return float64(p.count) / max(now.Sub(p.start).Seconds(), 1e-3)
}

// stop takes the bar away.
func (p *progress) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		if p.bar.Clear() != nil {
			p.bar = nil
		}
	}
}

// finish ends with one line: what was done, how much and how fast.
func (p *progress) finish(did string) {
	p.stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.a.now()
	p.a.talk("%s %d keys, %s in %s (%.0f keys/s)\n", did, p.count, bytesText(p.bytes), elapsedText(now.Sub(p.start)), p.rate(now))
}

// bytesText prints a number of bytes for people.
func bytesText(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n)/1024, "KiB"
	for _, u := range []string{"MiB", "GiB", "TiB"} {
		if f < 1024 {
			break
		}
		f, unit = f/1024, u
	}
	return fmt.Sprintf("%.1f %s", f, unit)
}
