package backup

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/zstd"

	"kvstore/internal/record"
	"kvstore/wire"
)

// Reader reads a backup, and believes none of it: each block is checked before its records are given, each record before it
// is, and the end of the stream must be the end that was written. It belongs to one goroutine, and holds one block and its
// packed form.
type Reader struct {
	in      *bufio.Reader
	sum     *xxhash.Digest
	records *record.Reader
	zstd    *zstd.Decoder
	seq     uint32
	bytes   uint64

	header Header
	each   []Count
	total  Count

	namespace int    // of block
	block     []byte // records that were not given yet
	count     uint32 // of them
	last      []byte // key
	raw       []byte // scratch
	err       error  // the end, io.EOF for a good one
}

// NewReader begins to read a backup, and returns behind its header. Errors: ErrNotBackup, ErrVersion, ErrBroken, or that
// of r.
func NewReader(r io.Reader) (*Reader, error) {
	// A window that a frame asks for costs memory before its data is seen; blocks are bounded by their declared length.
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(blockBytesMax+blockFixedBytes), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic("BUG: zstd decoder options: " + err.Error())
	}
	b := &Reader{in: bufio.NewReaderSize(r, 64<<10), sum: xxhash.New(), zstd: z}
	defer func() {
		if b.err != nil {
			b.zstd.Close()
		}
	}()
	b.err = b.begin()
	if b.err != nil {
		return nil, b.err
	}
	return b, nil
}

// begin reads what stands before the first block.
func (b *Reader) begin() error {
	head := make([]byte, headBytes)
	n, err := io.ReadFull(b.tee(), head)
	switch {
	case n < len(magic) && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)), err == nil && string(head[:len(magic)]) != magic:
		return fmt.Errorf("%w: it does not begin as one", ErrNotBackup)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return broken("it ends after %d bytes", n)
	case err != nil:
		return fmt.Errorf("cannot read the backup: %w", err)
	}
	if v := binary.LittleEndian.Uint16(head[len(magic):]); v != format {
		return fmt.Errorf("%w: its format is %d, this version knows %d", ErrVersion, v, format)
	}
	if !bytes.Equal(head, appendHead(nil)) {
		return broken("reserved bytes are set")
	}
	b.records = record.NewReader(b.tee(), frameHeaderBytes+blockFixedBytes+blockBytesMax)
	kind, body, err := b.next()
	if err != nil {
		return err
	}
	if kind != frameHeader {
		return broken("frame %d stands where the header should", kind)
	}
	if err := decodeHeader(body, &b.header); err != nil {
		return err
	}
	b.each = make([]Count, len(b.header.Namespaces))
	return nil
}

// tee gives the stream, counted and hashed as it is read.
func (b *Reader) tee() io.Reader { return (*hashed)(b) }

type hashed Reader

func (h *hashed) Read(p []byte) (int, error) {
	n, err := h.in.Read(p)
	h.sum.Write(p[:n])
	h.bytes += uint64(n)
	return n, err
}

// Header is what the backup tells about itself.
func (b *Reader) Header() *Header { return &b.header }

// Next gives the next record and the place of its namespace in the header. io.EOF: that was all, and everything is as it
// was written. Any other error is final; then nothing that came from the stream should be trusted. r's slices are views
// that live until the next call.
func (b *Reader) Next(r *Record) (namespace int, err error) {
	if b.err == nil {
		b.err = b.advance(r)
		if b.err != nil {
			b.zstd.Close()
		}
	}
	return b.namespace, b.err
}

func (b *Reader) advance(r *Record) error {
	if b.count == 0 {
		if len(b.block) != 0 {
			return broken("%d bytes behind the last record of a block", len(b.block))
		}
		if err := b.open(); err != nil {
			return err
		}
	}
	var err error
	if b.block, err = nextRecord(b.block, r); err != nil {
		return err
	}
	b.count--
	if err := r.check(); err != nil {
		return broken("%v", err)
	}
	if len(b.last) != 0 && bytes.Compare(r.Key, b.last) <= 0 {
		return broken("key %.80q stands behind %.80q", r.Key, b.last)
	}
	b.last = append(b.last[:0], r.Key...)
	b.each[b.namespace].add(r)
	b.total.add(r)
	return nil
}

// open reads the next block, or the trailer, which ends all with io.EOF.
func (b *Reader) open() error {
	before := b.sum.Sum64()
	kind, body, err := b.next()
	switch {
	case err != nil:
		return err
	case kind == frameTrailer:
		return b.end(body, before)
	case kind != frameBlock:
		return broken("frame of kind %d among blocks", kind)
	case len(body) < blockFixedBytes:
		return broken("a block of %d bytes", len(body))
	}
	n := binary.LittleEndian.Uint32(body)
	b.count, b.block = binary.LittleEndian.Uint32(body[4:]), body[blockFixedBytes:]
	switch {
	case uint64(n) >= uint64(len(b.header.Namespaces)) || int(n) < b.namespace:
		return broken("a block of namespace %d behind one of %d; there are %d", n, b.namespace, len(b.header.Namespaces))
	case b.count == 0:
		return broken("a block without records")
	}
	if int(n) != b.namespace {
		b.namespace, b.last = int(n), b.last[:0]
	}
	return nil
}

// end compares what was read with what the trailer says. before is the sum of all that stands before its record.
func (b *Reader) end(body []byte, before uint64) error {
	if want := appendTrailer(nil, b.total, b.each, before); !bytes.Equal(body, want) {
		return broken("its trailer tells of other records, or other bytes, than stand before it")
	}
	switch _, err := b.in.ReadByte(); {
	case err == nil:
		return broken("there is more behind its end")
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("cannot read the backup: %w", err)
	}
	return io.EOF
}

// next reads one frame and unpacks its body, which is valid until the following call.
func (b *Reader) next() (kind byte, body []byte, err error) {
	p, err := b.records.Next()
	switch {
	case errors.Is(err, io.EOF):
		return 0, nil, broken("it is cut short after %d bytes", b.bytes)
	case errors.Is(err, record.ErrTorn), errors.Is(err, record.ErrCorrupt), errors.Is(err, record.ErrTooLarge):
		return 0, nil, broken("%v", err)
	case errors.Is(err, record.ErrKey):
		return 0, nil, fmt.Errorf("%w: %w", ErrVersion, err)
	case err != nil:
		return 0, nil, fmt.Errorf("cannot read the backup: %w", err)
	case len(p) < frameHeaderBytes:
		return 0, nil, broken("a frame of %d bytes", len(p))
	}
	kind, codec := p[0], p[1]
	seq, n := binary.LittleEndian.Uint32(p[4:]), binary.LittleEndian.Uint32(p[8:])
	body = p[frameHeaderBytes:]
	switch {
	case p[2]|p[3] != 0:
		return 0, nil, broken("reserved bytes of a frame are set")
	case seq != b.seq:
		return 0, nil, broken("frame %d stands where %d should", seq, b.seq)
	case n > blockFixedBytes+blockBytesMax:
		return 0, nil, broken("a frame that would unpack to %d bytes; at most %d", n, blockFixedBytes+blockBytesMax)
	}
	b.seq++
	switch codec {
	case codecNone:
		if len(body) != int(n) {
			return 0, nil, broken("a frame of %d bytes says that it has %d", len(body), n)
		}
		return kind, body, nil
	case codecZstd:
	default:
		return 0, nil, fmt.Errorf("%w: codec %d", ErrVersion, codec)
	}
	// The declared length is a claim, but one that is bounded.
	if uint64(cap(b.raw)) < uint64(n) {
		b.raw = make([]byte, 0, n)
	}
	out, err := b.zstd.DecodeAll(body, b.raw[:0:n])
	if err != nil || len(out) != int(n) {
		return 0, nil, broken("a frame that unpacks to %d bytes, not %d (%v)", len(out), n, err)
	}
	return kind, out, nil
}

// Verify reads a whole backup and checks everything that can be checked without a store. The summary is complete only if
// the error is nil.
func Verify(r io.Reader) (*Header, Summary, error) {
	b, err := NewReader(r)
	if err != nil {
		return nil, Summary{}, err
	}
	var rec Record
	for err == nil {
		_, err = b.Next(&rec)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return b.Header(), b.summary(), err
}

// Summary tells what a backup holds, or what became of one.
type Summary struct {
	Revision wire.Revision
	// Namespaces is how many there are, Created how many of them a restore has created.
	Namespaces, Created int
	// Count is what was copied, restored, or is there.
	Count
	// Expired is how many records a restore left out because their time was over.
	Expired uint64
	// StreamBytes is the length of the backup.
	StreamBytes uint64
	// Each is the Count of each namespace of the header; Verify alone sets it.
	Each []Count
}

func (b *Reader) summary() Summary {
	return Summary{Revision: b.header.Revision, Namespaces: len(b.header.Namespaces), Count: b.total, StreamBytes: b.bytes, Each: b.each}
}
