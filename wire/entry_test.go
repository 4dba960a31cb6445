package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

// reseal recomputes the checksum of an entry that a test has changed.
func reseal(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[36:], entryCRC(b))
	return b
}

func TestEntry_RoundTrip(t *testing.T) {
	b := goldenEntry()
	var h EntryHeader
	ops, err := DecodeEntry(b, &h)
	if err != nil {
		t.Fatal(err)
	}
	if want := (EntryHeader{Level: 1, Group: GroupDefault, Incarnation: 0x1122334455667788, Proposal: 12, Time: 1_700_000_000_000_000, Count: 5}); h != want {
		t.Errorf("header %+v", h)
	}
	var got []Op
	for range h.Count {
		var o Op
		if ops, err = NextOp(ops, &o); err != nil {
			t.Fatal(err)
		}
		got = append(got, o)
	}
	if len(ops) != 0 {
		t.Errorf("%d bytes left", len(ops))
	}
	put := got[0]
	if put.Op != OpPut || put.Namespace != NamespaceDefault || put.Session != goldenSession || put.Seq != 7 || put.Floor != 5 ||
		!bytes.Equal(put.Ext, goldenPutExt()) || !bytes.Equal(put.Key, goldenKey) || !bytes.Equal(put.Payload, goldenValue) {
		t.Errorf("put %+v", put)
	}
	if got[2].Principal != 3 || got[2].AuthRevision != 9 || !bytes.Equal(got[2].Payload, goldenBatch(GroupAtomic)) {
		t.Errorf("batch %+v", got[2])
	}
	if n, err := DecodeExpire(got[3].Payload); n != 256 || err != nil {
		t.Errorf("expire %d, %v", n, err)
	}
	var in Init
	if err := DecodeInit(got[4].Payload, &in); err != nil || in != (Init{ClusterID: [16]byte{1, 2, 3}, HistoryID: [16]byte{4, 5, 6}, Level: 1}) {
		t.Errorf("init %+v, %v", in, err)
	}
	if _, err := DecodeExpire(make([]byte, 5)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("expire of 5 bytes: %v", err)
	}
	if err := DecodeInit(make([]byte, InitBytes+1), &in); !errors.Is(err, ErrCorrupt) {
		t.Errorf("init of 35 bytes: %v", err)
	}
}

// The body of a mutation is the same bytes in the frame of a client and in the log.
func TestEntry_HoldsTheBodyOfTheFrame(t *testing.T) {
	frame := goldenRequest(OpPut, 3, goldenPutExt(), goldenKey, goldenValue)()
	var h Header
	if err := DecodeHeader(frame, &h); err != nil {
		t.Fatal(err)
	}
	var r Request
	if ref := ParseRequest(&h, frame[HeaderBytes:], &r); ref != nil {
		t.Fatal(ref)
	}
	b := AppendOp(AppendEntryHeader(nil), &Op{Op: r.Op, Session: r.Session, Seq: r.Seq, Floor: r.Floor}, r.Body, len(r.Ext), len(r.Key))
	SealEntry(b, &EntryHeader{Count: 1})
	if !bytes.HasSuffix(b, frame[HeaderBytes:]) {
		t.Error("the body was changed")
	}
	ops, err := DecodeEntry(b, &EntryHeader{})
	if err != nil {
		t.Fatal(err)
	}
	var o Op
	if _, err := NextOp(ops, &o); err != nil || !bytes.Equal(o.Ext, r.Ext) || !bytes.Equal(o.Key, r.Key) || !bytes.Equal(o.Payload, r.Payload) {
		t.Errorf("%+v, %v", o, err)
	}
}

// Damage of any kind is found: a flipped bit by the checksum; a frame that is whole by its checksum but
// makes no sense to this build by the checks of framing and reserved fields.
func TestDecodeEntry_DamageAndTheFuture_AreRefused(t *testing.T) {
	b := goldenEntry()
	var h EntryHeader
	for i := range len(b) * 8 {
		b[i/8] ^= 1 << (i % 8)
		if _, err := DecodeEntry(b, &h); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("bit %d flipped: %v", i, err)
		}
		b[i/8] ^= 1 << (i % 8)
	}
	for n := range b {
		if _, err := DecodeEntry(b[:n], &h); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%d of %d bytes: %v", n, len(b), err)
		}
	}
	for name, change := range map[string]func(b []byte){
		"format 2":               func(b []byte) { b[0] = 2 },
		"reserved byte":          func(b []byte) { b[1] = 1 },
		"an operation less":      func(b []byte) { b[32]-- },
		"an operation more":      func(b []byte) { b[32]++ },
		"2^32-1 operations":      func(b []byte) { binary.LittleEndian.PutUint32(b[32:], 1<<32-1) },
		"flags of an operation":  func(b []byte) { b[EntryHeaderBytes+1] = 1 },
		"reserved 6":             func(b []byte) { b[EntryHeaderBytes+6] = 1 },
		"reserved 7":             func(b []byte) { b[EntryHeaderBytes+7] = 1 },
		"reserved 44":            func(b []byte) { b[EntryHeaderBytes+44] = 1 },
		"reserved 47":            func(b []byte) { b[EntryHeaderBytes+47] = 1 },
		"body of 2^32-1 bytes":   func(b []byte) { binary.LittleEndian.PutUint32(b[EntryHeaderBytes+8:], 1<<32-1) },
		"body cut":               func(b []byte) { b[EntryHeaderBytes+8]-- },
		"key longer than a body": func(b []byte) { b[EntryHeaderBytes+5] = 0xff },
	} {
		c := goldenEntry()
		change(c)
		if _, err := DecodeEntry(reseal(c), &h); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := DecodeEntry(reseal(append(goldenEntry(), 0)), &h); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a byte more: %v", err)
	}
	empty := AppendEntryHeader(nil)
	SealEntry(empty, &EntryHeader{Level: 1})
	if ops, err := DecodeEntry(empty, &h); err != nil || len(ops) != 0 {
		t.Errorf("entry without operations: %v", err)
	}
	var o Op
	for n := range OpHeaderBytes {
		if _, err := NextOp(make([]byte, n), &o); !errors.Is(err, ErrCorrupt) {
			t.Errorf("operation of %d bytes: %v", n, err)
		}
	}
}
