package diskguard

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// State says what may still be written. A larger one refuses more.
type State int32

// The states of a Guard; doc.go has the diagram.
const (
	// OK takes everything.
	OK State = iota
	// Low refuses writes that add data, and takes deletes.
	Low
	// Critical refuses deletes too; only reads go on.
	Critical
)

// String returns "ok", "low" or "critical".
func (s State) String() string {
	switch s {
	case OK:
		return "ok"
	case Low:
		return "low"
	case Critical:
		return "critical"
	}
	return fmt.Sprintf("state(%d)", int32(s))
}

// ballastRetryPolls is how many polls pass between two attempts to make the ballast after one failed:
// a minute at the default interval, so that a file system without preallocation is not written all day.
const ballastRetryPolls = 120

// Guard watches the free space of one directory. All methods may be called from any goroutine.
type Guard struct {
	// Immutable after Open.
	options Options
	ballast ballastFile
	stop    chan struct{}
	done    chan struct{}

	// Read by any goroutine, written under mu.
	state atomic.Int32
	free  atomic.Uint64

	// Guarded by mu.
	mu          sync.Mutex
	level       State // by free space alone; state is at least Low while blind
	blind       bool  // the last poll failed
	hasBallast  bool
	ballastWait int // polls until making the ballast is tried again
	closed      bool
}

// Open measures once, makes the ballast if there is room, and starts to poll. A lack of space is a state
// and not an error; errors are faulty options and a directory that cannot be measured or read.
func Open(options Options) (*Guard, error) {
	options, err := options.withDefaults()
	if err != nil {
		return nil, err
	}
	g := &Guard{
		options: options,
		ballast: newBallastFile(options.Dir, options.BallastBytes),
		stop:    make(chan struct{}),
		done:    make(chan struct{}),
	}
	if g.hasBallast, err = g.ballast.adopt(); err != nil {
		return nil, fmt.Errorf("cannot open disk guard: %w", err)
	}
	if err := g.Check(); err != nil {
		return nil, fmt.Errorf("cannot open disk guard: %w", err)
	}
	// run: owned by g; ends when Close closes stop.
	go g.run()
	return g, nil
}

// State returns the state at the last poll. One atomic load: call it for each write.
func (g *Guard) State() State { return State(g.state.Load()) }

// Free returns the free bytes at the last poll that succeeded, the ballast not counted.
func (g *Guard) Free() uint64 { return g.free.Load() }

// HasBallast tells whether the ballast is in place.
func (g *Guard) HasBallast() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.hasBallast
}

// ErrNoRoom is what an error of Room matches when there is too little space.
var ErrNoRoom = errors.New("not enough free space")

// Room measures now and tells whether need more bytes may be written without the free space falling below
// the floor. An error matches ErrNoRoom, with the figures, or says that the space cannot be measured.
func (g *Guard) Room(need uint64) error {
	free, err := g.options.Stat(g.options.Dir)
	if err != nil {
		return err
	}
	if floor := g.options.FloorBytes; free < floor || free-floor < need {
		return fmt.Errorf("%w in %q: %d bytes are free, needed are %d and %d that stay free", ErrNoRoom, g.options.Dir, free, need, floor)
	}
	return nil
}

// FloorBytes returns the free space below which writes are refused.
func (g *Guard) FloorBytes() uint64 { return g.options.FloorBytes }

// Close stops polling and keeps the ballast for the next start. The last state stays readable. Closing
// again does nothing.
func (g *Guard) Close() {
	g.mu.Lock()
	first := !g.closed
	g.closed = true
	g.mu.Unlock()
	if first {
		close(g.stop)
	}
	<-g.done
}

func (g *Guard) run() {
	defer close(g.done)
	ticker := time.NewTicker(g.options.Interval)
	defer ticker.Stop()
	for {
		select {
		case <-g.stop:
			return
		case <-ticker.C:
			// Not skipped: Check has logged it, and the state refuses writes while it lasts.
			_ = g.Check()
		}
	}
}

// Check polls now: it measures, moves the state by at most the rules of doc.go, and releases or makes the
// ballast. An error means that the space could not be measured; the state is then at least Low, because a
// directory that cannot be measured must not be trusted with data.
func (g *Guard) Check() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	free, err := g.options.Stat(g.options.Dir)
	if err != nil {
		if !g.blind {
			g.options.Logger.Error("cannot measure free space: refusing writes", "dir", g.options.Dir, "error", err)
		}
		g.blind = true
		g.state.Store(int32(max(g.level, Low)))
		return err
	}
	if g.blind {
		g.options.Logger.Info("free space can be measured again", "dir", g.options.Dir, "free_bytes", free)
	}
	g.blind = false
	g.free.Store(free)
	g.setLevel(g.next(free), free)
	g.makeBallast(free)
	return nil
}

// next returns the level after a measurement, and releases the ballast when it is time. REQUIRES: mu held.
func (g *Guard) next(free uint64) State {
	floor, critical := g.options.FloorBytes, g.options.CriticalBytes
	switch {
	case free < critical:
		// With the ballast just released, whether that was enough shows at the next poll: file systems
		// may return the blocks of a removed file with a delay.
		if g.hasBallast && g.releaseBallast(free) {
			return Low
		}
		return Critical
	case g.level == Critical && free < resumeLevel(critical):
		return Critical
	case free < floor:
		return Low
	case g.level != OK && free < resumeLevel(floor):
		return Low
	}
	return OK
}

// setLevel publishes the level and logs its change. REQUIRES: mu held, not blind.
func (g *Guard) setLevel(level State, free uint64) {
	previous := g.level
	g.level = level
	g.state.Store(int32(level))
	if level == previous {
		return
	}
	attrs := []any{"dir", g.options.Dir, "free_bytes", free, "floor_bytes", g.options.FloorBytes, "previous", previous.String()}
	switch level {
	case OK:
		g.options.Logger.Info("disk space is back: taking writes", attrs...)
	case Low:
		g.options.Logger.Warn("disk space is low: refusing writes, taking deletes", attrs...)
	case Critical:
		g.options.Logger.Error("disk space is critical: refusing writes and deletes", attrs...)
	}
}

// releaseBallast removes the ballast and tells whether that worked. REQUIRES: mu held, hasBallast.
func (g *Guard) releaseBallast(free uint64) bool {
	err := g.ballast.release()
	if err != nil {
		if g.level != Critical { // else it has been said, and is tried again at every poll
			g.options.Logger.Error("cannot release the disk ballast", "path", g.ballast.path, "error", err)
		}
		return false
	}
	g.hasBallast = false
	g.options.Logger.Warn("disk ballast released for deletes and compaction",
		"path", g.ballast.path, "free_bytes", free, "ballast_bytes", g.ballast.size)
	return true
}

// makeBallast makes the ballast if there is none and room for it. Room means that the state would be OK
// with the ballast in place even after having been Low, so that making it never sets off its own release.
// REQUIRES: mu held.
func (g *Guard) makeBallast(free uint64) {
	if g.hasBallast || g.ballast.size <= 0 {
		return
	}
	if g.ballastWait > 0 {
		g.ballastWait--
		return
	}
	if free < resumeLevel(g.options.FloorBytes)+uint64(g.ballast.size) {
		return
	}
	if err := g.ballast.make(); err != nil {
		g.ballastWait = ballastRetryPolls
		g.options.Logger.Warn("cannot make the disk ballast: deletes will have less room on a full disk",
			"path", g.ballast.path, "error", err)
		return
	}
	g.hasBallast = true
	g.options.Logger.Info("disk ballast made", "path", g.ballast.path, "ballast_bytes", g.ballast.size)
	g.free.Store(free - uint64(g.ballast.size))
}
