package feed

import (
	"errors"
	"os"

	"kvstore/internal/directio"
)

// bulkBytes is the size from which on a piece is written past the page cache.
const bulkBytes = 64 << 10

// bulk writes to segments: what is large past the page cache, since most of it is never read again. The blocks at its ends
// that it does not fill go through the page cache, and never both ways at a time.
type bulk struct {
	least int // bulkBytes, but in tests
	// direct is of's file, open a second time; nil: not yet.
	direct *directio.File
	of     *segment
	never  bool // the file system has no direct writes
}

// write writes data to the file of s at offset off of the file.
func (w *bulk) write(s *segment, file *os.File, data []byte, off int64) error {
	head := int(-off & (directio.Block - 1))
	if len(data) < max(w.least, head+directio.Block) || w.never {
		_, err := file.WriteAt(data, off)
		return err
	}
	if w.of != s {
		err := w.close()
		if err == nil {
			w.direct, err = directio.Open(s.path)
		}
		switch {
		case errors.Is(err, directio.ErrUnsupported):
			w.never = true
			return w.write(s, file, data, off)
		case err != nil:
			return err
		}
		w.of = s
	}
	whole := head + (len(data)-head)&^(directio.Block-1)
	err := w.direct.WriteBlocks(data[head:whole], off+int64(head))
	if errors.Is(err, directio.ErrUnsupported) {
		w.never = true
		if err := w.close(); err != nil {
			return err
		}
		return w.write(s, file, data, off)
	}
	if err == nil && head > 0 {
		_, err = file.WriteAt(data[:head], off)
	}
	if err == nil && whole < len(data) {
		_, err = file.WriteAt(data[whole:], off+int64(whole))
	}
	return err
}

func (w *bulk) close() error {
	if w.direct == nil {
		return nil
	}
	direct := w.direct
	w.direct, w.of = nil, nil
	return direct.Close()
}
