package directio

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// openTest gives an empty file, and its direct twin; it skips where the file system has none.
func openTest(t *testing.T) (*os.File, *File) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	f, err := Open(path)
	if err == nil {
		err = f.Zero(0, Block)
	}
	if errors.Is(err, ErrUnsupported) {
		t.Skipf("%s: %v", path, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return file, f
}

// TestFile_DirectAndOrdinaryWrites_AreOneFile writes at random, by both ways, and reads by the page cache after each.
func TestFile_DirectAndOrdinaryWrites_AreOneFile(t *testing.T) {
	file, f := openTest(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	const blocks = 1200
	want := make([]byte, Block)
	for range 200 {
		at, n := rng.IntN(blocks), 1+rng.IntN(8)
		if rng.IntN(20) == 0 {
			n = pieceBytes/Block + rng.IntN(3) - 1
		}
		off := int64(at * Block)
		var err error
		var b []byte
		switch rng.IntN(4) {
		case 0:
			b = make([]byte, n*Block)
			err = f.Zero(off, int64(len(b)))
		case 1: // through the page cache, anywhere
			off += int64(rng.IntN(Block))
			b = bytes.Repeat([]byte{byte(rng.Uint32())}, 1+rng.IntN(3*Block))
			_, err = file.WriteAt(b, off)
		case 2:
			b = Make(n * Block)
			fill(rng, b)
			err = f.WriteBlocks(b, off)
		default: // from memory that is not aligned
			b = make([]byte, n*Block+1)[1:]
			fill(rng, b)
			err = f.WriteBlocks(b, off)
		}
		if err != nil {
			t.Fatal(err)
		}
		if end := int(off) + len(b); end > len(want) {
			want = append(want, make([]byte, end-len(want))...)
		}
		copy(want[off:], b)
		from := max(0, int(off)-5000)
		got := make([]byte, min(len(want), int(off)+len(b)+5000)-from)
		if _, err := file.ReadAt(got, int64(from)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want[from:from+len(got)]) {
			t.Fatalf("around %d the file is not what was written", off)
		}
	}
	got, err := os.ReadFile(file.Name())
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file is not what was written (%d bytes, want %d): %v", len(got), len(want), err)
	}
}

func fill(rng *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
}

func TestFile_OddPlaceOrLength_Panics(t *testing.T) {
	_, f := openTest(t)
	for name, do := range map[string]func() error{
		"offset": func() error { return f.WriteBlocks(make([]byte, Block), 512) },
		"length": func() error { return f.WriteBlocks(make([]byte, 100), 0) },
		"zeros":  func() error { return f.Zero(0, 1) },
		"before": func() error { return f.Zero(-Block, Block) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			_ = do()
		}()
	}
}

func TestOpen_NoSuchFile_SaysSo(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
