package client

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"kvstore/wire"
)

// PutOption adds to a Put: a condition, a time to live, a tag, …
type PutOption interface {
	putExt(e *extender)
}

// DeleteOption adds to a Delete: a condition.
type DeleteOption interface {
	deleteExt(e *extender)
}

// extender gathers the extension block of a put or delete.
type extender struct {
	dst        []byte
	value      []byte
	conditions int
	tags       []putOption
	err        error
	limit      uint64
}

func (e *extender) refuse(err error, limit uint64, format string, a ...any) {
	if e.err == nil {
		e.err, e.limit = fmt.Errorf("%w: "+format, append([]any{err}, a...)...), limit
	}
}

// Condition must hold for a write to happen; see IfVersion, IfAbsent, IfExists and IfValue. It is a
// PutOption and a DeleteOption, and stands in transactions.
type Condition struct {
	kind     wire.ConditionKind
	versions []Version
	value    []byte
	tag      string
}

// IfVersion holds when the record exists and has one of the versions. At least one must be given.
func IfVersion(v ...Version) Condition {
	return Condition{kind: wire.ConditionVersion, versions: v}
}

// IfAbsent holds when the record does not exist.
func IfAbsent() Condition { return Condition{kind: wire.ConditionAbsent} }

// IfExists holds when the record exists.
func IfExists() Condition { return Condition{kind: wire.ConditionExists} }

// IfValue holds when the record exists and its value equals b, which has at most
// wire.ConditionValueBytesMax bytes.
func IfValue(b []byte) Condition { return Condition{kind: wire.ConditionValue, value: b} }

// IfTag holds when the record exists and has the tag with that value.
func IfTag(name, value string) Condition {
	return Condition{kind: wire.ConditionTag, tag: name, value: []byte(value)}
}

// IfTagPresent holds when the record exists and has the tag, with whatever value.
func IfTagPresent(name string) Condition {
	return Condition{kind: wire.ConditionTagPresent, tag: name}
}

// IfTagAbsent holds when the record exists and doesn't have the tag.
func IfTagAbsent(name string) Condition { return Condition{kind: wire.ConditionTagAbsent, tag: name} }

func (c Condition) putExt(e *extender)       { c.extend(e) }
func (c Condition) deleteExt(e *extender)    { c.extend(e) }
func (c Condition) incrementExt(e *extender) { c.extend(e) }

func (c Condition) extend(e *extender) {
	if e.conditions++; e.conditions > wire.ConditionsMax {
		e.refuse(ErrTooLarge, wire.ConditionsMax, "more than %d conditions on one operation", wire.ConditionsMax)
		return
	}
	switch c.kind {
	case wire.ConditionVersion:
		if len(c.versions) == 0 {
			e.refuse(ErrBadRequest, 0, "IfVersion needs at least one version")
			return
		}
		if 8*len(c.versions) > wire.ConditionValueBytesMax {
			e.refuse(ErrTooLarge, wire.ConditionValueBytesMax/8, "IfVersion of %d versions", len(c.versions))
			return
		}
		revs := make([]wire.Revision, len(c.versions))
		for i, v := range c.versions {
			revs[i] = wire.Revision(v)
		}
		e.dst = wire.AppendExtVersions(e.dst, revs...)
	case wire.ConditionExists, wire.ConditionAbsent:
		e.dst = wire.AppendExtCondition(e.dst, c.kind, nil)
	case wire.ConditionValue:
		if len(c.value) > wire.ConditionValueBytesMax {
			e.refuse(ErrTooLarge, wire.ConditionValueBytesMax, "IfValue of %d bytes; at most %d", len(c.value), wire.ConditionValueBytesMax)
			return
		}
		e.dst = wire.AppendExtCondition(e.dst, c.kind, c.value)
	case wire.ConditionTag, wire.ConditionTagPresent, wire.ConditionTagAbsent:
		if len(c.tag) == 0 || len(c.tag) > wire.TagNameBytesMax {
			e.refuse(ErrBadRequest, wire.TagNameBytesMax, "tag name of %d bytes; 1 to %d", len(c.tag), wire.TagNameBytesMax)
			return
		}
		if len(c.value) > wire.TagValueBytesMax {
			e.refuse(ErrTooLarge, wire.TagValueBytesMax, "tag value of %d bytes; at most %d", len(c.value), wire.TagValueBytesMax)
			return
		}
		if c.kind == wire.ConditionTag {
			e.dst = wire.AppendExtTagCondition(e.dst, c.tag, string(c.value))
		} else {
			e.dst = wire.AppendExtCondition(e.dst, c.kind, []byte(c.tag))
		}
	default:
		e.refuse(ErrBadRequest, 0, "empty Condition")
	}
}

// IncrementOption adds to an Increment: a condition, or WithTTL.
type IncrementOption interface {
	incrementExt(e *extender)
}

// TTLOption is WithTTL: an option of Put and of Increment.
type TTLOption struct{ d time.Duration }

func (o TTLOption) putExt(e *extender) {
	ms := (o.d + time.Millisecond - 1) / time.Millisecond
	if ms <= 0 || uint64(ms) > wire.TTLMsMax {
		e.refuse(ErrBadRequest, 0, "time to live %v; 1 ms to 100 years", o.d)
		return
	}
	e.dst = wire.AppendExtU64(e.dst, wire.ExtTTL, uint64(ms))
}

func (o TTLOption) incrementExt(e *extender) { o.putExt(e) }

// putOption is a PutOption that is no condition.
type putOption struct {
	ext   wire.ExtType
	name  string
	text  string
	sum   uint64
	given bool
}

// WithTTL lets the record expire after d, counted in the leader's time from when the write is applied.
// At least a millisecond, at most 100 years; finer parts are rounded up.
func WithTTL(d time.Duration) TTLOption { return TTLOption{d} }

// WithTag keeps a tag with the value; may be given up to wire.TagsMax times, each name once. A name has 1 to 64
// characters of a-z 0-9 . _ - and a value at most wire.TagValueBytesMax bytes.
func WithTag(name, value string) PutOption {
	return putOption{ext: wire.ExtTag, name: name, text: value}
}

// WithContentType keeps a content type with the value: printable ASCII; empty: none.
func WithContentType(s string) PutOption { return putOption{ext: wire.ExtContentType, text: s} }

// WithEncoding keeps a content encoding with the value: printable ASCII; empty: none. The store never transcodes.
func WithEncoding(s string) PutOption { return putOption{ext: wire.ExtEncoding, text: s} }

// Compression says how the store compresses a value. What a Get gives is always what was put.
type Compression uint8

// The compressions. Values below about 1 KiB, and those that hardly shrink, are stored plain whatever is asked.
const (
	CompressNever = Compression(wire.CodecNone)
	CompressS2    = Compression(wire.CodecS2)
	CompressZstd  = Compression(wire.CodecZstd)
	CompressLZ4   = Compression(wire.CodecLZ4)
)

// String gives the name that settings of namespaces have.
func (c Compression) String() string { return wire.Codec(c).String() }

// Compress asks the store to keep the value compressed, or never to; without it the settings of the namespace say.
func Compress(c Compression) PutOption { return putOption{ext: wire.ExtCompress, sum: uint64(c)} }

// WithChecksum sends the xxhash64 of the value along, for the server to verify before it stores anything.
func WithChecksum() PutOption { return putOption{ext: wire.ExtChecksum} }

// WithChecksumOf is WithChecksum with a sum that the caller knows from elsewhere.
func WithChecksumOf(xxh64 uint64) PutOption {
	return putOption{ext: wire.ExtChecksum, sum: xxh64, given: true}
}

func (o putOption) putExt(e *extender) {
	switch o.ext {
	case wire.ExtCompress:
		if o.sum > uint64(wire.CodecLZ4) {
			e.refuse(ErrBadRequest, 0, "unknown compression %d", o.sum)
			return
		}
		e.dst = wire.AppendExtU8(e.dst, wire.ExtCompress, uint8(o.sum))
	case wire.ExtTag:
		if len(o.name) == 0 || len(o.name) > wire.TagNameBytesMax {
			e.refuse(ErrBadRequest, wire.TagNameBytesMax, "tag name of %d bytes; 1 to %d", len(o.name), wire.TagNameBytesMax)
			return
		}
		if len(o.text) > wire.TagValueBytesMax {
			e.refuse(ErrTooLarge, wire.TagValueBytesMax, "tag value of %d bytes; at most %d", len(o.text), wire.TagValueBytesMax)
			return
		}
		if e.tags = append(e.tags, o); len(e.tags) > wire.TagsMax {
			e.refuse(ErrTooLarge, wire.TagsMax, "more than %d tags", wire.TagsMax)
		}
	case wire.ExtContentType, wire.ExtEncoding:
		if o.text == "" {
			return
		}
		max := wire.ContentTypeBytesMax
		if o.ext == wire.ExtEncoding {
			max = wire.EncodingBytesMax
		}
		if len(o.text) > max {
			e.refuse(ErrTooLarge, uint64(max), "hint of %d bytes; at most %d", len(o.text), max)
			return
		}
		e.dst = wire.AppendExtString(e.dst, o.ext, o.text)
	case wire.ExtChecksum:
		sum := o.sum
		if !o.given {
			sum = wire.Checksum(e.value)
		}
		e.dst = wire.AppendExtU64(e.dst, wire.ExtChecksum, sum)
	}
}

// appendTags appends the tags in the order that the protocol asks for: by name, each once.
func (e *extender) appendTags() {
	slices.SortFunc(e.tags, func(a, b putOption) int { return strings.Compare(a.name, b.name) })
	for i, o := range e.tags {
		if i > 0 && e.tags[i-1].name == o.name {
			e.refuse(ErrBadRequest, 0, "tag %q is given twice", o.name)
			return
		}
		e.dst = wire.AppendExtTag(e.dst, o.name, o.text)
	}
}

// appendOptions appends what the options of an operation on value ask for, each by its method extend; limit is that of
// the bound that err names.
func appendOptions[O any](dst, value []byte, opts []O, extend func(O, *extender)) (_ []byte, limit uint64, err error) {
	e := extender{dst: dst, value: value}
	for _, o := range opts {
		if any(o) != nil {
			extend(o, &e)
		}
	}
	e.appendTags()
	if len(e.dst)-len(dst) > extOptionsMax {
		e.refuse(ErrTooLarge, extOptionsMax, "options of %d bytes; at most %d", len(e.dst)-len(dst), extOptionsMax)
	}
	return e.dst, e.limit, e.err
}

// appendPutExt is appendOptions for a put. Without options, which is the usual case, it takes no memory.
func appendPutExt(dst, value []byte, opts []PutOption) (_ []byte, limit uint64, err error) {
	if len(opts) == 0 {
		return dst, 0, nil
	}
	return appendOptions(dst, value, opts, PutOption.putExt)
}

// appendDeleteExt is appendPutExt for a delete.
func appendDeleteExt(dst []byte, opts []DeleteOption) (_ []byte, limit uint64, err error) {
	if len(opts) == 0 {
		return dst, 0, nil
	}
	return appendOptions(dst, nil, opts, DeleteOption.deleteExt)
}

// appendIncrementExt is appendPutExt for an increment.
func appendIncrementExt(dst []byte, opts []IncrementOption) (_ []byte, limit uint64, err error) {
	return appendOptions(dst, nil, opts, IncrementOption.incrementExt)
}

// appendTouchExt is appendDeleteExt for a touch.
func appendTouchExt(dst []byte, ttl time.Duration, opts []DeleteOption) (_ []byte, limit uint64, err error) {
	if ttl != 0 {
		e := extender{dst: dst}
		if (TTLOption{ttl}).putExt(&e); e.err != nil {
			return dst, e.limit, e.err
		}
		dst = e.dst
	}
	return appendDeleteExt(dst, opts)
}

// extOptionsMax is what options may fill of an extension block: the rest is for session and namespace.
const extOptionsMax = wire.ExtBytesMax - 512
