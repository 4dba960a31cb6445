package consensus

import (
	"errors"
	"fmt"
	"io"

	"kvstore/internal/directio"
)

// tailBufferBytes bounds the memory of a segment that is written to, and one write to it.
const tailBufferBytes = 1 << 20

// directTail appends to a segment past the page cache. Direct writes take whole blocks: it holds what the file's last
// block has so far, and writes that again with what follows, and zeros behind it up to the block's end. There is nothing
// behind what is appended but zeros, or the rest of an append that was torn.
//
// One goroutine writes at a time. Others read through the page cache: of a block that is being written again they see the
// old content or the new, which are the same up to the end of what they may know of.
type directTail struct {
	file blockWriter
	read io.ReaderAt // the segment
	zero *zeroAhead

	buf []byte // aligned; nil until the first write
	// buf[:n] is what stands in the file from at, the beginning of a block. Not known before the first write, nor after
	// one that failed.
	at    int64
	n     int
	known bool
}

// blockWriter is directio.File, but in tests.
type blockWriter interface {
	WriteBlocks(p []byte, off int64) error
	Close() error
}

// openDirectTail opens the segment at path once more; nil if the file system has no direct writes.
func openDirectTail(path string, segment io.ReaderAt) (*directTail, error) {
	file, err := directio.Open(path)
	if errors.Is(err, directio.ErrUnsupported) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	zero, err := newZeroAhead(file)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &directTail{file: file, read: segment, zero: zero}, nil
}

// write writes p at off.
func (d *directTail) write(p []byte, off int64) error {
	at := off &^ (directio.Block - 1)
	if err := d.seek(at, int(off-at)); err != nil {
		return err
	}
	d.known = false
	for len(p) > 0 {
		copied := copy(d.buf[d.n:], p)
		p = p[copied:]
		end := d.n + copied
		blocks := (end + directio.Block - 1) &^ (directio.Block - 1)
		clear(d.buf[end:blocks])
		d.zero.claim(d.at, d.at+int64(blocks))
		if err := d.file.WriteBlocks(d.buf[:blocks], d.at); err != nil {
			return err
		}
		whole := end &^ (directio.Block - 1)
		d.n = copy(d.buf, d.buf[whole:end])
		d.at += int64(whole)
	}
	d.known = true
	return nil
}

// seek makes buf hold the first n bytes of the block at.
func (d *directTail) seek(at int64, n int) error {
	if d.known && d.at == at && d.n == n {
		return nil
	}
	if d.buf == nil {
		d.buf = directio.Make(tailBufferBytes)
	}
	d.at, d.n = at, n
	if _, err := io.ReadFull(io.NewSectionReader(d.read, at, int64(n)), d.buf[:n]); err != nil {
		return fmt.Errorf("cannot read the %d bytes before the end of the log: %w", n, err)
	}
	return nil
}

func (d *directTail) close() error {
	d.zero.close()
	return d.file.Close()
}
