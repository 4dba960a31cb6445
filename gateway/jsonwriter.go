package gateway

import (
	"bufio"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"io"
	"strconv"

	"kvstore/wire"
)

// jsonBufferBytes is what a jsonWriter gathers before it writes: more than codeBytesMin.
const jsonBufferBytes = 8 << 10

// jsonWriter writes one JSON document piece by piece, so that a value of 16 MiB is never held a second time as
// base64. Errors stay in the buffered writer: they mean that the client is gone.
type jsonWriter struct {
	w       *bufio.Writer
	comma   bool // something stands before in this object or array
	scratch []byte
}

func newJSONWriter(w io.Writer) *jsonWriter {
	return &jsonWriter{w: bufio.NewWriterSize(w, jsonBufferBytes)}
}

// raw writes text that is JSON already, or what frames it.
func (j *jsonWriter) raw(text string) { _, _ = j.w.WriteString(text) }

// open begins an object or array, close ends it.
func (j *jsonWriter) open(c byte) {
	_ = j.w.WriteByte(c)
	j.comma = false
}

func (j *jsonWriter) close(c byte) {
	_ = j.w.WriteByte(c)
	j.comma = true
}

// next puts the comma before an element of an array.
func (j *jsonWriter) next() {
	if j.comma {
		_ = j.w.WriteByte(',')
	}
	j.comma = true
}

// field begins a member of an object. Names of ours need no escapes.
func (j *jsonWriter) field(name string) {
	j.next()
	_ = j.w.WriteByte('"')
	j.raw(name)
	j.raw(`":`)
}

// text writes a string. What is no UTF-8 in it becomes U+FFFD.
func (j *jsonWriter) text(s string) { j.value(s) }

// value writes what encoding/json makes of v.
func (j *jsonWriter) value(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic("BUG: cannot encode an answer of our own: " + err.Error())
	}
	_, _ = j.w.Write(b)
}

// number writes 64 bits as a string: many readers would round a number.
func (j *jsonWriter) number(v uint64) {
	j.scratch = append(strconv.AppendUint(append(j.scratch[:0], '"'), v, 10), '"')
	_, _ = j.w.Write(j.scratch)
}

// bool writes true or false.
func (j *jsonWriter) bool(v bool) { j.raw(strconv.FormatBool(v)) }

// base64 writes b as a string.
func (j *jsonWriter) base64(b []byte) {
	const chunk = 3 << 10 // a multiple of 3, so that only the last is padded
	_ = j.w.WriteByte('"')
	for len(b) > 0 {
		n := min(len(b), chunk)
		j.scratch = base64.StdEncoding.AppendEncode(j.scratch[:0], b[:n])
		_, _ = j.w.Write(j.scratch)
		b = b[n:]
	}
	_ = j.w.WriteByte('"')
}

// record writes the members of a record: all that GET tells in headers, and the value, if it is wanted.
func (j *jsonWriter) record(ext, value []byte, withValue bool) {
	if withValue {
		j.field("value")
		j.base64(value)
	}
	tags := false
	for rest := ext; len(rest) > 0; {
		t, v, after, err := wire.NextExt(rest)
		if err != nil {
			break
		}
		rest = after
		switch t {
		case wire.ExtMeta:
			var m wire.Meta
			if wire.DecodeMeta(v, &m) == nil {
				j.meta(&m)
			}
		case wire.ExtContentType:
			j.field("content_type")
			j.text(string(v))
		case wire.ExtEncoding:
			j.field("encoding")
			j.text(string(v))
		case wire.ExtTag:
			tags = true
		}
	}
	if tags {
		j.tags(ext)
	}
}

func (j *jsonWriter) meta(m *wire.Meta) {
	j.field("version")
	j.number(m.Version)
	j.field("created_at")
	j.text(stamp(m.CreatedAt))
	j.field("updated_at")
	j.text(stamp(m.UpdatedAt))
	if m.ExpiresAt != 0 {
		j.field("expires_at")
		j.text(stamp(m.ExpiresAt))
	}
	j.field("checksum")
	j.text(checksumText(m.Checksum))
}

// tags writes the tags of ext, which hold each name once.
func (j *jsonWriter) tags(ext []byte) {
	j.field("tags")
	j.open('{')
	for len(ext) > 0 {
		t, v, rest, err := wire.NextExt(ext)
		if err != nil {
			break
		}
		if ext = rest; t != wire.ExtTag {
			continue
		}
		if name, value, err := wire.SplitTag(v); err == nil {
			j.next()
			j.text(string(name))
			j.raw(":")
			j.text(string(value))
		}
	}
	j.close('}')
}

// checksumText is the checksum as X-KV-Checksum has it.
func checksumText(sum uint64) string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], sum)
	return "xxh64=" + hex.EncodeToString(b[:])
}
