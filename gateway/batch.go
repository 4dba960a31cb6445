package gateway

import (
	"net/http"
	"strconv"

	"kvstore/wire"
)

const (
	batchPath       = "/api/v1/batch/"
	transactionPath = "/api/v1/transaction"
	// documentBytesMax bounds the JSON of a batch or transaction: the largest value as base64, and room for what a
	// writer escapes.
	documentBytesMax = 2 * wire.ValueBytesMax
)

// groupRoute is one route that takes many operations as JSON.
type groupRoute struct {
	op    wire.Opcode
	flags uint8
	// field is the only member of the document; read reads it.
	field string
	read  func(g *group, r *jsonReader) *fault
	// answer writes the answer of a group that was executed, whose items are in payload.
	answer func(s *Server, w http.ResponseWriter, req *wire.Request, resp *wire.Response)
}

var groupRoutes = map[string]*groupRoute{
	batchPath + "put": {wire.OpBatch, wire.GroupAtomic, "items",
		func(g *group, r *jsonReader) *fault { return g.readOperations(r, "PUT") }, (*Server).answerBatch},
	batchPath + "delete": {wire.OpBatch, wire.GroupAtomic, "keys",
		func(g *group, r *jsonReader) *fault { return g.readKeys(r, wire.OpDelete) }, (*Server).answerBatch},
	batchPath + "get": {wire.OpMultiGet, 0, "keys",
		func(g *group, r *jsonReader) *fault { return g.readKeys(r, wire.OpGet) }, (*Server).answerMultiGet},
	transactionPath: {wire.OpTxn, 0, "operations",
		func(g *group, r *jsonReader) *fault { return g.readOperations(r, "") }, (*Server).answerTransaction},
}

// group serves a batch or a transaction.
func (s *Server) group(w http.ResponseWriter, r *http.Request, route *groupRoute) {
	if !allow(w, r, http.MethodPost) {
		return
	}
	write := route.op.IsWrite()
	if !isJSON(r.Header) {
		unsupportedMedia(w)
		return
	}
	req, release, ref := s.readGroup(w, r, route)
	defer release()
	if ref != nil {
		refuse(w, write, ref.Status, ref.Text)
		return
	}
	resp := s.do(r.Context(), req)
	tellAge(w, resp.Ext)
	if resp.Status != wire.StatusOK {
		failGroup(w, req, &resp)
		return
	}
	if !validResult(req, resp.Payload) {
		// Whatever came, it came from a group that was executed: of a write that is all that is known.
		refuse(w, write, wire.StatusInternal, "the answer can't be read; see the server's log")
		s.o.Logger.Error("a group was answered with what is no result", "operation", req.Op.String(), "bytes", len(resp.Payload))
		return
	}
	route.answer(s, w, req, &resp)
}

// readGroup reads the request's document. release, never nil, gives its bytes back to the budget.
func (s *Server) readGroup(w http.ResponseWriter, r *http.Request, route *groupRoute) (req *wire.Request, release func(), ref *wire.Refusal) {
	release = func() {}
	query, ref := parseQuery(r)
	if ref != nil {
		return nil, release, ref
	}
	var ext []byte
	if route.op.IsWrite() {
		if ext, ref = idempotencyElement(r.Header.Values(idempotencyHeader)); ref != nil {
			return nil, release, ref
		}
	}
	for _, name := range sortedNames(query) {
		var known bool
		if ext, known, ref = steer(ext, route.op, name, query); ref == nil && !known {
			ref = unknownParameter(name)
		}
		if ref != nil {
			return nil, release, ref
		}
	}
	body, releaseBody, ref := s.readBody(w, r, nil, documentBytesMax, "the document")
	if ref != nil {
		return nil, release, ref
	}
	// What it becomes is no larger but for the headers of items.
	room := int64(len(body)) + min(4*int64(len(body)), wire.ItemHeaderBytes*wire.BatchOpsMax)
	if !s.bodies.TryAcquire(room) {
		releaseBody()
		return nil, release, &wire.Refusal{Status: wire.StatusBusy, Text: textBusyBodies}
	}
	release = func() {
		s.bodies.Release(room)
		releaseBody()
	}
	g := newGroup(route.op, route.flags, ext, len(body))
	read := false
	ref = readJSON(body, func(jr *jsonReader, name []byte) *fault {
		if string(name) != route.field {
			return faultf("the document takes %q and nothing else", route.field)
		}
		read = true
		return route.read(g, jr)
	})
	if ref == nil && !read {
		ref = &wire.Refusal{Status: wire.StatusBadRequest, Text: "the document has no " + strconv.Quote(route.field) + "; nothing was changed"}
	}
	req = new(wire.Request)
	if ref == nil {
		ref = g.request(req)
	}
	return req, release, ref
}

// validResult reports whether payload is a result with one item for each operation.
func validResult(req *wire.Request, payload []byte) bool {
	_, n, items, err := wire.DecodeResult(payload)
	if err != nil || n != req.Items {
		return false
	}
	var it wire.Item
	for range n {
		if items, err = wire.NextItem(items, &it); err != nil {
			return false
		}
	}
	return len(items) == 0
}

// eachResult walks the operations of a request and what became of them. REQUIRES: validResult.
func eachResult(req *wire.Request, payload []byte, do func(asked, got *wire.Item)) {
	_, _, items, err := wire.DecodeResult(payload)
	if err != nil {
		panic("BUG: a result is read before it was checked: " + err.Error())
	}
	var got wire.Item
	for asked := range operationsOf(req) {
		if items, err = wire.NextItem(items, &got); err != nil {
			panic("BUG: a result is read before it was checked: " + err.Error())
		}
		do(asked, &got)
	}
}

// operationsOf walks the items of a request that ParseRequest has let through.
func operationsOf(req *wire.Request) func(yield func(*wire.Item) bool) {
	return func(yield func(*wire.Item) bool) {
		_, n, b, err := wire.DecodeGroup(req.Payload)
		var it wire.Item
		for range n {
			if err == nil {
				b, err = wire.NextItem(b, &it)
			}
			if err != nil {
				panic("BUG: a group is read before it was checked: " + err.Error())
			}
			if !yield(&it) {
				return
			}
		}
	}
}

// answerBatch tells what became of puts and deletes.
func (s *Server) answerBatch(w http.ResponseWriter, req *wire.Request, resp *wire.Response) {
	rev, _, _, _ := wire.DecodeResult(resp.Payload) // validResult has seen it
	sawRevision(w, rev)
	s.streamJSON(w, len(resp.Payload), true, func(j *jsonWriter) {
		j.open('{')
		j.field("results")
		s.results(j, req, resp.Payload)
		j.field("version")
		j.number(rev)
		j.close('}')
	})
}

// answerMultiGet gives the records in the order of the keys.
func (s *Server) answerMultiGet(w http.ResponseWriter, req *wire.Request, resp *wire.Response) {
	rev, _, _, _ := wire.DecodeResult(resp.Payload) // validResult has seen it
	sawRevision(w, rev)
	s.streamJSON(w, len(resp.Payload), false, func(j *jsonWriter) {
		j.open('{')
		j.field("items")
		s.results(j, req, resp.Payload)
		j.field("revision")
		j.number(rev)
		j.close('}')
	})
}

// results writes an array of what became of each operation.
func (s *Server) results(j *jsonWriter, req *wire.Request, payload []byte) {
	j.open('[')
	eachResult(req, payload, func(asked, got *wire.Item) {
		j.next()
		j.open('{')
		j.field("key")
		j.text(string(asked.Key))
		result(j, asked.Op, got)
		j.close('}')
	})
	j.close(']')
}

// result writes the members that tell what became of one operation.
func result(j *jsonWriter, op wire.Opcode, got *wire.Item) {
	if got.Status != wire.StatusOK && got.Status != wire.StatusNotFound {
		p := problemOf(op.IsMutation(), &wire.Response{Status: got.Status, Payload: got.Value})
		j.field("error")
		j.value(&p)
		return
	}
	there := got.Status == wire.StatusOK
	switch op {
	case wire.OpGet:
		j.field("found")
		j.bool(there)
		if there {
			j.record(got.Ext, got.Value, true)
		}
		return
	case wire.OpDelete:
		j.field("deleted")
		j.bool(there)
	case wire.OpTouch:
		j.field("found")
		j.bool(there)
	case wire.OpIncrement:
		if v, n, ok := wire.DecodeCounter(got.Value); ok {
			j.field("value")
			j.text(strconv.FormatInt(n, 10))
			j.field("version")
			j.number(v)
		}
		return
	}
	if v, ok := wire.DecodeVersion(got.Value); ok {
		j.field("version")
		j.number(v)
	}
}
