package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Reader reads records one after another from a stream, such as a snapshot that is received. It reads no
// byte beyond the record that it returns. It belongs to one goroutine.
type Reader struct {
	r          io.Reader
	payloadMax int
	buf        []byte
}

// readStep is how far the buffer grows ahead of bytes that have arrived, so that a length that lies
// costs no more than this.
const readStep = 1 << 20

// NewReader returns a Reader over r that refuses payloads above payloadMax bytes (0 < payloadMax <=
// PayloadMax; anything else panics). r should be buffered: each record takes at least two reads.
func NewReader(r io.Reader, payloadMax int) *Reader {
	if payloadMax <= 0 || payloadMax > PayloadMax {
		panic(fmt.Sprintf("BUG: record reader with a payload limit of %d", payloadMax))
	}
	return &Reader{r: r, payloadMax: payloadMax}
}

// Next returns the next payload, which is valid until the following call. At a clean end, behind a whole
// record, the error is io.EOF itself. Otherwise it is as Decode's, or that of the underlying reader;
// after an error the position in the stream is undefined.
func (r *Reader) Next() ([]byte, error) {
	r.buf = r.buf[:0]
	if err := r.fill(HeaderSize); err != nil {
		if errors.Is(err, io.EOF) && len(r.buf) == 0 {
			return nil, io.EOF
		}
		return nil, readError("header", len(r.buf), HeaderSize, err)
	}
	n := binary.LittleEndian.Uint32(r.buf)
	if uint64(n) > uint64(r.payloadMax) {
		return nil, fmt.Errorf("cannot read record: length %d exceeds %d: %w", n, r.payloadMax, ErrTooLarge)
	}
	if err := r.fill(HeaderSize + int(n)); err != nil {
		return nil, readError("payload", len(r.buf)-HeaderSize, int(n), err)
	}
	payload, _, err := decode(r.buf, uint64(r.payloadMax))
	return payload, err
}

// fill reads until buf holds size bytes. At the end of the stream the error is io.EOF.
func (r *Reader) fill(size int) error {
	for len(r.buf) < size {
		have := len(r.buf)
		step := min(size-have, readStep)
		if cap(r.buf)-have < step {
			r.buf = append(r.buf, make([]byte, step)...)[:have]
		}
		n, err := io.ReadFull(r.r, r.buf[have:have+step])
		r.buf = r.buf[:have+n]
		if err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) {
				err = io.EOF
			}
			return err
		}
	}
	return nil
}

func readError(part string, have, want int, err error) error {
	if errors.Is(err, io.EOF) {
		err = ErrTorn
	}
	return fmt.Errorf("cannot read record: %s has %d of %d bytes: %w", part, have, want, err)
}
