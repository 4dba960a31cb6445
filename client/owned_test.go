package client

import (
	"bytes"
	"testing"

	"kvstore/wire"
)

// A value that Get returns belongs to its caller: no later answer may be unpacked into the same memory. The sizes are
// such that the buffer for unpacked answers would grow beyond what may be kept, and then take a larger answer in.
func TestGet_LargeCompressedAnswers_NeverShareMemory(t *testing.T) {
	for _, codec := range []wire.Codec{wire.CodecS2, wire.CodecZstd} {
		t.Run(codec.String(), func(t *testing.T) {
			_, c := fake(t, WithCompression(codec))
			value := func(name byte, n int) []byte { return bytes.Repeat([]byte{name, 'b', 'c', 'd'}, n/4) }
			for name, n := range map[string]int{"a": keepBytesMax * 9 / 10, "b": keepBytesMax - 100, "c": keepBytesMax + 8000, "d": keepBytesMax + 8000} {
				if _, err := c.Put(bg, name, value(name[0], n)); err != nil {
					t.Fatal(err)
				}
			}
			var held Value
			for _, name := range []string{"a", "b", "c", "d"} {
				v, err := c.Get(bg, name)
				if err != nil {
					t.Fatal(err)
				}
				if name == "c" {
					held = v
				}
			}
			if !bytes.Equal(held.Data, value('c', keepBytesMax+8000)) {
				t.Fatalf("the value that was read first became %.8q…", held.Data)
			}
		})
	}
}
