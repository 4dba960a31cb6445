package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kvstore/api/kvstorev1"
)

// serveEcho serves an echo until the test ends.
func serveEcho(t *testing.T, protocol string, valueBytes int) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- ServeEcho(ctx, protocol, l, valueBytes) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("echo of %s: %v", protocol, err)
		}
	})
	return l.Addr().String()
}

func connect(t *testing.T, o ClientOptions) Store {
	t.Helper()
	s, err := Connect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Both echoes answer what a run asks, load phase included, with values of the size that was asked for.
func TestEcho_EachProtocol_CarriesARun(t *testing.T) {
	for _, protocol := range []string{ProtocolGRPC, ProtocolREST} {
		s := connect(t, ClientOptions{Protocol: protocol, Endpoints: []string{serveEcho(t, protocol, 77)}, Conns: 2, Callers: 3})
		v, found, err := s.Get(t.Context(), "a/b c?d", []byte("x"))
		if err != nil || !found || len(v) != 78 || v[0] != 'x' {
			t.Errorf("%s: %d bytes, %v, %v", protocol, len(v), found, err)
		}
		doc, err := s.Status(t.Context())
		if err != nil || !strings.Contains(string(doc), `"echo"`) {
			t.Errorf("%s: status %s, %v", protocol, doc, err)
		}
		for _, w := range []string{"mixed", "ycsb-f"} {
			rep, err := Run(t.Context(), s, quickOptions(w))
			if err != nil || rep.Ops == 0 || rep.Errors > 0 {
				t.Errorf("%s, %s: %+v, %v", protocol, w, rep, err)
			}
		}
	}
}

func TestServeEcho_WrongOptions_Refused(t *testing.T) {
	for _, c := range []struct {
		protocol string
		bytes    int
	}{{ProtocolNative, 1}, {"", 1}, {ProtocolGRPC, 0}, {ProtocolREST, valueBytesMax + 1}} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if err := ServeEcho(t.Context(), c.protocol, l, c.bytes); err == nil {
			t.Errorf("%+v was served", c)
		}
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%+v: the listener was left open", c)
		}
	}
}

func TestConnect_NothingListensOrUnknownProtocol_Fails(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, protocol := range []string{ProtocolGRPC, ProtocolREST} {
		open := serveEcho(t, protocol, 1)
		if s, err := Connect(t.Context(), ClientOptions{Protocol: protocol, Endpoints: []string{open, closed}}); err == nil {
			t.Errorf("%s: connected to %s: %v", protocol, closed, s.Close())
		}
	}
	if _, err := Connect(t.Context(), ClientOptions{Protocol: "smoke"}); err == nil || !strings.Contains(err.Error(), "native, grpc, rest") {
		t.Error(err)
	}
}

func TestSupports_WhatAProtocolCannotDo_RefusedWithAdvice(t *testing.T) {
	for _, c := range []struct {
		protocol, workload string
		pipeline           int
		want               string // in the error; empty: supported
	}{
		{ProtocolNative, "txn", 1, ""}, {ProtocolNative, "get", 64, ""}, {ProtocolGRPC, "", 1, ""}, {ProtocolGRPC, "put", 1, ""}, {ProtocolREST, "ycsb-f", 0, ""},
		{ProtocolGRPC, "get", 2, "concurrency instead of pipeline"}, {ProtocolREST, "batch-get", 1, "needs protocol native"}, {ProtocolGRPC, "ycsb-e", 1, "get, mixed, put"},
	} {
		err := Options{Workload: c.workload, Pipeline: c.pipeline}.Supports(c.protocol)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// told is an error as the server gives it.
func told(t *testing.T, code codes.Code, reason, applied string) error {
	t.Helper()
	info := &errdetails.ErrorInfo{Domain: errorDomain, Reason: reason, Metadata: map[string]string{}}
	if applied != "" {
		info.Metadata["applied"] = applied
	}
	st, err := status.New(code, "for a test").WithDetails(info)
	if err != nil {
		t.Fatal(err)
	}
	return st.Err()
}

// A write whose outcome the server did not tell is unknown, whatever gRPC calls it.
func TestGRPCError_EachOutcome_HasItsKind(t *testing.T) {
	for _, c := range []struct {
		err   error
		write bool
		want  Kind
	}{
		{told(t, codes.Unavailable, "NOT_LEADER", "no"), true, KindUnavailable},
		{told(t, codes.ResourceExhausted, "BUSY", "no"), true, KindBusy},
		{told(t, codes.DeadlineExceeded, "TOO_LATE", "no"), true, KindTimeout},
		{told(t, codes.Unknown, "TIMEOUT", "unknown"), true, KindUnknown},
		{told(t, codes.FailedPrecondition, "CONDITION_FAILED", "no"), true, KindRefused},
		{told(t, codes.PermissionDenied, "DENIED", "no"), true, KindDenied},
		{told(t, codes.NotFound, "NO_NAMESPACE", ""), false, KindRefused},
		{told(t, codes.Unknown, "TIMEOUT", ""), false, KindOther},
		{status.Error(codes.Unavailable, "connection reset"), true, KindUnknown},
		{status.Error(codes.DeadlineExceeded, "the client's own"), true, KindUnknown},
		{status.Error(codes.Unimplemented, "no such call"), true, KindRefused},
		{status.Error(codes.Unavailable, "connection reset"), false, KindUnavailable},
		{status.Error(codes.DeadlineExceeded, "the client's own"), false, KindTimeout},
		{status.Error(codes.Internal, "odd"), false, KindOther},
	} {
		if got := (keysOnly{}).Kind(grpcError(t.Context(), c.err, c.write)); got != c.want {
			t.Errorf("write %v, %v: %v, want %v", c.write, c.err, got, c.want)
		}
	}
	if err := grpcError(t.Context(), nil, true); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := grpcError(ctx, status.Error(codes.Canceled, "by the run"), false); !errors.Is(err, context.Canceled) {
		t.Errorf("the end of the run is not to be seen in %v", err)
	}
}

// absent is a server without any record.
type absent struct {
	kvstorev1.UnimplementedKVStoreServer
	err error
}

func (a absent) Get(context.Context, *kvstorev1.GetRequest) (*kvstorev1.GetResponse, error) {
	return nil, a.err
}

func TestGRPC_AbsentKey_IsNoError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	kvstorev1.RegisterKVStoreServer(s, absent{err: told(t, codes.NotFound, "NOT_FOUND", "")})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	defer func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	target := connect(t, ClientOptions{Protocol: ProtocolGRPC, Endpoints: []string{l.Addr().String()}})
	if v, found, err := target.Get(t.Context(), "k", []byte("x")); err != nil || found || string(v) != "x" {
		t.Errorf("%q, %v, %v", v, found, err)
	}
	if err := target.Put(t.Context(), "k", nil); target.Kind(err) != KindRefused {
		t.Errorf("a call that is not served: %v", err)
	}
	if _, err := target.Scan(t.Context(), "k", 1); target.Kind(err) != KindRefused {
		t.Errorf("a scan: %v", err)
	}
}

// Only the server's own word, in its own form, says that a write was not applied.
func TestREST_EachOutcome_HasItsKind(t *testing.T) {
	var code int
	var contentType, body string
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if code == 0 { // tear the connection
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(code)
		fmt.Fprint(w, body)
	})}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	target := connect(t, ClientOptions{Protocol: ProtocolREST, Endpoints: []string{l.Addr().String()}, Timeout: 5 * time.Second})
	const ours = "application/problem+json"
	doc := func(title, applied string) string {
		return fmt.Sprintf(`{"title":%q,"code":"KV-1000","applied":%q}`, title, applied)
	}
	for _, c := range []struct {
		code              int
		contentType, body string
		write             bool
		want              Kind
	}{
		{503, ours, doc("NOT_LEADER", "no"), true, KindUnavailable},
		{429, ours, doc("LIMITED", "no"), true, KindBusy},
		{504, ours, doc("TIMEOUT", "unknown"), true, KindUnknown},
		{412, ours, doc("CONDITION_FAILED", "no"), true, KindRefused},
		{403, ours, doc("DENIED", "no"), true, KindDenied},
		{503, "text/html", "a proxy's", true, KindUnknown},
		{400, "text/html", "a proxy's", true, KindRefused},
		{503, "text/html", "a proxy's", false, KindUnavailable},
		{504, ours, doc("TOO_LATE", "no"), false, KindTimeout},
		{500, ours, doc("DAMAGED", "no"), false, KindOther},
		{404, ours, doc("NO_NAMESPACE", ""), false, KindRefused},
		{404, "text/plain", "404 page not found", false, KindRefused},
		{0, "", "", true, KindUnknown},
		{0, "", "", false, KindUnavailable},
	} {
		code, contentType, body = c.code, c.contentType, c.body
		if c.write {
			err = target.Put(t.Context(), "k", []byte("v"))
		} else {
			_, _, err = target.Get(t.Context(), "k", nil)
		}
		if err == nil || target.Kind(err) != c.want {
			t.Errorf("write %v, %d %s: %v is %v, want %v", c.write, c.code, c.body, err, target.Kind(err), c.want)
		}
	}
	code, contentType, body = 404, ours, doc("NOT_FOUND", "")
	if v, found, err := target.Get(t.Context(), "k", []byte("x")); err != nil || found || string(v) != "x" {
		t.Errorf("absent: %q, %v, %v", v, found, err)
	}
	closed := s.Close()
	target.(*RESTTarget).transport.CloseIdleConnections()
	if err := target.Put(t.Context(), "k", nil); target.Kind(err) != KindUnavailable || closed != nil {
		t.Errorf("a write that reached nobody: %v is %v, %v", err, target.Kind(err), closed)
	}
}

func TestStartEcho_ProgramThatIsNone_SaysWhatItSaid(t *testing.T) {
	_, err := StartEcho([]string{"/bin/sh", "-c", "echo nonsense; echo trouble >&2"})
	if err == nil || !strings.Contains(err.Error(), "nonsense") || !strings.Contains(err.Error(), "trouble") {
		t.Error(err)
	}
	if _, err := StartEcho([]string{"/nonexistent"}); err == nil {
		t.Error("started")
	}
}
