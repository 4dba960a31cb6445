package wire

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"unsafe"
)

// seed adds cut(frame) for every golden file.
func seed(f *testing.F, cut func(name string, b []byte) []byte) {
	names, err := filepath.Glob(filepath.Join("testdata", "*.hex"))
	if err != nil || len(names) == 0 {
		f.Fatalf("no golden files: %v", err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		b, err := parseHex(string(text))
		if err != nil {
			f.Fatal(err)
		}
		if c := cut(filepath.Base(name), b); c != nil {
			f.Add(c)
		}
	}
}

func wholeFrame(_ string, b []byte) []byte { return b }

// goldenPayload, goldenExt cut the golden frames; what is no frame gives nothing.
func goldenPayload(_ string, b []byte) []byte {
	var h Header
	if DecodeHeader(b, &h) != nil {
		return nil
	}
	_, _, payload, err := SplitBody(&h, b[HeaderBytes:])
	if err != nil || h.Flags&FlagCompressed != 0 {
		return nil
	}
	return payload
}

func goldenExt(_ string, b []byte) []byte {
	var h Header
	if DecodeHeader(b, &h) != nil {
		return nil
	}
	ext, _, _, err := SplitBody(&h, b[HeaderBytes:])
	if err != nil || h.Flags&FlagCompressed != 0 {
		return nil
	}
	return ext
}

// within fails unless view lies inside whole and cannot grow beyond itself.
func within(t *testing.T, what string, whole, view []byte) {
	t.Helper()
	if len(view) == 0 {
		return
	}
	w, v := uintptr(unsafe.Pointer(unsafe.SliceData(whole))), uintptr(unsafe.Pointer(unsafe.SliceData(view)))
	if v < w || v+uintptr(len(view)) > w+uintptr(len(whole)) {
		t.Fatalf("%s lies outside what was decoded", what)
	}
	if cap(view) != len(view) {
		t.Fatalf("%s may grow into its neighbour", what)
	}
}

func checkMutationViews(t *testing.T, op Opcode, ext []byte) {
	t.Helper()
	var m Mutation
	if ref := DecodeMutation(op, ext, &m); ref != nil {
		t.Fatalf("accepted, then refused: %v", ref)
	}
	if kept := AppendKept(nil, ext); len(kept) != m.Kept || m.Kept > keptBytesMax {
		t.Fatalf("kept %d bytes, counted %d, at most %d", len(kept), m.Kept, keptBytesMax)
	}
	n := 0
	for rest, ok := ext, true; ok; n++ {
		_, rest, ok = NextCondition(rest)
	}
	if n-1 != m.Conditions {
		t.Fatalf("%d conditions, counted %d", n-1, m.Conditions)
	}
}

func FuzzFrame(f *testing.F) {
	seed(f, wholeFrame)
	f.Fuzz(func(t *testing.T, b []byte) {
		var h Header
		if err := DecodeHeader(b, &h); err != nil {
			if len(b) >= HeaderBytes {
				t.Fatal(err)
			}
			return
		}
		_ = VerifyFrame(b) // a wrong checksum must not hide what is behind it from the fuzzer
		body := b[HeaderBytes:]
		var hello Hello
		if ref := ParseHello(&h, body, &hello); ref == nil && (hello.MaxFrame < MaxFrameMin || hello.MaxFrame > FrameBodyBytesMax) {
			t.Fatalf("hello %+v", hello)
		}
		var r Request
		ref := ParseRequest(&h, body, &r)
		if r.ID != h.ID || r.Op != h.Op {
			t.Fatalf("request %+v of header %+v", r, h)
		}
		if ref != nil {
			if c := ref.Status.Class(); c != ClassRefused || ref.Text == "" {
				t.Fatalf("refused with %v", ref)
			}
			return
		}
		within(t, "ext", body, r.Ext)
		within(t, "key", body, r.Key)
		within(t, "payload", body, r.Payload)
		h.CRC = 0
		again := AppendFrame(nil, h, r.Ext, r.Key, r.Payload)
		if !bytes.Equal(again[HeaderBytes:], body) {
			t.Fatal("the body does not come back")
		}
		if err := VerifyFrame(again); err != nil {
			t.Fatal(err)
		}
		switch r.Op {
		case OpPut, OpDelete, OpTouch, OpIncrement:
			checkMutationViews(t, r.Op, r.Ext)
		case OpBatch, OpTxn, OpMultiGet:
			_, n, items, err := DecodeGroup(r.Payload)
			if err != nil || n != r.Items || n > BatchOpsMax {
				t.Fatalf("%d items, counted %d: %v", n, r.Items, err)
			}
			for range n {
				var it Item
				if items, err = NextItem(items, &it); err != nil {
					t.Fatal(err)
				}
				if !ValidKey(it.Key) {
					t.Fatalf("key %q", it.Key)
				}
				checkMutationViews(t, it.Op, it.Ext)
			}
		}
	})
}

func FuzzExt(f *testing.F) {
	seed(f, goldenExt)
	f.Fuzz(func(t *testing.T, b []byte) {
		var again []byte
		for rest := b; len(rest) > 0; {
			ty, v, tail, err := NextExt(rest)
			if err != nil {
				return
			}
			within(t, "value", b, v)
			if len(tail) >= len(rest) {
				t.Fatal("no progress")
			}
			if ty == ExtTag {
				if name, value, err := SplitTag(v); err == nil && 1+len(name)+len(value) != len(v) {
					t.Fatalf("tag of %d + %d in %d bytes", len(name), len(value), len(v))
				}
			}
			again = AppendExt(again, ty, v)
			rest = tail
		}
		if len(again) > len(b) {
			t.Fatalf("%d bytes grew to %d", len(b), len(again))
		}
		var m Mutation
		for _, op := range []Opcode{OpPut, OpDelete, OpGet, OpCheck} {
			first := DecodeMutation(op, b, &m)
			if second := DecodeMutation(op, again, &m); statusOf(first) != statusOf(second) {
				t.Fatalf("%s: %v, re-encoded %v", op, first, second)
			}
			if first == nil {
				checkMutationViews(t, op, b)
			}
		}
	})
}

func FuzzCondition(f *testing.F) {
	f.Add([]byte{2})
	f.Add([]byte{4, 'a'})
	f.Add([]byte{1, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeCondition(b)
		if err != nil {
			return
		}
		_, v, _, err := NextExt(AppendExtCondition(nil, c.Kind, c.Operand))
		if err != nil || !bytes.Equal(v, b) {
			t.Fatalf("% x comes back as % x, %v", b, v, err)
		}
		c.HasVersion(1)
	})
}

func FuzzGroup(f *testing.F) {
	seed(f, goldenPayload)
	f.Fuzz(func(t *testing.T, b []byte) {
		flags, n, items, err := DecodeGroup(b)
		if err != nil {
			return
		}
		again := AppendGroupHeader(nil, flags, n)
		for range n {
			var it Item
			if items, err = NextItem(items, &it); err != nil {
				return
			}
			within(t, "ext", b, it.Ext)
			within(t, "key", b, it.Key)
			within(t, "value", b, it.Value)
			again = AppendItem(again, &it)
		}
		if !bytes.Equal(append(again, items...), b) {
			t.Fatal("the group does not come back")
		}
	})
}

func FuzzResult(f *testing.F) {
	seed(f, goldenPayload)
	f.Fuzz(func(t *testing.T, b []byte) {
		rev, n, items, err := DecodeResult(b)
		if err != nil {
			return
		}
		again := AppendResultHeader(nil, rev, n)
		for range n {
			var it Item
			if items, err = NextItem(items, &it); err != nil {
				return
			}
			again = AppendItem(again, &it)
		}
		if !bytes.Equal(append(again, items...), b) {
			t.Fatal("the result does not come back")
		}
	})
}

func FuzzFailed(f *testing.F) {
	seed(f, goldenPayload)
	f.Fuzz(func(t *testing.T, b []byte) {
		failed, err := DecodeFailed(b)
		if err == nil && !bytes.Equal(AppendFailed(nil, failed), b) {
			t.Fatal("the failures do not come back")
		}
	})
}

func FuzzScanRequest(f *testing.F) {
	seed(f, goldenPayload)
	f.Fuzz(func(t *testing.T, b []byte) {
		var s, again ScanRequest
		if ref := DecodeScanRequest(b, &s); ref != nil {
			return
		}
		if s.Limit == 0 || s.Limit > ScanLimitMax || s.BytesMax == 0 || s.BytesMax > ScanBytesMax {
			t.Fatalf("limits %d, %d", s.Limit, s.BytesMax)
		}
		for _, v := range [][]byte{s.Prefix, s.Start, s.End, s.Cursor, s.Delimiter} {
			within(t, "text", b, v)
		}
		c := AppendScanRequest(nil, &s)
		if ref := DecodeScanRequest(c, &again); ref != nil || !bytes.Equal(AppendScanRequest(nil, &again), c) || !bytes.Equal(c[12:], b[12:]) {
			t.Fatalf("%+v comes back as %+v, %v", s, again, ref)
		}
	})
}

func FuzzScanPage(f *testing.F) {
	seed(f, goldenPayload)
	f.Fuzz(func(t *testing.T, b []byte) {
		var p ScanPage
		if err := DecodeScanPage(b, &p); err != nil {
			return
		}
		within(t, "items", b, p.Items)
		within(t, "cursor", b, p.Cursor)
		if ScanPageHeaderBytes+len(p.Items)+len(p.Cursor) != len(b) || p.Count*ItemHeaderBytes > len(p.Items) {
			t.Fatalf("%+v in %d bytes", p, len(b))
		}
	})
}

func FuzzWatchRequest(f *testing.F) {
	seed(f, goldenPayload)
	f.Fuzz(func(t *testing.T, b []byte) {
		var w, again WatchRequest
		if ref := DecodeWatchRequest(b, &w); ref != nil {
			return
		}
		if w.Credit == 0 || w.Credit > StreamCreditMax || w.ProgressMs < ProgressMsMin || w.ProgressMs > ProgressMsMax {
			t.Fatalf("credit %d, progress %d", w.Credit, w.ProgressMs)
		}
		for _, v := range [][]byte{w.Prefix, w.Start, w.End} {
			within(t, "text", b, v)
		}
		c := AppendWatchRequest(nil, &w)
		if ref := DecodeWatchRequest(c, &again); ref != nil || !bytes.Equal(AppendWatchRequest(nil, &again), c) || !bytes.Equal(c[12:], b[12:]) {
			t.Fatalf("%+v comes back as %+v, %v", w, again, ref)
		}
		// What covers a key is the same as three comparisons.
		for _, key := range [][]byte{w.Prefix, w.Start, w.End, append(bytes.Clone(w.Prefix), 0), append(bytes.Clone(w.Start), 0)} {
			want := bytes.HasPrefix(key, w.Prefix) && bytes.Compare(key, w.Start) >= 0 && (len(w.End) == 0 || bytes.Compare(key, w.End) < 0)
			if w.Flags&WatchKey != 0 {
				want = bytes.Equal(key, w.Start)
			}
			if w.Covers(key) != want {
				t.Fatalf("%+v covers %q: %v", w, key, !want)
			}
		}
	})
}

func FuzzEventBatch(f *testing.F) {
	seed(f, goldenPayload)
	f.Fuzz(func(t *testing.T, b []byte) {
		var batch EventBatch
		if err := DecodeEventBatch(b, &batch); err != nil {
			return
		}
		again := AppendEventBatchHeader(nil, batch.Revision, batch.Count)
		events := batch.Events
		for range batch.Count {
			var e Event
			var err error
			if events, err = NextEvent(events, &e); err != nil {
				return
			}
			for _, v := range [][]byte{e.Ext, e.Key, e.Value, e.PreviousExt, e.Previous} {
				within(t, "part", b, v)
			}
			n := len(again)
			if again = AppendEvent(again, &e); len(again)-n != e.Bytes() {
				t.Fatalf("event of %d bytes says %d", len(again)-n, e.Bytes())
			}
		}
		if !bytes.Equal(append(again, events...), b) {
			t.Fatal("the events do not come back")
		}
	})
}

func FuzzNamespaceChange(f *testing.F) {
	for _, n := range namespaceChanges {
		f.Add(AppendNamespaceChange(nil, &n))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var n NamespaceChange
		if DecodeNamespaceChange(b, &n) != nil {
			return
		}
		if !bytes.Equal(AppendNamespaceChange(nil, &n), b) {
			t.Fatalf("%+v does not come back", n)
		}
	})
}

func FuzzHello(f *testing.F) {
	seed(f, goldenExt)
	f.Fuzz(func(t *testing.T, b []byte) {
		var h, again Hello
		if ref := DecodeHello(b, &h); ref != nil {
			return
		}
		if h.MaxFrame < MaxFrameMin || h.MaxFrame > FrameBodyBytesMax || len(h.Codecs) > CodecsMax || len(h.ClientName) > ClientNameBytesMax {
			t.Fatalf("%+v", h)
		}
		frame := AppendHello(nil, &h)
		if ref := DecodeHello(frame[HeaderBytes:], &again); ref != nil || !bytes.Equal(AppendHello(nil, &again), frame) {
			t.Fatalf("%+v comes back as %+v, %v", h, again, ref)
		}
	})
}

func FuzzHelloAck(f *testing.F) {
	seed(f, goldenExt)
	f.Fuzz(func(t *testing.T, b []byte) {
		var a, again HelloAck
		if err := DecodeHelloAck(b, &a); err != nil {
			return
		}
		if len(b) > HelloBytesMax/2 || len(a.NodeID) > 255 || len(a.Version) > 255 {
			return // no server sends that
		}
		for _, m := range a.Members {
			if len(m.Address) > 1024 {
				return
			}
		}
		frame := AppendHelloAck(nil, &a)
		if err := DecodeHelloAck(frame[HeaderBytes:], &again); err != nil || !bytes.Equal(AppendHelloAck(nil, &again), frame) {
			t.Fatalf("%+v comes back as %+v, %v", a, again, err)
		}
	})
}

func FuzzPreface(f *testing.F) {
	f.Add(AppendPreface(nil, 1, 1))
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < PrefaceBytes {
			return
		}
		x, y, err := DecodePreface(b)
		if err == nil && !bytes.Equal(AppendPreface(nil, x, y), b[:PrefaceBytes]) {
			t.Fatalf("% x comes back as %d, %d", b, x, y)
		}
	})
}

func FuzzMeta(f *testing.F) {
	f.Add(AppendMeta(nil, &goldenMeta))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m Meta
		if err := DecodeMeta(b, &m); err == nil && !bytes.Equal(AppendMeta(nil, &m), b) {
			t.Fatal("meta does not come back")
		}
		if g, ok := DecodeSessionGrant(b); ok && !bytes.Equal(AppendSessionGrant(nil, g), b) {
			t.Fatal("the grant does not come back")
		}
		var in Init
		if err := DecodeInit(b, &in); err == nil && !bytes.Equal(AppendInit(nil, &in), b) {
			t.Fatal("init does not come back")
		}
		if n, err := DecodeExpire(b); err == nil && !bytes.Equal(AppendExpire(nil, n), b) {
			t.Fatal("expire does not come back")
		}
		if v, ok := DecodeVersion(b); ok && !bytes.Equal(AppendVersion(nil, v), b) {
			t.Fatal("the version does not come back")
		}
	})
}

// The checksum is put right before decoding, so that the fuzzer gets behind it.
func FuzzEntry(f *testing.F) {
	f.Add(goldenEntry())
	f.Add(goldenEntry()[:EntryHeaderBytes+OpHeaderBytes])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= EntryHeaderBytes {
			b = reseal(bytes.Clone(b))
		}
		var h EntryHeader
		ops, err := DecodeEntry(b, &h)
		if err != nil {
			return
		}
		again := AppendEntryHeader(nil)
		for range h.Count {
			var o Op
			whole := ops
			if ops, err = NextOp(ops, &o); err != nil {
				t.Fatalf("DecodeEntry passed what NextOp refuses: %v", err)
			}
			within(t, "ext", b, o.Ext)
			within(t, "key", b, o.Key)
			within(t, "payload", b, o.Payload)
			body := whole[OpHeaderBytes : len(whole)-len(ops)]
			if len(body) <= FrameBodyBytesMax {
				again = AppendOp(again, &o, body, len(o.Ext), len(o.Key))
			}
		}
		if len(ops) != 0 {
			t.Fatalf("%d bytes left", len(ops))
		}
		SealEntry(again, &h)
		if !bytes.Equal(again, b) {
			t.Fatal("the entry does not come back")
		}
	})
}

func FuzzOp(f *testing.F) {
	f.Add(goldenEntry()[EntryHeaderBytes:])
	f.Fuzz(func(t *testing.T, b []byte) {
		var o Op
		rest, err := NextOp(b, &o)
		if err != nil {
			return
		}
		n := len(b) - len(rest)
		if again := AppendOp(nil, &o, b[OpHeaderBytes:n], len(o.Ext), len(o.Key)); !bytes.Equal(again, b[:n]) {
			t.Fatal("the operation does not come back")
		}
	})
}

func FuzzDecompress(f *testing.F) {
	for name, c := range hostileBodies(f) {
		_ = name
		f.Add(uint8(c.codec), c.body)
	}
	for _, name := range []string{"compressed_s2", "compressed_zstd"} {
		f.Add(uint8(CodecS2), readGolden(f, name)[HeaderBytes:])
		f.Add(uint8(CodecZstd), readGolden(f, name)[HeaderBytes:])
	}
	f.Fuzz(func(t *testing.T, codec uint8, b []byte) {
		const limit = 4 << 20
		got, err := Decompress([]byte("dst"), Codec(codec), b, limit)
		if !bytes.HasPrefix(got, []byte("dst")) {
			t.Fatal("dst was changed")
		}
		if err != nil {
			if len(got) != 3 {
				t.Fatalf("%d bytes beside %v", len(got)-3, err)
			}
			return
		}
		if n, err := RawLen(b, limit); err != nil || n != len(got)-3 {
			t.Fatalf("%d bytes, claimed %d, %v", len(got)-3, n, err)
		}
		if z, ok := AppendCompressed(nil, Codec(codec), got[3:]); ok {
			back, err := Decompress(nil, Codec(codec), z, limit)
			if err != nil || !bytes.Equal(back, got[3:]) {
				t.Fatalf("what was unpacked does not come back: %v", err)
			}
		}
	})
}
