package gateway

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"slices"

	"kvstore/wire"
)

// group is a batch, a transaction or a MULTIGET while it is read from JSON: the body of its request grows as
// operations are read.
type group struct {
	op    wire.Opcode
	flags uint8
	// out is ext, then the group's header, then its items.
	out   []byte
	ext   int
	count int

	// The operation that is being read.
	given      uint32 // the fields that it has
	kind       wire.Opcode
	key        []byte
	value      []byte // as it was written: base64 or text
	isText     bool
	ttlMs      uint64
	delta      int64
	conditions []byte // elements
	tags       []tag
	contents   []byte // the other elements
	scratch    []byte
}

type tag struct{ name, value string }

// opField is a member of an operation's object, by its place in opFields.
type opField uint32

const (
	fieldType opField = iota
	fieldKey
	fieldValue
	fieldText
	fieldTTL
	fieldTTLMs
	fieldTags
	fieldContentType
	fieldEncoding
	fieldChecksum
	fieldCompress
	fieldDelta
	fieldConditions
)

var opFields = [...]string{"type", "key", "value", "text", "ttl_seconds", "ttl_ms", "tags", "content_type", "encoding", "checksum", "compress", "delta", "conditions"}

func fieldSet(fields ...opField) (set uint32) {
	for _, f := range fields {
		set |= 1 << f
	}
	return set
}

// opKinds are the operations of a transaction: the fields that each may have besides type, key and conditions.
var opKinds = map[string]struct {
	op     wire.Opcode
	fields uint32
}{
	"PUT":       {wire.OpPut, fieldSet(fieldValue, fieldText, fieldTTL, fieldTTLMs, fieldTags, fieldContentType, fieldEncoding, fieldChecksum, fieldCompress)},
	"DELETE":    {wire.OpDelete, 0},
	"GET":       {wire.OpGet, 0},
	"CHECK":     {wire.OpCheck, 0},
	"TOUCH":     {wire.OpTouch, fieldSet(fieldTTL, fieldTTLMs)},
	"INCREMENT": {wire.OpIncrement, fieldSet(fieldTTL, fieldTTLMs, fieldDelta)},
}

const opKindNames = "PUT, DELETE, GET, CHECK, TOUCH or INCREMENT"

// newGroup begins a group behind the elements in ext, with room for bytes.
func newGroup(op wire.Opcode, flags uint8, ext []byte, bytes int) *group {
	g := &group{op: op, flags: flags, ext: len(ext)}
	g.out = wire.AppendGroupHeader(append(make([]byte, 0, len(ext)+wire.GroupHeaderBytes+bytes), ext...), flags, 0)
	return g
}

// request gives the finished group as a request.
func (g *group) request(req *wire.Request) *wire.Refusal {
	wire.AppendGroupHeader(g.out[:g.ext], g.flags, g.count) // over the one that newGroup wrote
	if len(g.out) > wire.FrameBodyBytesMax {
		return &wire.Refusal{Status: wire.StatusTooLarge, Text: fmt.Sprintf("the operations take %d bytes; at most %d; nothing was changed", len(g.out), wire.FrameBodyBytesMax)}
	}
	h := wire.Header{Op: g.op, ID: 1, ExtLen: uint16(g.ext)}
	return parseRequest(&h, g.out, req)
}

// next counts one operation more.
func (g *group) next() *fault {
	if g.count++; g.count > wire.BatchOpsMax {
		return &fault{status: wire.StatusTooLarge, text: fmt.Sprintf("more than %d operations", wire.BatchOpsMax)}
	}
	return nil
}

// readKeys reads an array of keys as operations without anything else.
func (g *group) readKeys(r *jsonReader, op wire.Opcode) *fault {
	return r.array(func(int) *fault {
		if f := g.next(); f != nil {
			return f
		}
		key, f := readKey(r)
		if f != nil {
			return f
		}
		g.out = wire.AppendItem(g.out, &wire.Item{Op: op, Key: key})
		return nil
	})
}

// readKey reads a key. ParseRequest judges it; here it only must fit its length.
func readKey(r *jsonReader) ([]byte, *fault) {
	key, f := r.string()
	if f == nil && len(key) > wire.KeyBytesMax {
		return nil, &fault{status: wire.StatusBadKey, text: fmt.Sprintf("key of %d bytes; at most %d", len(key), wire.KeyBytesMax)}
	}
	return key, f
}

// readOperations reads an array of operations: each of the kind fixed, or, if that is "", of the kind that it names.
func (g *group) readOperations(r *jsonReader, fixed string) *fault {
	return r.array(func(int) *fault {
		if f := g.next(); f != nil {
			return f
		}
		g.given, g.kind, g.conditions, g.tags, g.contents = 0, 0, g.conditions[:0], g.tags[:0], g.contents[:0]
		name := fixed
		if f := r.object(func(field []byte) *fault { return g.readField(r, field, &name, fixed) }); f != nil {
			return f
		}
		return g.finish(name)
	})
}

// has reports whether the operation has the field.
func (g *group) has(f opField) bool { return g.given&(1<<f) != 0 }

// readField reads one member of an operation.
func (g *group) readField(r *jsonReader, name []byte, kind *string, fixed string) (f *fault) {
	at := slices.Index(opFields[:], string(name))
	if at < 0 || opField(at) == fieldType && fixed != "" {
		return faultf("this field is not known here")
	}
	g.given |= 1 << at
	var v []byte
	switch opField(at) {
	case fieldType:
		v, f = r.string()
		*kind = string(v)
	case fieldKey:
		g.key, f = readKey(r)
	case fieldValue, fieldText:
		g.value, f = r.string()
		g.isText = opField(at) == fieldText
	case fieldTTL:
		var seconds uint64
		seconds, f = r.uint(wire.TTLMsMax / 1000)
		g.ttlMs = seconds * 1000
	case fieldTTLMs:
		g.ttlMs, f = r.uint(wire.TTLMsMax)
	case fieldTags:
		f = g.readTags(r)
	case fieldContentType:
		if v, f = r.string(); f == nil {
			f = g.element(wire.ExtContentType, v, wire.ContentTypeBytesMax)
		}
	case fieldEncoding:
		if v, f = r.string(); f == nil {
			f = g.element(wire.ExtEncoding, v, wire.EncodingBytesMax)
		}
	case fieldChecksum:
		if v, f = r.string(); f == nil {
			sum, ok := parseChecksum(string(v))
			if !ok {
				return faultf("%.40q is not xxh64= and 16 hex digits", v)
			}
			g.contents = wire.AppendExtU64(g.contents, wire.ExtChecksum, sum)
		}
	case fieldCompress:
		if v, f = r.string(); f == nil {
			codec, ok := parseCodec(string(v))
			if !ok {
				return faultf("%.40q is none of %s", v, codecNames)
			}
			g.contents = wire.AppendExtU8(g.contents, wire.ExtCompress, byte(codec))
		}
	case fieldDelta:
		g.delta, f = r.int()
	case fieldConditions:
		f = r.array(func(int) *fault { return g.readCondition(r) })
	}
	return f
}

// element appends an element of text that is kept with the value.
func (g *group) element(t wire.ExtType, v []byte, most int) *fault {
	if len(v) > most {
		return &fault{status: wire.StatusTooLarge, text: fmt.Sprintf("%d bytes; at most %d", len(v), most)}
	}
	g.contents = wire.AppendExt(g.contents, t, v)
	return nil
}

// readTags reads an object of texts.
func (g *group) readTags(r *jsonReader) *fault {
	return r.object(func(name []byte) *fault {
		if len(g.tags) == wire.TagsMax {
			return &fault{status: wire.StatusTooLarge, text: fmt.Sprintf("more than %d tags", wire.TagsMax)}
		}
		value, f := r.string()
		if f == nil {
			f = fitsTag(name, value)
		}
		if f == nil {
			g.tags = append(g.tags, tag{string(name), string(value)})
		}
		return f
	})
}

// fitsTag bounds what becomes a tag, or a condition on one; ParseRequest judges the rest.
func fitsTag(name, value []byte) *fault {
	if len(name) == 0 || len(name) > wire.TagNameBytesMax || len(value) > wire.TagValueBytesMax {
		return faultf("a tag's name has 1 to %d bytes of a-z 0-9 . _ -, its value at most %d", wire.TagNameBytesMax, wire.TagValueBytesMax)
	}
	return nil
}

// readCondition reads an object with one member, and appends its element.
func (g *group) readCondition(r *jsonReader) *fault {
	members := 0
	f := r.object(func(name []byte) *fault {
		if members++; members > 1 {
			return faultf("each condition is an object of its own")
		}
		switch string(name) {
		case "if_version_match":
			return g.readVersions(r)
		case "if_exists":
			g.conditions = wire.AppendExtCondition(g.conditions, wire.ConditionExists, nil)
			return r.yes()
		case "if_not_exists":
			g.conditions = wire.AppendExtCondition(g.conditions, wire.ConditionAbsent, nil)
			return r.yes()
		case "if_value_match":
			v, f := r.string()
			if f != nil {
				return f
			}
			if base64.StdEncoding.DecodedLen(len(v)) > wire.ConditionValueBytesMax+2 { // 2: padding
				return &fault{status: wire.StatusTooLarge, text: fmt.Sprintf("a value to compare has at most %d bytes", wire.ConditionValueBytesMax)}
			}
			var err error
			if g.scratch, err = base64.StdEncoding.Strict().AppendDecode(g.scratch[:0], v); err != nil {
				return faultf("this is not base64 (RFC 4648, padded): %v", err)
			}
			g.conditions = wire.AppendExtCondition(g.conditions, wire.ConditionValue, g.scratch)
			return nil
		case "if_tag_match":
			return g.readTagCondition(r)
		case "if_tag_present", "if_tag_absent":
			kind := wire.ConditionTagPresent
			if string(name) == "if_tag_absent" {
				kind = wire.ConditionTagAbsent
			}
			v, f := r.string()
			if f == nil {
				f = fitsTag(v, nil)
			}
			if f == nil {
				g.conditions = wire.AppendExtCondition(g.conditions, kind, v)
			}
			return f
		}
		return faultf("no such condition: there are if_version_match, if_exists, if_not_exists, if_value_match, if_tag_match, if_tag_present and if_tag_absent")
	})
	switch {
	case f != nil:
		return f
	case members == 0:
		return r.faultf("a condition without a member demands nothing")
	case len(g.conditions) > wire.ExtBytesMax:
		return &fault{status: wire.StatusTooLarge, text: fmt.Sprintf("conditions of more than %d bytes", wire.ExtBytesMax)}
	}
	return nil
}

// readVersions reads the version that a record must have, or an array of those of which it must have one.
func (g *group) readVersions(r *jsonReader) *fault {
	var versions []wire.Revision
	read := func(int) *fault {
		if len(versions) == wire.ConditionsMax {
			return faultf("more than %d versions", wire.ConditionsMax)
		}
		v, f := r.uint(1<<64 - 1)
		versions = append(versions, v)
		return f
	}
	var f *fault
	if r.peek() == '[' {
		if f = r.array(read); f == nil && len(versions) == 0 {
			f = r.faultf("a list of no versions is met by none")
		}
	} else {
		f = read(0)
	}
	if f == nil {
		g.conditions = wire.AppendExtVersions(g.conditions, versions...)
	}
	return f
}

// readTagCondition reads {"name", "value"}.
func (g *group) readTagCondition(r *jsonReader) *fault {
	var name, value []byte
	seen := 0
	if f := r.object(func(field []byte) (f *fault) {
		switch string(field) {
		case "name":
			name, f = r.string()
		case "value":
			value, f = r.string()
		default:
			f = faultf("this field is not known here")
		}
		seen++
		return f
	}); f != nil {
		return f
	}
	if seen != 2 {
		return r.faultf(`{"name":…,"value":…} is expected`)
	}
	if f := fitsTag(name, value); f != nil {
		return f
	}
	g.conditions = wire.AppendExtTagCondition(g.conditions, string(name), string(value))
	return nil
}

// finish appends the operation that has been read.
func (g *group) finish(kind string) *fault {
	k, known := opKinds[kind]
	switch odd := g.given &^ (k.fields | fieldSet(fieldType, fieldKey, fieldConditions)); {
	case !known && !g.has(fieldType):
		return faultf("it has no type, which is %s", opKindNames)
	case !known:
		return faultf("%.40q is not %s", kind, opKindNames).in(".type")
	case !g.has(fieldKey):
		return faultf("it has no key")
	case odd != 0:
		for i, name := range opFields {
			if odd&(1<<i) != 0 {
				return faultf("a %s has no such field", kind).in("." + name)
			}
		}
	}
	hasTTL := g.has(fieldTTL) || g.has(fieldTTLMs)
	if g.has(fieldTTL) && g.has(fieldTTLMs) {
		return faultf("both ttl_seconds and ttl_ms")
	}
	switch k.op {
	case wire.OpPut:
		if g.has(fieldValue) == g.has(fieldText) {
			return faultf(`one of "value" (base64) and "text" is expected`)
		}
	case wire.OpTouch:
		if !hasTTL {
			return faultf("it has no ttl_seconds or ttl_ms, which is 0 to take the deadline away")
		}
	case wire.OpIncrement:
		if !g.has(fieldDelta) {
			g.delta = 1 // as where it stands alone
		}
	}
	if hasTTL && g.ttlMs == 0 && k.op != wire.OpTouch {
		in := ".ttl_seconds"
		if g.has(fieldTTLMs) {
			in = ".ttl_ms"
		}
		return faultf("0 is no time to live: leave it out for a record that never expires").in(in)
	}
	start := len(g.out)
	g.out = wire.AppendItemHeader(g.out, k.op, 0, 0, 0, 0)
	g.out = append(g.out, g.conditions...)
	if hasTTL && g.ttlMs != 0 {
		g.out = wire.AppendExtU64(g.out, wire.ExtTTL, g.ttlMs)
	}
	slices.SortFunc(g.tags, func(a, b tag) int { return cmp.Compare(a.name, b.name) })
	for _, t := range g.tags {
		g.out = wire.AppendExtTag(g.out, t.name, t.value)
	}
	g.out = append(g.out, g.contents...)
	ext := len(g.out) - start - wire.ItemHeaderBytes
	if ext > wire.ExtBytesMax {
		return &fault{status: wire.StatusTooLarge, text: fmt.Sprintf("tags and conditions take %d bytes; at most %d", ext, wire.ExtBytesMax)}
	}
	g.out = append(g.out, g.key...)
	before := len(g.out)
	switch {
	case k.op == wire.OpIncrement:
		g.out = wire.AppendIncrement(g.out, g.delta)
	case k.op != wire.OpPut:
	case g.isText:
		g.out = append(g.out, g.value...)
	default:
		var err error
		if g.out, err = base64.StdEncoding.Strict().AppendDecode(g.out, g.value); err != nil {
			return faultf("this is not base64 (RFC 4648, padded): %v", err).in(".value")
		}
	}
	wire.AppendItemHeader(g.out[:start], k.op, 0, ext, len(g.key), len(g.out)-before) // over the one from before
	return nil
}

const codecNames = "s2, zstd, lz4 and none"

// parseCodec reads how the store is to compress a value.
func parseCodec(name string) (wire.Codec, bool) {
	for _, c := range []wire.Codec{wire.CodecNone, wire.CodecS2, wire.CodecZstd, wire.CodecLZ4} {
		if name == c.String() {
			return c, true
		}
	}
	return 0, false
}
