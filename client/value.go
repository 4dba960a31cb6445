package client

import (
	"fmt"
	"strconv"
	"time"

	"kvstore/wire"
)

// Version is the revision of a write: it grows with every change of the store, and is what conditions
// compare. Zero is "none".
type Version uint64

// String gives the version as a decimal number.
func (v Version) String() string { return strconv.FormatUint(uint64(v), 10) }

// ParseVersion reads what String gave.
func ParseVersion(s string) (Version, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("cannot parse version %q: %w", s, err)
	}
	return Version(n), nil
}

// Meta is what the store keeps about a record besides its bytes.
type Meta struct {
	Version Version
	// CreatedAt and UpdatedAt are the leader's times; ExpiresAt is zero for a record that never expires.
	CreatedAt time.Time
	UpdatedAt time.Time
	ExpiresAt time.Time
	// Checksum is the xxhash64 of the value.
	Checksum uint64
}

func metaOf(m *wire.Meta) Meta {
	return Meta{
		Version:   Version(m.Version),
		CreatedAt: time.UnixMicro(m.CreatedAt),
		UpdatedAt: time.UnixMicro(m.UpdatedAt),
		ExpiresAt: expiry(m.ExpiresAt),
		Checksum:  m.Checksum,
	}
}

func expiry(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us)
}

// Value is a record.
type Value struct {
	// Data is the value; it belongs to the caller.
	Data []byte
	Meta
	// ContentType and Encoding are the hints kept with the value.
	ContentType string
	Encoding    string

	ext []byte
	age time.Duration
}

// Age tells how old the value may be: everything that was acknowledged, to anyone, so long before the read began is in
// it. It is 0 for reads that are linearizable, and AgeUnknown, which is longer than anything, when nothing is known.
func (v *Value) Age() time.Duration { return v.age }

// Tags gives the record's tags. They are decoded at each call; nil when there are none.
func (v *Value) Tags() map[string]string {
	var tags map[string]string
	for ext := v.ext; len(ext) > 0; {
		t, b, rest, err := wire.NextExt(ext)
		if err != nil {
			return tags
		}
		ext = rest
		if t != wire.ExtTag {
			continue
		}
		name, value, err := wire.SplitTag(b)
		if err != nil {
			return tags
		}
		if tags == nil {
			tags = make(map[string]string)
		}
		tags[string(name)] = string(value)
	}
	return tags
}

// valueOf builds a Value from an answer; it takes over data and ext.
func valueOf(m *wire.Meta, ext, data []byte) Value {
	v := Value{Data: data, Meta: metaOf(m), ext: ext}
	for len(ext) > 0 {
		t, b, rest, err := wire.NextExt(ext)
		if err != nil {
			break
		}
		ext = rest
		switch t {
		case wire.ExtContentType:
			v.ContentType = string(b)
		case wire.ExtEncoding:
			v.Encoding = string(b)
		}
	}
	return v
}

// splitMeta reads the metadata of an answer or item and gives what follows: the elements kept with the
// value. The server sends the metadata first; an answer without it is a violation.
func splitMeta(ext []byte, m *wire.Meta) (kept []byte, err error) {
	if len(ext) == 0 {
		return nil, fmt.Errorf("%w: answer without metadata", ErrProtocol)
	}
	t, b, rest, err := wire.NextExt(ext)
	if err != nil {
		return nil, err
	}
	if t == wire.ExtMeta {
		return rest, wire.DecodeMeta(b, m)
	}
	// Another element stands first: look for the metadata behind it, and keep all.
	for more := rest; len(more) > 0; {
		if t, b, more, err = wire.NextExt(more); err != nil {
			return nil, err
		}
		if t == wire.ExtMeta {
			return ext, wire.DecodeMeta(b, m)
		}
	}
	return nil, fmt.Errorf("%w: answer without metadata", ErrProtocol)
}
