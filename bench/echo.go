package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"kvstore/api/kvstorev1"
)

const (
	// echoVersion and echoKey are as long as real ones.
	echoVersion = uint64(123_456_789_012_345)
	echoKey     = "kvbench/user1234567890123456789"
	// echoStopTimeout bounds what an echo's end waits for.
	echoStopTimeout = 5 * time.Second
	// echoReady is what an echo's process says once it listens; its address follows.
	echoReady = "listening on "
)

// ServeEcho serves an empty server of a protocol, ProtocolGRPC or ProtocolREST, on l until ctx ends: it takes the
// same gets and puts as a KVStore, and gives fixed answers of the same size, a value of valueBytes. What the servers
// take beyond it is what the store costs, and not the protocol's library. It closes l.
func ServeEcho(ctx context.Context, protocol string, l net.Listener, valueBytes int) error {
	if valueBytes < 1 || valueBytes > valueBytesMax {
		return errors.Join(fmt.Errorf("value size is %d; it must be between 1 and %d", valueBytes, valueBytesMax), l.Close())
	}
	value := newFiller(1, valueBytes).bytes[:valueBytes]
	var serve func(net.Listener) error
	var stop func()
	switch protocol {
	case ProtocolGRPC:
		s := grpc.NewServer()
		kvstorev1.RegisterKVStoreServer(s, newGRPCEcho(value))
		serve, stop = s.Serve, s.Stop
	case ProtocolREST:
		// The deadlines of the door: net/http takes some time for them.
		s := &http.Server{Handler: restEcho(value), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute}
		serve, stop = s.Serve, func() { _ = s.Close() } // what is under way is worth nothing
	default:
		return errors.Join(fmt.Errorf("there is no echo of protocol %q: %s or %s", protocol, ProtocolGRPC, ProtocolREST), l.Close())
	}
	done := make(chan error, 1)
	go func() { done <- serve(l) }() // owned by ServeEcho; ends when stop does
	select {
	case err := <-done:
		return fmt.Errorf("echo on %s ended: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	stop()
	if err := <-done; err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("echo on %s ended: %w", l.Addr(), err)
	}
	return nil
}

// grpcEcho answers with fixed messages.
type grpcEcho struct {
	kvstorev1.UnimplementedKVStoreServer

	// Immutable.
	get *kvstorev1.GetResponse
	put *kvstorev1.PutResponse
}

func newGRPCEcho(value []byte) *grpcEcho {
	at := timestamppb.New(time.UnixMicro(1_700_000_000_123_456))
	return &grpcEcho{
		get: &kvstorev1.GetResponse{Record: &kvstorev1.Record{
			Key: echoKey, Value: value, Version: echoVersion, CreatedAt: at, UpdatedAt: at, Checksum: echoVersion,
		}},
		put: &kvstorev1.PutResponse{Version: echoVersion},
	}
}

// Get answers with the fixed record.
func (e *grpcEcho) Get(context.Context, *kvstorev1.GetRequest) (*kvstorev1.GetResponse, error) {
	return e.get, nil
}

// Put forgets the value.
func (e *grpcEcho) Put(context.Context, *kvstorev1.PutRequest) (*kvstorev1.PutResponse, error) {
	return e.put, nil
}

// BatchPut forgets the values: a load phase may run against an echo.
func (e *grpcEcho) BatchPut(context.Context, *kvstorev1.BatchPutRequest) (*kvstorev1.BatchPutResponse, error) {
	return &kvstorev1.BatchPutResponse{Version: echoVersion}, nil
}

// Status says that this is no store.
func (e *grpcEcho) Status(context.Context, *kvstorev1.StatusRequest) (*kvstorev1.StatusResponse, error) {
	doc, err := structpb.NewStruct(map[string]any{"node_id": "echo"})
	if err != nil {
		return nil, err
	}
	return &kvstorev1.StatusResponse{NodeId: "echo", Document: doc}, nil
}

// restEcho reads the body and answers with the value, a write with a version.
func restEcho(value []byte) http.Handler {
	version := []byte(`{"version":"` + strconv.FormatUint(echoVersion, 10) + `"}` + "\n")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, kind := value, "application/octet-stream"
		switch {
		case r.Method != http.MethodGet:
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				return // the client is gone
			}
			answer, kind = version, "application/json"
		case r.URL.Path == restStatus:
			answer, kind = []byte(`{"node_id":"echo"}`), "application/json"
		}
		w.Header().Set("Content-Type", kind) // else net/http would guess, and take longer than for all of this
		_, _ = w.Write(answer)               // the client is gone
	})
}

// EchoProcess is an echo in a process of its own, so that its CPU time is.
type EchoProcess struct {
	// Address is where it listens, PID its process.
	Address string
	PID     int

	cmd   *exec.Cmd
	stdin io.Closer
}

// StartEcho runs command, which is to serve an echo until its stdin ends, and to say on stdout where. So it ends with
// this process even when that is killed.
func StartEcho(command []string) (_ *EchoProcess, err error) {
	var stderr strings.Builder
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("cannot start echo: %w", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("cannot start echo: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start echo: %w", err)
	}
	e := &EchoProcess{PID: cmd.Process.Pid, cmd: cmd, stdin: stdin}
	line, err := bufio.NewReader(io.LimitReader(stdout, 4096)).ReadString('\n')
	address, said := strings.CutPrefix(strings.TrimSpace(line), echoReady)
	if err != nil || !said {
		serr := e.Stop() // before stderr is read: its writer has then ended
		return nil, fmt.Errorf("cannot start echo: it said %q, %q: %w", line, stderr.String(), errors.Join(err, serr))
	}
	e.Address = address
	return e, nil
}

// AnnounceEcho says on w, as StartEcho awaits it, that an echo listens on address.
func AnnounceEcho(w io.Writer, address net.Addr) error {
	_, err := fmt.Fprintf(w, "%s%s\n", echoReady, address)
	return err
}

// Stop ends the process and waits for it.
func (e *EchoProcess) Stop() error {
	err := e.stdin.Close()
	patience := time.AfterFunc(echoStopTimeout, func() { _ = e.cmd.Process.Kill() }) // fails for one that has ended
	defer patience.Stop()
	return errors.Join(err, e.cmd.Wait())
}
