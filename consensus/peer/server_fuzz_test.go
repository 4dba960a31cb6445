package peer

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"testing"
	"time"

	"kvstore/internal/record"
)

// Whatever bytes come, a frame is read to its end and no further, within its bound, or is refused; and what was read
// is written as it was.
func FuzzReadFrame(f *testing.F) {
	seq := []byte(`{"seq":7,"applied":3,"held":[{"id":"node-3","incarnation":"03030303030303030303030303030303","starts":2,"index":9}]}`)
	for kind := kindHello; kind <= kindOffer; kind++ {
		f.Add(byte(kind), seq, true)
	}
	f.Add(byte(kindPulsed), []byte(`{"seq":7,"boot":1,"raw":2,"wall":-3,"vitals":"AAEC"}`), true)
	f.Add(byte(kindFetch), []byte(`{"reach":7,"confirmed":true}`), true)
	f.Add(byte(kindOffer), []byte(`{"error":"no","offer":{"index":1,"term":2,"configuration":"AA==","configuration_index":1,"size":-1}}`), true)
	f.Add(byte(kindInstalled), []byte(`{"error":"x","term":7,"success":true}`), true)
	f.Add(byte(kindHello), []byte("KVSP\x01\x01\x00\x00\xff\xff\xff\xff\x00\x00\x00\x00"), false)
	f.Fuzz(func(t *testing.T, b byte, in []byte, seal bool) {
		kind := frameKind(b)
		if seal {
			in = sealFrame(kind, in)
		}
		var v any
		switch kind {
		case kindPulse:
			v = new(pulseQuestion)
		case kindPulsed:
			v = new(pulseAnswer)
		case kindInstall:
			v = new(installRequest)
		case kindInstalled:
			v = new(installAnswer)
		case kindFetch:
			v = new(Want)
		case kindOffer:
			v = new(offerAnswer)
		default:
			v = new(frameJSON)
		}
		r := bytes.NewReader(append(bytes.Clone(in), "what follows"...))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := readFrame(r, kind, pulseBytesMax, v)
		runtime.ReadMemStats(&after)
		if n, most := after.TotalAlloc-before.TotalAlloc, uint64(1<<20+64*len(in)); n > most {
			t.Fatalf("%d bytes were allocated for %d", n, len(in))
		}
		if err != nil {
			return
		}
		if rest := r.Len(); seal && rest != len("what follows") {
			t.Fatalf("%d bytes are left", rest)
		}
		again, err := appendFrame(nil, kind, v)
		if err != nil {
			t.Fatal(err)
		}
		back := reflect.New(reflect.TypeOf(v).Elem()).Interface()
		if err := readFrame(bytes.NewReader(again), kind, 2*pulseBytesMax+frameHeader, back); err != nil {
			t.Fatal(err)
		}
		twice, err := appendFrame(nil, kind, back)
		if err != nil || !bytes.Equal(again, twice) {
			t.Fatalf("%s\ncomes back as\n%s", again[frameHeader:], twice[frameHeader:])
		}
	})
}

// Whatever the file "peers" holds, it is refused, or is what the book would write.
func FuzzBook(f *testing.F) {
	own := &book{nodeID: "node-1", incarnation: incarnation(1), group: 7}
	good, err := own.encode(&page{
		founders: []Founder{{ID: "node-1", Address: "a:1"}, {ID: "node-2", Address: "b:1"}}, hash: [32]byte{5}, founded: true,
		cluster: incarnation(0xcc), history: incarnation(0xdd),
		entries: map[string]entry{"node-2": {address: "b:1", incarnation: incarnation(2), past: [][16]byte{incarnation(9)}, starts: 3, mark: 8, nonce: 8}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, true)
	f.Add(record.Append(nil, good), false)
	f.Add(bytes.ReplaceAll(good, []byte("node-2"), []byte("node-1")), true)
	f.Add([]byte(`{"format":1,"peers":[{"id":"a","past":["00"]}]}`), true)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal {
			b = record.Append(nil, b)
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, bookFileName), b, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := openBook(dir, own.nodeID, own.incarnation, own.group)
		if err != nil {
			return
		}
		p := got.read()
		if len(p.entries) > peersMax || len(p.founders) > foundersMax {
			t.Fatalf("%d peers and %d founders", len(p.entries), len(p.founders))
		}
		again, err := own.encode(&p)
		if err != nil {
			t.Fatal(err)
		}
		back, err := own.decode(again)
		if err != nil || !reflect.DeepEqual(p, back) {
			t.Fatalf("%+v comes back as %+v, %v", p, back, err)
		}
	})
}

// purposes are what a fuzzer chooses from.
var purposes = []Purpose{PurposeRaft, PurposeInstall, PurposePulse, PurposeFetch, PurposeFound, "nonsense"}

// accepting is a transport with one end of a connection that it is just accepting, without a socket.
func accepting(t *testing.T, tr *Transport) net.Conn {
	near, far := net.Pipe()
	c := &conn{Conn: far, t: tr, inbound: true}
	if !tr.conns.add(c) {
		t.Fatal("the transport takes no connection")
	}
	tr.handshakes <- struct{}{}
	tr.wg.Add(1)
	go tr.welcome(c) // owned by Transport; ends with the connection
	return near
}

// Whatever another node says on a connection of any kind, in its first frame or behind it, nothing comes of it but
// what a node may do: the transport goes on, closes, and remembers no more than the nodes that proved themselves.
func FuzzConnection(f *testing.F) {
	hello := func(t testing.TB, p Purpose) []byte {
		return mustAppendHello(t, Hello{
			Purpose: p, Target: "node-2", Source: "node-1", Incarnation: incarnation(1), Starts: 1, Nonce: 5,
			Address: "10.0.0.1:7300", Cluster: incarnation(0xcc), History: incarnation(0xdd), Heartbeat: 600 * time.Millisecond,
		})
	}
	for _, call := range someCalls() {
		b := messageBytes(f, call)
		f.Add(byte(0), true, b, false)
		f.Add(byte(0), true, append(b, b[:len(b)/2]...), false)
	}
	f.Add(byte(1), true, []byte(`{"protocol_version":3,"id":"bm9kZS0x","addr":"","snapshot_version":1,"term":9,"last_log_index":100,"last_log_term":3,"configuration":"AA==","size":10}`), true)
	f.Add(byte(2), true, []byte(`{"seq":1,"applied":5,"held":[{"id":"node-1","incarnation":"01010101010101010101010101010101","starts":1,"index":7}]}`), true)
	f.Add(byte(3), true, []byte(`{"reach":9}`), true)
	f.Add(byte(4), true, []byte{}, false)
	f.Add(byte(5), true, []byte{}, false)
	f.Add(byte(0), false, hello(f, PurposeRaft), false)
	f.Add(byte(0), false, []byte(`{"purpose":"pulse","source":"node-1","target":"node-2","address":"x:1","incarnation":"01010101010101010101010101010101"}`), true)
	f.Fuzz(func(t *testing.T, purpose byte, greeted bool, b []byte, seal bool) {
		o := testOptions(t, 2)
		o.Receive = (&receiver{}).receive
		o.Offer = func(_ context.Context, w Want) (Offer, io.ReadCloser, error) {
			return Offer{Index: w.Reach, Term: 1}, io.NopCloser(bytes.NewReader(snapshotBytes(10))), nil
		}
		o.StallTimeout = 20 * time.Second // nothing here waits for it: the other side closes
		tr := open(t, o)
		tr.Bind(newFakeNode(3))
		serve(t, tr, agree)
		c := accepting(t, tr)
		ended := make(chan struct{})
		go func() { // owned by this call; ends when the connection does
			defer close(ended)
			_, _ = io.Copy(io.Discard, c)
		}()
		p := purposes[int(purpose)%len(purposes)]
		kind := kindHello
		if greeted {
			if _, err := c.Write(hello(t, p)); err != nil {
				t.Fatal(err)
			}
			kind = map[Purpose]frameKind{PurposeInstall: kindInstall, PurposePulse: kindPulse, PurposeFetch: kindFetch}[p]
		}
		if seal {
			b = sealFrame(kind, b)
		}
		// It may have been refused before.
		_, _ = c.Write(b)
		_, _ = c.Write(snapshotBytes(10))
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		<-ended
		known := tr.book.read().entries
		ids := make([]string, 0, len(known))
		for id := range known {
			ids = append(ids, id)
		}
		if greeted && p != "nonsense" && p != PurposeFetch && !slices.Equal(ids, []string{"node-1"}) || len(ids) > 1 {
			t.Fatalf("it knows %q", ids)
		}
		tr.holdings.mu.Lock()
		defer tr.holdings.mu.Unlock()
		for id := range tr.holdings.of {
			if !slices.Contains(ids, id) {
				t.Fatalf("it keeps something about %q", id)
			}
		}
	})
}
