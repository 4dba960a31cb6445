package peer

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// someCalls is one call of each kind, and appends of several shapes.
func someCalls() []any {
	h := raft.RPCHeader{ProtocolVersion: 3, ID: []byte("node-1"), Addr: []byte("10.0.0.1:7300")}
	return []any{
		&raft.AppendEntriesRequest{RPCHeader: h, Term: 7},
		&raft.AppendEntriesRequest{RPCHeader: h, Term: 1 << 63, PrevLogEntry: 10, PrevLogTerm: 6, LeaderCommitIndex: 9, Entries: []*raft.Log{
			{Index: 11, Term: 7, Type: raft.LogCommand, Data: []byte("first"), AppendedAt: time.Unix(0, 1700000000123456789)},
			{Index: 12, Term: 7, Type: raft.LogNoop},
			{Index: 13, Term: 7, Type: raft.LogConfiguration, Data: []byte{0}, Extensions: []byte("more")},
		}},
		&raft.AppendEntriesRequest{RPCHeader: h, Term: 7, Entries: []*raft.Log{
			{Index: 1, Term: 1, Data: bytes.Repeat([]byte{1}, messageInline)},
			{Index: 2, Term: 1, Data: bytes.Repeat([]byte{2}, messageInline+1), Extensions: bytes.Repeat([]byte{3}, 2*messageInline)},
			{Index: 3, Term: 1, Data: bytes.Repeat([]byte{4}, 3*messageChunk)},
			{Index: 4, Term: 1, Data: []byte{5}},
		}},
		&raft.RequestVoteRequest{RPCHeader: h, Term: 8, LastLogIndex: 3, LastLogTerm: 2},
		&raft.RequestVoteRequest{RPCHeader: h, Term: 8, LastLogIndex: 3, LastLogTerm: 2, LeadershipTransfer: true},
		&raft.RequestPreVoteRequest{RPCHeader: h, Term: 9, LastLogIndex: 4, LastLogTerm: 1},
		&raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte("node-1"), Addr: []byte("a:1|7")}},
	}
}

func messageBytes(t testing.TB, call any) []byte {
	t.Helper()
	var out bytes.Buffer
	w := messageWriter{w: &out}
	if err := w.call(call); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestMessage_EveryCall_ComesAsItWas(t *testing.T) {
	calls := someCalls()
	var stream bytes.Buffer
	w := messageWriter{w: &stream}
	for _, c := range calls {
		if err := w.call(c); err != nil {
			t.Fatal(err)
		}
	}
	r := bufio.NewReader(&stream)
	for _, want := range calls {
		kind, body, err := readMessage(r, messageBytesMax)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeCall(kind, body)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%.300v\ncame as\n%.300v, %v", want, got, err)
		}
	}
	if _, _, err := readMessage(r, messageBytesMax); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

func TestMessage_EveryAnswer_ComesAsItWas(t *testing.T) {
	h := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}
	no := errors.New("no")
	for _, c := range []struct {
		response any
		err      error
		into     any
	}{
		{&raft.AppendEntriesResponse{RPCHeader: h, Term: 7, LastLog: 9, Success: true}, nil, new(raft.AppendEntriesResponse)},
		{&raft.AppendEntriesResponse{RPCHeader: h, Term: 7, NoRetryBackoff: true}, no, new(raft.AppendEntriesResponse)},
		{&raft.RequestVoteResponse{RPCHeader: h, Term: 7, Granted: true}, nil, new(raft.RequestVoteResponse)},
		{&raft.RequestPreVoteResponse{RPCHeader: h, Term: 7}, nil, &raft.RequestPreVoteResponse{Granted: true}},
		{&raft.TimeoutNowResponse{RPCHeader: h}, no, new(raft.TimeoutNowResponse)},
		{&raft.AppendEntriesResponse{RPCHeader: h}, errors.New(strings.Repeat("long ", errorBytesMax)), &raft.AppendEntriesResponse{Success: true}},
		{&raft.AppendEntriesResponse{RPCHeader: h}, errors.New(""), new(raft.AppendEntriesResponse)},
	} {
		var out bytes.Buffer
		w := messageWriter{w: &out}
		if err := w.answer(&raft.RPCResponse{Response: c.response, Error: c.err}); err != nil {
			t.Fatal(err)
		}
		kind, body, err := readMessage(bufio.NewReader(&out), answerBytesMax)
		if err != nil {
			t.Fatal(err)
		}
		err = decodeAnswer(kind, body, c.into)
		if !reflect.DeepEqual(c.into, c.response) || (err != nil) != (c.err != nil) {
			t.Errorf("%+v, %.40v came as %+v, %.40v", c.response, c.err, c.into, err)
		}
		if err != nil && (!errors.As(err, new(remoteError)) || stale(err) || c.err.Error() != "" && !strings.HasPrefix(c.err.Error(), err.Error())) {
			t.Errorf("%.40v came as %.40v", c.err, err)
		}
	}
	if err := decodeAnswer(messageAppend, nil, new(raft.AppendEntriesResponse)); !errors.Is(err, errMessage) {
		t.Errorf("a call as an answer: %v", err)
	}
}

// Goal: bytes that changed on the way, or a connection that ended amid a message, never give a call.
func TestMessage_BytesChangedOrMissing_IsRefused(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	for _, c := range someCalls() {
		good := messageBytes(t, c)
		for range 200 {
			bad := bytes.Clone(good)
			at := random.IntN(len(bad))
			if random.IntN(4) == 0 {
				at = random.IntN(min(len(bad), 64))
			}
			bad[at] ^= 1 << random.IntN(8)
			if kind, body, err := readMessage(bufio.NewReader(bytes.NewReader(bad)), messageBytesMax); err == nil {
				t.Fatalf("seed %d: a changed byte %d of %d was taken: kind %d, %d bytes", seed, at, len(good), kind, len(body))
			}
			_, _, err := readMessage(bufio.NewReader(bytes.NewReader(good[:at])), messageBytesMax)
			if want := io.ErrUnexpectedEOF; at > 0 && !errors.Is(err, want) {
				t.Fatalf("seed %d: %d bytes of %d: %v", seed, at, len(good), err)
			}
		}
	}
}

func TestMessageWriter_OutOfBounds_WritesNothing(t *testing.T) {
	for name, call := range map[string]any{
		"long id":      &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ID: bytes.Repeat([]byte("x"), idBytesMax+1)}},
		"long address": &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{Addr: bytes.Repeat([]byte("x"), headAddressMax+1)}},
		"too large":    &raft.AppendEntriesRequest{Entries: []*raft.Log{{Data: make([]byte, messageBytesMax)}}},
		"unknown":      &raft.InstallSnapshotRequest{},
	} {
		var out bytes.Buffer
		w := messageWriter{w: &out}
		if err := w.call(call); !errors.Is(err, errMessage) || out.Len() > 0 || stale(err) {
			t.Errorf("%s: %v, %d bytes", name, err, out.Len())
		}
	}
}

// Whatever bytes come, a message is refused or is what the writer would write, and takes no more memory than came.
func FuzzMessage(f *testing.F) {
	for _, c := range someCalls()[:2] {
		f.Add(messageBytes(f, c)[messageHeaderBytes:], byte(messageAppend))
	}
	for kind, c := range someCalls()[3:] {
		f.Add(messageBytes(f, c)[messageHeaderBytes:], byte(kind))
	}
	f.Add([]byte{4, 0, 0, 0, 'n', 'o', 'p', 'e', 7, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1}, byte(messageAnswer))
	f.Fuzz(func(t *testing.T, body []byte, kind byte) {
		var sealed bytes.Buffer
		w := messageWriter{w: &sealed}
		w.begin(messageKind(kind), len(body))
		w.data(body)
		if err := w.end(); err != nil {
			t.Fatal(err)
		}
		in := sealed.Bytes()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		k, b, err := readMessage(bufio.NewReader(bytes.NewReader(in)), messageBytesMax)
		if err != nil || byte(k) != kind || !bytes.Equal(b, body) {
			t.Fatalf("a sealed message: kind %d, %v", k, err)
		}
		call, err := decodeCall(k, b)
		runtime.ReadMemStats(&after)
		if n, most := after.TotalAlloc-before.TotalAlloc, uint64(2*messageTrust+16*len(in)); n > most {
			t.Fatalf("%d bytes were allocated for %d", n, len(in))
		}
		if err == nil {
			if again := messageBytes(t, call); !bytes.Equal(again, in) {
				t.Fatalf("%x\ncomes back as\n%x", in, again)
			}
		}
		var resp raft.AppendEntriesResponse
		if err := decodeAnswer(k, b, &resp); err != nil && !errors.Is(err, errMessage) && !errors.As(err, new(remoteError)) {
			t.Fatal(err)
		}
		// As it is, without a checksum of its own.
		if _, _, err := readMessage(bufio.NewReader(bytes.NewReader(body)), messageBytesMax); err == nil && len(body) < messageHeaderBytes+messageSumBytes {
			t.Fatal("a message without a checksum was taken")
		}
	})
}

// pipeConn is a connection in memory that gives back what was written.
type pipeConn struct{ bytes.Buffer }

func BenchmarkMessage_Append(b *testing.B) {
	for _, size := range []int{200, 8 << 10, 256 << 10} {
		b.Run(fmt.Sprintf("bytes=%d", size), func(b *testing.B) {
			h := raft.RPCHeader{ProtocolVersion: 3, ID: []byte("node-1"), Addr: []byte("10.0.0.1:7300")}
			call := &raft.AppendEntriesRequest{RPCHeader: h, Term: 7, PrevLogEntry: 10, PrevLogTerm: 6, Entries: []*raft.Log{{Index: 11, Term: 7, Data: make([]byte, size), AppendedAt: time.Now()}}}
			var p pipeConn
			w, r := messageWriter{w: &p}, bufio.NewReaderSize(&p, 64<<10)
			b.ReportAllocs()
			for b.Loop() {
				if err := w.call(call); err != nil {
					b.Fatal(err)
				}
				kind, body, err := readMessage(r, messageBytesMax)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := decodeCall(kind, body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
