package wire

import (
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// Flags of a listing.
const (
	ScanReverse  = 1 << 0
	ScanKeysOnly = 1 << 1
	// ScanCount asks how many keys there are: the page counts up to what one page looks at and holds no items. A
	// cursor says that there are more to count.
	ScanCount = 1 << 2
	// ScanStream asks for all pages in one answer, in frames with FlagMore until the last, under the credit that
	// StreamCreditDefault and OpCredit give. Limit and BytesMax bound each page.
	ScanStream = 1 << 3

	scanFlags = ScanReverse | ScanKeysOnly | ScanCount | ScanStream
)

// ScanDelimiterBytesMax bounds ScanRequest.Delimiter.
const ScanDelimiterBytesMax = 64

// ScanRequest asks for one page of a listing: the keys with Prefix that are ≥ Start and < End, in key
// order or in reverse. Empty Prefix, Start or End do not bound. Cursor continues a listing: it holds the
// place and the revision, while prefix, range and flags are sent again unchanged.
//
// With a Delimiter the keys in which it stands behind Prefix are listed once for each text up to and with its first
// place there, as an item with OpScan, that text as its key, and neither elements nor value: one level of a hierarchy.
//
//	0 u8 flags | 1 u8 delimiter | 2 2 × 0 | 4 u32 limit | 8 u32 bytes_max | 12 u16 prefix | 14 u16 start | 16 u16 end | 18 u16 cursor
//	then the four texts in that order, then the delimiter
type ScanRequest struct {
	Flags    uint8
	Limit    uint32 // items; 0: ScanLimitDefault
	BytesMax uint32 // bytes of items; 0: ScanBytesDefault
	Prefix   []byte
	Start    []byte
	End      []byte
	Cursor   []byte
	// Delimiter is valid UTF-8 of at most ScanDelimiterBytesMax bytes; empty: none.
	Delimiter []byte
}

const scanHeaderBytes = 20

// AppendScanRequest appends the payload of OpScan. REQUIRES: each text fits its u16; it panics otherwise.
func AppendScanRequest(dst []byte, s *ScanRequest) []byte {
	if len(s.Delimiter) > 255 {
		lengthBug("delimiter", len(s.Delimiter))
	}
	dst = append(dst, s.Flags, byte(len(s.Delimiter)), 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, s.Limit)
	dst = binary.LittleEndian.AppendUint32(dst, s.BytesMax)
	for _, b := range [...][]byte{s.Prefix, s.Start, s.End, s.Cursor} {
		dst = binary.LittleEndian.AppendUint16(dst, u16(len(b), "text of a scan"))
	}
	for _, b := range [...][]byte{s.Prefix, s.Start, s.End, s.Cursor} {
		dst = append(dst, b...)
	}
	return append(dst, s.Delimiter...)
}

// DecodeScanRequest reads and checks the payload of OpScan; limits come back within their bounds, with
// defaults filled in.
func DecodeScanRequest(b []byte, s *ScanRequest) *Refusal {
	if len(b) < scanHeaderBytes {
		return refuse(StatusBadRequest, "scan of %d bytes", len(b))
	}
	*s = ScanRequest{Flags: b[0], Limit: binary.LittleEndian.Uint32(b[4:]), BytesMax: binary.LittleEndian.Uint32(b[8:])}
	if b[0]&^scanFlags != 0 || b[2]|b[3] != 0 {
		return refuse(StatusUnsupported, "flags % x of scan are not known to this version", b[:4])
	}
	rest := b[scanHeaderBytes:]
	for i, f := range [...]*[]byte{&s.Prefix, &s.Start, &s.End, &s.Cursor} {
		n := int(binary.LittleEndian.Uint16(b[12+2*i:]))
		if n > len(rest) {
			return refuse(StatusBadRequest, "lengths of scan lie")
		}
		*f, rest = rest[:n:n], rest[n:]
	}
	if len(rest) != int(b[1]) {
		return refuse(StatusBadRequest, "lengths of scan lie: %d bytes behind the cursor, the delimiter has %d", len(rest), b[1])
	}
	if s.Delimiter = rest; len(rest) > ScanDelimiterBytesMax {
		return refuseLimit(ScanDelimiterBytesMax, "delimiter of %d bytes; at most %d", len(rest), ScanDelimiterBytesMax)
	}
	if !utf8.Valid(rest) {
		return refuse(StatusBadRequest, "the delimiter is not valid UTF-8")
	}
	if len(rest) > 0 && s.Flags&ScanCount != 0 {
		return refuse(StatusBadRequest, "a count takes no delimiter")
	}
	if len(s.Prefix) > KeyBytesMax || len(s.Start) > KeyBytesMax || len(s.End) > KeyBytesMax {
		return refuseLimit(KeyBytesMax, "bounds of a scan have at most %d bytes", KeyBytesMax)
	}
	if len(s.Cursor) > CursorBytesMax {
		return refuse(StatusBadRequest, "cursor of %d bytes", len(s.Cursor))
	}
	if s.Limit == 0 {
		s.Limit = ScanLimitDefault
	}
	if s.BytesMax == 0 {
		s.BytesMax = ScanBytesDefault
	}
	s.Limit = min(s.Limit, ScanLimitMax)
	s.BytesMax = min(s.BytesMax, ScanBytesMax)
	return nil
}

// ScanPageHeaderBytes is the length of what precedes the items of a page:
// {u64 revision, u32 count, u16 cursor length, u16 1 for ScanCount, else 0}. An empty cursor: the listing is complete.
const ScanPageHeaderBytes = 16

// ScanPage is a decoded page; Items stay encoded, Count of them. An item has OpGet, StatusOK, as ext
// ExtMeta and the kept elements (with ScanKeysOnly ExtMeta alone), the key and the value (with ScanKeysOnly
// none). Slices are views.
type ScanPage struct {
	Revision Revision
	Count    int
	Cursor   []byte
	Items    []byte
	Counted  int // with ScanCount: keys that were counted; Count is 0
}

// PutScanCountHeader is PutScanPageHeader for a page of a count.
func PutScanCountHeader(b []byte, rev Revision, counted, cursor int) {
	PutScanPageHeader(b, rev, counted, cursor)
	b[14] = 1
}

// PutScanPageHeader writes the header of a page into b. REQUIRES: len(b) ≥ ScanPageHeaderBytes, and
// cursor, the length of the cursor, fits its u16.
func PutScanPageHeader(b []byte, rev Revision, count, cursor int) {
	binary.LittleEndian.PutUint64(b, rev)
	binary.LittleEndian.PutUint32(b[8:], uint32(count))
	binary.LittleEndian.PutUint16(b[12:], u16(cursor, "cursor"))
	binary.LittleEndian.PutUint16(b[14:], 0)
}

// DecodeScanPage reads a page. On the wire the cursor stands behind the items, so that a server can
// stream items before it knows where the page ends: header | items | cursor.
func DecodeScanPage(b []byte, p *ScanPage) error {
	if len(b) < ScanPageHeaderBytes {
		return fmt.Errorf("%w: page of %d bytes", ErrCorrupt, len(b))
	}
	n := binary.LittleEndian.Uint32(b[8:])
	c := int(binary.LittleEndian.Uint16(b[12:]))
	rest := b[ScanPageHeaderBytes:]
	if b[14] == 1 && c == len(rest) {
		*p = ScanPage{Revision: binary.LittleEndian.Uint64(b), Counted: int(n), Cursor: rest[:c:c]}
		return nil
	}
	if c > len(rest) || uint64(n)*ItemHeaderBytes > uint64(len(rest)-c) {
		return fmt.Errorf("%w: page of %d items in %d bytes", ErrCorrupt, n, len(rest))
	}
	*p = ScanPage{Revision: binary.LittleEndian.Uint64(b), Count: int(n), Items: rest[: len(rest)-c : len(rest)-c], Cursor: rest[len(rest)-c : len(rest) : len(rest)]}
	return nil
}
