package node

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"kvstore/backup"
	"kvstore/internal/diskguard"
	"kvstore/wire"
)

const (
	// spoolName is the file in the data directory that holds a backup until it is verified. Its name goes as soon as it
	// is open: a crash leaves nothing behind.
	spoolName = "restore.spool"
	// spoolStep is how much is written to it between two looks at the free space.
	spoolStep = 4 << 20
	// backupRetryMs is the pause suggested to who finds another backup or restore under way.
	backupRetryMs = 5000
)

// backups makes and takes in copies for the doors: one of each at a time, since each takes what disk and log have to give.
type backups struct {
	// Immutable.
	s     *Service
	dir   string
	guard *diskguard.Guard
	log   *slog.Logger

	taking, restoring chan struct{} // a token for the one under way
}

func newBackups(s *Service, dir string, guard *diskguard.Guard, log *slog.Logger) *backups {
	return &backups{s: s, dir: dir, guard: guard, log: log, taking: make(chan struct{}, 1), restoring: make(chan struct{}, 1)}
}

// backupDocument answers a backup and a restore.
type backupDocument struct {
	Namespaces int `json:"namespaces"`
	// Created is how many namespaces a restore has created.
	Created int    `json:"namespaces_created"`
	Records uint64 `json:"records"`
	// Bytes are those of keys, tags and values.
	Bytes   uint64 `json:"bytes"`
	Expired uint64 `json:"expired_skipped"`
	// Revision is that of the state which was copied.
	Revision uint64 `json:"revision,string"`
	// StreamBytes is the length of the backup.
	StreamBytes uint64 `json:"stream_bytes"`
}

func documentOfSummary(s *backup.Summary) wire.Response {
	b, err := json.Marshal(&backupDocument{
		Namespaces: s.Namespaces, Created: s.Created, Records: s.Records, Bytes: s.Bytes, Expired: s.Expired, Revision: s.Revision, StreamBytes: s.StreamBytes,
	})
	if err != nil {
		panic("BUG: cannot encode a summary: " + err.Error())
	}
	return wire.Response{Payload: b}
}

// hold is the engine's Hold.
func (b *backups) hold(at wire.Revision) (release func(), st wire.Status) {
	release, st, err := b.s.shard.engine.Hold(at)
	if err != nil {
		b.s.shard.readFailed(wire.OpScan, st, err)
	}
	return release, st
}

// begin takes the token of c, which done gives back, or says why it can't.
func (b *backups) begin(c chan struct{}, what string) (done func(), refused *wire.Response) {
	if b.s.draining.Load() {
		return nil, &wire.Response{Status: wire.StatusDraining}
	}
	select {
	case c <- struct{}{}:
		return func() { <-c }, nil
	default:
	}
	return nil, refusal(&wire.Refusal{Status: wire.StatusBusy, RetryAfterMs: backupRetryMs, Text: "another " + what + " is under way on this node, which does one at a time; nothing was changed: try again later, or at another node"})
}

// Backup implements the gateway's Backups. It reads from this node, whoever leads.
func (b *backups) Backup(ctx context.Context, principal any, namespace string, begin func(revision wire.Revision, name string) io.Writer) wire.Response {
	done, refused := b.begin(b.taking, "backup")
	if refused != nil {
		return *refused
	}
	defer done()
	start := time.Now()
	out := &beginner{}
	sum, err := backup.Take(ctx, backup.FromService(b.s, principal, b.hold), out, backup.TakeOptions{Namespace: namespace, Begin: func(h *backup.Header) error {
		out.w = begin(h.Revision, backupName(h))
		return nil
	}})
	if err != nil {
		b.log.Warn("a backup failed", "namespace", namespace, "error", err)
		answer := b.answer(ctx, err)
		if answer.Status.Class() == wire.ClassUnknown {
			answer.Status = wire.StatusRetryLater // nothing was to be changed
		}
		return answer
	}
	b.log.Info("a backup was made", "namespaces", sum.Namespaces, "records", sum.Records, "bytes", sum.Bytes, "stream_bytes", sum.StreamBytes, "revision", sum.Revision, "took", time.Since(start))
	return documentOfSummary(&sum)
}

// beginner writes to where it is told to, once that is known.
type beginner struct{ w io.Writer }

func (b *beginner) Write(p []byte) (int, error) { return b.w.Write(p) }

// backupName proposes a name for the file.
func backupName(h *backup.Header) string {
	return "kvstore-" + hex.EncodeToString(h.ClusterID[:4]) + "-" + strconv.FormatUint(h.Revision, 10) + ".kvbackup"
}

// Restore implements the gateway's Backups. It spools the stream first: what is cut short or damaged must be known to be so
// before the first record of it is written.
func (b *backups) Restore(ctx context.Context, principal any, namespace string, merge bool, body io.Reader) wire.Response {
	done, refused := b.begin(b.restoring, "restore")
	if refused != nil {
		return *refused
	}
	defer done()
	start := time.Now()
	sum, err := b.restore(ctx, principal, namespace, merge, body)
	if err != nil {
		b.log.Warn("a restore failed", "records", sum.Records, "error", err)
		return b.answer(ctx, err)
	}
	b.log.Info("a backup was restored", "namespaces", sum.Namespaces, "records", sum.Records, "bytes", sum.Bytes, "expired", sum.Expired, "revision", sum.Revision, "took", time.Since(start))
	return documentOfSummary(&sum)
}

func (b *backups) restore(ctx context.Context, principal any, namespace string, merge bool, body io.Reader) (_ backup.Summary, err error) {
	path := filepath.Join(b.dir, spoolName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return backup.Summary{}, fmt.Errorf("cannot spool the backup: %w", err)
	}
	// Nothing that was stored depends on this file any more when it is closed.
	defer func() { _ = f.Close() }()
	if err := os.Remove(path); err != nil {
		return backup.Summary{}, fmt.Errorf("cannot spool the backup: %w", err)
	}
	if err := b.spool(ctx, f, body); err != nil {
		return backup.Summary{}, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return backup.Summary{}, fmt.Errorf("cannot spool the backup: %w", err)
	}
	return backup.Restore(ctx, backup.FromService(b.s, principal, nil), f, backup.RestoreOptions{Namespace: namespace, Merge: merge})
}

// spool writes the body into f as long as there is room: the records themselves will take about as much once more, on every
// node, which the guards of the disks see to.
func (b *backups) spool(ctx context.Context, f io.Writer, body io.Reader) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := b.guard.Room(spoolStep); err != nil {
			return &backup.StatusError{Status: wire.StatusDiskFull, Text: fmt.Sprintf("the backup cannot be kept until it is verified: %v; nothing was changed: restore it with kvctl, which verifies it where it is", err)}
		}
		to := &spoolWriter{w: f}
		switch n, err := io.CopyN(to, body, spoolStep); {
		case to.err != nil:
			return fmt.Errorf("cannot spool the backup: %w", to.err)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return &backup.StatusError{Status: wire.StatusBadRequest, Text: fmt.Sprintf("the body ended early, %d bytes into a piece of it: %v; nothing was changed", n, err)}
		}
	}
}

// spoolWriter remembers that it was the writing that failed.
type spoolWriter struct {
	w   io.Writer
	err error
}

func (s *spoolWriter) Write(p []byte) (n int, err error) {
	n, s.err = s.w.Write(p)
	return n, s.err
}

// backupStatuses tells what an error of package backup is to who asked. The first that matches counts.
var backupStatuses = []struct {
	is     error
	status wire.Status
}{
	{backup.ErrNotEmpty, wire.StatusNamespaceExists},
	{backup.ErrNamespace, wire.StatusNoNamespace},
	{backup.ErrNotBackup, wire.StatusBadRequest},
	{backup.ErrVersion, wire.StatusUnsupported},
	{backup.ErrBroken, wire.StatusChecksum},
	{backup.ErrChanged, wire.StatusRetryLater},
	{context.Canceled, wire.StatusCancelled},
}

// answer makes an answer of an error. Only what has changed something is of an unknown outcome.
func (b *backups) answer(ctx context.Context, err error) wire.Response {
	var status *backup.StatusError
	var partial *backup.PartialError
	ref := wire.Refusal{Status: wire.StatusRetryLater, Text: err.Error()}
	answered := errors.As(err, &status)
	switch {
	case errors.As(err, &partial):
		if ref.Status = wire.StatusInternal; answered && status.Status.Class() == wire.ClassUnknown {
			ref.Status = status.Status
		}
		return *refusal(&ref)
	case b.s.draining.Load() && ctx.Err() != nil:
		ref.Status = wire.StatusDraining
		return *refusal(&ref)
	}
	for _, s := range backupStatuses {
		if errors.Is(err, s.is) {
			ref.Status = s.status
			return *refusal(&ref)
		}
	}
	if answered && status.Status.Class() != wire.ClassResult {
		ref.Status, ref.RetryAfterMs = status.Status, status.RetryAfterMs
	}
	return *refusal(&ref)
}
