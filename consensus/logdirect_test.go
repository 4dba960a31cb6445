package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/types"
	"golang.org/x/sys/unix"

	"kvstore/internal/directio"
)

// openSegment creates a segment, or opens the one that is there; it skips where the file system has no direct writes.
func openSegment(t *testing.T, dir string, size uint64) *dataSyncFile {
	t.Helper()
	v := dataSyncFS{fs.New()}
	open := func() (types.WritableFile, error) { return v.OpenWriter(dir, "segment") }
	if _, err := os.Stat(filepath.Join(dir, "segment")); err != nil {
		open = func() (types.WritableFile, error) { return v.Create(dir, "segment", size) }
	}
	f, err := open()
	if err != nil {
		t.Fatal(err)
	}
	s := f.(*dataSyncFile)
	if s.tail == nil {
		_ = f.Close()
		t.Skip("the file system has no direct writes")
	}
	return s
}

// TestDirectTail_AppendsAndRewinds_FileIsWhatWasWritten appends pieces of all sizes, now and then again from an earlier
// place, as after an append that failed, and opens the segment anew; others read meanwhile what they may know of.
func TestDirectTail_AppendsAndRewinds_FileIsWhatWasWritten(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for _, most := range []int{50, 5000, 3 * directio.Block, 400_000, 3 * tailBufferBytes} {
		t.Run(fmt.Sprint(most), func(t *testing.T) {
			dir, size := t.TempDir(), 32<<20
			f := openSegment(t, dir, uint64(size))
			var mu sync.Mutex
			var want []byte // guarded by mu; what was written before safe never changes
			safe := 0       // guarded by mu
			stop := make(chan struct{})
			var readers sync.WaitGroup
			reader := rand.New(rand.NewPCG(seed, 1))
			path := filepath.Join(dir, "segment")
			readers.Go(func() {
				in, err := os.Open(path)
				if err != nil {
					t.Error(err)
					return
				}
				defer func() { _ = in.Close() }()
				for {
					select {
					case <-stop:
						return
					default:
					}
					mu.Lock()
					end, all := safe, want
					mu.Unlock()
					if end == 0 {
						continue
					}
					from := max(0, end-1-reader.IntN(20_000))
					got := make([]byte, end-from)
					if _, err := in.ReadAt(got, int64(from)); err != nil || !bytes.Equal(got, all[from:end]) {
						t.Errorf("bytes %d to %d are not what was written: %v", from, end, err)
						return
					}
				}
			})
			for n := 0; n < 400 && len(want) < size-most; n++ {
				p := make([]byte, 1+rng.IntN(most))
				for i := range p {
					p[i] = byte(rng.Uint32()) | 1
				}
				at := len(want)
				if rng.IntN(10) == 0 {
					at -= rng.IntN(at - safe + 1)
				}
				if _, err := f.WriteAt(p, int64(at)); err != nil {
					t.Fatal(err)
				}
				mu.Lock()
				next := append(want[:at:at], p...)
				if at+len(p) < len(want) { // a torn append, longer than what stands in its place: its rest may be there or not
					next = next[:at+len(p)]
				}
				want = next
				if rng.IntN(3) > 0 {
					safe = len(want)
				}
				mu.Unlock()
				switch rng.IntN(30) {
				case 0:
					if err := f.Close(); err != nil {
						t.Fatal(err)
					}
					f = openSegment(t, dir, 0)
				default:
					if err := f.Sync(); err != nil {
						t.Fatal(err)
					}
				}
			}
			close(stop)
			readers.Wait()
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != size || !bytes.Equal(got[:len(want)], want) {
				t.Fatalf("the segment of %d bytes does not hold the %d that were written", len(got), len(want))
			}
		})
	}
}

// TestZeroAhead_LogGrows_NextPartIsWrittenAheadAndNothingIsHarmed looks where the file system still has holes: behind the
// log there are none, and there is nothing but zeros.
func TestZeroAhead_LogGrows_NextPartIsWrittenAheadAndNothingIsHarmed(t *testing.T) {
	dir, size := t.TempDir(), 64<<20
	f := openSegment(t, dir, uint64(size))
	var want []byte
	append1 := func(n int) {
		t.Helper()
		p := bytes.Repeat([]byte{byte(len(want)) | 1}, n)
		if _, err := f.WriteAt(p, int64(len(want))); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		want = append(want, p...)
	}
	append1(1000)
	z := f.tail.zero
	z.mu.Lock()
	if z.running || z.upTo > directio.Block {
		t.Errorf("a log of 1000 bytes has zeros up to %d", z.upTo)
	}
	z.mu.Unlock()
	for len(want) < 40<<20 {
		append1(30_001)
		z.mu.Lock()
		if z.upTo > z.reached+zeroMax {
			t.Fatalf("zeros up to %d, the log ends at %d", z.upTo, z.reached)
		}
		z.mu.Unlock()
	}
	z.mu.Lock()
	for z.running {
		z.changed.Wait()
	}
	if z.failed || z.upTo < z.reached+zeroMin {
		t.Errorf("zeros up to %d only (failed: %v), the log ends at %d", z.upTo, z.failed, z.reached)
	}
	upTo := int(z.upTo)
	z.mu.Unlock()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "segment"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got[:len(want)], want) || len(bytes.Trim(got[len(want):], "\x00")) > 0 || len(got) != size {
		t.Errorf("the segment does not hold the %d bytes that were written and zeros behind them", len(want))
	}
	t.Logf("%d bytes written, zeros up to %d", len(want), upTo)
}

// refusing is a file on a file system that takes the opening for direct writes, and no such write.
type refusing struct{ closed bool }

func (r *refusing) WriteBlocks([]byte, int64) error {
	return fmt.Errorf("%w: %w", directio.ErrUnsupported, unix.EINVAL)
}
func (r *refusing) Close() error { r.closed = true; return nil }

func TestDirectTail_FileSystemRefuses_WrittenThroughThePageCache(t *testing.T) {
	dir := t.TempDir()
	f := openSegment(t, dir, 1<<20)
	if err := f.tail.file.Close(); err != nil {
		t.Fatal(err)
	}
	r := &refusing{}
	f.tail.file = r
	for i := range 3 {
		if n, err := f.WriteAt([]byte("entry"), int64(5*i)); n != 5 || err != nil {
			t.Fatalf("write %d: %d, %v", i, n, err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	if f.tail != nil || !r.closed {
		t.Error("it goes on trying")
	}
	got := make([]byte, 16)
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, 16), got); err != nil || string(got) != "entryentryentry\x00" {
		t.Errorf("%q, %v", got, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// failing is a disk that fails.
type failing struct{ refusing }

var errDisk = errors.New("the disk has failed")

func (f *failing) WriteBlocks([]byte, int64) error { return errDisk }

func TestDirectTail_DiskFails_WriteFailsAndIsNotTriedAnotherWay(t *testing.T) {
	f := openSegment(t, t.TempDir(), 1<<20)
	if err := f.tail.file.Close(); err != nil {
		t.Fatal(err)
	}
	f.tail.file = &failing{}
	if n, err := f.WriteAt([]byte("entry"), 0); n != 0 || !errors.Is(err, errDisk) {
		t.Errorf("%d, %v", n, err)
	}
	got := make([]byte, 5)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, make([]byte, 5)) {
		t.Errorf("%q, %v", got, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
