package wire

import (
	"fmt"
	"strings"
	"testing"
)

var (
	sinkBytes  []byte
	sinkUint32 uint32
	sinkBool   bool
)

func BenchmarkDecodeHeader(b *testing.B) {
	frame := readGolden(b, "put_request")
	var h Header
	b.ReportAllocs()
	for b.Loop() {
		if err := DecodeHeader(frame, &h); err != nil {
			b.Fatal(err)
		}
	}
	sinkUint32 = h.BodyLen
}

func BenchmarkParseRequest(b *testing.B) {
	value := []byte(strings.Repeat("v", 64))
	for _, c := range []struct {
		name  string
		frame []byte
	}{
		{"get/plain", AppendFrame(nil, Header{Op: OpGet, ID: 1}, nil, goldenKey, nil)},
		{"get/elements=2", readGolden(b, "get_request")},
		{"put/plain", AppendFrame(nil, Header{Op: OpPut, ID: 1}, nil, goldenKey, value)},
		{"put/session", AppendFrame(nil, Header{Op: OpPut, ID: 1}, AppendExtSession(nil, 1, 2, 0), goldenKey, value)},
		{"put/elements=7", readGolden(b, "put_request")},
		{"batch=128", AppendFrame(nil, Header{Op: OpBatch, ID: 1}, nil, nil, group(0, 128, &Item{Op: OpPut, Key: goldenKey, Value: value}))},
	} {
		for _, verify := range []bool{false, true} {
			h := Header{}
			if err := DecodeHeader(c.frame, &h); err != nil {
				b.Fatal(err)
			}
			frame := c.frame
			if verify {
				e, k, p, err := SplitBody(&h, frame[HeaderBytes:])
				if err != nil {
					b.Fatal(err)
				}
				h.Flags |= FlagCRC
				frame = AppendFrame(nil, h, e, k, p)
			}
			b.Run(fmt.Sprintf("%s/crc=%v", c.name, verify), func(b *testing.B) {
				var r Request
				b.ReportAllocs()
				b.SetBytes(int64(len(frame)))
				for b.Loop() {
					if DecodeHeader(frame, &h) != nil || verify && VerifyFrame(frame) != nil || ParseRequest(&h, frame[HeaderBytes:], &r) != nil {
						b.Fatal("refused")
					}
				}
				sinkBool = r.Stale
			})
		}
	}
}

func BenchmarkAppendResponse(b *testing.B) {
	for _, size := range []int{64, 1 << 10, 64 << 10} {
		for _, crc := range []bool{false, true} {
			b.Run(fmt.Sprintf("value=%d/crc=%v", size, crc), func(b *testing.B) {
				r := Response{Ext: AppendExtMeta(nil, &goldenMeta), Payload: make([]byte, size)}
				buf := make([]byte, 0, 2*size+256)
				b.ReportAllocs()
				for b.Loop() {
					buf = AppendResponse(buf[:0], Token{ID: 1, Op: OpGet}, &r, crc, 10)
				}
				b.SetBytes(int64(len(buf)))
				sinkBytes = buf
			})
		}
	}
}

func BenchmarkCRC32C(b *testing.B) {
	for _, size := range []int{64, 1 << 10, 64 << 10} {
		b.Run(fmt.Sprintf("%d", size), func(b *testing.B) {
			data := make([]byte, size)
			b.SetBytes(int64(size))
			for b.Loop() {
				sinkUint32 = CRC32C(data)
			}
		})
	}
}

func BenchmarkEntry(b *testing.B) {
	body := append([]byte("user:123"), strings.Repeat("v", 64)...)
	buf := AppendEntryHeader(nil)
	for range 128 {
		buf = AppendOp(buf, &Op{Op: OpPut, Namespace: 1}, body, 0, 8)
	}
	SealEntry(buf, &EntryHeader{Count: 128})
	b.Run("decode/operations=128", func(b *testing.B) {
		var h EntryHeader
		var o Op
		b.ReportAllocs()
		b.SetBytes(int64(len(buf)))
		for b.Loop() {
			ops, err := DecodeEntry(buf, &h)
			for err == nil && len(ops) > 0 {
				ops, err = NextOp(ops, &o)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkCompress(b *testing.B) {
	for _, c := range []Codec{CodecS2, CodecZstd} {
		for _, size := range []int{1 << 10, 64 << 10} {
			raw := []byte(strings.Repeat(string(goldenText), size/len(goldenText)+1)[:size])
			for i := range raw { // text with some noise: a run of equal lines would flatter
				if i%7 == 0 {
					raw[i] = byte('a' + i*i%23)
				}
			}
			packed, ok := AppendCompressed(nil, c, raw)
			if !ok {
				b.Fatalf("%s: %d bytes do not compress", c, size)
			}
			buf := make([]byte, 0, 2*size+1024)
			b.Run(fmt.Sprintf("%s/pack/%d", c, size), func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(size))
				for b.Loop() {
					sinkBytes, sinkBool = AppendCompressed(buf[:0], c, raw)
				}
				b.ReportMetric(float64(len(packed))/float64(size), "ratio")
			})
			b.Run(fmt.Sprintf("%s/unpack/%d", c, size), func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(size))
				for b.Loop() {
					var err error
					if sinkBytes, err = Decompress(buf[:0], c, packed, FrameBodyBytesMax); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkVerifyFrame(b *testing.B) {
	for _, name := range []string{"get_request", "put_request", "get_answer"} {
		b.Run(name, func(b *testing.B) {
			frame := readGolden(b, name)
			b.ReportAllocs()
			b.SetBytes(int64(len(frame)))
			for b.Loop() {
				if err := VerifyFrame(frame); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
