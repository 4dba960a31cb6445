package gateway

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	"kvstore/api/kvstorev1"
	"kvstore/wire"
)

// idempotencyMetadata is the metadata entry that names a write; see idempotencyHeader.
const idempotencyMetadata = "idempotency-key"

// callBuilder turns the message of a call into a request of the binary protocol. What is wrong is noted once; whatever
// is appended behind it has no effect.
type callBuilder struct {
	ext []byte
	ref *wire.Refusal
}

// refuse notes what is wrong, if nothing was before.
func (b *callBuilder) refuse(st wire.Status, format string, a ...any) {
	if b.ref == nil {
		b.ref = &wire.Refusal{Status: st, Text: fmt.Sprintf(format, a...)}
	}
}

// begin begins the request of a call that ctx belongs to: with the idempotency key of a write, if it has one, which
// stands before all else, and its namespace; "" is the default one.
func (b *callBuilder) begin(ctx context.Context, name string) {
	if changes(stateOf(ctx).op) {
		var ref *wire.Refusal
		if b.ext, ref = idempotencyElement(metadata.ValueFromIncomingContext(ctx, idempotencyMetadata)); ref != nil {
			b.refuse(ref.Status, "%s", ref.Text)
		}
	}
	b.namespace(name)
}

// namespace names the namespace; "" is the default one.
func (b *callBuilder) namespace(name string) {
	switch {
	case len(name) > wire.NamespaceBytesMax:
		b.refuse(wire.StatusBadRequest, "namespace name of %d bytes; 1 to %d", len(name), wire.NamespaceBytesMax)
	case name != "":
		b.ext = wire.AppendExtString(b.ext, wire.ExtNamespace, name)
	}
}

// millis gives a duration in milliseconds, of which it must have a whole number from 1 on.
func (b *callBuilder) millis(what string, d *durationpb.Duration) uint64 {
	v := d.AsDuration()
	if err := d.CheckValid(); err != nil || v < time.Millisecond || v%time.Millisecond != 0 {
		b.refuse(wire.StatusBadRequest, "%s of %s is not a whole number of milliseconds from 1 on; nothing was changed", what, durationText(d))
		return 1
	}
	return uint64(v / time.Millisecond)
}

func durationText(d *durationpb.Duration) string {
	if d.CheckValid() != nil {
		return fmt.Sprintf("%d s and %d ns", d.GetSeconds(), d.GetNanos())
	}
	return d.AsDuration().String()
}

// ttl sets the time to live, if there is one.
func (b *callBuilder) ttl(d *durationpb.Duration) {
	if d == nil {
		return
	}
	// Beyond what time.Duration holds AsDuration saturates at 292 years; ParseRequest refuses all above 100.
	b.ext = wire.AppendExtU64(b.ext, wire.ExtTTL, b.millis("a ttl", d))
}

// consistency says what a read must show.
func (b *callBuilder) consistency(c kvstorev1.Consistency) {
	switch c {
	case kvstorev1.Consistency_CONSISTENCY_LINEARIZABLE:
	case kvstorev1.Consistency_CONSISTENCY_STALE:
		b.ext = wire.AppendExtU8(b.ext, wire.ExtConsistency, wire.ConsistencyStale)
	default:
		b.refuse(wire.StatusBadRequest, "consistency %d is neither CONSISTENCY_LINEARIZABLE nor CONSISTENCY_STALE", c)
	}
}

// read adds what steers a read.
func (b *callBuilder) read(o *kvstorev1.ReadOptions) {
	b.consistency(o.GetConsistency())
	if age := o.GetMaxAge(); age != nil {
		if o.GetConsistency() != kvstorev1.Consistency_CONSISTENCY_STALE {
			b.refuse(wire.StatusBadRequest, "max_age bounds the age of a stale read: it needs CONSISTENCY_STALE")
		}
		b.ext = wire.AppendExtU64(b.ext, wire.ExtMaxAge, b.millis("a max_age", age))
	}
	if rev := o.GetRevision(); rev != 0 {
		b.ext = wire.AppendExtU64(b.ext, wire.ExtAtRevision, rev)
	}
	if rev := o.GetMinRevision(); rev != 0 {
		b.ext = wire.AppendExtU64(b.ext, wire.ExtMinRevision, rev)
	}
}

// put adds what is kept with a value.
func (b *callBuilder) put(o *kvstorev1.PutOptions) {
	if o == nil {
		return
	}
	b.ttl(o.GetTtl())
	if tags := o.GetTags(); len(tags) > wire.TagsMax {
		b.refuse(wire.StatusTooLarge, "%d tags; at most %d", len(tags), wire.TagsMax)
	} else if len(tags) != 0 {
		for _, name := range slices.Sorted(maps.Keys(tags)) {
			if b.fitsTag(name, tags[name]) {
				b.ext = wire.AppendExtTag(b.ext, name, tags[name])
			}
		}
	}
	b.text(wire.ExtContentType, "content_type", o.GetContentType(), wire.ContentTypeBytesMax)
	b.text(wire.ExtEncoding, "content_encoding", o.GetContentEncoding(), wire.EncodingBytesMax)
	if o.Checksum != nil {
		b.ext = wire.AppendExtU64(b.ext, wire.ExtChecksum, o.GetChecksum())
	}
	if c := o.GetCompression(); c != kvstorev1.Compression_COMPRESSION_UNSPECIFIED {
		codec, ok := compressions[c]
		if !ok {
			b.refuse(wire.StatusBadRequest, "compression %d is none that this version knows", c)
		}
		b.ext = wire.AppendExtU8(b.ext, wire.ExtCompress, byte(codec))
	}
}

var compressions = map[kvstorev1.Compression]wire.Codec{
	kvstorev1.Compression_COMPRESSION_NONE: wire.CodecNone, kvstorev1.Compression_COMPRESSION_S2: wire.CodecS2,
	kvstorev1.Compression_COMPRESSION_ZSTD: wire.CodecZstd, kvstorev1.Compression_COMPRESSION_LZ4: wire.CodecLZ4,
}

// text adds an element of text that is kept with the value.
func (b *callBuilder) text(t wire.ExtType, what, v string, most int) {
	switch {
	case len(v) > most:
		b.refuse(wire.StatusTooLarge, "%s of %d bytes; at most %d", what, len(v), most)
	case v != "":
		b.ext = wire.AppendExtString(b.ext, t, v)
	}
}

// fitsTag reports whether name and value can be those of a tag, or of a condition on one.
func (b *callBuilder) fitsTag(name, value string) bool {
	if f := fitsTag([]byte(name), []byte(value)); f != nil {
		b.refuse(wire.StatusBadRequest, "tag %.100q: %s; nothing was changed", name, f.text)
		return false
	}
	return true
}

// conditions adds what must hold.
func (b *callBuilder) conditions(all []*kvstorev1.Condition) {
	if len(all) > wire.ConditionsMax {
		b.refuse(wire.StatusTooLarge, "%d conditions of one operation; at most %d", len(all), wire.ConditionsMax)
		return
	}
	for i, c := range all {
		b.condition(i, c)
	}
}

// condition adds the condition at place i.
func (b *callBuilder) condition(i int, c *kvstorev1.Condition) {
	only := func(name string, v bool, kind wire.ConditionKind) {
		if !v {
			b.refuse(wire.StatusBadRequest, "condition %d: %s takes only true; nothing was changed", i, name)
		}
		b.ext = wire.AppendExtCondition(b.ext, kind, nil)
	}
	switch k := c.GetKind().(type) {
	case *kvstorev1.Condition_IfVersionMatch:
		b.ext = wire.AppendExtVersions(b.ext, k.IfVersionMatch)
	case *kvstorev1.Condition_IfVersionIn:
		v := k.IfVersionIn.GetVersions()
		if len(v) == 0 || len(v) > wire.ConditionsMax {
			b.refuse(wire.StatusBadRequest, "condition %d: if_version_in lists %d versions; 1 to %d; nothing was changed", i, len(v), wire.ConditionsMax)
			return
		}
		b.ext = wire.AppendExtVersions(b.ext, v...)
	case *kvstorev1.Condition_IfExists:
		only("if_exists", k.IfExists, wire.ConditionExists)
	case *kvstorev1.Condition_IfNotExists:
		only("if_not_exists", k.IfNotExists, wire.ConditionAbsent)
	case *kvstorev1.Condition_IfValueMatch:
		if len(k.IfValueMatch) > wire.ConditionValueBytesMax {
			b.refuse(wire.StatusTooLarge, "condition %d: a value to compare has at most %d bytes; nothing was changed", i, wire.ConditionValueBytesMax)
			return
		}
		b.ext = wire.AppendExtCondition(b.ext, wire.ConditionValue, k.IfValueMatch)
	case *kvstorev1.Condition_IfTagMatch:
		if name, value := k.IfTagMatch.GetName(), k.IfTagMatch.GetValue(); b.fitsTag(name, value) {
			b.ext = wire.AppendExtTagCondition(b.ext, name, value)
		}
	case *kvstorev1.Condition_IfTagPresent:
		if b.fitsTag(k.IfTagPresent, "") {
			b.ext = wire.AppendExtCondition(b.ext, wire.ConditionTagPresent, []byte(k.IfTagPresent))
		}
	case *kvstorev1.Condition_IfTagAbsent:
		if b.fitsTag(k.IfTagAbsent, "") {
			b.ext = wire.AppendExtCondition(b.ext, wire.ConditionTagAbsent, []byte(k.IfTagAbsent))
		}
	default:
		b.refuse(wire.StatusBadRequest, "condition %d demands nothing; nothing was changed", i)
	}
}

// checkExt notes it where the elements of one operation take more than they may.
func (b *callBuilder) checkExt() {
	if len(b.ext) > wire.ExtBytesMax {
		b.refuse(wire.StatusTooLarge, "tags and conditions take %d bytes; at most %d; nothing was changed", len(b.ext), wire.ExtBytesMax)
	}
}

// single gives the request of an operation on one key, or on none.
func (b *callBuilder) single(op wire.Opcode, key string, payload []byte) (*wire.Request, *wire.Refusal) {
	b.checkExt()
	if len(key) > wire.KeyBytesMax {
		b.refuse(wire.StatusBadKey, "key of %d bytes; at most %d; nothing was changed", len(key), wire.KeyBytesMax)
	}
	if b.ref != nil {
		return nil, b.ref
	}
	body := make([]byte, 0, len(b.ext)+len(key)+len(payload))
	body = append(append(append(body, b.ext...), key...), payload...)
	h := wire.Header{Op: op, ID: 1, ExtLen: uint16(len(b.ext)), KeyLen: uint16(len(key))}
	req := new(wire.Request)
	return req, parseRequest(&h, body, req)
}

// groupBuilder turns the operations of a batch or transaction into a request.
type groupBuilder struct {
	g     *group
	item  callBuilder
	ref   *wire.Refusal
	count int
}

// group begins a batch, transaction or multiget of n operations behind what b steers.
func (b *callBuilder) group(op wire.Opcode, flags uint8, n, bytes int) *groupBuilder {
	if n > wire.BatchOpsMax {
		b.refuse(wire.StatusTooLarge, "%d operations; at most %d; nothing was changed", n, wire.BatchOpsMax)
	}
	if bytes > wire.FrameBodyBytesMax {
		b.refuse(wire.StatusTooLarge, "keys and values of %d bytes; at most %d; nothing was changed", bytes, wire.FrameBodyBytesMax)
	}
	if b.ref != nil {
		return &groupBuilder{ref: b.ref}
	}
	return &groupBuilder{g: newGroup(op, flags, b.ext, bytes+n*wire.ItemHeaderBytes)}
}

// add appends an operation; with adds its elements.
func (gb *groupBuilder) add(op wire.Opcode, key string, value []byte, with func(b *callBuilder)) {
	at := gb.count
	gb.count++
	if gb.ref != nil {
		return
	}
	b := &gb.item
	b.ext, b.ref = b.ext[:0], nil
	if with != nil {
		with(b)
	}
	b.checkExt()
	if len(key) > wire.KeyBytesMax {
		b.refuse(wire.StatusBadKey, "key of %d bytes; at most %d; nothing was changed", len(key), wire.KeyBytesMax)
	}
	if b.ref != nil {
		gb.ref = &wire.Refusal{Status: b.ref.Status, Text: fmt.Sprintf("operation %d: %s", at, b.ref.Text)}
		return
	}
	gb.g.out = wire.AppendItemHeader(gb.g.out, op, 0, len(b.ext), len(key), len(value))
	gb.g.out = append(append(append(gb.g.out, b.ext...), key...), value...)
	gb.g.count++
}

// request gives the finished group.
func (gb *groupBuilder) request() (*wire.Request, *wire.Refusal) {
	if gb.ref != nil {
		return nil, gb.ref
	}
	req := new(wire.Request)
	return req, gb.g.request(req)
}

// transaction adds the operations of a transaction.
func (gb *groupBuilder) transaction(ops []*kvstorev1.Operation) {
	for i, o := range ops {
		conditions := func(b *callBuilder) { b.conditions(o.GetConditions()) }
		switch k := o.GetKind().(type) {
		case *kvstorev1.Operation_Put:
			gb.add(wire.OpPut, k.Put.GetKey(), k.Put.GetValue(), func(b *callBuilder) {
				conditions(b)
				b.put(k.Put.GetOptions())
			})
		case *kvstorev1.Operation_Delete:
			gb.add(wire.OpDelete, k.Delete.GetKey(), nil, conditions)
		case *kvstorev1.Operation_Get:
			gb.add(wire.OpGet, k.Get.GetKey(), nil, conditions)
		case *kvstorev1.Operation_Check:
			gb.add(wire.OpCheck, k.Check.GetKey(), nil, conditions)
		case *kvstorev1.Operation_Touch:
			gb.add(wire.OpTouch, k.Touch.GetKey(), nil, func(b *callBuilder) {
				conditions(b)
				b.ttl(k.Touch.GetTtl())
			})
		case *kvstorev1.Operation_Increment:
			gb.add(wire.OpIncrement, k.Increment.GetKey(), wire.AppendIncrement(nil, deltaOf(k.Increment.Delta)), func(b *callBuilder) {
				conditions(b)
				b.ttl(k.Increment.GetTtl())
			})
		default:
			gb.ref = cmp.Or(gb.ref, &wire.Refusal{Status: wire.StatusBadRequest, Text: fmt.Sprintf("operation %d says not what to do: one of put, delete, get, check, touch and increment is expected; nothing was changed", i)})
		}
	}
}

// deltaOf gives what an increment adds: 1 where nothing is said.
func deltaOf(delta *int64) int64 {
	if delta == nil {
		return 1
	}
	return *delta
}
