package consensus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/hashicorp/raft"
)

// The stored form of a log entry. raft-wal checks no checksum when it reads, so each entry carries its
// own. It is part of the stored form alone: raft, its caches and the state machine see the entry as it
// was proposed, whether it comes from memory or from disk. All integers are little endian.
//
//	0      version (1)
//	1      raft.LogType
//	2..4   flags (bit 0: appended-at is set), the rest 0
//	4..8   length of data
//	8..12  length of extensions
//	12..20 index
//	20..28 term
//	28..36 appended-at, Unix nanoseconds
//	36..   data, extensions
//	last 4 CRC-32C over all before, started from the log's seed
const (
	entryVersion     = 1
	entryHeaderBytes = 36
	entryCRCBytes    = 4
	entryOverhead    = entryHeaderBytes + entryCRCBytes

	flagAppendedAt = 1 << 0

	// entryCodecID names this form in segment headers ("KVE" and a version), so that neither an older
	// form nor raft-wal's own is ever read as this one.
	entryCodecID uint64 = 'K'<<24 | 'V'<<16 | 'E'<<8 | entryVersion
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errDamaged marks an entry whose stored bytes are not what was written.
var errDamaged = errors.New("log entry is damaged")

// entryCodec implements raft-wal's Codec.
type entryCodec struct {
	// seed is a random number of this log, drawn when it was created. It ties entries to their log and
	// keeps a client from placing bytes inside a value that look like an entry after a torn write.
	seed uint32
}

// ID implements wal.Codec.
func (c *entryCodec) ID() uint64 { return entryCodecID }

// Encode implements wal.Codec.
func (c *entryCodec) Encode(l *raft.Log, w io.Writer) error {
	if uint64(len(l.Data)) > 1<<31 || uint64(len(l.Extensions)) > 1<<31 {
		return fmt.Errorf("cannot encode entry %d: %d bytes of data, %d of extensions", l.Index, len(l.Data), len(l.Extensions))
	}
	if b, ok := w.(*bytes.Buffer); ok {
		b.Grow(entryOverhead + len(l.Data) + len(l.Extensions))
	}
	var h [entryHeaderBytes]byte
	h[0] = entryVersion
	h[1] = byte(l.Type)
	if !l.AppendedAt.IsZero() {
		binary.LittleEndian.PutUint16(h[2:], flagAppendedAt)
		binary.LittleEndian.PutUint64(h[28:], uint64(l.AppendedAt.UnixNano()))
	}
	binary.LittleEndian.PutUint32(h[4:], uint32(len(l.Data)))
	binary.LittleEndian.PutUint32(h[8:], uint32(len(l.Extensions)))
	binary.LittleEndian.PutUint64(h[12:], l.Index)
	binary.LittleEndian.PutUint64(h[20:], l.Term)

	crc := crc32.Update(c.seed, castagnoli, h[:])
	crc = crc32.Update(crc, castagnoli, l.Data)
	crc = crc32.Update(crc, castagnoli, l.Extensions)
	var sum [entryCRCBytes]byte
	binary.LittleEndian.PutUint32(sum[:], crc)
	for _, part := range [...][]byte{h[:], l.Data, l.Extensions, sum[:]} {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

// Decode implements wal.Codec. The entry holds no reference to b. Any input that Encode did not write
// with the same seed is refused with errDamaged and leaves *l as it was.
func (c *entryCodec) Decode(b []byte, l *raft.Log) error {
	if len(b) < entryOverhead {
		return fmt.Errorf("%w: %d bytes are fewer than its header", errDamaged, len(b))
	}
	body, sum := b[:len(b)-entryCRCBytes], binary.LittleEndian.Uint32(b[len(b)-entryCRCBytes:])
	if got := crc32.Update(c.seed, castagnoli, body); got != sum {
		return fmt.Errorf("%w: checksum is %08x, its bytes give %08x", errDamaged, sum, got)
	}
	dataLen := uint64(binary.LittleEndian.Uint32(b[4:]))
	extLen := uint64(binary.LittleEndian.Uint32(b[8:]))
	flags := binary.LittleEndian.Uint16(b[2:])
	if b[0] != entryVersion || flags&^flagAppendedAt != 0 || entryHeaderBytes+dataLen+extLen != uint64(len(body)) {
		return fmt.Errorf("%w: version %d, flags %#x, lengths %d and %d in %d bytes", errDamaged, b[0], flags, dataLen, extLen, len(b))
	}
	*l = raft.Log{
		Index: binary.LittleEndian.Uint64(b[12:]),
		Term:  binary.LittleEndian.Uint64(b[20:]),
		Type:  raft.LogType(b[1]),
	}
	if flags&flagAppendedAt != 0 {
		l.AppendedAt = time.Unix(0, int64(binary.LittleEndian.Uint64(b[28:])))
	}
	// One allocation for both; the data's capacity is cut so that nobody appends into the extensions.
	if n := dataLen + extLen; n > 0 {
		own := bytes.Clone(body[entryHeaderBytes:])
		if dataLen > 0 {
			l.Data = own[:dataLen:dataLen]
		}
		if extLen > 0 {
			l.Extensions = own[dataLen:]
		}
	}
	return nil
}
