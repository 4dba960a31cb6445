package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

var codecs = []Codec{CodecS2, CodecZstd}

func TestCompress_RoundTrip(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for _, c := range codecs {
		for _, n := range []int{CompressBytesMin, CompressBytesMin + 1, 5000, 64 << 10, 300_000, 1 << 20, FrameBodyBytesMax} {
			body := make([]byte, n)
			for i := 0; i < n; i += len(goldenText) / 9 { // the same words from random places on
				copy(body[i:], goldenText[rng.IntN(44):])
			}
			for _, prefix := range [][]byte{nil, []byte("before"), append(make([]byte, 0, 100), "room"...)} {
				z, ok := AppendCompressed(bytes.Clone(prefix), c, body)
				if !ok || !bytes.HasPrefix(z, prefix) {
					t.Fatalf("%s, %d bytes: not compressed", c, n)
				}
				z = z[len(prefix):]
				if got, err := RawLen(z, FrameBodyBytesMax); got != n || err != nil {
					t.Errorf("%s, %d bytes: raw length %d, %v", c, n, got, err)
				}
				got, err := Decompress(bytes.Clone(prefix), c, z, FrameBodyBytesMax)
				if err != nil || !bytes.HasPrefix(got, prefix) || !bytes.Equal(got[len(prefix):], body) {
					t.Errorf("%s, %d bytes behind %d: %d bytes, %v", c, n, len(prefix), len(got), err)
				}
			}
		}
	}
}

func TestAppendCompressed_NotWorthIt_LeavesDst(t *testing.T) {
	noise := make([]byte, 64<<10)
	rng := rand.NewChaCha8([32]byte{1})
	if _, err := rng.Read(noise); err != nil {
		t.Fatal(err)
	}
	for _, c := range []Codec{CodecNone, CodecS2, CodecZstd, 9} {
		for _, body := range [][]byte{nil, make([]byte, CompressBytesMin-1), noise} {
			if got, ok := AppendCompressed([]byte("dst"), c, body); ok || string(got) != "dst" {
				t.Errorf("%s, %d bytes: %v, %d bytes", c, len(body), ok, len(got))
			}
		}
	}
}

func claim(n uint32, data ...[]byte) []byte {
	return append(binary.LittleEndian.AppendUint32(nil, n), bytes.Join(data, nil)...)
}

func zstdOf(t testing.TB, raw []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return e.EncodeAll(raw, nil)
}

// streamed gives a zstd frame that does not declare its content size.
func streamed(t testing.TB, raw []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	e, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	for part := range 2 { // two writes and a flush, so that the size is unknown when the header is written
		if _, err := e.Write(raw[part*len(raw)/2 : (part+1)*len(raw)/2]); err != nil {
			t.Fatal(err)
		}
		if err := e.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func hostileBodies(t testing.TB) map[string]struct {
	codec Codec
	body  []byte
} {
	zeros := make([]byte, 1<<20)
	good, one := zstdOf(t, zeros), zstdOf(t, []byte("x"), zstd.WithSingleSegment(true))
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0}, "skip"...)
	lying := bytes.Clone(good) // the frame header says 1 MiB; let it say 64 KiB + 256 more or less
	var h zstd.Header
	if err := h.Decode(good); err != nil || !h.HasFCS {
		t.Fatalf("%+v, %v", h, err)
	}
	binary.LittleEndian.PutUint32(lying[h.HeaderSize-4:], 1<<20-7)
	s2Lie := s2.Encode(nil, zeros)
	s2Lie[0]-- // the length, a varint, stands first
	type hostile = struct {
		codec Codec
		body  []byte
	}
	return map[string]hostile{
		"no length":                       {CodecS2, []byte{1, 2, 3}},
		"nothing behind the length":       {CodecS2, claim(1)},
		"s2 claims more than it holds":    {CodecS2, claim(1<<20+1, s2.Encode(nil, zeros))},
		"s2 claims less than it holds":    {CodecS2, claim(1<<20-1, s2.Encode(nil, zeros))},
		"s2 lies about its length":        {CodecS2, claim(1<<20-1, s2Lie)},
		"s2 cut":                          {CodecS2, claim(1<<20, s2.Encode(nil, zeros)[:20])},
		"s2 with bytes behind":            {CodecS2, claim(1<<20, s2.Encode(nil, zeros), []byte{0})},
		"s2 of 2^40 bytes":                {CodecS2, claim(1<<20, []byte{0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01})},
		"zstd as s2":                      {CodecS2, claim(1<<20, good)},
		"s2 as zstd":                      {CodecZstd, claim(1<<20, s2.Encode(nil, zeros))},
		"zstd claims more than it holds":  {CodecZstd, claim(1<<20+1, good)},
		"zstd claims less than it holds":  {CodecZstd, claim(1<<20-1, good)},
		"zstd header lies":                {CodecZstd, claim(1<<20-7, lying)},
		"zstd without content size":       {CodecZstd, claim(1<<20, streamed(t, zeros))},
		"zstd frames one behind another":  {CodecZstd, claim(1<<20, good, good)},
		"zstd frames that add up":         {CodecZstd, claim(2, one, one)},
		"zstd with an empty frame behind": {CodecZstd, claim(1<<20, good, zstdOf(t, nil, zstd.WithZeroFrames(true)))},
		"zstd behind a skippable frame":   {CodecZstd, claim(1<<20, skippable, good)},
		"zstd before a skippable frame":   {CodecZstd, claim(1<<20, good, skippable)},
		"zstd with bytes behind":          {CodecZstd, claim(1<<20, good, []byte{0})},
		"zstd cut":                        {CodecZstd, claim(1<<20, good[:len(good)-1])},
		"zstd of nothing":                 {CodecZstd, claim(0)},
		"skippable frame alone":           {CodecZstd, claim(0, skippable)},
		"no codec agreed":                 {CodecNone, claim(1, []byte("x"))},
		"unknown codec":                   {9, claim(1, []byte("x"))},
	}
}

// Whatever a compressed body holds, it either unpacks to precisely what it claims or is refused, and dst
// comes back as it was.
func TestDecompress_Hostile_IsCorrupt(t *testing.T) {
	for name, c := range hostileBodies(t) {
		got, err := Decompress([]byte("dst"), c.codec, c.body, FrameBodyBytesMax)
		if !errors.Is(err, ErrCorrupt) || string(got) != "dst" {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	for _, c := range codecs {
		body, ok := AppendCompressed(nil, c, make([]byte, 1<<20))
		if !ok {
			t.Fatal("zeros do not compress")
		}
		if _, err := Decompress(nil, c, body, 1<<20-1); !errors.Is(err, ErrFrameTooLarge) {
			t.Errorf("%s beyond the limit: %v", c, err)
		}
		if _, err := Decompress(nil, c, body, 1<<20); err != nil {
			t.Errorf("%s at the limit: %v", c, err)
		}
		if _, err := Decompress(nil, c, claim(1<<32-1, body[4:]), FrameBodyBytesMax); !errors.Is(err, ErrFrameTooLarge) {
			t.Errorf("%s claims 2^32-1 bytes: %v", c, err)
		}
	}
}

// A claim is all that a body can cost: frames that follow, and blocks that hold more than the header says,
// take no memory.
func TestDecompress_Bomb_CostsNoMoreThanItsClaim(t *testing.T) {
	zeros := make([]byte, 8<<20)
	big, small := zstdOf(t, zeros), zstdOf(t, zeros[:2048])
	var h zstd.Header
	if err := h.Decode(big); err != nil || !h.HasFCS {
		t.Fatalf("%+v, %v", h, err)
	}
	lying := bytes.Clone(big)
	binary.LittleEndian.PutUint32(lying[h.HeaderSize-4:], 2048)
	bombs := map[string][]byte{
		"frames behind":  claim(2048, small, big, big, big),
		"lying header":   claim(2048, lying),
		"honest header":  claim(2048, big),
		"honest 2048":    claim(2048, small),
		"skipped frames": claim(2048, small, []byte{0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0x7f}),
	}
	if _, err := Decompress(nil, CodecZstd, bombs["honest 2048"], FrameBodyBytesMax); err != nil { // builds the tables
		t.Fatal(err)
	}
	for name, body := range bombs {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Decompress(nil, CodecZstd, body, FrameBodyBytesMax)
		runtime.ReadMemStats(&after)
		if (err == nil) != (name == "honest 2048") {
			t.Errorf("%s: %v", name, err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
			t.Errorf("%s: %d bytes allocated for a claim of 2048", name, n)
		}
	}
}

// Frames that other encoders make are understood, whatever their level, window and checksum.
func TestDecompress_OtherEncoders(t *testing.T) {
	raw := bytes.Repeat(goldenText, 50)
	for name, opts := range map[string][]zstd.EOption{
		"best":           {zstd.WithEncoderLevel(zstd.SpeedBestCompression)},
		"no checksum":    {zstd.WithEncoderCRC(false)},
		"single segment": {zstd.WithSingleSegment(true)},
		"window 8 MiB":   {zstd.WithWindowSize(8 << 20)},
	} {
		if got, err := Decompress(nil, CodecZstd, claim(uint32(len(raw)), zstdOf(t, raw, opts...)), FrameBodyBytesMax); err != nil || !bytes.Equal(got, raw) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	for name, data := range map[string][]byte{"s2 better": s2.EncodeBetter(nil, raw), "snappy": s2.EncodeSnappy(nil, raw)} {
		if got, err := Decompress(nil, CodecS2, claim(uint32(len(raw)), data), FrameBodyBytesMax); err != nil || !bytes.Equal(got, raw) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}
