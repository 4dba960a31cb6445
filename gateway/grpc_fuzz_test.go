package gateway

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"kvstore/api/kvstorev1"
	"kvstore/wire"
)

// checked is a Service that looks at what it is asked: a request that the binary protocol would take as well.
type checked struct {
	t *testing.T
	*memory
	asked bool
}

func (c *checked) Do(ctx context.Context, p any, r *wire.Request) wire.Response {
	c.asked = true
	h := wire.Header{Op: r.Op, ID: 1, ExtLen: uint16(len(r.Ext)), KeyLen: uint16(len(r.Key))}
	var again wire.Request
	if ref := wire.ParseRequest(&h, r.Body, &again); ref != nil || again.Items != r.Items || len(r.Body) > wire.FrameBodyBytesMax {
		c.t.Errorf("%s with %d items in %d bytes: %v", r.Op, r.Items, len(r.Body), ref)
	}
	if r.Op == wire.OpBatch || r.Op == wire.OpTxn || r.Op == wire.OpMultiGet {
		b := wire.AppendResultHeader(nil, 7, r.Items)
		for it := range operationsOf(r) {
			b = wire.AppendItem(b, &wire.Item{Op: it.Op, Status: wire.StatusNotFound})
		}
		return wire.Response{Payload: b}
	}
	return c.memory.Do(ctx, p, r)
}

// FuzzGRPC_Message calls each method with a message made of any bytes: it is refused as a bad request, or becomes one that
// the binary protocol would take, with one result for each operation.
func FuzzGRPC_Message(f *testing.F) {
	methods := []proto.Message{
		&kvstorev1.PutRequest{Key: "k", Value: []byte("v"), Options: &kvstorev1.PutOptions{Ttl: durationpb.New(time.Second), Tags: map[string]string{"a": "b"}}},
		&kvstorev1.GetRequest{Key: "k", Read: &kvstorev1.ReadOptions{Consistency: 1, MaxAge: durationpb.New(time.Second), Revision: 3}},
		&kvstorev1.DeleteRequest{Key: "k", Conditions: []*kvstorev1.Condition{{Kind: &kvstorev1.Condition_IfVersionMatch{IfVersionMatch: 3}}}},
		&kvstorev1.TouchRequest{Key: "k"},
		&kvstorev1.IncrementRequest{Key: "k", Delta: new(int64)},
		&kvstorev1.BatchPutRequest{Items: []*kvstorev1.BatchPutItem{{Key: "a", Value: []byte("v")}, {Key: "b"}}},
		&kvstorev1.BatchGetRequest{Keys: []string{"a", "b"}},
		&kvstorev1.BatchDeleteRequest{Keys: []string{"a", "b"}},
		&kvstorev1.ListRequest{Prefix: "p", Start: "p1", End: "p2", Delimiter: "/", Limit: 3, Reverse: true},
		&kvstorev1.TransactionRequest{Namespace: "n", Operations: []*kvstorev1.Operation{
			{Kind: &kvstorev1.Operation_Put{Put: &kvstorev1.PutOperation{Key: "a"}}}, {Kind: &kvstorev1.Operation_Increment{Increment: &kvstorev1.IncrementOperation{Key: "n"}}},
			{Kind: &kvstorev1.Operation_Check{Check: &kvstorev1.CheckOperation{Key: "c"}}, Conditions: []*kvstorev1.Condition{{Kind: &kvstorev1.Condition_IfExists{IfExists: true}}}},
		}},
		&kvstorev1.WatchRequest{Prefix: "p", Types: []kvstorev1.EventType{1}, History: make([]byte, 16)},
	}
	for i, m := range methods {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), b)
	}
	f.Fuzz(func(t *testing.T, method uint8, message []byte) {
		in := methods[int(method)%len(methods)].ProtoReflect().New().Interface()
		if proto.Unmarshal(message, in) != nil {
			return // describe refuses it
		}
		c := &checked{t: t, memory: &memory{records: map[string]wire.Record{}, feed: newFeed()}}
		g := &GRPC{Door: NewDoor(Options{Service: c}), sending: semaphore.NewWeighted(answerBytesMaxDefault)} // without a server
		ctx := context.Background()
		var err error
		results, want := 0, 0
		switch in := in.(type) {
		case *kvstorev1.PutRequest:
			_, err = g.Put(ctx, in)
		case *kvstorev1.GetRequest:
			_, err = g.Get(ctx, in)
		case *kvstorev1.DeleteRequest:
			_, err = g.Delete(ctx, in)
		case *kvstorev1.TouchRequest:
			_, err = g.Touch(ctx, in)
		case *kvstorev1.IncrementRequest:
			_, err = g.Increment(ctx, in)
		case *kvstorev1.BatchPutRequest:
			var out *kvstorev1.BatchPutResponse
			out, err = g.BatchPut(ctx, in)
			results, want = len(out.GetResults()), len(in.GetItems())
		case *kvstorev1.BatchGetRequest:
			var out *kvstorev1.BatchGetResponse
			out, err = g.BatchGet(ctx, in)
			results, want = len(out.GetResults()), len(in.GetKeys())
		case *kvstorev1.BatchDeleteRequest:
			var out *kvstorev1.BatchDeleteResponse
			out, err = g.BatchDelete(ctx, in)
			results, want = len(out.GetResults()), len(in.GetKeys())
		case *kvstorev1.ListRequest:
			_, err = g.List(ctx, in)
		case *kvstorev1.TransactionRequest:
			var out *kvstorev1.TransactionResponse
			out, err = g.Transaction(ctx, in)
			results, want = len(out.GetResults()), len(in.GetOperations())
		case *kvstorev1.WatchRequest:
			req, ref := watchRequest(in)
			if ref != nil {
				err = grpcRefuse(false, ref)
				break
			}
			var q wire.WatchRequest
			if ref := wire.DecodeWatchRequest(req.Payload, &q); ref != nil {
				t.Errorf("a watch that nobody takes: %v", ref)
			}
		}
		var failed *callError
		switch {
		case err == nil:
			if results != want {
				t.Errorf("%d results of %d operations", results, want)
			}
		case !errors.As(err, &failed):
			t.Errorf("%v is none of the door's errors", err)
		case !c.asked && failed.status.Class() != wire.ClassRefused:
			t.Errorf("nothing was asked, and the answer is %v", err)
		}
	})
}
