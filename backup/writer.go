package backup

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/zstd"

	"kvstore/internal/record"
	"kvstore/wire"
)

// Writer writes a backup. It belongs to one goroutine, and holds a block and its packed form.
type Writer struct {
	w    io.Writer
	sum  *xxhash.Digest
	zstd *zstd.Encoder
	seq  uint32

	namespaces int
	now        int    // the namespace of block
	block      []byte // records that were not written yet, behind room for what precedes them
	count      uint32 // of them
	last       []byte // key
	each       []Count
	total      Count

	frame, out []byte // scratch
}

// NewWriter begins a backup on w, with its header. REQUIRES: the namespaces are at most wire.NamespacesMax, stand in order
// of their names, and have names that namespaces may have.
func NewWriter(w io.Writer, h *Header) (*Writer, error) {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true))
	if err != nil {
		panic("BUG: zstd encoder options: " + err.Error())
	}
	b := &Writer{w: w, sum: xxhash.New(), zstd: e, namespaces: len(h.Namespaces), each: make([]Count, len(h.Namespaces))}
	b.reset()
	body := appendHeader(nil, h)
	var back Header
	if err := decodeHeader(body, &back); err != nil {
		return nil, fmt.Errorf("cannot begin a backup: %w", err)
	}
	if err := b.write(appendHead(nil)); err != nil {
		return nil, err
	}
	return b, b.send(frameHeader, body)
}

// Add appends a record of the namespace with this place in the header. Namespaces come in that order, the records of one in
// order of their keys, each once. It copies what it keeps.
func (b *Writer) Add(namespace int, r *Record) error {
	if namespace < b.now || namespace >= b.namespaces {
		return fmt.Errorf("cannot add a record of namespace %d behind one of %d; there are %d", namespace, b.now, b.namespaces)
	}
	if namespace != b.now {
		if err := b.flush(); err != nil {
			return err
		}
		b.now, b.last = namespace, b.last[:0]
	}
	// The same checks as of a reader: a copy that could not be read is worth nothing.
	if err := r.check(); err != nil {
		return fmt.Errorf("cannot back up a damaged record: %w", err)
	}
	if len(b.last) != 0 && bytes.Compare(r.Key, b.last) <= 0 {
		return fmt.Errorf("cannot add key %.80q behind %.80q", r.Key, b.last)
	}
	b.last = append(b.last[:0], r.Key...)
	b.block = appendRecord(b.block, r)
	b.count++
	b.each[namespace].add(r)
	b.total.add(r)
	if len(b.block) < blockBytes {
		return nil
	}
	return b.flush()
}

// Close ends the backup with its trailer. It does not close what it writes to.
func (b *Writer) Close() error {
	if err := b.flush(); err != nil {
		return err
	}
	return b.send(frameTrailer, appendTrailer(nil, b.total, b.each, b.sum.Sum64()))
}

// Total counts the records that were added.
func (b *Writer) Total() Count { return b.total }

func (b *Writer) reset() { b.block, b.count = append(b.block[:0], make([]byte, blockFixedBytes)...), 0 }

// flush writes the block, if it has records.
func (b *Writer) flush() error {
	if b.count == 0 {
		return nil
	}
	binary.LittleEndian.PutUint32(b.block, uint32(b.now))
	binary.LittleEndian.PutUint32(b.block[4:], b.count)
	if err := b.send(frameBlock, b.block); err != nil {
		return err
	}
	b.reset()
	return nil
}

// send writes one frame.
func (b *Writer) send(kind byte, body []byte) error {
	b.frame = append(b.frame[:0], kind, codecNone, 0, 0)
	b.frame = binary.LittleEndian.AppendUint32(b.frame, b.seq)
	b.frame = binary.LittleEndian.AppendUint32(b.frame, uint32(len(body)))
	b.seq++
	if kind == frameBlock && len(body) >= wire.CompressBytesMin {
		b.frame = b.zstd.EncodeAll(body, b.frame)
		b.frame[1] = codecZstd
	}
	if b.frame[1] == codecNone || len(b.frame)-frameHeaderBytes >= len(body) {
		b.frame[1] = codecNone
		b.frame = append(b.frame[:frameHeaderBytes], body...)
	}
	b.out = record.Append(b.out[:0], b.frame)
	return b.write(b.out)
}

func (b *Writer) write(p []byte) error {
	b.sum.Write(p)
	if _, err := b.w.Write(p); err != nil {
		return fmt.Errorf("cannot write the backup: %w", err)
	}
	return nil
}
