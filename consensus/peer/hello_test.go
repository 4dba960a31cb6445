package peer

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func testHello() Hello {
	return Hello{
		Purpose: PurposeRaft, Group: 7, Target: "node-2", Source: "node-1", Incarnation: incarnation(1),
		Starts: 5, Nonce: 1<<64 - 1, Lineage: []uint64{7, 0x0807060504030201, 1<<64 - 1}, LastIndex: 17, LastTerm: 3, LogTold: true,
		Address: "10.0.0.1:7300", Cluster: incarnation(0xcc), History: incarnation(0xdd),
		Founders: [32]byte{5}, Level: 3, StateLevel: 2, Heartbeat: 600 * time.Millisecond, Card: []byte(`{"version":"1"}`),
	}
}

func mustAppendHello(t testing.TB, h Hello) []byte {
	t.Helper()
	b, err := appendHello(nil, &h)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestReadHello_WhatWasWritten_ReadsBackAndNotAByteMore(t *testing.T) {
	full := testHello()
	bare := Hello{Purpose: PurposeFound, Target: "b", Source: "a", Incarnation: incarnation(1), Address: "x:1"}
	for _, want := range []Hello{full, bare} {
		r := bytes.NewReader(append(mustAppendHello(t, want), "rest"...))
		got, err := ReadHello(r)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
		if r.Len() != len("rest") {
			t.Errorf("%d bytes are left, want 4", r.Len())
		}
	}
}

// The bytes of today: a node of another version must be able to read them.
func TestAppendHello_KnownHello_MatchesTheGoldenBytes(t *testing.T) {
	got := mustAppendHello(t, Hello{Purpose: PurposeFound, Target: "b", Source: "a", Incarnation: incarnation(1), Address: "x:1"})
	payload := `{"purpose":"found","target":"b","source":"a","incarnation":"01010101010101010101010101010101","address":"x:1","cluster":"","history":"","founders":""}`
	const header = "4b565350" + "01" + "01" + "0000" + "96000000" + "f34dd986"
	want, err := hex.DecodeString(header)
	if err != nil {
		t.Fatal(err)
	}
	if want = append(want, payload...); !bytes.Equal(got, want) {
		t.Errorf("got  %x %s\nwant %x %s", got[:16], got[16:], want[:16], want[16:])
	}
}

func TestReadHello_UnknownFields_AreIgnored(t *testing.T) {
	payload := []byte(`{"purpose":"raft","target":"b","source":"a","incarnation":"01010101010101010101010101010101","address":"x:1","of the future":{"a":[1]}}`)
	got, err := ReadHello(bytes.NewReader(sealFrame(kindHello, payload)))
	if err != nil || got.Source != "a" {
		t.Fatalf("%+v, %v", got, err)
	}
}

func sealFrame(kind frameKind, payload []byte) []byte {
	b := append([]byte(frameMagic), frameVersion, byte(kind), 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	b = binary.LittleEndian.AppendUint32(b, crc32.Update(crc32.Checksum(b, castagnoli), castagnoli, payload))
	return append(b, payload...)
}

func TestReadHello_EveryFlippedBitAndEveryCut_IsRefused(t *testing.T) {
	whole := mustAppendHello(t, testHello())
	for i := range whole {
		for bit := range 8 {
			b := bytes.Clone(whole)
			b[i] ^= 1 << bit
			if h, err := ReadHello(bytes.NewReader(b)); err == nil {
				t.Fatalf("byte %d bit %d: accepted as %+v", i, bit, h)
			}
		}
		_, err := ReadHello(bytes.NewReader(whole[:i]))
		if want := io.ErrUnexpectedEOF; i > 0 && !errors.Is(err, want) || i == 0 && err != io.EOF {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
}

func TestReadHello_WrongContents_AreRefusedByName(t *testing.T) {
	const rest = `"incarnation":"01010101010101010101010101010101","address":"x:1"}`
	for payload, want := range map[string]string{
		`not JSON`:              "cannot decode",
		`{"target":"b",` + rest: "source",
		`{"source":"a",` + rest: "target",
		`{"source":"a","target":"b","address":"x:1"}`:                                                                              "incarnation",
		`{"source":"a","target":"b","incarnation":"01010101010101010101010101010101"}`:                                             "address",
		`{"source":"a","target":"b","cluster":"0102",` + rest:                                                                      "2 bytes instead of 16",
		`{"source":"a","target":"b","cluster":"zz",` + rest:                                                                        "invalid byte",
		`{"source":"` + strings.Repeat("a", 65) + `","target":"b",` + rest:                                                         "source",
		`{"source":"a","target":"b","lineage":"AAAA",` + rest:                                                                      "lineage of 3 bytes",
		`{"source":"a","target":"b","lineage":"` + base64.StdEncoding.EncodeToString(make([]byte, 8*(LineageMax+1))) + `",` + rest: "lineage of 520 bytes",
		`{"source":"a","target":"b","starts":1,"lineage":"AAAAAAAAAAAAAAAAAAAAAA==",` + rest:                                       "lineage of 2 starts, for start 1",
		`{"source":"a","target":"b","starts":1,"nonce":5,"lineage":"AAAAAAAAAAA=",` + rest:                                         "does not end with the process",
		`{"source":"a","target":"b","card":"` + strings.Repeat("AAAA", 1400) + `",` + rest:                                         "card",
	} {
		_, err := ReadHello(bytes.NewReader(sealFrame(kindHello, []byte(payload))))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: %v, want %q", payload, err, want)
		}
	}
	if _, err := ReadHello(bytes.NewReader(sealFrame(kindHello, make([]byte, helloBytesMax+1)))); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("oversized: %v", err)
	}
	if _, err := ReadHello(strings.NewReader("GET / HTTP/1.1\r\nHost: x\r\n\r\n")); !errors.Is(err, errForeign) {
		t.Errorf("HTTP: %v", err)
	}
	future := mustAppendHello(t, testHello())
	future[4] = 2
	if _, err := ReadHello(bytes.NewReader(future)); !errors.Is(err, errVersion) {
		t.Errorf("version 2: %v", err)
	}
}

func TestReadHello_LargestHello_FitsItsFrame(t *testing.T) {
	h := testHello()
	h.Source, h.Target = strings.Repeat("s", idBytesMax), strings.Repeat("t", idBytesMax)
	h.Address = strings.Repeat("<", addressBytesMax) // six bytes each in JSON
	h.Card = make([]byte, cardBytesMax)
	h.Starts, h.Lineage = 1<<64-1, slices.Repeat([]uint64{h.Nonce}, LineageMax)
	if _, err := ReadHello(bytes.NewReader(mustAppendHello(t, h))); err != nil {
		t.Fatal(err)
	}
	b, err := appendAnswer(nil, &answer{refusal: refuse(codeLevel, "%s", strings.Repeat("<", 2*refusalBytesMax))})
	if err != nil {
		t.Fatal(err)
	}
	a, err := readAnswer(bytes.NewReader(b))
	if err != nil || a.refusal == nil || len(a.refusal.text) != refusalBytesMax {
		t.Fatalf("%+v, %v", a, err)
	}
}

func TestReadAnswer_Refusal_KeepsCodeTextAndFinality(t *testing.T) {
	for _, r := range []*refusal{refuse(codeRemoved, "gone"), refuse(codeStarting, "soon")} {
		b, err := appendAnswer(nil, &answer{refusal: r})
		if err != nil {
			t.Fatal(err)
		}
		a, err := readAnswer(bytes.NewReader(b))
		if err != nil || a.refusal == nil || a.refusal.code != r.code || a.refusal.text != r.text || a.refusal.final() != r.final() {
			t.Errorf("%+v: got %+v, %v", r, a.refusal, err)
		}
	}
}

func FuzzReadHello(f *testing.F) {
	h := testHello()
	f.Add(mustAppendHello(f, h))
	f.Add(sealFrame(kindHello, []byte(`{"source":"a","target":"b"}`)))
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		check := func(b []byte) {
			h, err := ReadHello(bytes.NewReader(b))
			if err != nil {
				return
			}
			if !validID(h.Source) || !validID(h.Target) || !validAddress(h.Address) || len(h.Card) > cardBytesMax || h.Incarnation == [16]byte{} {
				t.Fatalf("accepted out of bounds: %+v", h)
			}
			again, err := ReadHello(bytes.NewReader(mustAppendHello(t, h)))
			if err != nil || len(again.Card) != len(h.Card) || again.Source != h.Source {
				t.Fatalf("%+v does not read back: %+v, %v", h, again, err)
			}
		}
		check(b)
		if len(b) <= helloBytesMax {
			check(sealFrame(kindHello, b)) // past the checksum
		}
	})
}

func FuzzReadAnswer(f *testing.F) {
	f.Add([]byte(`{"code":"level","text":"x","final":true}`))
	f.Add([]byte(`{"source":"a","target":"b","address":"x:1","incarnation":"01010101010101010101010101010101"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := readAnswer(bytes.NewReader(sealFrame(kindAnswer, b)))
		if err == nil && a.refusal == nil && !validID(a.hello.Source) || a.refusal != nil && len(a.refusal.text) > refusalBytesMax {
			t.Fatalf("accepted out of bounds: %+v", a)
		}
	})
}
