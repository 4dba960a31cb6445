package gateway

import (
	"context"
	"time"

	"kvstore/api/kvstorev1"
	"kvstore/wire"
)

// do executes a request, or says what is wrong with it. On success the answer counts against the budget until it has
// been sent.
func (g *GRPC) do(ctx context.Context, req *wire.Request, ref *wire.Refusal, write bool) (*wire.Response, error) {
	if ref != nil {
		return nil, grpcRefuse(write, ref)
	}
	size := int64(len(req.Body))
	if !g.bodies.TryAcquire(size) {
		return nil, grpcRefuse(write, &wire.Refusal{Status: wire.StatusBusy, Text: textBusyBodies})
	}
	most := g.o.RequestTimeout
	if at, ok := ctx.Deadline(); ok { // the caller's word counts, as in the binary protocol
		most = min(time.Until(at), wire.TimeoutMax)
	}
	resp := g.doWithin(ctx, req, most)
	g.bodies.Release(size)
	done := resp.Status == wire.StatusOK || resp.Status == wire.StatusNotFound && req.Op == wire.OpDelete
	if !done {
		return nil, grpcFail(write, &resp, groupKeys(req))
	}
	c := stateOf(ctx)
	c.class = resp.Status.Class()
	if write {
		return &resp, nil // small, and done: what follows may not fail
	}
	if !g.sending.TryAcquire(int64(len(resp.Payload))) {
		return nil, grpcRefuse(false, &wire.Refusal{Status: wire.StatusBusy, Text: textBusyAnswers})
	}
	c.held += int64(len(resp.Payload))
	return &resp, nil
}

// groupKeys gives the keys of a group's operations; nil where there is but one.
func groupKeys(req *wire.Request) func(uint32) string {
	if req.Op != wire.OpBatch && req.Op != wire.OpTxn {
		return nil
	}
	return func(operation uint32) (key string) {
		i := uint32(0)
		for it := range operationsOf(req) {
			if i == operation {
				return string(it.Key)
			}
			i++
		}
		return ""
	}
}

// unreadable answers a call whose answer makes no sense.
func (g *GRPC) unreadable(req *wire.Request, write bool) error {
	g.o.Logger.Error("a call was answered with what can't be read", "operation", req.Op.String())
	return grpcRefuse(write, &wire.Refusal{Status: wire.StatusInternal, Text: "the answer can't be read: see the server's log"})
}

// Put implements kvstorev1.KVStoreServer.
func (g *GRPC) Put(ctx context.Context, in *kvstorev1.PutRequest) (*kvstorev1.PutResponse, error) {
	var b callBuilder
	b.begin(ctx, in.GetNamespace())
	b.conditions(in.GetConditions())
	b.put(in.GetOptions())
	req, ref := b.single(wire.OpPut, in.GetKey(), in.GetValue())
	v, err := g.change(ctx, req, ref)
	if err != nil {
		return nil, err
	}
	return &kvstorev1.PutResponse{Version: v}, nil
}

// change executes a write whose answer is a version.
func (g *GRPC) change(ctx context.Context, req *wire.Request, ref *wire.Refusal) (wire.Revision, error) {
	resp, err := g.do(ctx, req, ref, true)
	if err != nil {
		return 0, err
	}
	v, ok := version(resp)
	if !ok {
		return 0, g.unreadable(req, true)
	}
	stateOf(ctx).revision = v
	return v, nil
}

// Get implements kvstorev1.KVStoreServer.
func (g *GRPC) Get(ctx context.Context, in *kvstorev1.GetRequest) (*kvstorev1.GetResponse, error) {
	op := wire.OpGet
	if in.GetMetadataOnly() {
		op = wire.OpExists
	}
	var b callBuilder
	b.begin(ctx, in.GetNamespace())
	b.read(in.GetRead())
	req, ref := b.single(op, in.GetKey(), nil)
	resp, err := g.do(ctx, req, ref, false)
	if err != nil {
		return nil, err
	}
	r := recordOf(in.GetKey(), resp.Ext, resp.Payload, op == wire.OpGet)
	stateOf(ctx).revision = r.Version
	return &kvstorev1.GetResponse{Record: r, Age: ageOf(resp.Ext)}, nil
}

// Delete implements kvstorev1.KVStoreServer.
func (g *GRPC) Delete(ctx context.Context, in *kvstorev1.DeleteRequest) (*kvstorev1.DeleteResponse, error) {
	var b callBuilder
	b.begin(ctx, in.GetNamespace())
	b.conditions(in.GetConditions())
	req, ref := b.single(wire.OpDelete, in.GetKey(), nil)
	resp, err := g.do(ctx, req, ref, true)
	if err != nil {
		return nil, err
	}
	v, ok := version(resp)
	if !ok {
		return nil, g.unreadable(req, true)
	}
	stateOf(ctx).revision = v
	return &kvstorev1.DeleteResponse{Deleted: resp.Status == wire.StatusOK, Version: v}, nil
}

// Touch implements kvstorev1.KVStoreServer.
func (g *GRPC) Touch(ctx context.Context, in *kvstorev1.TouchRequest) (*kvstorev1.TouchResponse, error) {
	var b callBuilder
	b.begin(ctx, in.GetNamespace())
	b.conditions(in.GetConditions())
	b.ttl(in.GetTtl())
	req, ref := b.single(wire.OpTouch, in.GetKey(), nil)
	v, err := g.change(ctx, req, ref)
	if err != nil {
		return nil, err
	}
	return &kvstorev1.TouchResponse{Version: v}, nil
}

// Increment implements kvstorev1.KVStoreServer.
func (g *GRPC) Increment(ctx context.Context, in *kvstorev1.IncrementRequest) (*kvstorev1.IncrementResponse, error) {
	var b callBuilder
	b.begin(ctx, in.GetNamespace())
	b.conditions(in.GetConditions())
	b.ttl(in.GetTtl())
	req, ref := b.single(wire.OpIncrement, in.GetKey(), wire.AppendIncrement(nil, deltaOf(in.Delta)))
	resp, err := g.do(ctx, req, ref, true)
	if err != nil {
		return nil, err
	}
	v, n, ok := wire.DecodeCounter(resp.Payload)
	if !ok {
		return nil, g.unreadable(req, true)
	}
	stateOf(ctx).revision = v
	return &kvstorev1.IncrementResponse{Value: n, Version: v}, nil
}

// group executes a batch, a transaction or a multiget.
func (g *GRPC) group(ctx context.Context, gb *groupBuilder, write bool) ([]*kvstorev1.OperationResult, *wire.Response, wire.Revision, error) {
	req, ref := gb.request()
	resp, err := g.do(ctx, req, ref, write)
	if err != nil {
		return nil, nil, 0, err
	}
	if !validResult(req, resp.Payload) {
		return nil, nil, 0, g.unreadable(req, write)
	}
	rev, _, _, _ := wire.DecodeResult(resp.Payload) // validResult has seen it
	stateOf(ctx).revision = rev
	return resultsOf(req, resp.Payload), resp, rev, nil
}

// BatchPut implements kvstorev1.KVStoreServer.
func (g *GRPC) BatchPut(ctx context.Context, in *kvstorev1.BatchPutRequest) (*kvstorev1.BatchPutResponse, error) {
	var b callBuilder
	b.begin(ctx, in.GetNamespace())
	size := 0
	for _, it := range in.GetItems() {
		size += len(it.GetKey()) + len(it.GetValue())
	}
	gb := b.group(wire.OpBatch, wire.GroupAtomic, len(in.GetItems()), size)
	for _, it := range in.GetItems() {
		gb.add(wire.OpPut, it.GetKey(), it.GetValue(), func(b *callBuilder) {
			b.conditions(it.GetConditions())
			b.put(it.GetOptions())
		})
	}
	results, _, rev, err := g.group(ctx, gb, true)
	if err != nil {
		return nil, err
	}
	return &kvstorev1.BatchPutResponse{Results: results, Version: rev}, nil
}

// BatchGet implements kvstorev1.KVStoreServer.
func (g *GRPC) BatchGet(ctx context.Context, in *kvstorev1.BatchGetRequest) (*kvstorev1.BatchGetResponse, error) {
	var b callBuilder
	b.begin(ctx, in.GetNamespace())
	b.read(in.GetRead())
	results, resp, rev, err := g.group(ctx, b.keys(wire.OpMultiGet, 0, wire.OpGet, in.GetKeys()), false)
	if err != nil {
		return nil, err
	}
	return &kvstorev1.BatchGetResponse{Results: results, Revision: rev, Age: ageOf(resp.Ext)}, nil
}

// BatchDelete implements kvstorev1.KVStoreServer.
func (g *GRPC) BatchDelete(ctx context.Context, in *kvstorev1.BatchDeleteRequest) (*kvstorev1.BatchDeleteResponse, error) {
	var b callBuilder
	b.begin(ctx, in.GetNamespace())
	results, _, rev, err := g.group(ctx, b.keys(wire.OpBatch, wire.GroupAtomic, wire.OpDelete, in.GetKeys()), true)
	if err != nil {
		return nil, err
	}
	return &kvstorev1.BatchDeleteResponse{Results: results, Version: rev}, nil
}

// keys begins a group of one operation on each of many keys.
func (b *callBuilder) keys(group wire.Opcode, flags uint8, op wire.Opcode, keys []string) *groupBuilder {
	size := 0
	for _, k := range keys {
		size += len(k)
	}
	gb := b.group(group, flags, len(keys), size)
	for _, k := range keys {
		gb.add(op, k, nil, nil)
	}
	return gb
}

// Transaction implements kvstorev1.KVStoreServer.
func (g *GRPC) Transaction(ctx context.Context, in *kvstorev1.TransactionRequest) (*kvstorev1.TransactionResponse, error) {
	var b callBuilder
	b.begin(ctx, in.GetNamespace())
	size := 0
	for _, o := range in.GetOperations() {
		size += len(o.GetPut().GetKey()) + len(o.GetPut().GetValue())
	}
	gb := b.group(wire.OpTxn, 0, len(in.GetOperations()), size)
	gb.transaction(in.GetOperations())
	results, _, rev, err := g.group(ctx, gb, true)
	if err != nil {
		return nil, err
	}
	return &kvstorev1.TransactionResponse{Results: results, Version: rev}, nil
}

// List implements kvstorev1.KVStoreServer.
func (g *GRPC) List(ctx context.Context, in *kvstorev1.ListRequest) (*kvstorev1.ListResponse, error) {
	var b callBuilder
	b.begin(ctx, in.GetNamespace())
	b.read(in.GetRead())
	scan := wire.ScanRequest{
		Limit: in.GetLimit(), Prefix: []byte(in.GetPrefix()), Start: []byte(in.GetStart()), End: []byte(in.GetEnd()),
		Cursor: in.GetCursor(), Delimiter: []byte(in.GetDelimiter()),
	}
	for flag, on := range map[uint8]bool{wire.ScanKeysOnly: in.GetKeysOnly(), wire.ScanReverse: in.GetReverse(), wire.ScanCount: in.GetCountOnly()} {
		if on {
			scan.Flags |= flag
		}
	}
	b.fits("prefix, start and end", wire.KeyBytesMax, scan.Prefix, scan.Start, scan.End)
	b.fits("a cursor", wire.CursorBytesMax, scan.Cursor)
	b.fits("a delimiter", wire.ScanDelimiterBytesMax, scan.Delimiter)
	var payload []byte
	if b.ref == nil {
		payload = wire.AppendScanRequest(nil, &scan)
	}
	req, ref := b.single(wire.OpScan, "", payload)
	resp, err := g.do(ctx, req, ref, false)
	if err != nil {
		return nil, err
	}
	var page wire.ScanPage
	if !g.validPage(resp.Payload, &page) {
		return nil, g.unreadable(req, false)
	}
	out := listPage(&page, !in.GetKeysOnly())
	out.Age = ageOf(resp.Ext)
	stateOf(ctx).revision = page.Revision
	return out, nil
}

// fits bounds texts before they are framed, where their lengths have two bytes.
func (b *callBuilder) fits(what string, most int, texts ...[]byte) {
	for _, v := range texts {
		if len(v) > most {
			b.refuse(wire.StatusBadRequest, "%s: %d bytes; at most %d", what, len(v), most)
		}
	}
}

// Status implements kvstorev1.KVStoreServer.
func (g *GRPC) Status(ctx context.Context, _ *kvstorev1.StatusRequest) (*kvstorev1.StatusResponse, error) {
	var b callBuilder
	req, ref := b.single(wire.OpStatus, "", nil)
	resp, err := g.do(ctx, req, ref, false)
	if err != nil {
		return nil, err
	}
	out, err := statusOf(resp.Payload)
	if err != nil {
		return nil, g.unreadable(req, false)
	}
	return out, nil
}
