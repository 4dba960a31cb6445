package engine

import (
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
)

// badgerLog hands Badger's warnings and errors to slog and counts them: some failures show nowhere else.
// Info and debug lines are dropped: they are many, and some are formatted per write.
type badgerLog struct {
	log     *slog.Logger
	metrics *storeMetrics
	fail    atomic.Pointer[func(error)]
}

// flushFailed begins the line that Badger logs when it can't write a memtable out. It then retries each
// second for ever, and writes block for ever once the memtables are full; a failed msync that succeeds
// when retried has lost its pages (Linux reports such an error once). So this is where we stop.
const flushFailed = "error flushing memtable to disk"

// arm makes failures that Badger only logs call fail.
func (l *badgerLog) arm(fail func(error)) { l.fail.Store(&fail) }

// disarm ends that.
func (l *badgerLog) disarm() { l.fail.Store(nil) }

// Errorf implements badger.Logger.
func (l *badgerLog) Errorf(format string, args ...any) {
	l.metrics.badgerErrors.Add(1)
	text := line(format, args)
	l.log.Error("badger reports an error", "text", text)
	if fail := l.fail.Load(); fail != nil && strings.HasPrefix(format, flushFailed) {
		(*fail)(fmt.Errorf("badger: %s", text))
	}
}

// Warningf implements badger.Logger.
func (l *badgerLog) Warningf(format string, args ...any) {
	l.metrics.badgerWarnings.Add(1)
	l.log.Warn("badger reports a warning", "text", line(format, args))
}

// Infof implements badger.Logger.
func (l *badgerLog) Infof(string, ...any) {}

// Debugf implements badger.Logger.
func (l *badgerLog) Debugf(string, ...any) {}

func line(format string, args []any) string {
	return strings.TrimSpace(fmt.Sprintf(format, args...))
}
