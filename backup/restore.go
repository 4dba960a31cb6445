package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"kvstore/wire"
)

// Put is a record to be written. Its slices belong to it.
type Put struct {
	Key, Ext, Value []byte
	// ExpiresAt is when it expires, Unix µs; 0: never. The time that is left is counted when it is sent.
	ExpiresAt int64
}

// TTL gives the time that is left at now, at least a millisecond; 0: it never expires.
func (p *Put) TTL(now time.Time) time.Duration {
	if p.ExpiresAt == 0 {
		return 0
	}
	left := min(p.ExpiresAt-now.UnixMicro(), wire.TTLMsMax*1000)
	return max(time.Duration(left)*time.Microsecond, time.Millisecond).Truncate(time.Millisecond)
}

// Target is a store that a backup is written into. An error of its methods that has a method Passing which reports true is
// tried again; it may be of an unknown outcome.
type Target interface {
	Admin
	// Put writes all records of a batch, or none: a batch is of one namespace, and fits one request.
	Put(ctx context.Context, namespace string, batch []Put) error
}

// RestoreOptions say how to restore.
type RestoreOptions struct {
	// Namespace is the only one to restore; empty: all that the backup holds.
	Namespace string
	// Merge lets a restore into namespaces that hold records already: those of the same keys are replaced, others stay.
	// Without it such a restore is refused.
	Merge bool
	// Progress, if set, is called after each batch.
	Progress func(done Count)
	// Patience is how long to go on, counted anew for each batch, while the target's errors are passing. Default 30 s;
	// negative: not at all.
	Patience time.Duration
	// Waiting, if set, is told why the restore waits, once for each time that it begins to.
	Waiting func(why error)
	// Now is the clock that tells which records have expired. Default time.Now.
	Now func() time.Time
}

const (
	// batchBytes and batchRecords close a batch: entries of such a size keep a log's other writers waiting for no more
	// than milliseconds. A larger record is a batch of its own.
	batchBytes   = 256 << 10
	batchRecords = 1024
)

// Restore verifies all of a backup, and then writes its records into dst. Namespaces that are missing are created with
// their settings; those that are there keep theirs. Records get new versions and times; those whose time is over are left
// out. Only when the error is nil was everything written.
//
// An error before the first change wraps ErrBroken, ErrNotBackup, ErrVersion, ErrNotEmpty or ErrNamespace, or is the
// target's; after it, it is a *PartialError. A batch whose outcome is unknown is sent again: puts without conditions of
// keys that stand in a backup once do the same whether they happen once, twice, or late. That holds as long as nobody else
// writes these keys, which is for the caller to see to.
func Restore(ctx context.Context, dst Target, r io.ReadSeeker, o RestoreOptions) (Summary, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	begin, err := r.Seek(0, io.SeekCurrent)
	if err != nil {
		return Summary{}, fmt.Errorf("cannot read the backup twice: %w", err)
	}
	h, whole, err := Verify(&interruptible{ctx, r})
	if err != nil {
		return Summary{}, err
	}
	if o.Namespace != "" && !slices.ContainsFunc(h.Namespaces, func(n Namespace) bool { return n.Name == o.Namespace }) {
		return Summary{}, fmt.Errorf("%w in the backup: %q", ErrNamespace, o.Namespace)
	}
	if _, err := r.Seek(begin, io.SeekStart); err != nil {
		return Summary{}, fmt.Errorf("cannot read the backup a second time: %w", err)
	}
	re := restorer{dst: dst, o: o, patience: newPatience(o.Patience, o.Waiting)}
	re.done.Revision, re.done.StreamBytes = h.Revision, whole.StreamBytes
	err = re.namespaces(ctx, h)
	if err == nil {
		err = re.records(ctx, r)
	}
	if err != nil && (re.done.Created > 0 || re.done.Records > 0 || re.unknown > 0) {
		err = &PartialError{Done: re.done.Count, Unknown: re.unknown, Created: re.done.Created, cause: err}
	}
	return re.done, err
}

// interruptible is a reader that ends with a context.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

func (i *interruptible) Read(p []byte) (int, error) {
	if i.ctx.Err() != nil {
		return 0, context.Cause(i.ctx)
	}
	return i.r.Read(p)
}

// restorer is one Restore under way.
type restorer struct {
	dst      Target
	o        RestoreOptions
	patience patience
	done     Summary
	unknown  uint64

	batch []Put
	bytes int
	size  uint64 // as Count has it
}

func (r *restorer) wants(name string) bool { return r.o.Namespace == "" || r.o.Namespace == name }

// namespaces looks whether the backup may be restored, and creates what is missing.
func (r *restorer) namespaces(ctx context.Context, h *Header) error {
	all, err := list(ctx, r.dst, &r.patience)
	if err != nil {
		return err
	}
	there := make(map[string]uint64, len(all))
	for i := range all {
		there[all[i].Name] = all[i].Keys
	}
	for i := range h.Namespaces {
		name := h.Namespaces[i].Name
		if keys := there[name]; keys > 0 && !r.o.Merge && r.wants(name) {
			return fmt.Errorf("%w: namespace %q holds %d; nothing was changed: restore into an empty one, or in mode merge, which replaces records of the same keys and leaves others as they are", ErrNotEmpty, name, keys)
		}
	}
	for i := range h.Namespaces {
		n := &h.Namespaces[i]
		if !r.wants(n.Name) {
			continue
		}
		r.done.Namespaces++
		if _, ok := there[n.Name]; ok {
			continue
		}
		if err := r.create(ctx, n); err != nil {
			return fmt.Errorf("cannot create namespace %q: %w", n.Name, err)
		}
		r.done.Created++
	}
	return nil
}

// create creates a namespace. That there is one after an attempt of unknown outcome is what was wanted.
func (r *restorer) create(ctx context.Context, n *Namespace) error {
	request, err := json.Marshal(struct {
		Action    string             `json:"action"`
		Namespace string             `json:"namespace"`
		Settings  *namespaceSettings `json:"settings"`
	}{"namespace_create", n.Name, &namespaceSettings{
		BytesMax: n.Settings.BytesMax, KeysMax: n.Settings.KeysMax, OpsPerSecond: n.Settings.OpsPerSecond, WatchesMax: n.Settings.WatchesMax,
		Compress: n.Settings.Compress.String(),
	}})
	if err != nil {
		panic("BUG: cannot encode a request of our own: " + err.Error())
	}
	tries := 0
	return r.patience.try(ctx, func() error {
		tries++
		_, err := r.dst.Admin(ctx, request)
		if err == nil || tries == 1 {
			return err
		}
		once := newPatience(-1, nil) // it is asked again with the next attempt
		all, lerr := list(ctx, r.dst, &once)
		if lerr == nil && slices.ContainsFunc(all, func(l listed) bool { return l.Name == n.Name }) {
			return nil
		}
		return err
	})
}

// records writes the records.
func (r *restorer) records(ctx context.Context, in io.Reader) error {
	b, err := NewReader(&interruptible{ctx, in})
	if err != nil {
		return fmt.Errorf("when it was read again: %w", err)
	}
	h := b.Header()
	var rec Record
	now := 0 // the namespace of the batch
	for {
		i, err := b.Next(&rec)
		if errors.Is(err, io.EOF) {
			return r.flush(ctx, h.Namespaces, now)
		}
		if err != nil {
			return fmt.Errorf("when it was read again: %w", err)
		}
		if !r.wants(h.Namespaces[i].Name) {
			continue
		}
		size := len(rec.Key) + len(rec.Ext) + len(rec.Value)
		if i != now || len(r.batch) >= batchRecords || r.bytes+size > batchBytes {
			if err := r.flush(ctx, h.Namespaces, now); err != nil {
				return err
			}
			now = i
		}
		if rec.Meta.ExpiresAt != 0 && rec.Meta.ExpiresAt <= r.o.Now().UnixMicro() {
			r.done.Expired++
			continue
		}
		// One piece of memory for each record: the views end with the next one.
		p := append(append(append(make([]byte, 0, size), rec.Key...), rec.Ext...), rec.Value...)
		k, e := len(rec.Key), len(rec.Key)+len(rec.Ext)
		r.batch = append(r.batch, Put{Key: p[:k:k], Ext: p[k:e:e], Value: p[e:], ExpiresAt: rec.Meta.ExpiresAt})
		r.bytes += size
		r.size += rec.bytes()
	}
}

// flush writes the batch.
func (r *restorer) flush(ctx context.Context, namespaces []Namespace, i int) error {
	if len(r.batch) == 0 {
		return nil
	}
	unknown := false
	err := r.patience.try(ctx, func() error {
		err := r.dst.Put(ctx, namespaces[i].Name, r.batch)
		var s interface{ NotApplied() bool }
		if err != nil && !(errors.As(err, &s) && s.NotApplied()) {
			unknown = true // by this attempt, whatever comes of the next one
		}
		return err
	})
	if err != nil {
		if unknown {
			r.unknown = uint64(len(r.batch))
		}
		return fmt.Errorf("cannot write %d records from key %.80q of namespace %q on: %w", len(r.batch), r.batch[0].Key, namespaces[i].Name, err)
	}
	r.done.Records += uint64(len(r.batch))
	r.done.Bytes += r.size
	clear(r.batch)
	r.batch, r.bytes, r.size = r.batch[:0], 0, 0
	if r.o.Progress != nil {
		r.o.Progress(r.done.Count)
	}
	return nil
}
