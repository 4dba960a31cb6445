package backup

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"kvstore/wire"
)

// Service executes requests, as the doors of a node have it.
type Service interface {
	// Do executes r and waits for its answer, whose slices belong to the caller.
	Do(ctx context.Context, principal any, r *wire.Request) wire.Response
	// Stream executes r, a streamed listing: each is called with one frame after the other, whose slices are its to keep.
	// It returns the last frame, or why the stream ended.
	Stream(ctx context.Context, principal any, r *wire.Request, each func(*wire.Response) error) wire.Response
}

// ServiceStore is a Service as a Source, a Holder and a Target.
type ServiceStore struct {
	s         Service
	principal any
	hold      func(at wire.Revision) (release func(), st wire.Status)
}

// FromService makes a Service, asked in the name of principal, a Source and a Target. hold, if not nil, keeps a revision
// readable where the Service reads; it gives wire.StatusOK, or why it can't.
func FromService(s Service, principal any, hold func(at wire.Revision) (release func(), st wire.Status)) *ServiceStore {
	return &ServiceStore{s, principal, hold}
}

// Hold implements Holder.
func (s *ServiceStore) Hold(at wire.Revision) (release func(), err error) {
	if s.hold == nil {
		return func() {}, nil
	}
	release, st := s.hold(at)
	if st != wire.StatusOK {
		return nil, &StatusError{Status: st}
	}
	return release, nil
}

// NotApplied reports whether what was answered so surely changed nothing.
func (e *StatusError) NotApplied() bool { return e.Status.Class() != wire.ClassUnknown }

// requestTimeout bounds one request. A stream has it for its beginning alone.
const requestTimeout = 30 * time.Second

// do executes one request.
func (s *ServiceStore) do(ctx context.Context, op wire.Opcode, ext, payload []byte) (wire.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	r, err := request(op, ext, payload)
	if err != nil {
		return wire.Response{}, err
	}
	return answer(s.s.Do(ctx, s.principal, r))
}

// request builds a request as if it had come through a door, so that it is checked as one.
func request(op wire.Opcode, ext, payload []byte) (*wire.Request, error) {
	h := wire.Header{Op: op, ID: 1, ExtLen: uint16(len(ext))}
	r := new(wire.Request)
	if ref := wire.ParseRequest(&h, slices.Concat(ext, payload), r); ref != nil {
		return nil, &StatusError{Status: ref.Status, Text: ref.Text}
	}
	return r, nil
}

// answer makes an error of what is no success.
func answer(r wire.Response) (wire.Response, error) {
	if r.Status == wire.StatusOK {
		return r, nil
	}
	e := &StatusError{Status: r.Status}
	if r.Status.Class() != wire.ClassResult {
		e.Text = string(r.Payload)
	}
	for ext := r.Ext; len(ext) > 0; {
		t, v, rest, err := wire.NextExt(ext)
		if err != nil {
			break
		}
		if ext = rest; t == wire.ExtRetryAfter && len(v) == 4 {
			e.RetryAfterMs = binary.LittleEndian.Uint32(v)
		}
	}
	return r, e
}

// Admin implements Admin.
func (s *ServiceStore) Admin(ctx context.Context, request []byte) ([]byte, error) {
	r, err := s.do(ctx, wire.OpAdmin, nil, request)
	return r.Payload, err
}

// Status implements Source.
func (s *ServiceStore) Status(ctx context.Context) ([]byte, error) {
	r, err := s.do(ctx, wire.OpStatus, nil, nil)
	return r.Payload, err
}

// Revision implements Source.
func (s *ServiceStore) Revision(ctx context.Context) (wire.Revision, error) {
	r, err := s.do(ctx, wire.OpScan, nil, wire.AppendScanRequest(nil, &wire.ScanRequest{Flags: wire.ScanKeysOnly, Limit: 1}))
	if err != nil {
		return 0, err
	}
	var p wire.ScanPage
	if err := wire.DecodeScanPage(r.Payload, &p); err != nil {
		return 0, err
	}
	return p.Revision, nil
}

// Scan implements Source.
func (s *ServiceStore) Scan(ctx context.Context, namespace string, at wire.Revision, from []byte, each func(*Record) error) error {
	ext := appendNamespace(nil, namespace)
	ext = wire.AppendExtU64(ext, wire.ExtAtRevision, at)
	r, err := request(wire.OpScan, ext, wire.AppendScanRequest(nil, &wire.ScanRequest{Flags: wire.ScanStream, Limit: wire.ScanLimitMax, Start: from}))
	if err != nil {
		return err
	}
	r.TimeoutMs = uint32(requestTimeout / time.Millisecond)
	var failed error
	page := func(f *wire.Response) error {
		failed = eachRecord(f.Payload, at, each)
		return failed
	}
	last := s.s.Stream(ctx, s.principal, r, page)
	if failed == nil && ctx.Err() != nil {
		failed = context.Cause(ctx)
	}
	if failed != nil {
		return failed
	}
	if _, err := answer(last); err != nil {
		return err
	}
	return page(&last)
}

// eachRecord takes a page apart.
func eachRecord(payload []byte, at wire.Revision, each func(*Record) error) error {
	var p wire.ScanPage
	if err := wire.DecodeScanPage(payload, &p); err != nil {
		return err
	}
	if p.Revision != at {
		return fmt.Errorf("a page shows revision %d, not %d", p.Revision, at)
	}
	var it wire.Item
	for items := p.Items; p.Count > 0; p.Count-- {
		var err error
		if items, err = wire.NextItem(items, &it); err != nil {
			return err
		}
		t, meta, kept, err := wire.NextExt(it.Ext)
		if err != nil || t != wire.ExtMeta {
			return fmt.Errorf("an item of a page begins with element %d, not with its metadata (%v)", t, err)
		}
		rec := Record{Key: it.Key, Ext: kept, Value: it.Value}
		if err := wire.DecodeMeta(meta, &rec.Meta); err != nil {
			return err
		}
		if err := each(&rec); err != nil {
			return err
		}
	}
	return nil
}

// Put implements Target: one batch that happens as a whole.
func (s *ServiceStore) Put(ctx context.Context, namespace string, batch []Put) error {
	now := time.Now()
	payload := wire.AppendGroupHeader(nil, wire.GroupAtomic, len(batch))
	for i := range batch {
		p := &batch[i]
		ext := p.Ext
		if ttl := p.TTL(now); ttl > 0 {
			ext = wire.AppendExtU64(slices.Clone(ext), wire.ExtTTL, uint64(ttl.Milliseconds()))
		}
		payload = wire.AppendItem(payload, &wire.Item{Op: wire.OpPut, Ext: ext, Key: p.Key, Value: p.Value})
	}
	_, err := s.do(ctx, wire.OpBatch, appendNamespace(nil, namespace), payload)
	return err
}

// appendNamespace names a namespace; the default one goes without.
func appendNamespace(ext []byte, name string) []byte {
	if name == wire.NamespaceDefaultName {
		return ext
	}
	return wire.AppendExtString(ext, wire.ExtNamespace, name)
}
