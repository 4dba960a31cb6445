package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/dgraph-io/badger/v4"
)

// Badger takes a MANIFEST whose end is missing for the left-over of a crash: it opens with the tables that the rest
// names and deletes the others. So a checkpoint carries a mark of what was durable of the file, and an open compares
// before Badger may delete anything.
//
// A MANIFEST, numbers big endian:
//
//	8 bytes magic and versions | frames
//	a frame: u32 length | u32 CRC32C | so many bytes
//
// It only grows, until Badger replaces it by a new file whose first frame names all tables.

const (
	manifestMagicBytes       = 8
	manifestFrameHeaderBytes = 8
	// manifestHeadBytes tell one file from the one that replaces it: they end with the length and the CRC of the
	// first frame. The very first file's frame is empty; no later one's is, because the newest marker that was
	// flushed is in a table for ever.
	manifestHeadBytes = manifestMagicBytes + manifestFrameHeaderBytes

	// manifestFrameBytesMax bounds what is read at once: changes of a million tables.
	manifestFrameBytesMax = 64 << 20
)

// ManifestMark says what of Badger's MANIFEST was durable when a checkpoint was written.
type ManifestMark struct {
	// Head is how the file began.
	Head [manifestHeadBytes]byte
	// Length is where the last whole frame ended; 0: nothing is known.
	Length int64
	// Sum is the CRC32C of so many bytes.
	Sum uint32
}

// manifestMarker makes marks, reading only what is new in the file. The zero value is ready.
type manifestMarker struct {
	file os.FileInfo // as it was when mark was made
	mark ManifestMark
}

// next gives the mark of the file at path. All that it covers is durable. Bytes that are no whole frame, such as
// those of a write under way, are left out.
func (m *manifestMarker) next(path string, sync func(*os.File) error) (_ ManifestMark, err error) {
	f, err := os.Open(path)
	if err != nil {
		return ManifestMark{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return ManifestMark{}, err
	}
	if m.file != nil && os.SameFile(m.file, info) && m.file.Size() == info.Size() && m.file.ModTime().Equal(info.ModTime()) {
		return m.mark, nil
	}
	var head [manifestHeadBytes]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return ManifestMark{}, fmt.Errorf("cannot read the head of %q: %w", path, err)
	}
	mark := m.mark
	if m.file == nil || !os.SameFile(m.file, info) || mark.Head != head || info.Size() < mark.Length {
		mark = ManifestMark{Head: head}
	}
	if err := mark.extend(f, info.Size()); err != nil {
		return ManifestMark{}, fmt.Errorf("cannot read %q: %w", path, err)
	}
	if err := sync(f); err != nil {
		return ManifestMark{}, fmt.Errorf("cannot sync %q: %w", path, err)
	}
	m.file, m.mark = info, mark
	return mark, nil
}

// extend has the mark cover the whole frames of f behind it, up to size at most. A mark without its first frame
// stays empty.
func (m *ManifestMark) extend(f io.ReaderAt, size int64) error {
	at, sum := m.Length, m.Sum
	if at == 0 {
		at = manifestMagicBytes
		sum = crc32.Checksum(m.Head[:manifestMagicBytes], castagnoli)
	}
	for at+manifestFrameHeaderBytes <= size {
		frame, err := readManifestFrame(f, at, size)
		if err != nil {
			return err
		}
		if frame == nil {
			break
		}
		at += int64(len(frame))
		sum = crc32.Update(sum, castagnoli, frame)
		m.Length, m.Sum = at, sum
	}
	return nil
}

// readManifestFrame reads the frame that begins at at, with its header; nil: it isn't whole.
func readManifestFrame(f io.ReaderAt, at, size int64) ([]byte, error) {
	var header [manifestFrameHeaderBytes]byte
	if at+manifestFrameHeaderBytes > size {
		return nil, nil
	}
	if _, err := f.ReadAt(header[:], at); err != nil {
		return nil, err
	}
	n := int64(binary.BigEndian.Uint32(header[:]))
	if n > manifestFrameBytesMax || at+manifestFrameHeaderBytes+n > size {
		return nil, nil
	}
	frame := make([]byte, manifestFrameHeaderBytes+n)
	if _, err := f.ReadAt(frame, at); err != nil {
		return nil, err
	}
	if crc32.Checksum(frame[manifestFrameHeaderBytes:], castagnoli) != binary.BigEndian.Uint32(header[4:]) {
		return nil, nil
	}
	return frame, nil
}

// checkManifest compares the MANIFEST of a generation that isn't open with the mark of the checkpoint that names
// it. What is missing or changed is ErrDamaged. Whatever a crash leaves passes: Badger replaces the file by one that
// is synced already, appends, and never cuts off what was synced.
func checkManifest(genDir string, mark ManifestMark) (err error) {
	path := filepath.Join(genDir, badger.ManifestFilename)
	defer func() {
		if errors.Is(err, syscall.EIO) {
			err = damaged(fmt.Sprintf("%q can't be read", path), err)
		}
	}()
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		// Without it Badger takes the directory for a new store, and removes the tables.
		return damaged(fmt.Sprintf("%q is missing", path), nil)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	if size < manifestHeadBytes {
		return damaged(fmt.Sprintf("%q has %d bytes: no table is named any more", path, size), nil)
	}
	var head [manifestHeadBytes]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return err
	}
	first, err := readManifestFrame(f, manifestMagicBytes, size)
	if err != nil {
		return err
	}
	switch {
	case first == nil:
		return damaged(fmt.Sprintf("the first frame of %q is not whole", path), nil)
	case mark.Length == 0 || head != mark.Head:
		return nil // nothing is known of this file
	case size < mark.Length:
		return damaged(fmt.Sprintf("%q ends at %d of %d bytes: tables that it named are not named any more", path, size, mark.Length), nil)
	}
	sum := crc32.New(castagnoli)
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, mark.Length)); err != nil {
		return err
	}
	if got := sum.Sum32(); got != mark.Sum {
		return damaged(fmt.Sprintf("the first %d bytes of %q have the checksum %#x, not %#x", mark.Length, path, got, mark.Sum), nil)
	}
	return nil
}
