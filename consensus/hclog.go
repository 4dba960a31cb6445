package consensus

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// hcLog passes the libraries' log lines to slog. Their "info" tells each state change in several lines
// and becomes debug here; what operators need of it the group logs itself.
type hcLog struct {
	log     *slog.Logger
	damper  *damper
	name    string
	implied []any
}

func newHCLog(l *slog.Logger) hclog.Logger { return &hcLog{log: l, damper: newDamper(time.Now)} }

const (
	// repeatEvery is how often the same complaint is written: raft repeats some of them several times a
	// second for as long as a node is down.
	repeatEvery = 10 * time.Second
	// complaintsMax bounds the complaints that are told apart; what comes on top is written.
	complaintsMax = 256
)

// damper thins out complaints that repeat themselves. What it leaves out is counted in the next line.
type damper struct {
	now func() time.Time // immutable

	mu sync.Mutex
	// Guarded by mu.
	seen map[string]*complaint
}

type complaint struct {
	at      time.Time // when it was last written
	omitted int       // since then
}

func newDamper(now func() time.Time) *damper {
	return &damper{now: now, seen: make(map[string]*complaint)}
}

// pass reports whether a line is to be written, and how many like it were not since the last that was.
// Lines are alike if they say the same of the same node.
func (d *damper) pass(msg string, args []any) (omitted int, ok bool) {
	key := msg
	for i := 0; i+1 < len(args); i += 2 {
		switch args[i] {
		case "peer", "target", "server-id", "from", "candidate", "id":
			key = fmt.Sprintf("%s|%v", key, args[i+1])
		}
	}
	now := d.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.seen[key]
	if c != nil && now.Sub(c.at) < repeatEvery {
		c.omitted++
		return 0, false
	}
	if c != nil {
		omitted = c.omitted
	} else if len(d.seen) >= complaintsMax {
		for k, old := range d.seen {
			if now.Sub(old.at) >= repeatEvery {
				delete(d.seen, k)
			}
		}
		if len(d.seen) >= complaintsMax {
			return 0, true
		}
	}
	d.seen[key] = &complaint{at: now}
	return omitted, true
}

func slogLevel(l hclog.Level) slog.Level {
	switch l {
	case hclog.Warn:
		return slog.LevelWarn
	case hclog.Error:
		return slog.LevelError
	default:
		return slog.LevelDebug
	}
}

// Log implements hclog.Logger.
func (h *hcLog) Log(level hclog.Level, msg string, args ...any) {
	at := slogLevel(level)
	ctx := context.Background()
	if level == hclog.Off || !h.log.Enabled(ctx, at) {
		return
	}
	args = slices.Clone(args)
	if at >= slog.LevelWarn && h.damper != nil {
		omitted, ok := h.damper.pass(msg, args)
		if !ok {
			return
		}
		if omitted > 0 {
			args = append(args, "omitted_since_last", omitted)
		}
	}
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			args[i] = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
	}
	h.log.Log(ctx, at, msg, args...)
}

// Trace implements hclog.Logger.
func (h *hcLog) Trace(msg string, args ...any) { h.Log(hclog.Trace, msg, args...) }

// Debug implements hclog.Logger.
func (h *hcLog) Debug(msg string, args ...any) { h.Log(hclog.Debug, msg, args...) }

// Info implements hclog.Logger.
func (h *hcLog) Info(msg string, args ...any) { h.Log(hclog.Info, msg, args...) }

// Warn implements hclog.Logger.
func (h *hcLog) Warn(msg string, args ...any) { h.Log(hclog.Warn, msg, args...) }

// Error implements hclog.Logger.
func (h *hcLog) Error(msg string, args ...any) { h.Log(hclog.Error, msg, args...) }

func (h *hcLog) enabled(l hclog.Level) bool {
	return h.log.Enabled(context.Background(), slogLevel(l))
}

// IsTrace implements hclog.Logger.
func (h *hcLog) IsTrace() bool { return h.enabled(hclog.Trace) }

// IsDebug implements hclog.Logger.
func (h *hcLog) IsDebug() bool { return h.enabled(hclog.Debug) }

// IsInfo implements hclog.Logger.
func (h *hcLog) IsInfo() bool { return h.enabled(hclog.Info) }

// IsWarn implements hclog.Logger.
func (h *hcLog) IsWarn() bool { return h.enabled(hclog.Warn) }

// IsError implements hclog.Logger.
func (h *hcLog) IsError() bool { return h.enabled(hclog.Error) }

// ImpliedArgs implements hclog.Logger.
func (h *hcLog) ImpliedArgs() []any { return h.implied }

// With implements hclog.Logger.
func (h *hcLog) With(args ...any) hclog.Logger {
	return &hcLog{log: h.log.With(args...), damper: h.damper, name: h.name, implied: append(h.implied[:len(h.implied):len(h.implied)], args...)}
}

// Name implements hclog.Logger.
func (h *hcLog) Name() string { return h.name }

// Named implements hclog.Logger.
func (h *hcLog) Named(name string) hclog.Logger {
	if h.name != "" {
		name = h.name + "." + name
	}
	return h.ResetNamed(name)
}

// ResetNamed implements hclog.Logger.
func (h *hcLog) ResetNamed(name string) hclog.Logger {
	return &hcLog{log: h.log, damper: h.damper, name: name, implied: h.implied}
}

// SetLevel implements hclog.Logger. The level is slog's.
func (h *hcLog) SetLevel(hclog.Level) {}

// GetLevel implements hclog.Logger.
func (h *hcLog) GetLevel() hclog.Level {
	for _, l := range []hclog.Level{hclog.Debug, hclog.Warn} {
		if h.enabled(l) {
			return l
		}
	}
	return hclog.Error
}

// StandardLogger implements hclog.Logger.
func (h *hcLog) StandardLogger(opts *hclog.StandardLoggerOptions) *log.Logger {
	return log.New(h.StandardWriter(opts), "", 0)
}

// StandardWriter implements hclog.Logger.
func (h *hcLog) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return hcWriter{h} }

type hcWriter struct{ h *hcLog }

func (w hcWriter) Write(p []byte) (int, error) {
	w.h.Log(hclog.Warn, string(p))
	return len(p), nil
}
