package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"kvstore/api/kvstorev1"
	"kvstore/wire"
)

// grpcDoor is a gRPC door over a fake service, and a client of it.
type grpcDoor struct {
	*memory
	door  *GRPC
	conn  *grpc.ClientConn
	c     kvstorev1.KVStoreClient
	ready atomic.Pointer[error]
}

func startGRPC(t *testing.T, change func(*Options)) *grpcDoor {
	t.Helper()
	d := &grpcDoor{memory: &memory{records: map[string]wire.Record{}, feed: newFeed()}}
	o := Options{Service: d.memory}
	if change != nil {
		change(&o)
	}
	d.door = NewGRPC(NewDoor(o), func() error {
		if err := d.ready.Load(); err != nil {
			return *err
		}
		return nil
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- d.door.Serve(l) }() // ends with Shutdown below
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := errors.Join(d.conn.Close(), d.door.Shutdown(ctx), <-served); err != nil {
			t.Error(err)
		}
	})
	d.conn, err = grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(grpcMessageBytesMax)))
	if err != nil {
		t.Fatal(err)
	}
	d.c = kvstorev1.NewKVStoreClient(d.conn)
	return d
}

// infoOf gives the code of an error and what its ErrorInfo says.
func infoOf(t *testing.T, err error) (codes.Code, *errdetails.ErrorInfo) {
	t.Helper()
	st := status.Convert(err)
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return st.Code(), info
		}
	}
	t.Fatalf("no ErrorInfo in %v", err)
	return 0, nil
}

func TestGRPC_EachStatus_SaysWhatIsKnownOfTheOutcome(t *testing.T) {
	d := startGRPC(t, nil)
	for _, st := range wire.Statuses() {
		if st.Status == wire.StatusOK {
			continue
		}
		d.answer = &wire.Response{Status: st.Status}
		_, err := d.c.Put(t.Context(), &kvstorev1.PutRequest{Key: "k"})
		code, info := infoOf(t, err)
		if info.GetReason() != st.Name || info.GetDomain() != errorDomain || info.GetMetadata()["code"] != st.Code ||
			info.GetMetadata()["applied"] != st.Status.Applied() || (info.GetMetadata()["retryable"] == "true") != st.Status.Retryable() {
			t.Errorf("%s: %v", st.Name, info)
		}
		// Clients repeat UNAVAILABLE by themselves.
		certain := code == codes.Unavailable || code == codes.ResourceExhausted
		if unknown := st.Status.Class() == wire.ClassUnknown; unknown != (code == codes.Unknown) || unknown && certain {
			t.Errorf("%s is told as %s", st.Name, code)
		}
		if st.Status.Class() == wire.ClassRetry && !certain {
			t.Errorf("%s may be repeated and is told as %s", st.Name, code)
		}
		if code == codes.OK || code == codes.Internal {
			t.Errorf("%s is told as %s", st.Name, code)
		}
	}
	// A read has no outcome that could be in doubt.
	d.answer = &wire.Response{Status: wire.StatusTooLate}
	_, err := d.c.Get(t.Context(), &kvstorev1.GetRequest{Key: "k"})
	if _, info := infoOf(t, err); info.GetMetadata()["applied"] != "no" {
		t.Errorf("a read that came too late: %v", info)
	}
}

func TestGRPC_PauseAndFailedConditions_AreDetails(t *testing.T) {
	d := startGRPC(t, nil)
	details := func(err error) (retry *errdetails.RetryInfo, failed *kvstorev1.FailedConditions) {
		for _, detail := range status.Convert(err).Details() {
			switch v := detail.(type) {
			case *errdetails.RetryInfo:
				retry = v
			case *kvstorev1.FailedConditions:
				failed = v
			}
		}
		return retry, failed
	}
	d.answer = &wire.Response{Status: wire.StatusBusy, Ext: wire.AppendExtU32(nil, wire.ExtRetryAfter, 1500)}
	_, err := d.c.Put(t.Context(), &kvstorev1.PutRequest{Key: "k"})
	if retry, _ := details(err); retry.GetRetryDelay().AsDuration() != 1500*time.Millisecond {
		t.Errorf("pause %v", retry)
	}
	d.answer = &wire.Response{Status: wire.StatusConditionFailed, Payload: wire.AppendFailed(nil, []wire.FailedCondition{{Operation: 1, Condition: 2}})}
	_, err = d.c.Transaction(t.Context(), &kvstorev1.TransactionRequest{Operations: []*kvstorev1.Operation{
		{Kind: &kvstorev1.Operation_Delete{Delete: &kvstorev1.DeleteOperation{Key: "a"}}},
		{Kind: &kvstorev1.Operation_Delete{Delete: &kvstorev1.DeleteOperation{Key: "b"}}},
	}})
	_, failed := details(err)
	if f := failed.GetFailed(); len(f) != 1 || f[0].GetOperation() != 1 || f[0].GetCondition() != 2 || f[0].GetKey() != "b" {
		t.Errorf("failed conditions %v of %v", f, err)
	}
}

func TestGRPC_Put_BecomesTheRequestOfTheBinaryProtocol(t *testing.T) {
	d := startGRPC(t, nil)
	sum := wire.Checksum([]byte("value"))
	_, err := d.c.Put(t.Context(), &kvstorev1.PutRequest{
		Namespace: "ns", Key: "k/ä", Value: []byte("value"),
		Options: &kvstorev1.PutOptions{
			Ttl: durationpb.New(1500 * time.Millisecond), Tags: map[string]string{"b": "2", "a": "1"}, ContentType: "text/plain", ContentEncoding: "gzip",
			Checksum: &sum, Compression: kvstorev1.Compression_COMPRESSION_LZ4,
		},
		Conditions: []*kvstorev1.Condition{
			{Kind: &kvstorev1.Condition_IfNotExists{IfNotExists: true}}, {Kind: &kvstorev1.Condition_IfVersionIn{IfVersionIn: &kvstorev1.Versions{Versions: []uint64{1, 2}}}},
		},
	})
	if status.Code(err) != codes.FailedPrecondition {
		t.Fatal(err)
	}
	r := d.last
	want := wire.AppendExtString(nil, wire.ExtNamespace, "ns")
	want = wire.AppendExtVersions(wire.AppendExtCondition(want, wire.ConditionAbsent, nil), 1, 2)
	want = wire.AppendExtTag(wire.AppendExtTag(wire.AppendExtU64(want, wire.ExtTTL, 1500), "a", "1"), "b", "2")
	want = wire.AppendExtString(wire.AppendExtString(want, wire.ExtContentType, "text/plain"), wire.ExtEncoding, "gzip")
	want = wire.AppendExtU8(wire.AppendExtU64(want, wire.ExtChecksum, sum), wire.ExtCompress, byte(wire.CodecLZ4))
	if !bytes.Equal(r.Ext, want) || string(r.Key) != "k/ä" || string(r.Payload) != "value" || r.Op != wire.OpPut {
		t.Errorf("%s %q %q with elements\n%x, want\n%x", r.Op, r.Key, r.Payload, r.Ext, want)
	}
}

func TestGRPC_BadRequests_AreRefusedAndNothingIsAsked(t *testing.T) {
	d := startGRPC(t, nil)
	ctx := t.Context()
	put := func(r *kvstorev1.PutRequest) func() error {
		return func() error { _, err := d.c.Put(ctx, r); return err }
	}
	condition := func(c *kvstorev1.Condition) func() error {
		return put(&kvstorev1.PutRequest{Key: "k", Conditions: []*kvstorev1.Condition{c}})
	}
	long := strings.Repeat("k", wire.KeyBytesMax+1)
	for name, c := range map[string]struct {
		do     func() error
		reason string
	}{
		"no key":             {put(&kvstorev1.PutRequest{}), "BAD_KEY"},
		"long key":           {put(&kvstorev1.PutRequest{Key: long}), "BAD_KEY"},
		"longest of all":     {put(&kvstorev1.PutRequest{Key: strings.Repeat("k", 1<<17)}), "BAD_KEY"},
		"large value":        {put(&kvstorev1.PutRequest{Key: "k", Value: make([]byte, wire.ValueBytesMax+1)}), "TOO_LARGE"},
		"long namespace":     {put(&kvstorev1.PutRequest{Key: "k", Namespace: strings.Repeat("n", wire.NamespaceBytesMax+1)}), "BAD_REQUEST"},
		"ttl of nothing":     {put(&kvstorev1.PutRequest{Key: "k", Options: &kvstorev1.PutOptions{Ttl: durationpb.New(0)}}), "BAD_REQUEST"},
		"ttl below zero":     {put(&kvstorev1.PutRequest{Key: "k", Options: &kvstorev1.PutOptions{Ttl: durationpb.New(-time.Second)}}), "BAD_REQUEST"},
		"ttl of a part":      {put(&kvstorev1.PutRequest{Key: "k", Options: &kvstorev1.PutOptions{Ttl: durationpb.New(time.Microsecond)}}), "BAD_REQUEST"},
		"ttl of ages":        {put(&kvstorev1.PutRequest{Key: "k", Options: &kvstorev1.PutOptions{Ttl: &durationpb.Duration{Seconds: math.MaxInt64}}}), "BAD_REQUEST"},
		"bad tag":            {put(&kvstorev1.PutRequest{Key: "k", Options: &kvstorev1.PutOptions{Tags: map[string]string{"A": "b"}}}), "BAD_REQUEST"},
		"long tag":           {put(&kvstorev1.PutRequest{Key: "k", Options: &kvstorev1.PutOptions{Tags: map[string]string{strings.Repeat("a", 300): "b"}}}), "BAD_REQUEST"},
		"long content type":  {put(&kvstorev1.PutRequest{Key: "k", Options: &kvstorev1.PutOptions{ContentType: strings.Repeat("a", 300)}}), "TOO_LARGE"},
		"unknown codec":      {put(&kvstorev1.PutRequest{Key: "k", Options: &kvstorev1.PutOptions{Compression: 77}}), "BAD_REQUEST"},
		"empty condition":    {condition(&kvstorev1.Condition{}), "BAD_REQUEST"},
		"condition of false": {condition(&kvstorev1.Condition{Kind: &kvstorev1.Condition_IfExists{}}), "BAD_REQUEST"},
		"no versions":        {condition(&kvstorev1.Condition{Kind: &kvstorev1.Condition_IfVersionIn{}}), "BAD_REQUEST"},
		"large condition":    {condition(&kvstorev1.Condition{Kind: &kvstorev1.Condition_IfValueMatch{IfValueMatch: make([]byte, wire.ConditionValueBytesMax+1)}}), "TOO_LARGE"},
		"empty tag":          {condition(&kvstorev1.Condition{Kind: &kvstorev1.Condition_IfTagPresent{}}), "BAD_REQUEST"},
		"many conditions":    {put(&kvstorev1.PutRequest{Key: "k", Conditions: slices.Repeat([]*kvstorev1.Condition{{Kind: &kvstorev1.Condition_IfExists{IfExists: true}}}, wire.ConditionsMax+1)}), "TOO_LARGE"},
		"unknown consistency": {func() error {
			_, err := d.c.Get(ctx, &kvstorev1.GetRequest{Key: "k", Read: &kvstorev1.ReadOptions{Consistency: 9}})
			return err
		}, "BAD_REQUEST"},
		"age of a strong read": {func() error {
			_, err := d.c.Get(ctx, &kvstorev1.GetRequest{Key: "k", Read: &kvstorev1.ReadOptions{MaxAge: durationpb.New(time.Second)}})
			return err
		}, "BAD_REQUEST"},
		"empty operation": {func() error {
			_, err := d.c.Transaction(ctx, &kvstorev1.TransactionRequest{Operations: []*kvstorev1.Operation{{}}})
			return err
		}, "BAD_REQUEST"},
		"key of a batch": {func() error {
			_, err := d.c.BatchGet(ctx, &kvstorev1.BatchGetRequest{Keys: []string{"a", long}})
			return err
		}, "BAD_KEY"},
		"many keys": {func() error {
			_, err := d.c.BatchDelete(ctx, &kvstorev1.BatchDeleteRequest{Keys: slices.Repeat([]string{"a"}, wire.BatchOpsMax+1)})
			return err
		}, "TOO_LARGE"},
		"long prefix": {func() error {
			_, err := d.c.List(ctx, &kvstorev1.ListRequest{Prefix: strings.Repeat("p", 1<<17)})
			return err
		}, "BAD_REQUEST"},
		"long delimiter": {func() error {
			_, err := d.c.List(ctx, &kvstorev1.ListRequest{Delimiter: strings.Repeat("p", 300)})
			return err
		}, "BAD_REQUEST"},
		"long cursor": {func() error {
			_, err := d.c.List(ctx, &kvstorev1.ListRequest{Cursor: make([]byte, 1<<17)})
			return err
		}, "BAD_REQUEST"},
		"watch of a key and a prefix": {func() error { return firstOf(d.c.Watch(ctx, &kvstorev1.WatchRequest{Key: "k", Prefix: "p"})) }, "BAD_REQUEST"},
		"watch of no kind": {func() error {
			return firstOf(d.c.Watch(ctx, &kvstorev1.WatchRequest{Types: []kvstorev1.EventType{9}}))
		}, "BAD_REQUEST"},
		"watch of a long key": {func() error { return firstOf(d.c.Watch(ctx, &kvstorev1.WatchRequest{Key: strings.Repeat("p", 1<<17)})) }, "BAD_REQUEST"},
		"short history":       {func() error { return firstOf(d.c.Watch(ctx, &kvstorev1.WatchRequest{History: []byte("x")})) }, "BAD_REQUEST"},
	} {
		err := c.do()
		code, info := infoOf(t, err)
		if code != codes.InvalidArgument || info.GetReason() != c.reason {
			t.Errorf("%s: %s %s (%v), want %s", name, code, info.GetReason(), err, c.reason)
		}
	}
	if d.last.Op != 0 || len(d.asked) != 0 {
		t.Errorf("the service was asked: %s, %d watches", d.last.Op, len(d.asked))
	}
}

// firstOf gives what a stream answers first, as an error.
func firstOf[T any](stream grpc.ServerStreamingClient[T], err error) error {
	if err == nil {
		_, err = stream.Recv()
	}
	return err
}

// rawCodec sends bytes as they are.
type rawCodec struct{ encoding.CodecV2 }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func TestGRPC_MessageThatCannotBeRead_IsABadRequest(t *testing.T) {
	d := startGRPC(t, nil)
	for name, msg := range map[string][]byte{"not UTF-8": {0x12, 1, 0xff}, "cut off": {0x12, 9, 'k'}, "noise": {0xff, 0xff}} {
		t.Log(name)
		err := d.conn.Invoke(t.Context(), kvstorev1.KVStore_Put_FullMethodName, msg, new(kvstorev1.PutResponse), grpc.ForceCodecV2(rawCodec{encoding.GetCodecV2("proto")}))
		if code, info := infoOf(t, err); code != codes.InvalidArgument || info.GetMetadata()["applied"] != "no" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if d.last.Op != 0 {
		t.Errorf("the service was asked: %s", d.last.Op)
	}
}

func TestGRPC_AnswersThatWait_CountUntilTheyAreSent(t *testing.T) {
	d := startGRPC(t, func(o *Options) { o.AnswerBytesMax = 1 << 20 })
	value := bytes.Repeat([]byte("v"), 1<<20)
	if _, err := d.c.Put(t.Context(), &kvstorev1.PutRequest{Key: "k", Value: value}); err != nil {
		t.Fatal(err)
	}
	// Each takes the whole budget, which comes back behind each.
	for range 8 {
		got, err := d.c.Get(t.Context(), &kvstorev1.GetRequest{Key: "k"})
		if status.Code(err) == codes.Unavailable {
			continue // the one before has arrived and is not counted as sent yet
		}
		if err != nil || !bytes.Equal(got.GetRecord().GetValue(), value) {
			t.Fatalf("%d bytes, %v", len(got.GetRecord().GetValue()), err)
		}
	}
	d.answer = &wire.Response{Payload: make([]byte, 1<<20+1)}
	_, err := d.c.Get(t.Context(), &kvstorev1.GetRequest{Key: "k"})
	if code, info := infoOf(t, err); code != codes.Unavailable || info.GetReason() != "BUSY" {
		t.Errorf("an answer beyond the budget: %v", err)
	}
	// A write that is done is told, whatever waits.
	d.answer = &wire.Response{Payload: wire.AppendVersion(nil, 7)}
	if got, err := d.c.Put(t.Context(), &kvstorev1.PutRequest{Key: "k"}); err != nil || got.GetVersion() != 7 {
		t.Errorf("a write: %v, %v", got, err)
	}
}

func TestGRPC_AnswerOfAWriteThatCannotBeRead_IsUnknown(t *testing.T) {
	d := startGRPC(t, nil)
	d.answer = &wire.Response{Payload: []byte("odd")}
	for name, do := range map[string]func() error{
		"put":       func() error { _, err := d.c.Put(t.Context(), &kvstorev1.PutRequest{Key: "k"}); return err },
		"delete":    func() error { _, err := d.c.Delete(t.Context(), &kvstorev1.DeleteRequest{Key: "k"}); return err },
		"touch":     func() error { _, err := d.c.Touch(t.Context(), &kvstorev1.TouchRequest{Key: "k"}); return err },
		"increment": func() error { _, err := d.c.Increment(t.Context(), &kvstorev1.IncrementRequest{Key: "k"}); return err },
		"batch": func() error {
			_, err := d.c.BatchDelete(t.Context(), &kvstorev1.BatchDeleteRequest{Keys: []string{"k"}})
			return err
		},
	} {
		if code, info := infoOf(t, do()); code != codes.Unknown || info.GetMetadata()["applied"] != "unknown" {
			t.Errorf("%s: %s %v", name, code, info)
		}
	}
}

func TestGRPC_Watch_TellsEventsAndProgressAndWhyItEnds(t *testing.T) {
	d := startGRPC(t, nil)
	after := uint64(5)
	stream, err := d.c.Watch(t.Context(), &kvstorev1.WatchRequest{Prefix: "p/", AfterRevision: &after, Previous: true, Types: []kvstorev1.EventType{kvstorev1.EventType_EVENT_TYPE_PUT}})
	if err != nil {
		t.Fatal(err)
	}
	meta := wire.Meta{Version: 9, CreatedAt: 1e15, UpdatedAt: 1e15, ExpiresAt: 2e15}
	first := frame(6)
	first.Ext = wire.AppendExtU32(wire.AppendExt(nil, wire.ExtHistory, bytes.Repeat([]byte("h"), 16)), wire.ExtNamespaceID, 3)
	d.frames <- first
	d.frames <- frame(9, wire.Event{Kind: wire.EventPut, Flags: wire.EventLast | wire.EventPreviousLost, Revision: 9, Key: []byte("p/1"), Value: []byte("v"), Ext: wire.AppendExtMeta(nil, &meta)})
	d.end = wire.Response{Status: wire.StatusCompacted}
	close(d.frames)
	got, err := stream.Recv()
	if err != nil || got.GetRevision() != 6 || string(got.GetHistory()) != strings.Repeat("h", 16) || got.GetNamespaceId() != 3 || len(got.GetEvents()) != 0 {
		t.Errorf("first %v, %v", got, err)
	}
	got, err = stream.Recv()
	if err != nil || got.GetRevision() != 9 || len(got.GetEvents()) != 1 {
		t.Fatalf("second %v, %v", got, err)
	}
	e := got.GetEvents()[0]
	if e.GetType() != kvstorev1.EventType_EVENT_TYPE_PUT || e.GetRecord().GetKey() != "p/1" || string(e.GetRecord().GetValue()) != "v" || e.GetRecord().GetVersion() != 9 ||
		!e.GetRecord().GetExpiresAt().AsTime().Equal(time.UnixMicro(2e15)) || !e.GetLast() || !e.GetPreviousLost() {
		t.Errorf("event %v", e)
	}
	_, err = stream.Recv()
	if code, info := infoOf(t, err); code != codes.OutOfRange || info.GetReason() != "COMPACTED" {
		t.Errorf("the end: %v", err)
	}
	asked, _ := d.lastAsked()
	if asked.After != 5 || string(asked.Prefix) != "p/" || asked.Flags != wire.WatchPrevious|wire.WatchNoDelete|wire.WatchNoExpire {
		t.Errorf("asked %+v", asked)
	}
}

func TestGRPC_WatchClientGoes_EndsTheWatch(t *testing.T) {
	d := startGRPC(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := d.c.Watch(ctx, &kvstorev1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	d.frames <- frame(1)
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-d.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the watch ended by %v", err)
	}
}

func TestGRPC_WatchReaderThatStalls_IsCutOff(t *testing.T) {
	d := startGRPC(t, func(o *Options) { o.StallTimeout = 50 * time.Millisecond })
	stream, err := d.c.Watch(t.Context(), &kvstorev1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	// More than the windows of HTTP/2 hold, and nobody reads.
	big := wire.Event{Kind: wire.EventPut, Key: []byte("k"), Value: make([]byte, 1<<20), Ext: wire.AppendExtMeta(nil, &wire.Meta{Version: 1})}
	for range 32 {
		d.frames <- frame(1, big)
	}
	if err := <-d.ended; err == nil {
		t.Error("the watch ended by itself")
	}
	for err == nil {
		_, err = stream.Recv()
	}
	if code, info := infoOf(t, err); code != codes.Unavailable || info.GetReason() != "RETRY_LATER" {
		t.Errorf("the reader is told %v", err)
	}
	if !d.door.sending.TryAcquire(answerBytesMaxDefault) {
		t.Error("what was taken from the budget did not come back")
	}
}

func TestGRPC_WatchesBeyondTheMost_AreRefusedUntilOneEnds(t *testing.T) {
	d := startGRPC(t, func(o *Options) { o.StreamsMax = 1 })
	ctx, cancel := context.WithCancel(t.Context())
	first, err := d.c.Watch(ctx, &kvstorev1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	d.frames <- frame(1)
	if _, err := first.Recv(); err != nil {
		t.Fatal(err)
	}
	err = firstOf(d.c.Watch(t.Context(), &kvstorev1.WatchRequest{}))
	if code, info := infoOf(t, err); code != codes.Unavailable || info.GetReason() != "BUSY" {
		t.Errorf("one too many: %v", err)
	}
	cancel()
	<-d.ended
	d.frames <- frame(1)
	for deadline := time.Now().Add(20 * time.Second); ; {
		if err := firstOf(d.c.Watch(t.Context(), &kvstorev1.WatchRequest{})); err == nil {
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("behind the end of the first: %v", err)
		}
	}
}

func TestGRPC_Shutdown_EndsWatchesAndRefusesCalls(t *testing.T) {
	d := startGRPC(t, nil)
	stream, err := d.c.Watch(t.Context(), &kvstorev1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	d.frames <- frame(1)
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := d.door.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	if code, info := infoOf(t, err); code != codes.Unavailable || info.GetReason() != "DRAINING" {
		t.Errorf("the watch is told %v", err)
	}
	if _, err := d.c.Get(t.Context(), &kvstorev1.GetRequest{Key: "k"}); status.Code(err) != codes.Unavailable {
		t.Errorf("a call behind it: %v", err)
	}
}

func TestGRPC_HealthAndReflection_AnswerAsTheirClientsExpect(t *testing.T) {
	d := startGRPC(t, nil)
	h := grpc_health_v1.NewHealthClient(d.conn)
	serving := func(want grpc_health_v1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		for _, service := range []string{"", "kvstore.v1.KVStore"} {
			if got, err := h.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: service}); err != nil || got.GetStatus() != want {
				t.Errorf("health of %q: %v, %v; want %s", service, got, err, want)
			}
		}
	}
	serving(grpc_health_v1.HealthCheckResponse_SERVING)
	watch, err := h.Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := watch.Recv(); err != nil || got.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("watched: %v, %v", got, err)
	}
	reason := errors.New("no leader is known")
	d.ready.Store(&reason)
	serving(grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	if got, err := watch.Recv(); err != nil || got.GetStatus() != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("watched: %v, %v", got, err)
	}
	if _, err := h.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "other"}); status.Code(err) != codes.NotFound {
		t.Errorf("health of another service: %v", err)
	}
	info, err := grpc_reflection_v1.NewServerReflectionClient(d.conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := info.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "kvstore.v1.KVStore"}}); err != nil {
		t.Fatal(err)
	}
	if got, err := info.Recv(); err != nil || len(got.GetFileDescriptorResponse().GetFileDescriptorProto()) == 0 {
		t.Errorf("reflection: %v, %v", got, err)
	}
	if err := info.CloseSend(); err != nil {
		t.Error(err)
	}
	if _, err := info.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("reflection ends by %v", err)
	}
}

func TestGRPC_Durations_AreCountedByOperationAndOutcome(t *testing.T) {
	d := startGRPC(t, nil)
	if _, err := d.c.Put(t.Context(), &kvstorev1.PutRequest{Key: "k"}); err != nil {
		t.Fatal(err)
	}
	_, _ = d.c.Put(t.Context(), &kvstorev1.PutRequest{})
	_, _ = d.c.Get(t.Context(), &kvstorev1.GetRequest{Key: "absent"})
	// A call is counted once its answer is on the way.
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		var b bytes.Buffer
		if err := d.door.WriteDurations(&b); err != nil {
			t.Fatal(err)
		}
		missing := ""
		for _, want := range []string{`operation="put",protocol="grpc",status="ok"`, `operation="put",protocol="grpc",status="refused"`, `operation="get",protocol="grpc",status="ok"`} {
			if !strings.Contains(b.String(), want) {
				missing = want
			}
		}
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no series %s in\n%s", missing, b.String())
		}
	}
}

func TestGRPC_Rates_RefuseBeyondAndTakeAgain(t *testing.T) {
	var now atomic.Int64
	d := startGRPC(t, func(o *Options) { o.ClientRequestsPerSecond, o.now = 2, now.Load })
	ctx := t.Context()
	get := func() error { _, err := d.c.Status(ctx, &kvstorev1.StatusRequest{}); return err }
	for range 2 {
		if err := get(); err != nil {
			t.Fatal(err)
		}
	}
	for name, err := range map[string]error{"a call": get(), "a watch": firstOf(d.c.Watch(ctx, &kvstorev1.WatchRequest{}))} {
		code, info := infoOf(t, err)
		if code != codes.ResourceExhausted || info.GetReason() != "LIMITED" {
			t.Errorf("%s beyond the rate: %v", name, err)
		}
		var pause *errdetails.RetryInfo
		for _, detail := range status.Convert(err).Details() {
			if v, ok := detail.(*errdetails.RetryInfo); ok {
				pause = v
			}
		}
		if p := pause.GetRetryDelay().AsDuration(); p <= 0 || p > time.Second {
			t.Errorf("%s beyond the rate: a pause of %v", name, p)
		}
	}
	// Health is asked by those who look after the node, at a pace of their own.
	if _, err := grpc_health_v1.NewHealthClient(d.conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{}); err != nil {
		t.Errorf("health: %v", err)
	}
	now.Add(int64(time.Second))
	if err := get(); err != nil {
		t.Errorf("a second later: %v", err)
	}
}

func TestGRPC_RequestLog_HasALineForEachCallAndNothingThatUsersStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "requests")
	d := startGRPC(t, func(o *Options) { o.RequestLog, o.RequestLogFile = RequestLogAll, path })
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-request-id", "mine-7")
	put, err := d.c.Put(ctx, &kvstorev1.PutRequest{Namespace: "ns", Key: "secret", Value: []byte("hidden")})
	if err != nil {
		t.Fatal(err)
	}
	d.answer = &wire.Response{Status: wire.StatusTimeout}
	_, err = d.c.Delete(t.Context(), &kvstorev1.DeleteRequest{Key: "secret"})
	var request *errdetails.RequestInfo
	for _, detail := range status.Convert(err).Details() {
		if v, ok := detail.(*errdetails.RequestInfo); ok {
			request = v
		}
	}
	if len(request.GetRequestId()) != 32 {
		t.Errorf("the error names no request: %v", err)
	}
	var lines []requestEntry
	for deadline := time.Now().Add(20 * time.Second); len(lines) < 2; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(path)
		if time.Now().After(deadline) || err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%s (%v)", b, err)
		}
		if bytes.Contains(b, []byte("secret")) || bytes.Contains(b, []byte("hidden")) {
			t.Fatalf("the log has what users store: %s", b)
		}
		lines = lines[:0]
		for line := range bytes.Lines(b) {
			var e requestEntry
			if json.Unmarshal(line, &e) == nil {
				lines = append(lines, e)
			}
		}
	}
	ok, failed := lines[0], lines[1]
	if ok.Operation != "put" { // a line is written when the answer is on its way: the next call may be faster
		ok, failed = failed, ok
	}
	if ok.ID != "mine-7" || ok.Protocol != "grpc" || ok.Operation != "put" || ok.Route != kvstorev1.KVStore_Put_FullMethodName || ok.Namespace != "ns" ||
		ok.Status != 0 || ok.Revision != put.GetVersion() || ok.RequestBytes == 0 || ok.ResponseBytes == 0 || !strings.HasPrefix(ok.Remote, "127.0.0.1:") {
		t.Errorf("the line of a put: %+v", ok)
	}
	if failed.ID != request.GetRequestId() || failed.Status != int(codes.Unknown) || failed.Code != wire.StatusTimeout.Info().Code {
		t.Errorf("the line of a failure: %+v", failed)
	}
}

func TestGRPC_IdempotencyKey_NamesAWriteAndNothingElse(t *testing.T) {
	d := startGRPC(t, nil)
	with := func(keys ...string) context.Context {
		ctx := t.Context()
		for _, k := range keys {
			ctx = metadata.AppendToOutgoingContext(ctx, idempotencyMetadata, k)
		}
		return ctx
	}
	put := func(ctx context.Context, value string) wire.Idempotency {
		t.Helper()
		if _, err := d.c.Put(ctx, &kvstorev1.PutRequest{Namespace: "ns", Key: "k", Value: []byte(value)}); err != nil {
			t.Fatal(err)
		}
		v, _, found := wire.FindIdempotency(d.last.Ext)
		if !found {
			return wire.Idempotency{}
		}
		id, err := wire.DecodeIdempotency(v)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	first, again, other := put(with("key"), "v"), put(with("key"), "v"), put(with("key"), "w")
	if first.Key != wire.IdempotencyKey("key") || again != first || other.Key != first.Key || other.Fingerprint == first.Fingerprint {
		t.Errorf("%v, again %v, with another value %v", first, again, other)
	}
	if none := put(t.Context(), "v"); none != (wire.Idempotency{}) {
		t.Errorf("without a key: %v", none)
	}
	for name, keys := range map[string][]string{"two keys": {"a", "b"}, "empty": {""}, "long": {strings.Repeat("k", idempotencyKeyBytesMax+1)}} {
		_, err := d.c.Put(with(keys...), &kvstorev1.PutRequest{Key: "k"})
		if code, info := infoOf(t, err); code != codes.InvalidArgument || info.GetReason() != "BAD_REQUEST" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := d.c.Get(with("key"), &kvstorev1.GetRequest{Namespace: "ns", Key: "k"}); status.Code(err) == codes.InvalidArgument {
		t.Errorf("a read: %v", err)
	}
}

func TestGRPC_BackupAndRestore_KeepBytesAndCertainty(t *testing.T) {
	f := &fakeBackups{copy: bytes.Repeat([]byte("0123456789"), 100_000)}
	d := startGRPC(t, func(o *Options) { o.Backups = f })
	backup := func() (all []byte, revision uint64, err error) {
		stream, err := d.c.Backup(t.Context(), &kvstorev1.BackupRequest{Namespace: "app"})
		for err == nil {
			var m *kvstorev1.BackupResponse
			if m, err = stream.Recv(); err == nil {
				all, revision = append(all, m.GetData()...), max(revision, m.GetRevision())
			}
		}
		return all, revision, err
	}
	if all, revision, err := backup(); !errors.Is(err, io.EOF) || !bytes.Equal(all, f.copy) || revision != 77<<20 || f.namespace != "app" {
		t.Errorf("%d bytes at %d of %q, %v", len(all), revision, f.namespace, err)
	}
	f.last = wire.Response{Status: wire.StatusCompacted}
	if _, _, err := backup(); status.Code(err) != codes.OutOfRange {
		t.Errorf("a backup that fails in the end: %v", err)
	}
	restore := func() (*kvstorev1.RestoreResponse, error) {
		stream, err := d.c.Restore(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for i, piece := range []string{"", "first ", "", "second"} {
			if err := stream.Send(&kvstorev1.RestoreRequest{Merge: i == 0, Data: []byte(piece)}); err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
		}
		return stream.CloseAndRecv()
	}
	f.restored = wire.Response{Payload: []byte(`{"namespaces":2,"records":3,"bytes":4,"expired_skipped":5,"revision":"6"}`)}
	got, err := restore()
	if err != nil || got.GetNamespaces() != 2 || got.GetRecords() != 3 || got.GetBytes() != 4 || got.GetExpired() != 5 || got.GetRevision() != 6 || !f.merge ||
		f.sum != wire.Checksum([]byte("first second")) {
		t.Errorf("%v, %v: %+v", got, err, f)
	}
	for st, want := range map[wire.Status]codes.Code{wire.StatusBadRequest: codes.InvalidArgument, wire.StatusInternal: codes.Unknown, wire.StatusBusy: codes.Unavailable} {
		f.restored = wire.Response{Status: st}
		if _, err := restore(); status.Code(err) != want {
			t.Errorf("%s: %v", st, err)
		}
	}
}

func TestGRPC_RestoreThatSendsNothing_IsCutOff(t *testing.T) {
	f := &fakeBackups{begun: make(chan struct{}, 1)}
	d := startGRPC(t, func(o *Options) { o.Backups, o.BodyTimeout = f, 50*time.Millisecond })
	stream, err := d.c.Restore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&kvstorev1.RestoreRequest{Data: []byte("begin")}); err != nil {
		t.Fatal(err)
	}
	<-f.begun
	err = stream.RecvMsg(new(kvstorev1.RestoreResponse))
	if code, info := infoOf(t, err); code != codes.InvalidArgument || info.GetMetadata()["applied"] != "no" {
		t.Errorf("%v", err)
	}
}

// callTimes notes how long requests have.
type callTimes struct {
	*memory
	left time.Duration
}

func (m *callTimes) Do(ctx context.Context, p any, r *wire.Request) wire.Response {
	at, _ := ctx.Deadline()
	m.left = time.Until(at)
	return m.memory.Do(ctx, p, r)
}

func TestGRPC_Deadline_IsTheCallersOrTheServers(t *testing.T) {
	m := &callTimes{}
	d := startGRPC(t, func(o *Options) {
		m.memory = o.Service.(*memory)
		o.Service = m
	})
	get := func(ctx context.Context) time.Duration {
		t.Helper()
		if _, err := d.c.Get(ctx, &kvstorev1.GetRequest{Key: "k"}); status.Code(err) != codes.NotFound {
			t.Fatal(err)
		}
		return m.left
	}
	if left := get(t.Context()); left > wire.TimeoutDefault || left < wire.TimeoutDefault/2 {
		t.Errorf("without a deadline a call has %v", left)
	}
	for asked, most := range map[time.Duration]time.Duration{time.Minute: time.Minute, time.Hour: wire.TimeoutMax} {
		ctx, cancel := context.WithTimeout(t.Context(), asked)
		if left := get(ctx); left > most || left < most/2 {
			t.Errorf("with a deadline of %v a call has %v", asked, left)
		}
		cancel()
	}
}
