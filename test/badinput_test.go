package test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"kvstore/internal/testcluster"
	"kvstore/wire"
)

// Bad input on the binary port. Each case must end in the documented status or in a closed connection;
// meanwhile a well-behaved client notices nothing, and the server's memory stays bounded.

// Bounds of what the server may take beyond what it used before, at its peak.
const (
	// cheapBytes is for input that must be refused before anything is allocated for it.
	cheapBytes = 64 << 20
	// dearBytes is for input that may cost up to a connection's credit (wire.ConnInflightBytesMax, 64 MiB)
	// or the budget of large frames for all connections (256 MiB), and as much again that the garbage
	// collector has not taken back yet.
	dearBytes = 640 << 20
)

// badServer is the server under attack and its well-behaved client.
type badServer struct {
	n  *testcluster.Node
	by *bystander
}

func startBad(t *testing.T) *badServer {
	t.Helper()
	n := testcluster.Start(t, testcluster.Options{Settings: map[string]string{
		"hello-timeout": "1s",
		"frame-timeout": "1s",
	}})
	b := &badServer{n: n, by: stand(t, n)}
	b.by.progress(200) // warm: what a server takes for its first clients is no part of any case
	return b
}

// run runs one case, and checks that nobody else noticed and that memory stayed below its bound.
func (b *badServer) run(t *testing.T, name string, bound int64, f func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		if testcluster.Race {
			bound *= 8 // the detector's shadow memory
		}
		if err := b.n.ResetMemoryPeak(); err != nil {
			t.Fatal(err)
		}
		before, _, err := b.n.MemoryBytes()
		if err != nil {
			t.Fatal(err)
		}
		f(t)
		b.by.progress(4)
		_, peak, err := b.n.MemoryBytes()
		if err != nil {
			t.Fatal(err)
		}
		grown := peak - before
		t.Logf("the server's memory grew by %d MiB at its peak, %d MiB at most are allowed", grown>>20, bound>>20)
		if grown > bound {
			t.Errorf("the server's memory grew by %d MiB", grown>>20)
		}
	})
}

func TestBadInput_BeforeHello_ClosedAndNobodyElseNotices(t *testing.T) {
	b := startBad(t)
	n := b.n
	s := seed(t)

	for name, garbage := range map[string][]byte{
		"wrong magic":         []byte("\x8bKV2\x01\x00\x01\x00 and so on"),
		"HTTP request":        []byte("GET /api/v1/keys/a HTTP/1.1\r\nHost: kvstore\r\n\r\n"),
		"TLS client hello":    []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
		"Redis command":       []byte("*1\r\n$4\r\nPING\r\n"),
		"zeros":               make([]byte, 64<<10),
		"one byte and an end": {0x8b},
	} {
		b.run(t, name, cheapBytes, func(t *testing.T) {
			c := dial(t, n)
			c.send(garbage)
			if err := c.c.CloseWrite(); err != nil && !isClosed(err) {
				t.Fatal(err)
			}
			if said := c.silent(); len(said) != 0 {
				t.Errorf("the server answers what is not its protocol: %q", said)
			}
		})
	}
	b.run(t, "random bytes", cheapBytes, func(t *testing.T) {
		rng := random(s, 1)
		for range 50 {
			c := dial(t, n)
			c.send(randomBytes(rng, 1+rng.IntN(20_000)))
			c.silent()
		}
	})
	b.run(t, "random bytes behind the preface", cheapBytes, func(t *testing.T) {
		rng := random(s, 2)
		for range 50 {
			c := dial(t, n)
			c.send(append(wire.AppendPreface(nil, 1, 1), randomBytes(rng, 1+rng.IntN(20_000))...))
			c.silent()
		}
	})
	b.run(t, "no common version", cheapBytes, func(t *testing.T) {
		c := dial(t, n)
		c.send(wire.AppendPreface(nil, 7, 9))
		if v := c.preface(); v != 0 {
			t.Errorf("the server chose version %d of 7 to 9", v)
		}
		c.end()
	})
	b.run(t, "silence", cheapBytes, func(t *testing.T) { dial(t, n).silent() })
	b.run(t, "preface and silence", cheapBytes, func(t *testing.T) {
		c := dial(t, n)
		c.send(wire.AppendPreface(nil, 1, 1))
		c.preface()
		c.end()
	})
	b.run(t, "half a HELLO and silence", cheapBytes, func(t *testing.T) {
		c := dial(t, n)
		frame := wire.AppendHello(wire.AppendPreface(nil, 1, 1), &wire.Hello{ClientName: "half"})
		c.send(frame[:len(frame)-3])
		c.silent()
	})
	b.run(t, "a crowd of silent connections", cheapBytes, func(t *testing.T) {
		crowd := make([]*rawConn, 400)
		for i := range crowd {
			crowd[i] = dial(t, n)
			if i%2 == 0 {
				crowd[i].send(wire.AppendPreface(nil, 1, 1))
			}
		}
		hello(t, n, 0).alive() // a newcomer is served beside them
		for _, c := range crowd {
			c.silent()
		}
	})

	preface := wire.AppendPreface(nil, 1, 1)
	frame := func(h wire.Header, body []byte) []byte {
		out, off := wire.BeginFrame(append([]byte(nil), preface...))
		return wire.FinishFrame(append(out, body...), off, h)
	}
	lying := frame(wire.Header{Op: wire.OpHello}, nil)
	binary.LittleEndian.PutUint32(lying[len(preface):], 1<<32-1)
	damaged := wire.AppendHello(append([]byte(nil), preface...), &wire.Hello{ClientName: "damaged"})
	damaged[len(damaged)-1] ^= 1
	foreign := wire.AppendHello(append([]byte(nil), preface...), &wire.Hello{ClusterID: bytes.Repeat([]byte{7}, 16)})
	critical := wire.AppendExt(nil, 201, []byte("who knows"))
	for name, k := range map[string]struct {
		frame []byte
		want  wire.Status
	}{
		"HELLO that claims 4 GiB":            {lying, wire.StatusTooLarge},
		"HELLO with a bad checksum":          {damaged, wire.StatusBadRequest},
		"HELLO for another cluster":          {foreign, wire.StatusDenied},
		"HELLO with a key":                   {frame(wire.Header{Op: wire.OpHello, KeyLen: 1}, []byte("k")), wire.StatusBadRequest},
		"HELLO with a critical element":      {frame(wire.Header{Op: wire.OpHello, ExtLen: uint16(len(critical))}, critical), wire.StatusUnsupported},
		"HELLO whose elements end too early": {frame(wire.Header{Op: wire.OpHello, ExtLen: 2}, []byte{20, 200}), wire.StatusBadRequest},
		"PUT in the place of HELLO":          {frame(wire.Header{Op: wire.OpPut, ID: 1, KeyLen: 9}, []byte("too-early")), wire.StatusBadRequest},
	} {
		b.run(t, name, cheapBytes, func(t *testing.T) {
			c := dial(t, n)
			c.send(k.frame)
			if v := c.preface(); v != wire.Version {
				t.Fatalf("the server chose version %d", v)
			}
			if h, body := c.frame(); h.Status() != k.want {
				t.Errorf("answered by %s %s %q, want %s", h.Op, h.Status(), body, k.want)
			}
			c.end()
		})
	}
	if _, found := hello(t, n, 0).get("too-early"); found {
		t.Error("a PUT before HELLO was executed")
	}
}

func randomBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, 0, n+8)
	for len(b) < n {
		b = binary.LittleEndian.AppendUint64(b, rng.Uint64())
	}
	return b[:n]
}

// group builds the payload of a batch or transaction.
func group(flags uint8, items ...wire.Item) []byte {
	b := wire.AppendGroupHeader(nil, flags, len(items))
	for i := range items {
		b = wire.AppendItem(b, &items[i])
	}
	return b
}

// TestBadInput_RequestRefused_StatusIsRightAndConnectionLives sends requests that are whole and wrong.
func TestBadInput_RequestRefused_StatusIsRightAndConnectionLives(t *testing.T) {
	b := startBad(t)
	n := b.n
	long := bytes.Repeat([]byte("k"), wire.KeyBytesMax+1)
	many := make([]wire.Item, wire.BatchOpsMax+1)
	for i := range many {
		many[i] = wire.Item{Op: wire.OpDelete, Key: []byte("k")}
	}
	conditions := make([]byte, 0, 200)
	for range wire.ConditionsMax + 1 {
		conditions = wire.AppendExtCondition(conditions, wire.ConditionExists, nil)
	}
	liar := group(0, wire.Item{Op: wire.OpPut, Key: []byte("liar"), Value: []byte("v")})
	binary.LittleEndian.PutUint32(liar[4:], 1<<31)
	liarItem := group(0, wire.Item{Op: wire.OpPut, Key: []byte("liar"), Value: []byte("v")})
	binary.LittleEndian.PutUint32(liarItem[wire.GroupHeaderBytes+8:], 1<<30)
	scanLiar := wire.AppendScanRequest(nil, &wire.ScanRequest{Prefix: []byte("p")})
	binary.LittleEndian.PutUint16(scanLiar[12:], 60_000)
	ttl := func(ms uint64) []byte { return wire.AppendExtU64(nil, wire.ExtTTL, ms) }
	key := []byte("refused/key")

	type request struct {
		op                wire.Opcode
		flags             wire.Flags
		group             uint16
		ext, key, payload []byte
		want              wire.Status
	}
	for name, k := range map[string]request{
		"key of 0 bytes":                       {op: wire.OpPut, payload: []byte("v"), want: wire.StatusBadKey},
		"key of 1025 bytes":                    {op: wire.OpPut, key: long, payload: []byte("v"), want: wire.StatusBadKey},
		"key of invalid UTF-8":                 {op: wire.OpPut, key: []byte("a\xff"), payload: []byte("v"), want: wire.StatusBadKey},
		"key with half a surrogate":            {op: wire.OpPut, key: []byte("a\xed\xa0\x80"), payload: []byte("v"), want: wire.StatusBadKey},
		"GET with a key of 0 bytes":            {op: wire.OpGet, want: wire.StatusBadKey},
		"GET with a key of 1025 bytes":         {op: wire.OpGet, key: long, want: wire.StatusBadKey},
		"DELETE with invalid UTF-8":            {op: wire.OpDelete, key: []byte("\xc3\x28"), want: wire.StatusBadKey},
		"unknown operation":                    {op: 0x7f, key: key, want: wire.StatusUnknownOp},
		"operation of the log only":            {op: wire.OpExpire, want: wire.StatusUnknownOp},
		"identity of the cluster":              {op: wire.OpInit, payload: make([]byte, 64), want: wire.StatusUnknownOp},
		"second HELLO":                         {op: wire.OpHello, want: wire.StatusUnknownOp},
		"unknown critical element":             {op: wire.OpPut, ext: wire.AppendExt(nil, 201, []byte("x")), key: key, payload: []byte("v"), want: wire.StatusUnsupported},
		"unknown flag that must be understood": {op: wire.OpPut, flags: wire.FlagMustUnderstand1, key: key, payload: []byte("v"), want: wire.StatusUnsupported},
		"flag of answers":                      {op: wire.OpPut, flags: wire.FlagResponse, key: key, payload: []byte("v"), want: wire.StatusBadRequest},
		"quiet GET":                            {op: wire.OpGet, flags: wire.FlagQuiet, key: key, want: wire.StatusBadRequest},
		"group that does not exist":            {op: wire.OpPut, group: 77, key: key, payload: []byte("v"), want: wire.StatusBadRequest},
		"namespace that does not exist":        {op: wire.OpPut, ext: wire.AppendExtString(nil, wire.ExtNamespace, "nowhere"), key: key, payload: []byte("v"), want: wire.StatusNoNamespace},
		"element twice":                        {op: wire.OpPut, ext: append(ttl(1000), ttl(2000)...), key: key, payload: []byte("v"), want: wire.StatusBadRequest},
		"element that ends too early":          {op: wire.OpPut, ext: []byte{7, 8, 1}, key: key, payload: []byte("v"), want: wire.StatusBadRequest},
		"element that claims 4 GiB":            {op: wire.OpPut, ext: []byte{7, 255, 255, 255, 255, 255}, key: key, payload: []byte("v"), want: wire.StatusBadRequest},
		"time to live of 0":                    {op: wire.OpPut, ext: ttl(0), key: key, payload: []byte("v"), want: wire.StatusBadRequest},
		"time to live beyond a century":        {op: wire.OpPut, ext: ttl(wire.TTLMsMax + 1), key: key, payload: []byte("v"), want: wire.StatusBadRequest},
		"tag with a bad name":                  {op: wire.OpPut, ext: wire.AppendExtTag(nil, "NO SPACES", "v"), key: key, payload: []byte("v"), want: wire.StatusBadRequest},
		"tag that is too long":                 {op: wire.OpPut, ext: wire.AppendExtTag(nil, "t", string(long)), key: key, payload: []byte("v"), want: wire.StatusTooLarge},
		"content type with a line break":       {op: wire.OpPut, ext: wire.AppendExtString(nil, wire.ExtContentType, "text/plain\r\nX: y"), key: key, payload: []byte("v"), want: wire.StatusBadRequest},
		"checksum of other bytes":              {op: wire.OpPut, ext: wire.AppendExtU64(nil, wire.ExtChecksum, 1), key: key, payload: []byte("v"), want: wire.StatusChecksum},
		"65 conditions":                        {op: wire.OpPut, ext: conditions, key: key, payload: []byte("v"), want: wire.StatusTooLarge},
		"stale write":                          {op: wire.OpPut, ext: wire.AppendExtU8(nil, wire.ExtConsistency, 1), key: key, payload: []byte("v"), want: wire.StatusBadRequest},
		"session nobody opened":                {op: wire.OpPut, ext: wire.AppendExtSession(nil, 1<<60, 1, 0), key: key, payload: []byte("v"), want: wire.StatusSessionExpired},
		"session with a floor above":           {op: wire.OpPut, ext: wire.AppendExtSession(nil, 5, 1, 9), key: key, payload: []byte("v"), want: wire.StatusBadRequest},
		"DELETE with a value":                  {op: wire.OpDelete, key: key, payload: []byte("v"), want: wire.StatusBadRequest},
		"GET with a payload":                   {op: wire.OpGet, key: key, payload: []byte("v"), want: wire.StatusBadRequest},
		"GET at revision 2^64-1":               {op: wire.OpGet, ext: wire.AppendExtU64(nil, wire.ExtAtRevision, 1<<64-1), key: key, want: wire.StatusFutureRevision},
		"batch of 65537 operations":            {op: wire.OpBatch, payload: group(wire.GroupAtomic, many...), want: wire.StatusTooLarge},
		"transaction of 65537 operations":      {op: wire.OpTxn, payload: group(0, many...), want: wire.StatusTooLarge},
		"batch without operations":             {op: wire.OpBatch, payload: group(0), want: wire.StatusBadRequest},
		"batch that claims 2^31 operations":    {op: wire.OpBatch, payload: liar, want: wire.StatusBadRequest},
		"batch with a value that claims 1 GiB": {op: wire.OpBatch, payload: liarItem, want: wire.StatusBadRequest},
		"batch with bytes behind its end":      {op: wire.OpBatch, payload: append(group(0, wire.Item{Op: wire.OpPut, Key: key}), 0), want: wire.StatusBadRequest},
		"batch cut short":                      {op: wire.OpBatch, payload: []byte{0, 0, 0}, want: wire.StatusBadRequest},
		"batch with a GET":                     {op: wire.OpBatch, payload: group(0, wire.Item{Op: wire.OpGet, Key: key}), want: wire.StatusBadRequest},
		"batch in a batch":                     {op: wire.OpBatch, payload: group(0, wire.Item{Op: wire.OpBatch, Value: group(0, wire.Item{Op: wire.OpPut, Key: key})}), want: wire.StatusBadRequest},
		"batch with one bad key":               {op: wire.OpBatch, payload: group(wire.GroupAtomic, wire.Item{Op: wire.OpPut, Key: key}, wire.Item{Op: wire.OpPut, Key: long}), want: wire.StatusBadKey},
		"transaction with an empty key":        {op: wire.OpTxn, payload: group(0, wire.Item{Op: wire.OpPut}), want: wire.StatusBadKey},
		"check without a condition":            {op: wire.OpTxn, payload: group(0, wire.Item{Op: wire.OpCheck, Key: key}), want: wire.StatusBadRequest},
		"MULTIGET that claims 2^31 keys":       {op: wire.OpMultiGet, payload: liar, want: wire.StatusBadRequest},
		"listing whose lengths lie":            {op: wire.OpScan, payload: scanLiar, want: wire.StatusBadRequest},
		"listing with an invented cursor":      {op: wire.OpScan, payload: wire.AppendScanRequest(nil, &wire.ScanRequest{Cursor: []byte("not yours")}), want: wire.StatusBadRequest},
		"PING of 1025 bytes":                   {op: wire.OpPing, payload: make([]byte, wire.PingBytesMax+1), want: wire.StatusTooLarge},
	} {
		b.run(t, name, cheapBytes, func(t *testing.T) {
			for _, features := range []wire.Features{0, wire.FeatureCRC} {
				c := hello(t, n, features)
				c.last++
				h := wire.Header{Op: k.op, Flags: k.flags, StatusOrGroup: k.group, ID: c.last}
				if c.crc {
					h.Flags |= wire.FlagCRC
				}
				if st, _, body := c.ask(wire.AppendFrame(nil, h, k.ext, k.key, k.payload)); st != k.want {
					t.Errorf("answered by %s %q, want %s", st, body, k.want)
				}
				c.alive()
				for _, name := range []string{string(key), "liar"} {
					if v, found := c.get(name); found {
						t.Fatalf("a refused request left %q in %q", v, name)
					}
				}
			}
		})
	}

	b.run(t, "lengths of key and extension beyond the body", cheapBytes, func(t *testing.T) {
		c := hello(t, n, 0)
		frame := c.request(wire.OpPut, nil, key, []byte("v"))
		binary.LittleEndian.PutUint16(frame[22:], 60_000)
		if st, _, body := c.ask(frame); st != wire.StatusBadRequest {
			t.Errorf("answered by %s %q", st, body)
		}
		c.alive()
	})
	b.run(t, "request id 0", cheapBytes, func(t *testing.T) {
		c := hello(t, n, 0)
		frame := c.request(wire.OpPut, nil, key, []byte("v"))
		binary.LittleEndian.PutUint32(frame[8:], 0)
		c.last = 0
		if st, _, body := c.ask(frame); st != wire.StatusBadRequest {
			t.Errorf("answered by %s %q", st, body)
		}
		c.alive()
	})
	b.run(t, "unknown element that may be ignored", cheapBytes, func(t *testing.T) {
		c := hello(t, n, 0)
		if st, _, body := c.ask(c.request(wire.OpPut, wire.AppendExt(nil, 200, []byte("x")), []byte("ignored"), []byte("v"))); st != wire.StatusOK {
			t.Errorf("answered by %s %q", st, body)
		}
		if v, found := c.get("ignored"); !found || string(v) != "v" {
			t.Errorf("reads %q, %v", v, found)
		}
	})
}

// TestBadInput_AtTheLimits_LargestIsServedAndOneByteMoreIsRefused.
func TestBadInput_AtTheLimits_LargestIsServedAndOneByteMoreIsRefused(t *testing.T) {
	b := startBad(t)
	n := b.n
	b.run(t, "key of 1024 bytes", cheapBytes, func(t *testing.T) {
		c := hello(t, n, wire.FeatureCRC)
		key := string(bytes.Repeat([]byte("é"), wire.KeyBytesMax/2))
		c.put(key, []byte("v"))
		if v, found := c.get(key); !found || string(v) != "v" {
			t.Errorf("reads %q, %v", v, found)
		}
	})
	b.run(t, "value of 16 MiB", dearBytes, func(t *testing.T) {
		c := hello(t, n, wire.FeatureCRC)
		value := content("largest", 0, wire.ValueBytesMax)
		c.put("largest", value)
		if v, found := c.get("largest"); !found || !bytes.Equal(v, value) {
			t.Errorf("%d bytes come back (found: %v) and are not those written", len(v), found)
		}
	})
	b.run(t, "value of 16 MiB and a byte", dearBytes, func(t *testing.T) {
		c := hello(t, n, wire.FeatureCRC)
		st, h, body := c.ask(c.request(wire.OpPut, nil, []byte("larger"), make([]byte, wire.ValueBytesMax+1)))
		if st != wire.StatusTooLarge || limitOf(t, body[:h.ExtLen]) != wire.ValueBytesMax {
			t.Errorf("answered by %s, limit %d, %q", st, limitOf(t, body[:h.ExtLen]), body[h.ExtLen:])
		}
		c.alive()
		if _, found := c.get("larger"); found {
			t.Error("the value is there although it was refused")
		}
	})
	b.run(t, "frame beyond the limit is skipped", cheapBytes, func(t *testing.T) {
		c := hello(t, n, wire.FeatureCRC)
		st, h, body := c.ask(c.request(wire.OpPut, nil, []byte("larger"), make([]byte, wire.FrameBodyBytesMax)))
		if st != wire.StatusTooLarge || limitOf(t, body[:h.ExtLen]) != wire.FrameBodyBytesMax {
			t.Errorf("answered by %s, limit %d, %q", st, limitOf(t, body[:h.ExtLen]), body[h.ExtLen:])
		}
		c.alive()
	})
	b.run(t, "batch of 16 MiB of values", dearBytes, func(t *testing.T) {
		c := hello(t, n, wire.FeatureCRC)
		items := make([]wire.Item, 32)
		for i := range items {
			items[i] = wire.Item{Op: wire.OpPut, Key: []byte{'b', '/', byte('A' + i)}, Value: content("batch", i, 512<<10)}
		}
		if st, _, body := c.ask(c.request(wire.OpBatch, nil, nil, group(wire.GroupAtomic, items...))); st != wire.StatusOK {
			t.Fatalf("answered by %s %q", st, body)
		}
		for i := range items {
			if v, found := c.get(string(items[i].Key)); !found || !bytes.Equal(v, items[i].Value) {
				t.Errorf("item %d: %d bytes come back (found: %v)", i, len(v), found)
			}
		}
	})
	b.run(t, "batch of 65536 operations", dearBytes, func(t *testing.T) {
		c := hello(t, n, wire.FeatureCRC)
		items := make([]wire.Item, wire.BatchOpsMax)
		for i := range items {
			items[i] = wire.Item{Op: wire.OpPut, Key: binary.BigEndian.AppendUint32([]byte("m/"), uint32(i)&0x7f|uint32(i)>>7<<8&0x7f7f00|uint32(i)>>14<<16), Value: []byte("v")}
		}
		st, _, body := c.ask(c.request(wire.OpBatch, nil, nil, group(wire.GroupAtomic, items...)))
		if st != wire.StatusOK {
			t.Fatalf("answered by %s %q", st, body)
		}
	})
}

func limitOf(t *testing.T, ext []byte) uint64 {
	t.Helper()
	for len(ext) > 0 {
		typ, v, rest, err := wire.NextExt(ext)
		if err != nil {
			t.Fatal(err)
		}
		if typ == wire.ExtLimit && len(v) == 8 {
			return binary.LittleEndian.Uint64(v)
		}
		ext = rest
	}
	return 0
}

// TestBadInput_StreamBroken_ConnectionIsClosed sends what shows that a stream has lost its place.
func TestBadInput_StreamBroken_ConnectionIsClosed(t *testing.T) {
	b := startBad(t)
	n := b.n
	s := seed(t)
	check := func(name string, features wire.Features, codecs []wire.Codec, want wire.Status, frame func(c *rawConn) []byte) {
		b.run(t, name, cheapBytes, func(t *testing.T) {
			c := hello(t, n, features, codecs...)
			c.send(frame(c))
			if st, told := c.end(); !told || st != want {
				t.Errorf("the end is told: %v, by %s, want %s", told, st, want)
			}
			if _, found := hello(t, n, 0).get("broken"); found {
				t.Error("a frame of a broken stream was executed")
			}
		})
	}
	put := func(c *rawConn) []byte { return c.request(wire.OpPut, nil, []byte("broken"), []byte("value")) }
	check("bad checksum", wire.FeatureCRC, nil, wire.StatusBadRequest, func(c *rawConn) []byte {
		f := put(c)
		f[len(f)-1] ^= 0x10
		return f
	})
	check("flipped bit in the header", wire.FeatureCRC, nil, wire.StatusBadRequest, func(c *rawConn) []byte {
		f := put(c)
		f[8] ^= 1 // another request id
		return f
	})
	check("frame without the agreed checksum", wire.FeatureCRC, nil, wire.StatusBadRequest, func(c *rawConn) []byte {
		c.crc = false
		return put(c)
	})
	check("checksum without its flag", 0, nil, wire.StatusBadRequest, func(c *rawConn) []byte {
		f := put(c)
		f[16] = 1
		return f
	})
	check("length of 4 GiB", wire.FeatureCRC, nil, wire.StatusTooLarge, func(c *rawConn) []byte {
		f := put(c)
		binary.LittleEndian.PutUint32(f, 1<<32-1)
		return f
	})
	check("half a frame and silence", wire.FeatureCRC, nil, wire.StatusTooLate, func(c *rawConn) []byte {
		f := put(c)
		return f[:len(f)-2]
	})
	check("half a header and silence", wire.FeatureCRC, nil, wire.StatusTooLate, func(c *rawConn) []byte { return put(c)[:11] })
	check("length that promises 10 MiB, and silence", wire.FeatureCRC, nil, wire.StatusTooLate, func(c *rawConn) []byte {
		f := put(c)
		binary.LittleEndian.PutUint32(f, 10<<20)
		return f
	})
	check("compressed frame without a codec", 0, nil, wire.StatusBadRequest, func(c *rawConn) []byte {
		f := put(c)
		f[5] |= byte(wire.FlagCompressed)
		return f
	})
	b.run(t, "a frame that drips", cheapBytes, func(t *testing.T) {
		c := hello(t, n, 0)
		f := c.request(wire.OpPut, nil, []byte("broken"), make([]byte, 1<<20))
		ended := make(chan wire.Status, 1)
		go func() { // ends with the connection
			st, _ := c.end()
			ended <- st
		}()
		for i := range f {
			c.send(f[i : i+1])
			select {
			case st := <-ended:
				if st != wire.StatusTooLate {
					t.Errorf("the end is told by %s", st)
				}
				return
			case <-time.After(5 * time.Millisecond): // the drip
			}
		}
		t.Error("a frame that drips for an hour is taken")
	})
	b.run(t, "random bytes behind HELLO", dearBytes, func(t *testing.T) {
		rng := random(s, 1)
		for range 100 {
			c := hello(t, n, wire.Features(rng.IntN(2)))
			c.send(randomBytes(rng, 1+rng.IntN(40_000)))
			if err := c.c.CloseWrite(); err != nil && !isClosed(err) {
				t.Fatal(err)
			}
			c.end()
		}
	})
	b.run(t, "flipped bits in good frames", dearBytes, func(t *testing.T) {
		// With checksums each flip is found; nothing that was not asked for may happen.
		rng := random(s, 2)
		for range 100 {
			c := hello(t, n, wire.FeatureCRC)
			f := put(c)
			f[rng.IntN(len(f))] ^= 1 << rng.IntN(8)
			c.send(f)
			if err := c.c.CloseWrite(); err != nil && !isClosed(err) {
				t.Fatal(err)
			}
			c.end()
		}
		if _, found := hello(t, n, 0).get("broken"); found {
			t.Error("a frame with a flipped bit was executed")
		}
	})
}

// TestBadInput_CompressionBomb_MemoryStaysBounded.
func TestBadInput_CompressionBomb_MemoryStaysBounded(t *testing.T) {
	b := startBad(t)
	n := b.n
	const compressed = wire.FeatureCRC | wire.FeatureCompression
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, wire.ValueBytesMax)
	pack := map[wire.Codec]func(raw []byte) []byte{
		wire.CodecS2:   func(raw []byte) []byte { return s2.EncodeBetter(nil, raw) },
		wire.CodecZstd: func(raw []byte) []byte { return encoder.EncodeAll(raw, nil) },
	}
	// bomb is a request whose body, of the given parts, is packed, with a claim of its length.
	bomb := func(c *rawConn, codec wire.Codec, op wire.Opcode, key string, payload []byte, claim uint32) []byte {
		c.last++
		raw := append([]byte(key), payload...)
		out, off := wire.BeginFrame(nil)
		out = binary.LittleEndian.AppendUint32(out, claim)
		out = append(out, pack[codec](raw)...)
		return wire.FinishFrame(out, off, wire.Header{Op: op, Flags: wire.FlagCRC | wire.FlagCompressed, ID: c.last, KeyLen: uint16(len(key))})
	}
	for _, codec := range []wire.Codec{wire.CodecS2, wire.CodecZstd} {
		b.run(t, codec.String()+" that claims less than it holds", cheapBytes, func(t *testing.T) {
			c := hello(t, n, compressed, codec)
			c.send(bomb(c, codec, wire.OpPut, "bomb", zeros, 1000))
			if st, told := c.end(); !told || st != wire.StatusBadRequest {
				t.Errorf("the end is told: %v, by %s", told, st)
			}
		})
		b.run(t, codec.String()+" that claims more than it holds", cheapBytes, func(t *testing.T) {
			c := hello(t, n, compressed, codec)
			c.send(bomb(c, codec, wire.OpPut, "bomb", []byte("little"), wire.ValueBytesMax))
			if st, told := c.end(); !told || st != wire.StatusBadRequest {
				t.Errorf("the end is told: %v, by %s", told, st)
			}
		})
		b.run(t, codec.String()+" that claims 4 GiB", cheapBytes, func(t *testing.T) {
			c := hello(t, n, compressed, codec)
			if st, _, body := c.ask(bomb(c, codec, wire.OpPut, "bomb", zeros, 1<<32-1)); st != wire.StatusTooLarge {
				t.Errorf("answered by %s %q", st, body)
			}
			c.alive()
		})
		b.run(t, codec.String()+" of 1 GiB, honest", cheapBytes, func(t *testing.T) {
			c := hello(t, n, compressed, codec)
			// 64 times 16 MiB in one block would take long to pack: the claim alone must be enough.
			if st, _, body := c.ask(bomb(c, codec, wire.OpPut, "bomb", zeros, 1<<30)); st != wire.StatusTooLarge {
				t.Errorf("answered by %s %q", st, body)
			}
			c.alive()
		})
		b.run(t, codec.String()+" of 16 MiB, 200 at once", dearBytes, func(t *testing.T) {
			// Each is honest and small on the wire, and none may be executed: a GET takes no payload.
			c := hello(t, n, compressed, codec)
			const times = 200
			first := c.last + 1
			frame := bomb(c, codec, wire.OpGet, "bomb", zeros, uint32(len("bomb")+len(zeros)))
			go func() { // ends with the connection
				for id := first; id < first+times; id++ {
					binary.LittleEndian.PutUint32(frame[8:], id)
					binary.LittleEndian.PutUint32(frame[16:], 0)
					binary.LittleEndian.PutUint32(frame[16:], wire.CRC32C(frame))
					c.send(frame)
				}
			}()
			seen := map[wire.Status]int{}
			for range times {
				h, _ := c.frame()
				seen[h.Status()]++
			}
			if seen[wire.StatusBadRequest] == 0 || seen[wire.StatusBadRequest]+seen[wire.StatusBusy] != times {
				t.Errorf("answered by %v", seen)
			}
			t.Logf("%d bytes each; answers: %v", len(frame), seen)
		})
		b.run(t, codec.String()+" as it should be", dearBytes, func(t *testing.T) {
			c := hello(t, n, compressed, codec)
			if st, _, body := c.ask(bomb(c, codec, wire.OpPut, "honest", zeros, uint32(len("honest")+len(zeros)))); st != wire.StatusOK {
				t.Fatalf("answered by %s %q", st, body)
			}
			if v, found := c.get("honest"); !found || !bytes.Equal(v, zeros) {
				t.Errorf("%d bytes come back (found: %v)", len(v), found)
			}
		})
	}
	b.run(t, "zstd stream that hides its size", cheapBytes, func(t *testing.T) {
		c := hello(t, n, compressed, wire.CodecZstd)
		var stream bytes.Buffer
		w, err := zstd.NewWriter(&stream)
		if err != nil {
			t.Fatal(err)
		}
		for range 4 {
			if _, err := w.Write(zeros); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		c.last++
		out, off := wire.BeginFrame(nil)
		out = append(binary.LittleEndian.AppendUint32(out, 1<<20), stream.Bytes()...)
		c.send(wire.FinishFrame(out, off, wire.Header{Op: wire.OpPut, Flags: wire.FlagCRC | wire.FlagCompressed, ID: c.last, KeyLen: 4}))
		if st, told := c.end(); !told || st != wire.StatusBadRequest {
			t.Errorf("the end is told: %v, by %s", told, st)
		}
	})
	if _, found := hello(t, n, 0).get("bomb"); found {
		t.Error("a bomb was stored")
	}
}

// TestBadInput_SlowOrDeafClient_IsServedWithinBounds.
func TestBadInput_SlowOrDeafClient_IsServedWithinBounds(t *testing.T) {
	b := startBad(t)
	n := b.n
	b.run(t, "one byte at a time", cheapBytes, func(t *testing.T) {
		c := hello(t, n, wire.FeatureCRC)
		f := c.request(wire.OpPut, nil, []byte("bytewise"), []byte("value"))
		f = append(f, c.request(wire.OpGet, nil, []byte("nothing"), nil)...)
		for i := range f {
			c.send(f[i : i+1])
			runtime.Gosched()
		}
		seen := map[wire.Status]int{}
		for range 2 {
			h, _ := c.frame()
			seen[h.Status()]++
		}
		if seen[wire.StatusOK] != 1 || seen[wire.StatusNotFound] != 1 {
			t.Errorf("a PUT and a GET of a missing key are answered by %v", seen)
		}
		if v, found := c.get("bytewise"); !found || string(v) != "value" {
			t.Errorf("reads %q, %v", v, found)
		}
	})
	b.run(t, "never reads", dearBytes, func(t *testing.T) {
		value := content("deaf", 0, 1<<20)
		hello(t, n, 0).put("deaf", value)
		const deafs, times = 4, 500
		conns := make([]*rawConn, deafs)
		for i := range conns {
			c := hello(t, n, 0)
			conns[i] = c
			var all []byte
			for range times {
				all = append(all, c.request(wire.OpGet, nil, []byte("deaf"), nil)...)
			}
			c.send(all)
		}
		// 500 answers of 1 MiB each are due on each connection, and nobody takes them.
		b.by.progress(200)
		for i, c := range conns {
			seen := map[wire.Status]int{}
			for range times {
				h, body := c.frame()
				if seen[h.Status()]++; h.Status() == wire.StatusOK && !bytes.Equal(body[h.ExtLen:], value) {
					t.Fatal("an answer that had to wait is damaged")
				}
			}
			t.Logf("connection %d: %v", i, seen)
			// Where the processors are slow, a read may also miss its deadline of ten seconds.
			if seen[wire.StatusOK] == 0 || seen[wire.StatusOK]+seen[wire.StatusBusy]+seen[wire.StatusTooLate] != times {
				t.Errorf("connection %d is answered by %v", i, seen)
			}
			c.alive()
		}
	})
	b.run(t, "hangs up in the middle", cheapBytes, func(t *testing.T) {
		for i := range 100 {
			c := hello(t, n, 0)
			f := c.request(wire.OpPut, nil, []byte("hangup"), make([]byte, 4096))
			c.send(f[:len(f)*i/100])
			if i%2 == 0 {
				if err := c.c.SetLinger(0); err != nil { // reset instead of an orderly end
					t.Fatal(err)
				}
			}
			if err := c.c.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if _, found := hello(t, n, 0).get("hangup"); found {
			t.Error("a part of a frame was executed")
		}
	})
}
