package backup

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"kvstore/wire"
)

// Admin is who executes administrators' requests.
type Admin interface {
	// Admin executes a request, a JSON document of OpAdmin, and gives the document that answers it.
	Admin(ctx context.Context, request []byte) ([]byte, error)
}

// Source is a store that is copied. An error of its methods that has a method Passing which reports true is tried again.
type Source interface {
	Admin
	// Status gives the status document of the cluster.
	Status(ctx context.Context) ([]byte, error)
	// Revision gives that of a state which reflects everything that was acknowledged before the call.
	Revision(ctx context.Context) (wire.Revision, error)
	// Scan calls each with every record of a namespace whose key is from or comes behind it, in order, as of the revision
	// at, until each returns an error, which it returns. The slices may be views that live until each returns. It fails
	// if that revision is no longer kept.
	Scan(ctx context.Context, namespace string, at wire.Revision, from []byte, each func(*Record) error) error
}

// Holder is a Source that can keep a revision readable for longer than it would by itself.
type Holder interface {
	// Hold keeps the revision at readable until release, as far as there are no other bounds to it.
	Hold(at wire.Revision) (release func(), err error)
}

// TakeOptions say what to copy.
type TakeOptions struct {
	// Namespace is the only one to copy; empty: all.
	Namespace string
	// Begin, if set, is called once, before the first byte is written; its error ends the backup.
	Begin func(*Header) error
	// Progress, if set, is called with what was copied so far, after each few records.
	Progress func(Count)
	// Patience is how long to go on, counted anew for each record, while the source's errors are passing. Default 30 s;
	// negative: not at all.
	Patience time.Duration
	// Waiting, if set, is told why the backup waits, once for each time that it begins to.
	Waiting func(why error)
}

const (
	patienceDefault = 30 * time.Second
	// changedTries is how often a backup looks for a moment at which no namespaces come and go.
	changedTries = 5
	// progressRecords is how many records pass between two calls of Progress.
	progressRecords = 256
)

// Take writes a backup of src to w: all namespaces, or one, as of one revision, which is that of a moment after the call. An
// error means that what was written is no backup, which every reader of it sees.
//
// The revision must stay readable until the last record is read. Where that takes longer than src keeps the past, Take fails.
func Take(ctx context.Context, src Source, w io.Writer, o TakeOptions) (Summary, error) {
	t := taker{src: src, o: o, patience: newPatience(o.Patience, o.Waiting)}
	h, err := t.begin(ctx)
	if err != nil {
		return Summary{}, err
	}
	if holder, ok := src.(Holder); ok {
		var release func()
		err := t.patience.try(ctx, func() (err error) {
			release, err = holder.Hold(h.Revision)
			return err
		})
		if err != nil {
			return Summary{}, fmt.Errorf("cannot keep revision %d readable: %w", h.Revision, err)
		}
		defer release()
	}
	if o.Begin != nil {
		if err := o.Begin(h); err != nil {
			return Summary{}, err
		}
	}
	counted := &countingWriter{w: w}
	if t.w, err = NewWriter(counted, h); err != nil {
		return Summary{}, err
	}
	for i := range h.Namespaces {
		if err := t.copy(ctx, h, i); err != nil {
			return Summary{}, fmt.Errorf("cannot copy namespace %q: %w", h.Namespaces[i].Name, err)
		}
	}
	// A name that was given to another namespace meanwhile has shown nothing of what it stood for.
	now, err := t.list(ctx)
	if err != nil {
		return Summary{}, err
	}
	for i := range h.Namespaces {
		n := &h.Namespaces[i]
		if !slices.ContainsFunc(now, func(m listed) bool { return m.Name == n.Name && m.ID == n.ID }) {
			return Summary{}, fmt.Errorf("%w: %q was dropped; begin anew", ErrChanged, n.Name)
		}
	}
	if err := t.w.Close(); err != nil {
		return Summary{}, err
	}
	if o.Progress != nil {
		o.Progress(t.w.Total())
	}
	return Summary{Revision: h.Revision, Namespaces: len(h.Namespaces), Count: t.w.Total(), StreamBytes: counted.n}, nil
}

type countingWriter struct {
	w io.Writer
	n uint64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += uint64(n)
	return n, err
}

// taker is one Take under way.
type taker struct {
	src      Source
	o        TakeOptions
	patience patience
	w        *Writer
	told     int // records since Progress was called
}

// begin finds the revision and the namespaces that there are at it. The list tells of the newest state only: where it is the
// same before and after the revision's moment, it is also that of the revision.
func (t *taker) begin(ctx context.Context) (*Header, error) {
	h := &Header{CreatedAt: time.Now().UTC()}
	var err error
	if h.ClusterID, err = t.clusterID(ctx); err != nil {
		return nil, err
	}
	before, err := t.list(ctx)
	for range changedTries {
		if err != nil {
			return nil, err
		}
		err = t.patience.try(ctx, func() (err error) {
			h.Revision, err = t.src.Revision(ctx)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("cannot find the revision to copy: %w", err)
		}
		var after []listed
		if after, err = t.list(ctx); err != nil {
			return nil, err
		}
		if slices.EqualFunc(before, after, func(a, b listed) bool { return a.Namespace == b.Namespace }) {
			return h, t.choose(h, after)
		}
		before = after
	}
	return nil, fmt.Errorf("%w: they come and go all the time; begin anew", ErrChanged)
}

// choose puts the namespaces that are wanted into the header.
func (t *taker) choose(h *Header, all []listed) error {
	for i := range all {
		if t.o.Namespace == "" || t.o.Namespace == all[i].Name {
			h.Namespaces = append(h.Namespaces, all[i].Namespace)
		}
	}
	if len(h.Namespaces) == 0 {
		return fmt.Errorf("%w: %q", ErrNamespace, t.o.Namespace)
	}
	return nil
}

// copy copies one namespace. Where it was interrupted, it goes on behind the last key.
func (t *taker) copy(ctx context.Context, h *Header, namespace int) error {
	var last []byte
	return t.patience.try(ctx, func() error {
		return t.src.Scan(ctx, h.Namespaces[namespace].Name, h.Revision, last, func(r *Record) error {
			if len(last) != 0 && bytes.Equal(r.Key, last) {
				return nil // the one behind which to go on: a bound cannot be longer than a key
			}
			if err := t.w.Add(namespace, r); err != nil {
				return err
			}
			last = append(last[:0], r.Key...)
			t.patience.renew()
			if t.told++; t.o.Progress != nil && t.told >= progressRecords {
				t.told = 0
				t.o.Progress(t.w.Total())
			}
			return nil
		})
	})
}

// clusterID asks for the cluster's id.
func (t *taker) clusterID(ctx context.Context) (id [16]byte, err error) {
	err = t.patience.try(ctx, func() error {
		doc, err := t.src.Status(ctx)
		if err != nil {
			return err
		}
		var status struct {
			ClusterID string `json:"cluster_id"`
		}
		if err := json.Unmarshal(doc, &status); err != nil {
			return err
		}
		b, err := hex.DecodeString(status.ClusterID)
		if err != nil || len(b) != len(id) {
			return fmt.Errorf("the cluster's id is %.40q, not 32 hex digits", status.ClusterID)
		}
		id = [16]byte(b)
		return nil
	})
	if err != nil {
		return id, fmt.Errorf("cannot learn which cluster this is: %w", err)
	}
	return id, nil
}

// listed is a namespace of a store, and how many records it holds.
type listed struct {
	Namespace
	Keys uint64
}

func (t *taker) list(ctx context.Context) ([]listed, error) { return list(ctx, t.src, &t.patience) }

// adminDocument is what namespaces look like in the documents of OpAdmin.
type adminDocument struct {
	Name      string             `json:"name"`
	ID        uint32             `json:"id"`
	State     string             `json:"state"`
	CreatedAt time.Time          `json:"created_at"`
	Keys      uint64             `json:"keys"`
	Settings  *namespaceSettings `json:"settings"`
}

type namespaceSettings struct {
	BytesMax     uint64 `json:"bytes_max"`
	KeysMax      uint64 `json:"keys_max"`
	OpsPerSecond uint64 `json:"ops_per_second"`
	WatchesMax   uint64 `json:"watches_max"`
	Compress     string `json:"compress"`
}

// list gives the namespaces, those aside that are being removed, in order of their names.
func list(ctx context.Context, a Admin, p *patience) (all []listed, err error) {
	err = p.try(ctx, func() error {
		doc, err := a.Admin(ctx, []byte(`{"action":"namespace_list"}`))
		var s *StatusError
		if errors.As(err, &s) && s.Status.Class() == wire.ClassUnknown {
			// Nothing was to be changed, whatever became of the question.
			return &StatusError{Status: wire.StatusRetryLater, Text: s.Error(), RetryAfterMs: s.RetryAfterMs}
		}
		if err != nil {
			return err
		}
		var d struct {
			Namespaces []adminDocument `json:"namespaces"`
		}
		if err := json.Unmarshal(doc, &d); err != nil {
			return err
		}
		all = all[:0]
		for i := range d.Namespaces {
			n := &d.Namespaces[i]
			if n.State == "dropping" {
				continue
			}
			l := listed{Namespace: Namespace{Name: n.Name, ID: n.ID, CreatedAt: n.CreatedAt.UnixMicro()}, Keys: n.Keys}
			if s := n.Settings; s != nil {
				l.Settings = wire.NamespaceSettings{BytesMax: s.BytesMax, KeysMax: s.KeysMax, OpsPerSecond: s.OpsPerSecond, WatchesMax: s.WatchesMax}
				c, ok := codecOf(s.Compress)
				if !ok {
					return fmt.Errorf("namespace %q compresses by %q, which this version does not know", n.Name, s.Compress)
				}
				l.Settings.Compress = c
			}
			all = append(all, l)
		}
		slices.SortFunc(all, func(a, b listed) int { return cmp.Compare(a.Name, b.Name) })
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot list the namespaces: %w", err)
	}
	return all, nil
}

// codecOf reads the name of a codec.
func codecOf(name string) (wire.Codec, bool) {
	for c := wire.CodecNone; c <= wire.CodecLZ4; c++ {
		if c.String() == name {
			return c, true
		}
	}
	return 0, name == ""
}

// patience bounds how long something is tried again.
type patience struct {
	most    time.Duration
	since   time.Time // of the first failure since something went well
	waiting func(why error)
}

const (
	pauseMin = 10 * time.Millisecond
	pauseMax = 500 * time.Millisecond
)

func newPatience(most time.Duration, waiting func(error)) patience {
	if most == 0 {
		most = patienceDefault
	}
	return patience{most: most, waiting: waiting}
}

// renew notes that something went well.
func (p *patience) renew() { p.since = time.Time{} }

// try runs f until it succeeds, its error is none that passes, patience is over, or ctx ends.
func (p *patience) try(ctx context.Context, f func() error) error {
	for pause := pauseMin; ; pause = min(2*pause, pauseMax) {
		err := f()
		switch {
		case err == nil:
			p.renew()
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case !passes(err) || p.most < 0:
			return err
		}
		if p.since.IsZero() {
			p.since, pause = time.Now(), pauseMin
			if p.waiting != nil {
				p.waiting(err)
			}
		}
		wait := pause/2 + rand.N(pause)
		var s *StatusError
		if errors.As(err, &s) {
			wait = max(wait, time.Duration(s.RetryAfterMs)*time.Millisecond)
		}
		if time.Since(p.since)+wait > p.most {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}
