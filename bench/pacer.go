package bench

import (
	"context"
	"time"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"
)

// paceStep is the shortest pause of the pacer. At high rates several operations fall due within one step
// and are released together; each keeps its own due time.
const paceStep = 50 * time.Microsecond

// pauseMax is the longest single pause, so that the end of the run is noticed.
const pauseMax = 20 * time.Millisecond

// pacer releases operations on a fixed schedule, whatever the target does.
type pacer struct {
	rate        float64
	until       time.Duration
	measureFrom time.Duration
	epoch       time.Time
	sleep       func(time.Duration)
	// due carries due times to the workers, oldest first; its capacity is the backlog.
	due chan time.Duration

	// Owned by run; read after it ended. Only operations due after measureFrom count.
	dropped  uint64
	lateness *hdr.Histogram
}

// run releases operation i at i/rate from the epoch and closes due at the end.
func (p *pacer) run(ctx context.Context) {
	defer close(p.due)
	for i := 0; ; {
		at := time.Duration(float64(i) * float64(time.Second) / p.rate)
		if at >= p.until || ctx.Err() != nil {
			return
		}
		now := time.Since(p.epoch)
		if wait := at - now; wait > 0 {
			p.sleep(min(max(wait, paceStep), pauseMax))
			continue
		}
		measured := at >= p.measureFrom
		select {
		case p.due <- at:
			if measured {
				record(p.lateness, now-at)
			}
		default:
			if measured {
				p.dropped++
			}
		}
		i++
	}
}

// sleepPrecisely sleeps in the kernel: a Go timer may fire a millisecond late when the process is idle,
// which would count as latency in an open loop.
func sleepPrecisely(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	for unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &ts, &ts) == unix.EINTR {
	}
}
