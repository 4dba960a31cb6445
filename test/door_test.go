package test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"kvstore/api/kvstorev1"
	"kvstore/client"
	"kvstore/internal/testcluster"
	"kvstore/wire"
)

// door is REST or gRPC of one node, for requests of the binary protocol: each becomes a call through the door, and what
// comes back becomes the answer that the binary protocol would give. So whatever the Go client can ask, and all that is
// expected of it, is asked of the other doors too. Methods are called concurrently.
//
// What a door can't say is listed here. The rest is translated without loss, or fails the test.
//
//   - Both have all-or-nothing batches alone. A batch whose items stand each for itself is sent whole where that is the
//     same, and item by item where an item can fail alone.
//   - Neither has sessions or streamed listings.
//   - Neither has a consistency of "linearizable, from any node": that is what a read is, there and at any node.
//   - gRPC has no administration but Status; namespaces are made by REST.
//   - REST: a value without a content type is application/octet-stream, as one with that type is; Retry-After is whole
//     seconds; a limit that was exceeded stands in the text alone. Conditions on values and tags, and several on one
//     write, stand in transactions alone.
type door interface {
	// single executes a get, exists, put, delete, touch or increment.
	single(ctx context.Context, a *asked) wire.Response
	// group executes a batch that is atomic, a transaction or a multiget. items are a's.
	group(ctx context.Context, a *asked, items []asked) wire.Response
	// list gives a page of a listing, or counts.
	list(ctx context.Context, a *asked, s *wire.ScanRequest) wire.Response
	// watch sends frames until the watch ends, ctx does, or send fails.
	watch(ctx context.Context, a *asked, w *wire.WatchRequest, send func(ext, payload []byte) error) wire.Response
	// admin executes a document.
	admin(ctx context.Context, doc []byte) wire.Response
}

// asked is a request, or an operation of one, taken apart without a judgement: what is wrong with it the door must say.
type asked struct {
	op      wire.Opcode
	timeout time.Duration
	key     string
	value   []byte // or the payload

	namespace             string
	stale                 bool
	maxAgeMs              uint64
	atRevision, atLeast   uint64
	ttlMs                 uint64
	tags                  []askedTag
	contentType, encoding string
	checksum              *uint64
	compress              *wire.Codec
	conditions            []wire.Condition
	history               []byte
	namespaceID           uint32
}

type askedTag struct{ name, value string }

// take reads the elements of ext; nothing may be lost.
func (a *asked) take(ext []byte) error {
	for len(ext) > 0 {
		t, v, rest, err := wire.NextExt(ext)
		if err != nil {
			return err
		}
		ext = rest
		switch t {
		case wire.ExtNamespace:
			a.namespace = string(v)
		case wire.ExtConsistency:
			a.stale = v[0] == wire.ConsistencyStale
		case wire.ExtMaxAge:
			a.maxAgeMs = binary.LittleEndian.Uint64(v)
		case wire.ExtMinRevision:
			a.atLeast = binary.LittleEndian.Uint64(v)
		case wire.ExtAtRevision:
			a.atRevision = binary.LittleEndian.Uint64(v)
		case wire.ExtTTL:
			a.ttlMs = binary.LittleEndian.Uint64(v)
		case wire.ExtTag:
			name, value, err := wire.SplitTag(v)
			if err != nil {
				return err
			}
			a.tags = append(a.tags, askedTag{string(name), string(value)})
		case wire.ExtContentType:
			a.contentType = string(v)
		case wire.ExtEncoding:
			a.encoding = string(v)
		case wire.ExtChecksum:
			sum := binary.LittleEndian.Uint64(v)
			a.checksum = &sum
		case wire.ExtCompress:
			codec := wire.Codec(v[0])
			a.compress = &codec
		case wire.ExtCondition:
			if len(v) == 0 {
				return errors.New("an empty condition")
			}
			a.conditions = append(a.conditions, wire.Condition{Kind: wire.ConditionKind(v[0]), Operand: v[1:]})
		case wire.ExtHistory:
			a.history = v
		case wire.ExtNamespaceID:
			a.namespaceID = binary.LittleEndian.Uint32(v)
		default:
			return fmt.Errorf("element %d is not translated", t)
		}
	}
	return nil
}

// only reports whether all operations of a batch are of one kind, and none of them on conditions if bare is set.
func only(items []asked, op wire.Opcode, bare bool) bool {
	return !slices.ContainsFunc(items, func(a asked) bool { return a.op != op || bare && len(a.conditions) != 0 })
}

// items takes a group apart.
func (a *asked) items() (flags uint8, items []asked, err error) {
	flags, n, b, err := wire.DecodeGroup(a.value)
	var it wire.Item
	for range n {
		if err != nil {
			break
		}
		if b, err = wire.NextItem(b, &it); err == nil {
			item := asked{op: it.Op, timeout: a.timeout, key: string(it.Key), value: it.Value, namespace: a.namespace}
			err = item.take(it.Ext)
			items = append(items, item)
		}
	}
	return flags, items, err
}

// versions gives the versions of a condition on one.
func versions(c wire.Condition) (all []uint64) {
	for b := c.Operand; len(b) >= 8; b = b[8:] {
		all = append(all, binary.LittleEndian.Uint64(b))
	}
	return all
}

// toldRecord is a record as a door told it.
type toldRecord struct {
	meta                  wire.Meta
	contentType, encoding string
	tags                  map[string]string
	value                 []byte
}

// ext gives the elements of the record.
func (r *toldRecord) ext() []byte {
	b := wire.AppendExtMeta(nil, &r.meta)
	for _, name := range slices.Sorted(maps.Keys(r.tags)) {
		b = wire.AppendExtTag(b, name, r.tags[name])
	}
	if r.contentType != "" {
		b = wire.AppendExtString(b, wire.ExtContentType, r.contentType)
	}
	if r.encoding != "" {
		b = wire.AppendExtString(b, wire.ExtEncoding, r.encoding)
	}
	return b
}

// toldEvent is an event as a door told it.
type toldEvent struct {
	kind         wire.EventKind
	revision     wire.Revision
	key          string
	record       *toldRecord // of a put
	previous     *toldRecord
	previousLost bool
	last         bool
}

// eventFrame builds the payload of a frame of a watch.
func eventFrame(rev wire.Revision, events ...toldEvent) []byte {
	b := wire.AppendEventBatchHeader(nil, rev, len(events))
	for _, e := range events {
		w := wire.Event{Kind: e.kind, Revision: e.revision, Key: []byte(e.key)}
		if e.record != nil {
			w.Ext, w.Value = e.record.ext(), e.record.value
		}
		if e.previous != nil {
			w.Flags |= wire.EventHadPrevious
			w.PreviousExt, w.Previous = e.previous.ext(), e.previous.value
		}
		if e.previousLost {
			w.Flags |= wire.EventPreviousLost
		}
		if e.last {
			w.Flags |= wire.EventLast
		}
		b = wire.AppendEvent(b, &w)
	}
	return b
}

// scanPage builds the payload of a page.
func scanPage(rev wire.Revision, items []wire.Item, cursor []byte) []byte {
	b := make([]byte, wire.ScanPageHeaderBytes)
	wire.PutScanPageHeader(b, rev, len(items), len(cursor))
	for i := range items {
		b = wire.AppendItem(b, &items[i])
	}
	return append(b, cursor...)
}

// mergeItems puts records and common prefixes, which doors tell apart from each other, in the order of the listing.
func mergeItems(records, prefixes []wire.Item, reverse bool) ([]wire.Item, error) {
	order := func(a, b wire.Item) int {
		if reverse {
			a, b = b, a
		}
		return bytes.Compare(a.Key, b.Key)
	}
	if !slices.IsSortedFunc(records, order) || !slices.IsSortedFunc(prefixes, order) {
		return nil, errors.New("a listing is out of order")
	}
	all := slices.Concat(records, prefixes)
	slices.SortStableFunc(all, order)
	return all, nil
}

// countPage builds the payload of a page of a count.
func countPage(rev wire.Revision, n uint64, cursor []byte) []byte {
	b := make([]byte, wire.ScanPageHeaderBytes)
	wire.PutScanCountHeader(b, rev, int(n), len(cursor))
	return append(b, cursor...)
}

// groupResult builds the answer of a group.
func groupResult(rev wire.Revision, items []wire.Item) wire.Response {
	b := wire.AppendResultHeader(nil, rev, len(items))
	for i := range items {
		b = wire.AppendItem(b, &items[i])
	}
	return wire.Response{Payload: b}
}

// statusNamed finds a status by its name; its code must be the one of the table.
func statusNamed(name, code string) (wire.Status, error) {
	for _, in := range wire.Statuses() {
		if in.Name == name && in.Code == code {
			return in.Status, nil
		}
	}
	return 0, fmt.Errorf("no status is called %q with the code %q", name, code)
}

// toldOutcome checks what a door says of the effect of a failure beside its status: nothing may speak against it.
func toldOutcome(write bool, st wire.Status, applied string, retryable bool) error {
	if retryable != st.Retryable() {
		return fmt.Errorf("%s is told as retryable: %v", st, retryable)
	}
	if applied == "" && !write || applied == st.Applied() {
		return nil
	}
	return fmt.Errorf("%s is told as applied: %q, want %q", st, applied, st.Applied())
}

// errorAnswer builds an answer that is none of success.
func errorAnswer(st wire.Status, text string, pause time.Duration, failed []wire.FailedCondition) wire.Response {
	r := wire.ErrorResponse(&wire.Refusal{Status: st, Text: text, RetryAfterMs: uint32(pause.Milliseconds())}, nil)
	if st == wire.StatusConditionFailed {
		r.Payload = wire.AppendFailed(nil, failed)
	}
	return r
}

// TestDoor_WhatSpeaksAgainstItself_IsFoundOut is the control of the translators: what a door says that speaks against itself,
// or that the table of statuses does not know, is noticed.
func TestDoor_WhatSpeaksAgainstItself_IsFoundOut(t *testing.T) {
	t.Parallel()
	for _, in := range wire.Statuses() {
		st, err := statusNamed(in.Name, in.Code)
		if err != nil || st != in.Status {
			t.Errorf("%s: %v, %v", in.Name, st, err)
		}
		if err := toldOutcome(true, st, st.Applied(), st.Retryable()); err != nil {
			t.Error(err)
		}
		for _, applied := range []string{"", "yes", "no", "unknown"} {
			if err := toldOutcome(true, st, applied, st.Retryable()); (err == nil) != (applied == st.Applied()) {
				t.Errorf("%s of a write, told as applied %q: %v", st, applied, err)
			}
		}
		if toldOutcome(true, st, st.Applied(), !st.Retryable()) == nil {
			t.Errorf("%s of a write, told as retryable %v, is not found out", st, !st.Retryable())
		}
	}
	if st, err := statusNamed("BUSY", "KV-2002"); err == nil {
		t.Errorf("a code that is not the name's: %v", st)
	}
}

// TestDoor_WhatItCannotSay_IsRefused asks the doors for what the binary protocol can and they can't. None passes over it
// as if it had been done.
func TestDoor_WhatItCannotSay_IsRefused(t *testing.T) {
	t.Parallel()
	n := testcluster.Start(t, testcluster.Options{})
	rest, conn := openREST(t, n, patience), dialGRPC(t, n)
	const doc = "/api/v1/"
	for what, c := range map[string]struct {
		method, target string
		header         map[string]string
		body           string
		status         wire.Status
		says           string
	}{
		"a key that is not UTF-8":                {"PUT", keys + "%ff", nil, "v", wire.StatusBadKey, "UTF-8"},
		"a key that is not UTF-8, in a batch":    {"POST", doc + "batch/put", nil, "{\"items\":[{\"key\":\"\xff\",\"text\":\"v\"}]}", wire.StatusBadRequest, "UTF-8"},
		"a batch whose items stand alone":        {"POST", doc + "batch/put", nil, `{"items":[{"key":"refused","text":"v"}],"atomic":false}`, wire.StatusBadRequest, "nothing else"},
		"a mixed batch":                          {"POST", doc + "batch/put", nil, `{"items":[{"key":"refused","text":"v","type":"DELETE"}]}`, wire.StatusBadRequest, "items[0].type"},
		"a read that says from any node":         {"GET", keys + "refused?consistency=any", nil, "", wire.StatusBadRequest, "consistency"},
		"a write that says that it may be stale": {"PUT", keys + "refused?consistency=stale", nil, "v", wire.StatusBadRequest, "consistency"},
		"a write in a session":                   {"PUT", keys + "refused?session=1", nil, "v", wire.StatusBadRequest, "session"},
		"a streamed listing":                     {"GET", doc + "keys?stream=true", nil, "", wire.StatusBadRequest, "stream"},
		"a condition on a tag of one write":      {"PUT", keys + "refused?if_tag_present=a", nil, "v", wire.StatusBadRequest, "if_tag_present"},
		"a condition on no version":              {"PUT", keys + "refused", map[string]string{"If-None-Match": `"5"`}, "v", wire.StatusBadRequest, "If-None-Match"},
		"a time to live below a millisecond":     {"PUT", keys + "refused?ttl_ms=0.5", nil, "v", wire.StatusBadRequest, "ttl_ms"},
	} {
		r := rest.mustDo(t, c.method, c.target, c.header, []byte(c.body))
		p := r.problem()
		answer, err := p.answer(c.method != "GET")
		if err != nil || answer.Status != c.status || r.status != p.Status || !strings.Contains(p.Detail, c.says) {
			t.Errorf("REST: %s: %v, %v; want %s that says %q", what, r, err, c.status, c.says)
		}
	}
	for what, c := range map[string]struct {
		method string
		in     any
		status wire.Status
		says   string
	}{
		// Field 2 of that message is bytes where those of the calls are text.
		"a key that is not UTF-8":            {kvstorev1.KVStore_Put_FullMethodName, &kvstorev1.RestoreRequest{Data: []byte("\xff")}, wire.StatusBadRequest, "UTF-8"},
		"a read of a key that is not UTF-8":  {kvstorev1.KVStore_Get_FullMethodName, &kvstorev1.RestoreRequest{Data: []byte("\xff")}, wire.StatusBadRequest, "UTF-8"},
		"a time to live below a millisecond": {kvstorev1.KVStore_Put_FullMethodName, &kvstorev1.PutRequest{Key: "refused", Options: &kvstorev1.PutOptions{Ttl: &durationpb.Duration{Nanos: 500_000}}}, wire.StatusBadRequest, "milliseconds"},
		"a condition that demands nothing":   {kvstorev1.KVStore_Put_FullMethodName, &kvstorev1.PutRequest{Key: "refused", Conditions: []*kvstorev1.Condition{{}}}, wire.StatusBadRequest, "condition 0"},
		"a consistency that is none":         {kvstorev1.KVStore_Get_FullMethodName, &kvstorev1.GetRequest{Key: "refused", Read: &kvstorev1.ReadOptions{Consistency: 2}}, wire.StatusBadRequest, "consistency"},
		"an operation of no kind":            {kvstorev1.KVStore_Transaction_FullMethodName, &kvstorev1.TransactionRequest{Operations: []*kvstorev1.Operation{{}}}, wire.StatusBadRequest, "operation 0"},
	} {
		err := conn.Invoke(t.Context(), c.method, c.in, new(emptypb.Empty))
		f, ours, bad := failureOf(err)
		if bad == nil && ours {
			bad = toldOutcome(c.method != kvstorev1.KVStore_Get_FullMethodName, f.status, f.applied, f.retryable)
		}
		if bad != nil || !ours || f.status != c.status || !strings.Contains(f.text, c.says) {
			t.Errorf("gRPC: %s: %v, %v; want %s that says %q", what, err, bad, c.status, c.says)
		}
	}
	c := open(t, n)
	for e, err := range c.List(t.Context(), client.ListOptions{}) {
		t.Errorf("after all refusals there is %q, %v", e.Key, err)
	}
}
