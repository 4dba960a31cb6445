package test

import (
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"kvstore/api/kvstorev1"
	"kvstore/client"
	"kvstore/internal/testcluster"
	"kvstore/wire"
)

var le = binary.LittleEndian

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// grpcDoor translates to gRPC.
type grpcDoor struct {
	c kvstorev1.KVStoreClient
	// admin takes what gRPC has no calls for: the administration of namespaces, by the node's native port.
	admin  *client.Forwarder
	native string
}

func openGRPC(t *testing.T, n *testcluster.Node) *grpcDoor {
	t.Helper()
	conn, err := grpc.NewClient(n.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	admin := client.NewForwarder(client.ForwarderOptions{})
	t.Cleanup(func() {
		if err := errors.Join(conn.Close(), admin.Close()); err != nil {
			t.Error(err)
		}
	})
	return &grpcDoor{kvstorev1.NewKVStoreClient(conn), admin, n.Addr()}
}

// failed gives the answer that an error stands for.
func (d *grpcDoor) failed(err error) wire.Response {
	st := status.Convert(err)
	r := wire.Response{Status: wire.StatusInternal, Payload: []byte(st.Message())}
	for _, detail := range st.Details() {
		switch v := detail.(type) {
		case *errdetails.ErrorInfo:
			r.Status = statusByCode(v.GetMetadata()["code"])
		case *errdetails.RetryInfo:
			r.Ext = wire.AppendExtU32(r.Ext, wire.ExtRetryAfter, uint32(v.GetRetryDelay().AsDuration().Milliseconds()))
		case *kvstorev1.FailedConditions:
			var all []wire.FailedCondition
			for _, f := range v.GetFailed() {
				all = append(all, wire.FailedCondition{Operation: f.GetOperation(), Condition: f.GetCondition()})
			}
			r.Payload = wire.AppendFailed(nil, all)
		}
	}
	if st.Code() == codes.Canceled && r.Status == wire.StatusInternal {
		r.Status = wire.StatusCancelled
	}
	return r
}

func ttlOf(ms uint64) *durationpb.Duration {
	if ms == 0 {
		return nil
	}
	return &durationpb.Duration{Seconds: int64(ms / 1000), Nanos: int32(ms%1000) * 1e6}
}

func (a *asked) putOptions() *kvstorev1.PutOptions {
	o := &kvstorev1.PutOptions{Ttl: ttlOf(a.ttlMs), Tags: a.tags, ContentType: a.contentType, ContentEncoding: a.encoding, Checksum: a.sum}
	if a.compress != nil {
		o.Compression = map[wire.Codec]kvstorev1.Compression{
			wire.CodecNone: kvstorev1.Compression_COMPRESSION_NONE, wire.CodecS2: kvstorev1.Compression_COMPRESSION_S2,
			wire.CodecZstd: kvstorev1.Compression_COMPRESSION_ZSTD, wire.CodecLZ4: kvstorev1.Compression_COMPRESSION_LZ4,
		}[*a.compress]
	}
	return o
}

func (a *asked) readOptions() *kvstorev1.ReadOptions {
	o := &kvstorev1.ReadOptions{Revision: a.at, MinRevision: a.atLeast, MaxAge: ttlOf(a.maxAgeMs)}
	if a.stale {
		o.Consistency = kvstorev1.Consistency_CONSISTENCY_STALE
	}
	return o
}

func (a *asked) grpcConditions() (all []*kvstorev1.Condition) {
	for _, c := range a.conditions {
		var k kvstorev1.Condition
		switch c.Kind {
		case wire.ConditionVersion:
			if v := versionsOf(c); len(v) == 1 {
				k.Kind = &kvstorev1.Condition_IfVersionMatch{IfVersionMatch: v[0]}
			} else {
				k.Kind = &kvstorev1.Condition_IfVersionIn{IfVersionIn: &kvstorev1.Versions{Versions: v}}
			}
		case wire.ConditionExists:
			k.Kind = &kvstorev1.Condition_IfExists{IfExists: true}
		case wire.ConditionAbsent:
			k.Kind = &kvstorev1.Condition_IfNotExists{IfNotExists: true}
		case wire.ConditionValue:
			k.Kind = &kvstorev1.Condition_IfValueMatch{IfValueMatch: c.Operand}
		case wire.ConditionTag:
			name, value, err := wire.SplitTag(c.Operand)
			if err != nil {
				panic(err)
			}
			k.Kind = &kvstorev1.Condition_IfTagMatch{IfTagMatch: &kvstorev1.Tag{Name: string(name), Value: string(value)}}
		case wire.ConditionTagPresent:
			k.Kind = &kvstorev1.Condition_IfTagPresent{IfTagPresent: string(c.Operand)}
		case wire.ConditionTagAbsent:
			k.Kind = &kvstorev1.Condition_IfTagAbsent{IfTagAbsent: string(c.Operand)}
		}
		all = append(all, &k)
	}
	return all
}

// extOf gives the elements of a record that gRPC told of.
func extOf(r *kvstorev1.Record) []byte {
	d := doorRecord{
		version: r.GetVersion(), created: r.GetCreatedAt().AsTime(), updated: r.GetUpdatedAt().AsTime(), sum: r.GetChecksum(),
		contentType: r.GetContentType(), encoding: r.GetContentEncoding(), tags: r.GetTags(),
	}
	if r.GetExpiresAt() != nil {
		d.expires = r.GetExpiresAt().AsTime()
	}
	return d.ext()
}

func ageExt(age *durationpb.Duration) []byte {
	if age == nil {
		return nil
	}
	return wire.AppendExtU64(nil, wire.ExtAge, uint64(age.AsDuration().Microseconds()))
}

func statusOfFound(ok bool) wire.Status {
	if ok {
		return wire.StatusOK
	}
	return wire.StatusNotFound
}

func (d *grpcDoor) do(ctx context.Context, r *wire.Request) wire.Response {
	a, key := readExt(r.Ext), string(r.Key)
	ns := a.namespace
	switch r.Op {
	case wire.OpAdmin, wire.OpStatus:
		return d.admin.Do(ctx, d.native, r)
	case wire.OpPut:
		out, err := d.c.Put(ctx, &kvstorev1.PutRequest{Namespace: ns, Key: key, Value: r.Payload, Options: a.putOptions(), Conditions: a.grpcConditions()})
		if err != nil {
			return d.failed(err)
		}
		return wire.Response{Payload: wire.AppendVersion(nil, out.GetVersion())}
	case wire.OpDelete:
		out, err := d.c.Delete(ctx, &kvstorev1.DeleteRequest{Namespace: ns, Key: key, Conditions: a.grpcConditions()})
		if err != nil {
			return d.failed(err)
		}
		return wire.Response{Status: statusOfFound(out.GetDeleted()), Payload: wire.AppendVersion(nil, out.GetVersion())}
	case wire.OpTouch:
		out, err := d.c.Touch(ctx, &kvstorev1.TouchRequest{Namespace: ns, Key: key, Ttl: ttlOf(a.ttlMs), Conditions: a.grpcConditions()})
		if err != nil {
			return d.failed(err)
		}
		return wire.Response{Payload: wire.AppendVersion(nil, out.GetVersion())}
	case wire.OpIncrement:
		delta, _ := wire.DecodeIncrement(r.Payload)
		out, err := d.c.Increment(ctx, &kvstorev1.IncrementRequest{Namespace: ns, Key: key, Delta: &delta, Ttl: ttlOf(a.ttlMs), Conditions: a.grpcConditions()})
		if err != nil {
			return d.failed(err)
		}
		return wire.Response{Payload: wire.AppendCounter(nil, out.GetVersion(), out.GetValue())}
	case wire.OpGet, wire.OpExists:
		out, err := d.c.Get(ctx, &kvstorev1.GetRequest{Namespace: ns, Key: key, Read: a.readOptions(), MetadataOnly: r.Op == wire.OpExists})
		if err != nil {
			return d.failed(err)
		}
		return wire.Response{Ext: append(extOf(out.GetRecord()), ageExt(out.GetAge())...), Payload: out.GetRecord().GetValue()}
	case wire.OpScan:
		return d.list(ctx, r, &a)
	}
	return d.group(ctx, r, &a)
}

func (d *grpcDoor) list(ctx context.Context, r *wire.Request, a *asked) wire.Response {
	var q wire.ScanRequest
	if ref := wire.DecodeScanRequest(r.Payload, &q); ref != nil {
		return wire.ErrorResponse(ref, nil)
	}
	out, err := d.c.List(ctx, &kvstorev1.ListRequest{
		Namespace: a.namespace, Prefix: string(q.Prefix), Start: string(q.Start), End: string(q.End), Limit: q.Limit, Cursor: q.Cursor, Delimiter: string(q.Delimiter),
		KeysOnly: q.Flags&wire.ScanKeysOnly != 0, Reverse: q.Flags&wire.ScanReverse != 0, CountOnly: q.Flags&wire.ScanCount != 0, Read: a.readOptions(),
	})
	if err != nil {
		return d.failed(err)
	}
	p := pageParts{revision: out.GetRevision(), cursor: out.GetNextCursor(), counts: q.Flags&wire.ScanCount != 0, counted: int(out.GetCount()), reverse: q.Flags&wire.ScanReverse != 0}
	for _, rec := range out.GetRecords() {
		p.items = append(p.items, wire.Item{Op: wire.OpGet, Key: []byte(rec.GetKey()), Ext: extOf(rec), Value: rec.GetValue()})
	}
	for _, prefix := range out.GetCommonPrefixes() {
		p.items = append(p.items, wire.Item{Op: wire.OpScan, Key: []byte(prefix)})
	}
	return wire.Response{Ext: ageExt(out.GetAge()), Payload: p.encode()}
}

// pageParts is a page of a listing as a door told it: records and common prefixes apart.
type pageParts struct {
	revision uint64
	cursor   []byte
	counts   bool
	counted  int
	reverse  bool
	items    []wire.Item
}

// encode gives the page as the binary protocol has it.
func (p *pageParts) encode() []byte {
	slices.SortStableFunc(p.items, func(a, b wire.Item) int {
		if p.reverse {
			a, b = b, a
		}
		return slices.Compare(a.Key, b.Key)
	})
	b := make([]byte, wire.ScanPageHeaderBytes)
	if p.counts {
		wire.PutScanCountHeader(b, p.revision, p.counted, len(p.cursor))
	} else {
		wire.PutScanPageHeader(b, p.revision, len(p.items), len(p.cursor))
	}
	for i := range p.items {
		b = wire.AppendItem(b, &p.items[i])
	}
	return append(b, p.cursor...)
}

// group executes batches, transactions and multigets.
func (d *grpcDoor) group(ctx context.Context, r *wire.Request, a *asked) wire.Response {
	var ops []*kvstorev1.Operation
	var keys []string
	var puts []*kvstorev1.BatchPutItem
	kinds := map[wire.Opcode]int{}
	bare := true // deletes have no conditions, which BatchDelete takes none of
	eachOperation(r, func(it *wire.Item) {
		b, key := readExt(it.Ext), string(it.Key)
		kinds[it.Op]++
		bare = bare && len(b.conditions) == 0
		keys = append(keys, key)
		o := &kvstorev1.Operation{Conditions: b.grpcConditions()}
		switch it.Op {
		case wire.OpPut:
			puts = append(puts, &kvstorev1.BatchPutItem{Key: key, Value: it.Value, Options: b.putOptions(), Conditions: b.grpcConditions()})
			o.Kind = &kvstorev1.Operation_Put{Put: &kvstorev1.PutOperation{Key: key, Value: it.Value, Options: b.putOptions()}}
		case wire.OpDelete:
			o.Kind = &kvstorev1.Operation_Delete{Delete: &kvstorev1.DeleteOperation{Key: key}}
		case wire.OpGet:
			o.Kind = &kvstorev1.Operation_Get{Get: &kvstorev1.GetOperation{Key: key}}
		case wire.OpCheck:
			o.Kind = &kvstorev1.Operation_Check{Check: &kvstorev1.CheckOperation{Key: key}}
		case wire.OpTouch:
			o.Kind = &kvstorev1.Operation_Touch{Touch: &kvstorev1.TouchOperation{Key: key, Ttl: ttlOf(b.ttlMs)}}
		case wire.OpIncrement:
			delta, _ := wire.DecodeIncrement(it.Value)
			o.Kind = &kvstorev1.Operation_Increment{Increment: &kvstorev1.IncrementOperation{Key: key, Delta: &delta, Ttl: ttlOf(b.ttlMs)}}
		}
		ops = append(ops, o)
	})
	n := len(ops)
	var results []*kvstorev1.OperationResult
	var rev uint64
	var age *durationpb.Duration
	var err error
	flags, _, _, _ := wire.DecodeGroup(r.Payload)
	switch {
	case r.Op == wire.OpMultiGet:
		var out *kvstorev1.BatchGetResponse
		out, err = d.c.BatchGet(ctx, &kvstorev1.BatchGetRequest{Namespace: a.namespace, Keys: keys, Read: a.readOptions()})
		results, rev, age = out.GetResults(), out.GetRevision(), out.GetAge()
	case r.Op == wire.OpBatch && flags&wire.GroupAtomic == 0:
		// Each operation for itself is what no call of gRPC does: a caller sends them one by one.
		return oneByOne(ctx, d, r)
	case r.Op == wire.OpBatch && kinds[wire.OpPut] == n:
		var out *kvstorev1.BatchPutResponse
		out, err = d.c.BatchPut(ctx, &kvstorev1.BatchPutRequest{Namespace: a.namespace, Items: puts})
		results, rev = out.GetResults(), out.GetVersion()
	case r.Op == wire.OpBatch && kinds[wire.OpDelete] == n && bare:
		var out *kvstorev1.BatchDeleteResponse
		out, err = d.c.BatchDelete(ctx, &kvstorev1.BatchDeleteRequest{Namespace: a.namespace, Keys: keys})
		results, rev = out.GetResults(), out.GetVersion()
	default:
		var out *kvstorev1.TransactionResponse
		out, err = d.c.Transaction(ctx, &kvstorev1.TransactionRequest{Namespace: a.namespace, Operations: ops})
		results, rev = out.GetResults(), out.GetVersion()
	}
	if err != nil {
		return d.failed(err)
	}
	b := wire.AppendResultHeader(nil, rev, len(results))
	i := 0
	eachOperation(r, func(it *wire.Item) {
		b = wire.AppendItem(b, grpcResult(it.Op, results[i]))
		i++
	})
	return wire.Response{Ext: ageExt(age), Payload: b}
}

// grpcResult gives what became of one operation.
func grpcResult(op wire.Opcode, got *kvstorev1.OperationResult) *wire.Item {
	it := &wire.Item{Op: op, Status: statusOfFound(got.GetFound())}
	switch {
	case got.GetError() != nil:
		it.Status, it.Value = statusByCode(got.GetError().GetCode()), []byte(got.GetError().GetMessage())
	case got.GetRecord() != nil:
		it.Ext, it.Value = extOf(got.GetRecord()), got.GetRecord().GetValue()
	case op == wire.OpIncrement:
		it.Value = wire.AppendCounter(nil, got.GetVersion(), got.GetValue())
	case op.IsMutation():
		it.Value = wire.AppendVersion(nil, got.GetVersion())
	}
	return it
}

// oneByOne executes a batch that is not atomic as its operations: at once where each has a key of its own, and otherwise
// in order.
func oneByOne(ctx context.Context, d translator, r *wire.Request) wire.Response {
	a := readExt(r.Ext)
	var steering []byte
	if a.namespace != "" {
		steering = wire.AppendExtString(nil, wire.ExtNamespace, a.namespace)
	}
	var all []*wire.Request
	keys := make(map[string]bool)
	eachOperation(r, func(it *wire.Item) {
		ext := append(slices.Clone(steering), it.Ext...)
		h := wire.Header{Op: it.Op, ID: 1, ExtLen: uint16(len(ext)), KeyLen: uint16(len(it.Key))}
		one := new(wire.Request)
		if ref := wire.ParseRequest(&h, append(append(ext, it.Key...), it.Value...), one); ref != nil {
			panic("BUG: an operation that was let through: " + ref.Text)
		}
		all = append(all, one)
		keys[string(it.Key)] = true
	})
	answers := make([]wire.Response, len(all))
	var g errgroup.Group
	if g.SetLimit(1); len(keys) == len(all) {
		g.SetLimit(64)
	}
	for i, one := range all {
		g.Go(func() error {
			answers[i] = d.do(ctx, one)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		panic(err) // none gives any
	}
	rev := uint64(0)
	for i := range answers {
		if answers[i].Status == wire.StatusNoNamespace {
			return answers[i] // the batch as a whole has no namespace to go to
		}
		if v, ok := wire.DecodeVersion(answers[i].Payload); ok && answers[i].Status == wire.StatusOK {
			rev = max(rev, v)
		}
	}
	b := wire.AppendResultHeader(nil, rev, len(all))
	for i, one := range all {
		b = wire.AppendItem(b, &wire.Item{Op: one.Op, Status: answers[i].Status, Value: answers[i].Payload})
	}
	return wire.Response{Payload: b}
}

func (d *grpcDoor) watch(ctx context.Context, r *wire.Request, push func(ext, payload []byte)) wire.Response {
	a := readExt(r.Ext)
	var q wire.WatchRequest
	if ref := wire.DecodeWatchRequest(r.Payload, &q); ref != nil {
		return wire.ErrorResponse(ref, nil)
	}
	in := &kvstorev1.WatchRequest{
		Namespace: a.namespace, Prefix: string(q.Prefix), Start: string(q.Start), End: string(q.End), KeysOnly: q.Flags&wire.WatchKeysOnly != 0,
		Previous: q.Flags&wire.WatchPrevious != 0, ProgressInterval: durationpb.New(time.Duration(q.ProgressMs) * time.Millisecond), History: a.history,
	}
	if a.stale {
		in.Consistency = kvstorev1.Consistency_CONSISTENCY_STALE
	}
	if q.Flags&wire.WatchKey != 0 {
		in.Key, in.Start = in.Start, ""
	}
	if q.Flags&wire.WatchFromNow == 0 {
		in.AfterRevision = &q.After
	}
	if a.namespaceID != 0 {
		in.NamespaceId = &a.namespaceID
	}
	for bit, kind := range map[uint8]kvstorev1.EventType{
		wire.WatchNoPut: kvstorev1.EventType_EVENT_TYPE_PUT, wire.WatchNoDelete: kvstorev1.EventType_EVENT_TYPE_DELETE, wire.WatchNoExpire: kvstorev1.EventType_EVENT_TYPE_EXPIRE,
	} {
		if q.Flags&bit == 0 {
			in.Types = append(in.Types, kind)
		}
	}
	stream, err := d.c.Watch(ctx, in)
	if err != nil {
		return d.failed(err)
	}
	for {
		got, err := stream.Recv()
		if err != nil {
			return d.failed(err)
		}
		var ext []byte
		if len(got.GetHistory()) != 0 {
			ext = wire.AppendExt(ext, wire.ExtHistory, got.GetHistory())
		}
		if got.NamespaceId != nil {
			ext = wire.AppendExtU32(ext, wire.ExtNamespaceID, got.GetNamespaceId())
		}
		b := wire.AppendEventBatchHeader(nil, got.GetRevision(), len(got.GetEvents()))
		for _, e := range got.GetEvents() {
			b = wire.AppendEvent(b, grpcEvent(e))
		}
		push(ext, b)
	}
}

func grpcEvent(e *kvstorev1.Event) *wire.Event {
	out := &wire.Event{Key: []byte(e.GetRecord().GetKey()), Revision: e.GetRecord().GetVersion()}
	switch e.GetType() {
	case kvstorev1.EventType_EVENT_TYPE_PUT:
		out.Kind, out.Ext, out.Value = wire.EventPut, extOf(e.GetRecord()), e.GetRecord().GetValue()
	case kvstorev1.EventType_EVENT_TYPE_DELETE:
		out.Kind = wire.EventDelete
	case kvstorev1.EventType_EVENT_TYPE_EXPIRE:
		out.Kind = wire.EventExpire
	}
	if e.GetPrevious() != nil {
		out.Flags |= wire.EventHadPrevious
		out.PreviousExt, out.Previous = extOf(e.GetPrevious()), e.GetPrevious().GetValue()
	}
	if e.GetPreviousLost() {
		out.Flags |= wire.EventPreviousLost
	}
	if e.GetLast() {
		out.Flags |= wire.EventLast
	}
	return out
}
