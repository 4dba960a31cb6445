package record

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// The tests freeze the bytes with a golden file, then damage records in every way that a disk can (each
// bit flipped, each length cut, foreign keys, lengths that lie) and check that each is told apart.

var rewrite = flag.Bool("rewrite", false, "write testdata/*.hex from the present output")

func TestAppend_KnownPayloads_MatchTheGoldenBytes(t *testing.T) {
	// If this test breaks, the record format has changed: files written before can no longer be read.
	var out strings.Builder
	for _, payload := range []string{"", "a", "kvstore", strings.Repeat("\x00", 20)} {
		out.WriteString(hex.EncodeToString(Append(nil, []byte(payload))) + "\n")
	}
	const path = "testdata/records.hex"
	if *rewrite {
		if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Fatalf("the bytes differ from %s:\n%s", path, out.String())
	}
}

func TestDecode_SeveralRecords_GivesEachAndTheRest(t *testing.T) {
	buf := []byte("before")
	payloads := [][]byte{[]byte("one"), {}, bytes.Repeat([]byte{7}, 100_000)}
	for _, p := range payloads {
		buf = Append(buf, p)
	}
	rest := append(buf, "tail"...)[len("before"):]
	for i, want := range payloads {
		var got []byte
		var err error
		got, rest, err = Decode(rest)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("record %d: %d bytes, error %v", i, len(got), err)
		}
		if cap(got) != len(got) {
			t.Fatalf("record %d: appending to the payload would overwrite the next record", i)
		}
	}
	if string(rest) != "tail" {
		t.Fatalf("the rest is %q, want tail", rest)
	}
}

func TestDecode_EveryFlippedBit_IsRefused(t *testing.T) {
	whole := Append(nil, []byte("a payload of some bytes"))
	for bit := range len(whole) * 8 {
		damaged := bytes.Clone(whole)
		damaged[bit/8] ^= 1 << (bit % 8)
		payload, rest, err := Decode(damaged)
		if err == nil || payload != nil || rest != nil {
			t.Fatalf("bit %d: payload %q, rest %q, error %v", bit, payload, rest, err)
		}
		// A damaged key id must not be reported as a missing key.
		if errors.Is(err, ErrKey) {
			t.Fatalf("bit %d: damage is reported as a missing key: %v", bit, err)
		}
		// Behind the length, nothing but corruption may be seen.
		if bit >= 32 && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("bit %d: error %v, want ErrCorrupt", bit, err)
		}
	}
}

func TestDecode_EveryCut_IsTorn(t *testing.T) {
	whole := Append(nil, []byte("a payload of some bytes"))
	for n := range len(whole) {
		if _, _, err := Decode(whole[:n]); !errors.Is(err, ErrTorn) {
			t.Fatalf("cut to %d bytes: error %v, want ErrTorn", n, err)
		}
	}
}

func TestDecode_Zeros_AreCorruptAndNotEmptyRecords(t *testing.T) {
	if _, _, err := Decode(make([]byte, 4096)); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("error %v, want ErrCorrupt", err)
	}
}

func TestDecode_LengthBeyondTheCap_IsTooLarge(t *testing.T) {
	for _, n := range []uint32{PayloadMax + 1, 1<<32 - 1} {
		b := Append(nil, nil)
		binary.LittleEndian.PutUint32(b, n)
		if _, _, err := Decode(b); !errors.Is(err, ErrTooLarge) {
			t.Fatalf("length %d: error %v, want ErrTooLarge", n, err)
		}
	}
}

func TestDecode_IntactRecordWithForeignKey_IsErrKey(t *testing.T) {
	b := sealed(5, []byte("ciphertext"))
	if _, _, err := Decode(b); !errors.Is(err, ErrKey) {
		t.Fatalf("error %v, want ErrKey", err)
	}
	b[len(b)-1] ^= 1
	if _, _, err := Decode(b); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("damaged: error %v, want ErrCorrupt", err)
	}
}

func TestDecode_NonceInAClearRecord_IsCorrupt(t *testing.T) {
	if _, _, err := Decode(sealed(0, []byte("x"))); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("error %v, want ErrCorrupt", err)
	}
}

func TestAppend_PayloadAboveTheCap_Panics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Fatal("no panic")
		}
	}()
	Append(nil, make([]byte, PayloadMax+1))
}

func TestCodec_EnoughCapacity_AllocatesNothing(t *testing.T) {
	payload, buf := make([]byte, 1000), make([]byte, 0, 2000)
	if n := testing.AllocsPerRun(100, func() {
		buf = Append(buf[:0], payload)
		if _, _, err := Decode(buf); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Fatalf("%v allocations, want 0", n)
	}
}

func TestReader_RandomStream_GivesEveryRecordThenEOF(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	var stream []byte
	var want [][]byte
	for range 200 {
		p := make([]byte, rnd.IntN(2000))
		for i := range p {
			p[i] = byte(rnd.Uint32())
		}
		want = append(want, p)
		stream = Append(stream, p)
	}
	big := bytes.Repeat([]byte("big"), 1<<20)
	want, stream = append(want, big), Append(stream, big)

	for name, r := range map[string]io.Reader{
		"whole":  bytes.NewReader(stream),
		"halves": iotest.HalfReader(bytes.NewReader(stream)),
		"late":   iotest.DataErrReader(bytes.NewReader(stream)),
	} {
		reader := NewReader(r, PayloadMax)
		for i, w := range want {
			got, err := reader.Next()
			if err != nil || !bytes.Equal(got, w) {
				t.Fatalf("%s: record %d: %d bytes, error %v; want %d bytes", name, i, len(got), err, len(w))
			}
		}
		if _, err := reader.Next(); err != io.EOF {
			t.Fatalf("%s: at the end the error is %v, want io.EOF", name, err)
		}
	}
}

func TestReader_DamagedStream_SaysWhatItSaw(t *testing.T) {
	first, second := Append(nil, []byte("first")), Append(nil, []byte("second"))
	lies := Append(nil, nil)
	binary.LittleEndian.PutUint32(lies, PayloadMax)
	flipped := bytes.Clone(second)
	flipped[len(flipped)-1] ^= 1
	broken := errors.New("the disk broke")
	for name, c := range map[string]struct {
		tail io.Reader
		want error
	}{
		"cut header":      {bytes.NewReader(second[:10]), ErrTorn},
		"header alone":    {bytes.NewReader(second[:HeaderSize]), ErrTorn},
		"cut payload":     {bytes.NewReader(second[:len(second)-1]), ErrTorn},
		"flipped payload": {bytes.NewReader(flipped), ErrCorrupt},
		"length lies":     {bytes.NewReader(lies), ErrTorn},
		"above the limit": {bytes.NewReader(append(binary.LittleEndian.AppendUint32(nil, PayloadMax+1), make([]byte, 20)...)), ErrTooLarge},
		"foreign key":     {bytes.NewReader(sealed(9, []byte("x"))), ErrKey},
		"broken disk":     {iotest.ErrReader(broken), broken},
	} {
		reader := NewReader(io.MultiReader(bytes.NewReader(first), c.tail), PayloadMax)
		if got, err := reader.Next(); err != nil || string(got) != "first" {
			t.Fatalf("%s: first record: %q, %v", name, got, err)
		}
		if _, err := reader.Next(); !errors.Is(err, c.want) {
			t.Fatalf("%s: error %v, want %v", name, err, c.want)
		}
		if cap(reader.buf) > 2*readStep+HeaderSize {
			t.Fatalf("%s: the reader holds %d bytes", name, cap(reader.buf))
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, HeaderSize))
	f.Add(Append(Append(nil, []byte("one")), []byte("two")))
	f.Add(sealed(1, []byte("sealed")))
	f.Add(Append(nil, bytes.Repeat([]byte{1}, 300))[:200])
	f.Fuzz(func(t *testing.T, src []byte) {
		payload, rest, err := Decode(src)
		streamed, streamErr := NewReader(bytes.NewReader(src), PayloadMax).Next()
		if len(src) > 0 && (err == nil) != (streamErr == nil) {
			t.Fatalf("Decode says %v, Reader says %v", err, streamErr)
		}
		if err != nil {
			if !errors.Is(err, ErrTorn) && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrKey) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		if !bytes.Equal(payload, streamed) {
			t.Fatal("Decode and Reader disagree")
		}
		if again := Append(nil, payload); !bytes.Equal(again, src[:len(src)-len(rest)]) {
			t.Fatalf("a second encoding of the same payload:\n%x\n%x", src, again)
		}
	})
}

// sealed returns an intact record with a foreign key id and a nonce.
func sealed(keyID uint32, payload []byte) []byte {
	b := Append(nil, payload)
	binary.LittleEndian.PutUint32(b[keyIDOffset:], keyID)
	b[nonceOffset] = 0xAA
	binary.LittleEndian.PutUint32(b[crcOffset:], checksum(b))
	return b
}
