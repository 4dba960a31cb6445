package gateway

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/internal/rate"
	"kvstore/wire"
)

// The modes of Options.RequestLog. A failure is an answer that blames the server: 5xx, or what gRPC has for it. What a
// client did wrong, and what it has no share for, is none.
const (
	RequestLogOff     = "off"     // none
	RequestLogErrors  = "errors"  // every failure
	RequestLogSampled = "sampled" // every failure, and one in RequestLogSample of the others
	RequestLogAll     = "all"     // every request
)

const (
	requestLogSampleDefault = 1000
	requestLogRateDefault   = 100
	// requestLogLinesMax bounds the lines that wait for the disk.
	requestLogLinesMax = 256
	// requestLogRetry is the pause after a line that could not be written; what comes meanwhile is dropped.
	requestLogRetry = 10 * time.Second
	// requestLogLook is how often the file is looked for under its name: it may have been moved away to be kept.
	requestLogLook = time.Second
	// requestLogCloseTime is how long a stop waits for the disk.
	requestLogCloseTime = time.Second
)

// requestEntry is one line of the log of requests. It holds nothing that users store: no key, no value, no tag, no
// query, and no text of a refusal, which may quote them.
type requestEntry struct {
	Time time.Time `json:"time"` // when the request arrived
	ID   string    `json:"request_id"`
	// Protocol is rest or grpc.
	Protocol string `json:"protocol"`
	// Operation is the wire's name of what was asked; "" for what is no operation.
	Operation string `json:"operation,omitempty"`
	// Method is HTTP's; "" in gRPC.
	Method string `json:"method,omitempty"`
	// Route is the route with names in place of what its path holds, or gRPC's full method.
	Route string `json:"route"`
	// Namespace is the one that was named, if it can be one.
	Namespace string `json:"namespace,omitempty"`
	Remote    string `json:"remote,omitempty"`
	// Status is HTTP's status or gRPC's code.
	Status int `json:"status"`
	// Code is the stable code of what was refused, such as KV-3001.
	Code          string `json:"code,omitempty"`
	Microseconds  int64  `json:"duration_us"`
	RequestBytes  int64  `json:"request_bytes"`
	ResponseBytes int64  `json:"response_bytes"`
	// Revision is the version that a write gave, or that a read saw.
	Revision uint64 `json:"revision,omitempty,string"`
	// Dropped is how many lines that should have been written since the last one were not. Set by note.
	Dropped uint64 `json:"dropped,omitempty"`

	// Failed: the answer blames the server; see failure.
	Failed bool `json:"-"`
}

// failure reports whether an answer with this status blames the server.
func failure(st wire.Status) bool { return httpStatus(st) >= http.StatusInternalServerError }

// logLine is a line that waits, and the number of dropped ones that it tells.
type logLine struct {
	text    []byte
	dropped uint64
}

// requestLog writes one line of JSON for each request that it wants. It never fails a request and never waits for the
// disk: lines wait in a bounded queue for a goroutine that lives while there are some.
type requestLog struct {
	// Immutable after init.
	mode   string
	sample uint64
	path   string // "": standard error
	logger *slog.Logger
	now    func() int64

	// Failures have a rate of their own, so that a flood of other lines does not hide them.
	failures, others rate.Bucket

	lines, dropped, unwritten atomic.Uint64
	// untold is how many were dropped since the last line.
	untold atomic.Uint64

	mu sync.Mutex
	// Guarded by mu.
	queue  []logLine
	writer chan struct{} // closed when the goroutine that writes ends; nil: there is none
	closed bool

	// Of the goroutine that writes.
	file *logFile
}

func (l *requestLog) init(o *Options, now func() int64) {
	l.mode, l.sample = cmp.Or(o.RequestLog, RequestLogOff), uint64(cmp.Or(o.RequestLogSample, requestLogSampleDefault))
	if l.path = o.RequestLogFile; l.path == "-" {
		l.path = ""
	}
	l.logger, l.now = o.Logger, now
	perSecond := uint64(cmp.Or(o.RequestLogRate, requestLogRateDefault))
	l.failures.Set(perSecond)
	l.others.Set(perSecond)
	l.file = &logFile{path: l.path, now: now}
}

// wants decides whether a request is to be logged. It costs next to nothing, so that an entry need only be filled in
// when it says yes.
func (l *requestLog) wants(failed bool) bool {
	switch l.mode {
	case RequestLogAll:
		return true
	case RequestLogErrors:
		return failed
	case RequestLogSampled:
		return failed || rand.Uint64N(l.sample) == 0
	}
	return false
}

// note logs a request that wants has said yes to, or counts it as dropped: beyond the rate, or while the disk is slow.
func (l *requestLog) note(e *requestEntry) {
	bucket := &l.others
	if e.Failed {
		bucket = &l.failures
	}
	if bucket.Take(1, l.now()) != 0 {
		l.drop(1)
		return
	}
	e.Dropped = l.untold.Swap(0)
	line, err := json.Marshal(e)
	if err != nil {
		panic("BUG: cannot encode a line of our own: " + err.Error())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.queue) >= requestLogLinesMax {
		l.untold.Add(e.Dropped)
		l.drop(1)
		return
	}
	l.queue = append(l.queue, logLine{append(line, '\n'), e.Dropped})
	if l.writer == nil {
		l.writer = make(chan struct{})
		go l.write() // owned by l; ends when the queue is empty
	}
}

func (l *requestLog) drop(n uint64) {
	l.dropped.Add(n)
	l.untold.Add(n)
}

// write writes what waits.
func (l *requestLog) write() {
	for {
		l.mu.Lock()
		lines := l.queue
		l.queue = nil
		if len(lines) == 0 {
			close(l.writer)
			l.writer = nil
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()
		for _, line := range lines {
			first, err := l.file.write(line.text)
			if err == nil {
				l.lines.Add(1)
				continue
			}
			l.unwritten.Add(1)
			l.untold.Add(line.dropped)
			l.drop(1)
			if first {
				l.logger.Error("cannot write the request log: lines are dropped until it can be written; requests go on", "file", l.path, "retry_after", requestLogRetry, "error", err)
			}
		}
	}
}

// close waits until the queue is written, for requestLogCloseTime at most. What comes later is dropped.
func (l *requestLog) close() {
	l.mu.Lock()
	l.closed = true
	writer := l.writer
	l.mu.Unlock()
	if writer != nil {
		t := time.NewTimer(requestLogCloseTime)
		defer t.Stop()
		select {
		case <-writer:
		case <-t.C:
			l.logger.Warn("the request log's last lines are lost: its disk is too slow", "file", l.path)
			return // the goroutine has the file
		}
	}
	if err := l.file.close(); err != nil {
		l.logger.Warn("cannot close the request log", "file", l.path, "error", err)
	}
}

// writeMetrics writes what became of the lines.
func (l *requestLog) writeMetrics(w io.Writer) error {
	for _, c := range []struct {
		name, help string
		n          *atomic.Uint64
	}{
		{"kvstore_gateway_request_log_lines_total", "Lines written to the log of requests.", &l.lines},
		{"kvstore_gateway_request_log_dropped_total", "Lines that were not written: beyond the rate, the disk too slow, or the file not writable.", &l.dropped},
		{"kvstore_gateway_request_log_failed_total", "Lines among them for which the file could not be written.", &l.unwritten},
	} {
		if _, err := fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s counter\n%s %d\n", c.name, c.help, c.name, c.name, c.n.Load()); err != nil {
			return err
		}
	}
	return nil
}

// logFile appends lines to a file that may be moved away, be full, or not be there. One goroutine at a time uses it.
type logFile struct {
	path string // "": standard error
	now  func() int64

	f       *os.File
	looked  int64 // when the file was looked for under its name
	torn    bool  // the last write left half a line
	failing error // of the last write
	retryAt int64
}

// write appends a line. After an error it drops what comes for requestLogRetry. first tells an error of which nobody
// has been told: the first one since a line was written.
func (l *logFile) write(line []byte) (first bool, err error) {
	if l.failing != nil && l.now() < l.retryAt {
		return false, l.failing
	}
	first = l.failing == nil
	if err = l.append(line); err != nil {
		l.retryAt = l.now() + int64(requestLogRetry)
	}
	l.failing = err
	return first, err
}

func (l *logFile) append(line []byte) error {
	if l.path == "" {
		_, err := os.Stderr.Write(line)
		return err
	}
	if l.f != nil && l.now()-l.looked >= int64(requestLogLook) && !l.inPlace() {
		_ = l.f.Close() // each line was written as it came; what the old file lacks was counted then
		l.f = nil
	}
	if l.f == nil {
		f, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
		if err != nil {
			return err
		}
		l.f, l.looked, l.torn = f, l.now(), false
	}
	if l.torn {
		line = append([]byte{'\n'}, line...)
	}
	n, err := l.f.Write(line)
	if n != 0 {
		l.torn = n < len(line)
	}
	return err
}

// inPlace reports whether the open file still is what its name names.
func (l *logFile) inPlace() bool {
	l.looked = l.now()
	there, err := os.Stat(l.path)
	if err != nil {
		return false
	}
	open, err := l.f.Stat()
	return err == nil && os.SameFile(there, open)
}

func (l *logFile) close() error {
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}
