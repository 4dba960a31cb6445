package test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"kvstore/api/kvstorev1"
	"kvstore/internal/testcluster"
	"kvstore/wire"
)

// grpcDoorway is gRPC of one node.
type grpcDoorway struct {
	t    *testing.T
	c    kvstorev1.KVStoreClient
	rest *restDoorway // of the same node, for what gRPC has no calls for
}

// openGRPC makes a client of one node; its connection is closed with the test.
func openGRPC(t *testing.T, n *testcluster.Node, opts ...grpc.DialOption) kvstorev1.KVStoreClient {
	t.Helper()
	return kvstorev1.NewKVStoreClient(dialGRPC(t, n, opts...))
}

func dialGRPC(t *testing.T, n *testcluster.Node, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	const messageBytesMax = wire.FrameBodyBytesMax + 1<<20
	opts = append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageBytesMax), grpc.MaxCallSendMsgSize(2*messageBytesMax)))
	conn, err := grpc.NewClient("passthrough:///"+n.GRPCAddr(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

func openGRPCDoorway(t *testing.T, n *testcluster.Node, rest *restDoorway) *grpcDoorway {
	t.Helper()
	return &grpcDoorway{t, openGRPC(t, n), rest}
}

// grpcFailure is what an error of a call says, if it is one of ours.
type grpcFailure struct {
	code      codes.Code
	status    wire.Status
	applied   string
	retryable bool
	text      string
	pause     time.Duration
	failed    []wire.FailedCondition
}

// failureOf reads the details of an error. ours is false where the server has not said anything: what gRPC itself says of
// a broken connection, or of a deadline of the client's own.
func failureOf(err error) (f grpcFailure, ours bool, bad error) {
	st, _ := status.FromError(err)
	f = grpcFailure{code: st.Code(), text: st.Message()}
	for _, detail := range st.Details() {
		switch x := detail.(type) {
		case *errdetails.ErrorInfo:
			if ours = x.GetDomain() == "kvstore"; !ours {
				return f, false, fmt.Errorf("an ErrorInfo of domain %q", x.GetDomain())
			}
			if f.status, bad = statusNamed(x.GetReason(), x.GetMetadata()["code"]); bad != nil {
				return f, true, bad
			}
			f.applied, f.retryable = x.GetMetadata()["applied"], x.GetMetadata()["retryable"] == "true"
		case *errdetails.RetryInfo:
			f.pause = x.GetRetryDelay().AsDuration()
		case *errdetails.RequestInfo:
		case *kvstorev1.FailedConditions:
			for _, c := range x.GetFailed() {
				f.failed = append(f.failed, wire.FailedCondition{Operation: c.GetOperation(), Condition: c.GetCondition()})
			}
		default:
			return f, ours, fmt.Errorf("a detail of type %T is not translated", detail)
		}
	}
	if ours && (f.code == codes.Unknown) != (f.status.Class() == wire.ClassUnknown) {
		bad = fmt.Errorf("%s is told by %s", f.status, f.code)
	}
	return f, ours, bad
}

// fail gives the answer that an error stands for.
func (d *grpcDoorway) fail(ctx context.Context, what string, write bool, err error) wire.Response {
	f, ours, bad := failureOf(err)
	if bad == nil && ours {
		bad = toldOutcome(write || f.applied != "", f.status, f.applied, f.retryable)
	}
	if !ours && bad == nil && ctx.Err() == nil {
		bad = errors.New("an error that isn't the server's")
	}
	if bad != nil {
		d.t.Errorf("gRPC: %s: %v: %v", what, bad, err)
		return errorAnswer(wire.StatusInternal, err.Error(), 0, nil)
	}
	if !ours {
		return errorAnswer(wire.StatusInternal, err.Error(), 0, nil) // the client has given the call up
	}
	return errorAnswer(f.status, f.text, f.pause, f.failed)
}

// millis gives a duration; nil for 0.
func millis(ms uint64) *durationpb.Duration {
	if ms == 0 {
		return nil
	}
	return &durationpb.Duration{Seconds: int64(ms / 1000), Nanos: int32(ms%1000) * 1e6}
}

// protoRead gives what steers a read.
func (a *asked) protoRead() *kvstorev1.ReadOptions {
	o := &kvstorev1.ReadOptions{MaxAge: millis(a.maxAgeMs), Revision: a.atRevision, MinRevision: a.atLeast}
	if a.stale {
		o.Consistency = kvstorev1.Consistency_CONSISTENCY_STALE
	}
	return o
}

var protoCompressions = map[wire.Codec]kvstorev1.Compression{
	wire.CodecNone: kvstorev1.Compression_COMPRESSION_NONE, wire.CodecS2: kvstorev1.Compression_COMPRESSION_S2,
	wire.CodecZstd: kvstorev1.Compression_COMPRESSION_ZSTD, wire.CodecLZ4: kvstorev1.Compression_COMPRESSION_LZ4,
}

// protoPut gives what is kept with a value.
func (a *asked) protoPut() *kvstorev1.PutOptions {
	o := &kvstorev1.PutOptions{Ttl: millis(a.ttlMs), ContentType: a.contentType, ContentEncoding: a.encoding, Checksum: a.checksum}
	for _, t := range a.tags {
		if o.Tags == nil {
			o.Tags = make(map[string]string)
		}
		o.Tags[t.name] = t.value
	}
	if a.compress != nil {
		o.Compression = protoCompressions[*a.compress]
	}
	return o
}

// protoConditions gives what must hold.
func (a *asked) protoConditions() (all []*kvstorev1.Condition) {
	for _, c := range a.conditions {
		p := &kvstorev1.Condition{}
		switch c.Kind {
		case wire.ConditionVersion:
			if v := versions(c); len(v) == 1 {
				p.Kind = &kvstorev1.Condition_IfVersionMatch{IfVersionMatch: v[0]}
			} else {
				p.Kind = &kvstorev1.Condition_IfVersionIn{IfVersionIn: &kvstorev1.Versions{Versions: v}}
			}
		case wire.ConditionExists:
			p.Kind = &kvstorev1.Condition_IfExists{IfExists: true}
		case wire.ConditionAbsent:
			p.Kind = &kvstorev1.Condition_IfNotExists{IfNotExists: true}
		case wire.ConditionValue:
			p.Kind = &kvstorev1.Condition_IfValueMatch{IfValueMatch: c.Operand}
		case wire.ConditionTag:
			name, value, _ := wire.SplitTag(c.Operand)
			p.Kind = &kvstorev1.Condition_IfTagMatch{IfTagMatch: &kvstorev1.Tag{Name: string(name), Value: string(value)}}
		case wire.ConditionTagPresent:
			p.Kind = &kvstorev1.Condition_IfTagPresent{IfTagPresent: string(c.Operand)}
		case wire.ConditionTagAbsent:
			p.Kind = &kvstorev1.Condition_IfTagAbsent{IfTagAbsent: string(c.Operand)}
		}
		all = append(all, p)
	}
	return all
}

// delta gives what an increment adds.
func (a *asked) delta() *int64 {
	n, _ := wire.DecodeIncrement(a.value)
	return &n
}

// protoTold gives a record that gRPC told.
func protoTold(r *kvstorev1.Record) *toldRecord {
	us := func(at *timestamppb.Timestamp) int64 {
		if at == nil {
			return 0
		}
		return at.AsTime().UnixMicro()
	}
	return &toldRecord{
		meta:        wire.Meta{Version: r.GetVersion(), CreatedAt: us(r.GetCreatedAt()), UpdatedAt: us(r.GetUpdatedAt()), ExpiresAt: us(r.GetExpiresAt()), Checksum: r.GetChecksum()},
		contentType: r.GetContentType(), encoding: r.GetContentEncoding(), tags: r.GetTags(), value: r.GetValue(),
	}
}

// ageExt tells the age of an answer.
func ageExt(ext []byte, age *durationpb.Duration) []byte {
	if age == nil {
		return ext
	}
	return wire.AppendExtU64(ext, wire.ExtAge, uint64(age.AsDuration().Microseconds()))
}

// single implements door.
func (d *grpcDoorway) single(ctx context.Context, a *asked) wire.Response {
	what := fmt.Sprintf("%s %.40q", a.op, a.key)
	var version uint64
	var err error
	switch a.op {
	case wire.OpGet, wire.OpExists:
		r, err := d.c.Get(ctx, &kvstorev1.GetRequest{Namespace: a.namespace, Key: a.key, Read: a.protoRead(), MetadataOnly: a.op == wire.OpExists})
		if err != nil {
			return d.fail(ctx, what, false, err)
		}
		rec := protoTold(r.GetRecord())
		if r.GetRecord().GetValueLeftOut() != (a.op == wire.OpExists) || r.GetRecord().GetKey() != a.key {
			d.t.Errorf("gRPC: %s: the record of %.40q, value left out: %v", what, r.GetRecord().GetKey(), r.GetRecord().GetValueLeftOut())
		}
		return wire.Response{Ext: ageExt(rec.ext(), r.GetAge()), Payload: rec.value}
	case wire.OpIncrement:
		r, err := d.c.Increment(ctx, &kvstorev1.IncrementRequest{Namespace: a.namespace, Key: a.key, Delta: a.delta(), Ttl: millis(a.ttlMs), Conditions: a.protoConditions()})
		if err != nil {
			return d.fail(ctx, what, true, err)
		}
		return wire.Response{Payload: wire.AppendCounter(nil, r.GetVersion(), r.GetValue())}
	case wire.OpDelete:
		r, err := d.c.Delete(ctx, &kvstorev1.DeleteRequest{Namespace: a.namespace, Key: a.key, Conditions: a.protoConditions()})
		if err != nil {
			return d.fail(ctx, what, true, err)
		}
		answer := wire.Response{Payload: wire.AppendVersion(nil, r.GetVersion())}
		if !r.GetDeleted() {
			answer.Status = wire.StatusNotFound
		}
		return answer
	case wire.OpPut:
		var r *kvstorev1.PutResponse
		r, err = d.c.Put(ctx, &kvstorev1.PutRequest{Namespace: a.namespace, Key: a.key, Value: a.value, Options: a.protoPut(), Conditions: a.protoConditions()})
		version = r.GetVersion()
	case wire.OpTouch:
		var r *kvstorev1.TouchResponse
		r, err = d.c.Touch(ctx, &kvstorev1.TouchRequest{Namespace: a.namespace, Key: a.key, Ttl: millis(a.ttlMs), Conditions: a.protoConditions()})
		version = r.GetVersion()
	}
	if err != nil {
		return d.fail(ctx, what, true, err)
	}
	return wire.Response{Payload: wire.AppendVersion(nil, version)}
}

// protoOperation gives an operation of a transaction.
func (a *asked) protoOperation() *kvstorev1.Operation {
	o := &kvstorev1.Operation{Conditions: a.protoConditions()}
	switch a.op {
	case wire.OpPut:
		o.Kind = &kvstorev1.Operation_Put{Put: &kvstorev1.PutOperation{Key: a.key, Value: a.value, Options: a.protoPut()}}
	case wire.OpDelete:
		o.Kind = &kvstorev1.Operation_Delete{Delete: &kvstorev1.DeleteOperation{Key: a.key}}
	case wire.OpGet:
		o.Kind = &kvstorev1.Operation_Get{Get: &kvstorev1.GetOperation{Key: a.key}}
	case wire.OpCheck:
		o.Kind = &kvstorev1.Operation_Check{Check: &kvstorev1.CheckOperation{Key: a.key}}
	case wire.OpTouch:
		o.Kind = &kvstorev1.Operation_Touch{Touch: &kvstorev1.TouchOperation{Key: a.key, Ttl: millis(a.ttlMs)}}
	case wire.OpIncrement:
		o.Kind = &kvstorev1.Operation_Increment{Increment: &kvstorev1.IncrementOperation{Key: a.key, Delta: a.delta(), Ttl: millis(a.ttlMs)}}
	}
	return o
}

// group implements door.
func (d *grpcDoorway) group(ctx context.Context, a *asked, items []asked) wire.Response {
	var results []*kvstorev1.OperationResult
	var rev wire.Revision
	var age *durationpb.Duration
	var err error
	keys := make([]string, len(items))
	for i := range items {
		keys[i] = items[i].key
	}
	switch {
	case a.op == wire.OpMultiGet:
		var r *kvstorev1.BatchGetResponse
		r, err = d.c.BatchGet(ctx, &kvstorev1.BatchGetRequest{Namespace: a.namespace, Keys: keys, Read: a.protoRead()})
		results, rev, age = r.GetResults(), r.GetRevision(), r.GetAge()
	case a.op == wire.OpBatch && only(items, wire.OpDelete, true):
		var r *kvstorev1.BatchDeleteResponse
		r, err = d.c.BatchDelete(ctx, &kvstorev1.BatchDeleteRequest{Namespace: a.namespace, Keys: keys})
		results, rev = r.GetResults(), r.GetVersion()
	case a.op == wire.OpBatch && only(items, wire.OpPut, false):
		in := &kvstorev1.BatchPutRequest{Namespace: a.namespace}
		for i := range items {
			it := &items[i]
			in.Items = append(in.Items, &kvstorev1.BatchPutItem{Key: it.key, Value: it.value, Options: it.protoPut(), Conditions: it.protoConditions()})
		}
		var r *kvstorev1.BatchPutResponse
		r, err = d.c.BatchPut(ctx, in)
		results, rev = r.GetResults(), r.GetVersion()
	default:
		in := &kvstorev1.TransactionRequest{Namespace: a.namespace}
		for i := range items {
			in.Operations = append(in.Operations, items[i].protoOperation())
		}
		var r *kvstorev1.TransactionResponse
		r, err = d.c.Transaction(ctx, in)
		results, rev = r.GetResults(), r.GetVersion()
	}
	if err != nil {
		return d.fail(ctx, a.op.String(), a.op.IsWrite(), err)
	}
	if len(results) != len(items) {
		d.t.Errorf("gRPC: %d results for %d operations of a %s", len(results), len(items), a.op)
		return errorAnswer(wire.StatusInternal, "", 0, nil)
	}
	told := make([]wire.Item, len(items))
	for i, r := range results {
		if told[i], err = protoItem(&items[i], r); err != nil {
			d.t.Errorf("gRPC: operation %d of a %s: %v", i, a.op, err)
		}
	}
	answer := groupResult(rev, told)
	answer.Ext = ageExt(nil, age)
	return answer
}

// protoItem gives a result as the binary protocol has it.
func protoItem(a *asked, r *kvstorev1.OperationResult) (it wire.Item, err error) {
	it.Op = a.op
	if r.GetKey() != a.key {
		return it, fmt.Errorf("the result for key %.40q is told as that for %.40q", a.key, r.GetKey())
	}
	if e := r.GetError(); e != nil {
		if it.Status, err = statusNamed(e.GetReason(), e.GetCode()); err == nil && it.Status.Retryable() != e.GetRetryable() {
			err = fmt.Errorf("%s is told as retryable: %v", it.Status, e.GetRetryable())
		}
		it.Value = []byte(e.GetMessage())
		return it, err
	}
	if !r.GetFound() {
		it.Status = wire.StatusNotFound
	}
	switch a.op {
	case wire.OpCheck:
	case wire.OpGet:
		if r.GetFound() {
			rec := protoTold(r.GetRecord())
			it.Ext, it.Value = rec.ext(), rec.value
		}
	case wire.OpIncrement:
		it.Value = wire.AppendCounter(nil, r.GetVersion(), r.GetValue())
	default:
		it.Value = wire.AppendVersion(nil, r.GetVersion())
	}
	return it, nil
}

// list implements door.
func (d *grpcDoorway) list(ctx context.Context, a *asked, s *wire.ScanRequest) wire.Response {
	keysOnly, counts := s.Flags&wire.ScanKeysOnly != 0, s.Flags&wire.ScanCount != 0
	r, err := d.c.List(ctx, &kvstorev1.ListRequest{
		Namespace: a.namespace, Prefix: string(s.Prefix), Start: string(s.Start), End: string(s.End), Limit: s.Limit, Cursor: s.Cursor,
		KeysOnly: keysOnly, Reverse: s.Flags&wire.ScanReverse != 0, Delimiter: string(s.Delimiter), CountOnly: counts, Read: a.protoRead(),
	})
	if err != nil {
		return d.fail(ctx, "list", false, err)
	}
	answer := wire.Response{Ext: ageExt(nil, r.GetAge())}
	if counts {
		answer.Payload = countPage(r.GetRevision(), r.GetCount(), r.GetNextCursor())
		return answer
	}
	var items, prefixes []wire.Item
	for _, rec := range r.GetRecords() {
		if rec.GetValueLeftOut() != keysOnly {
			d.t.Errorf("gRPC: list: %.40q, value left out: %v", rec.GetKey(), rec.GetValueLeftOut())
		}
		told := protoTold(rec)
		items = append(items, wire.Item{Op: wire.OpGet, Key: []byte(rec.GetKey()), Ext: told.ext(), Value: told.value})
	}
	for _, p := range r.GetCommonPrefixes() {
		prefixes = append(prefixes, wire.Item{Op: wire.OpScan, Key: []byte(p)})
	}
	if items, err = mergeItems(items, prefixes, s.Flags&wire.ScanReverse != 0); err != nil {
		d.t.Errorf("gRPC: list: %v", err)
	}
	answer.Payload = scanPage(r.GetRevision(), items, r.GetNextCursor())
	return answer
}

// watch implements door.
func (d *grpcDoorway) watch(ctx context.Context, a *asked, w *wire.WatchRequest, send func(ext, payload []byte) error) wire.Response {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // which frees the stream
	in := &kvstorev1.WatchRequest{
		Namespace: a.namespace, Prefix: string(w.Prefix), Start: string(w.Start), End: string(w.End),
		KeysOnly: w.Flags&wire.WatchKeysOnly != 0, Previous: w.Flags&wire.WatchPrevious != 0,
		ProgressInterval: millis(uint64(w.ProgressMs)), History: a.history,
	}
	if w.Flags&wire.WatchKey != 0 {
		in.Key, in.Start = in.Start, ""
	}
	if w.Flags&wire.WatchFromNow == 0 {
		in.AfterRevision = &w.After
	}
	if a.stale {
		in.Consistency = kvstorev1.Consistency_CONSISTENCY_STALE
	}
	if a.namespaceID != 0 {
		in.NamespaceId = &a.namespaceID
	}
	for flag, kind := range map[uint8]kvstorev1.EventType{
		wire.WatchNoPut: kvstorev1.EventType_EVENT_TYPE_PUT, wire.WatchNoDelete: kvstorev1.EventType_EVENT_TYPE_DELETE, wire.WatchNoExpire: kvstorev1.EventType_EVENT_TYPE_EXPIRE,
	} {
		if w.Flags&flag == 0 {
			in.Types = append(in.Types, kind)
		}
	}
	stream, err := d.c.Watch(ctx, in)
	if err != nil {
		return d.fail(ctx, "watch", false, err)
	}
	kinds := map[kvstorev1.EventType]wire.EventKind{
		kvstorev1.EventType_EVENT_TYPE_PUT: wire.EventPut, kvstorev1.EventType_EVENT_TYPE_DELETE: wire.EventDelete, kvstorev1.EventType_EVENT_TYPE_EXPIRE: wire.EventExpire,
	}
	for first := true; ; first = false {
		r, err := stream.Recv()
		if err != nil {
			return d.fail(ctx, "watch", false, err)
		}
		var ext []byte
		if first {
			if r.NamespaceId == nil || *r.NamespaceId == math.MaxUint32 {
				d.t.Error("gRPC: the first answer of a watch doesn't tell the namespace")
			}
			ext = wire.AppendExt(nil, wire.ExtHistory, r.GetHistory())
			ext = wire.AppendExtU32(ext, wire.ExtNamespaceID, r.GetNamespaceId())
		}
		events := make([]toldEvent, len(r.GetEvents()))
		for i, e := range r.GetEvents() {
			rec := e.GetRecord()
			events[i] = toldEvent{kind: kinds[e.GetType()], revision: rec.GetVersion(), key: rec.GetKey(), previousLost: e.GetPreviousLost(), last: e.GetLast()}
			if events[i].kind == wire.EventPut {
				events[i].record = protoTold(rec)
			}
			if e.GetPrevious() != nil {
				events[i].previous = protoTold(e.GetPrevious())
			}
		}
		if err := send(ext, eventFrame(r.GetRevision(), events...)); err != nil {
			return errorAnswer(wire.StatusCancelled, err.Error(), 0, nil)
		}
	}
}

// admin implements door.
func (d *grpcDoorway) admin(ctx context.Context, doc []byte) wire.Response {
	return d.rest.admin(ctx, doc)
}
