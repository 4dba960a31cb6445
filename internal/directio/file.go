package directio

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// Block is the size in bytes that offsets and lengths are multiples of. It is that of the pages and of the blocks of all
	// disks in use; some would do with 512.
	Block = 4096
	// pieceBytes bounds one write, and the memory that a File copies through.
	pieceBytes = 1 << 20
)

// ErrUnsupported is what Open and the first write return on a file system that has no direct writes. Nothing was
// written then.
var ErrUnsupported = errors.New("the file system has no direct writes")

// File is a file that is open for direct writes.
type File struct {
	file *os.File
	buf  []byte // aligned; nil until it is needed
}

// Open opens an existing file.
func Open(path string) (*File, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	if err != nil {
		return nil, err
	}
	return &File{file: file}, nil
}

// Close closes the file.
func (f *File) Close() error { return f.file.Close() }

// Fd gives the descriptor, by which the file can be synced. It is valid until Close.
func (f *File) Fd() uintptr { return f.file.Fd() }

// Size gives the length of the file in bytes.
func (f *File) Size() (int64, error) {
	st, err := f.file.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// WriteBlocks writes p at off, which may make the file longer. REQUIRES: len(p) and off are multiples of Block.
func (f *File) WriteBlocks(p []byte, off int64) error {
	check(int64(len(p)), off)
	for len(p) > 0 {
		n := min(len(p), pieceBytes)
		b := p[:n]
		if !aligned(b) {
			if f.buf == nil {
				f.buf = Make(pieceBytes)
			}
			b = f.buf[:copy(f.buf, b)]
		}
		if err := f.write(b, off); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// zeros is what Zero writes; nobody writes to it.
var zeros = sync.OnceValue(func() []byte { return Make(pieceBytes) })

// Zero writes n zeros at off. It may run beside WriteBlocks on other blocks. REQUIRES: n and off are multiples of Block.
func (f *File) Zero(off, n int64) error {
	check(n, off)
	for n > 0 {
		b := zeros()
		b = b[:min(n, int64(len(b)))]
		if err := f.write(b, off); err != nil {
			return err
		}
		n, off = n-int64(len(b)), off+int64(len(b))
	}
	return nil
}

func (f *File) write(b []byte, off int64) error {
	_, err := f.file.WriteAt(b, off)
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return err
}

// Make gives n bytes of memory, zero, that WriteBlocks need not copy. REQUIRES: n is a multiple of Block.
func Make(n int) []byte {
	b := make([]byte, n+Block)
	skip := -address(b) & (Block - 1) // Go's collector moves nothing
	return b[skip : skip+uintptr(n) : skip+uintptr(n)]
}

func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

func aligned(b []byte) bool { return address(b)&(Block-1) == 0 }

func check(n, off int64) {
	if (n|off)&(Block-1) != 0 || off < 0 {
		panic(fmt.Sprintf("BUG: a direct write of %d bytes at %d: both must be multiples of %d", n, off, Block))
	}
}
