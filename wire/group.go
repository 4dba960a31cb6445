package wire

import (
	"encoding/binary"
	"fmt"
	"math"
)

// GroupHeaderBytes is the length of what precedes the items of a batch, a transaction, or a MULTIGET
// request: {u8 flags, 3 × 0, u32 count}.
const GroupHeaderBytes = 8

// GroupAtomic in a batch's flags: all items happen, or none. Without it each item stands alone.
// A transaction is always atomic and sets no flag.
const GroupAtomic = 1

// ItemHeaderBytes is the length of an item's header:
//
//	0 u8 opcode | 1 u8 status (0 in requests) | 2 u16 ext_len | 4 u16 key_len | 6 u16 0 | 8 u32 value_len
//	item = header | ext | key | value
const ItemHeaderBytes = 12

// Item is one member of a batch, a transaction, a MULTIGET, or a page of a listing; in requests its
// status is 0. Slices are views.
type Item struct {
	Op     Opcode
	Status Status
	Ext    []byte
	Key    []byte
	Value  []byte
}

// AppendGroupHeader begins the payload of a batch, transaction or MULTIGET.
func AppendGroupHeader(dst []byte, flags uint8, count int) []byte {
	return binary.LittleEndian.AppendUint32(append(dst, flags, 0, 0, 0), uint32(count))
}

// AppendItem appends one item. REQUIRES: Ext and Key fit their u16 lengths.
func AppendItem(dst []byte, it *Item) []byte {
	dst = AppendItemHeader(dst, it.Op, it.Status, len(it.Ext), len(it.Key), len(it.Value))
	dst = append(dst, it.Ext...)
	dst = append(dst, it.Key...)
	return append(dst, it.Value...)
}

// AppendItemHeader appends an item's header; its ext, key and value follow, appended by the caller.
// REQUIRES: ext and key fit their u16, value its u32; it panics otherwise.
func AppendItemHeader(dst []byte, op Opcode, st Status, ext, key, value int) []byte {
	if uint64(value) > math.MaxUint32 {
		lengthBug("value", value)
	}
	dst = append(dst, byte(op), byte(st))
	dst = binary.LittleEndian.AppendUint16(dst, u16(ext, "extension block"))
	dst = binary.LittleEndian.AppendUint16(dst, u16(key, "key"))
	dst = append(dst, 0, 0)
	return binary.LittleEndian.AppendUint32(dst, uint32(value))
}

// NextItem cuts the first item off b.
func NextItem(b []byte, it *Item) (rest []byte, err error) {
	if len(b) < ItemHeaderBytes {
		return nil, fmt.Errorf("%w: %d bytes where an item begins", ErrCorrupt, len(b))
	}
	if b[6]|b[7] != 0 {
		return nil, fmt.Errorf("%w: reserved bytes of an item are set", ErrCorrupt)
	}
	e, k := int(binary.LittleEndian.Uint16(b[2:])), int(binary.LittleEndian.Uint16(b[4:]))
	v := uint64(binary.LittleEndian.Uint32(b[8:]))
	if uint64(e+k)+v > uint64(len(b)-ItemHeaderBytes) {
		return nil, fmt.Errorf("%w: item of %d+%d+%d bytes in %d", ErrCorrupt, e, k, v, len(b)-ItemHeaderBytes)
	}
	it.Op, it.Status = Opcode(b[0]), Status(b[1])
	b = b[ItemHeaderBytes:]
	it.Ext, it.Key, it.Value = b[:e:e], b[e:e+k:e+k], b[e+k:e+k+int(v):e+k+int(v)]
	return b[e+k+int(v):], nil
}

// DecodeGroup reads the header of a batch, transaction or MULTIGET and returns its items, still encoded.
func DecodeGroup(payload []byte) (flags uint8, count int, items []byte, err error) {
	if len(payload) < GroupHeaderBytes {
		return 0, 0, nil, fmt.Errorf("%w: group of %d bytes", ErrCorrupt, len(payload))
	}
	n := binary.LittleEndian.Uint32(payload[4:])
	if payload[1]|payload[2]|payload[3] != 0 {
		return 0, 0, nil, fmt.Errorf("%w: reserved bytes of a group are set", ErrCorrupt)
	}
	// A count that the bytes cannot hold is a lie: refuse it before anyone sizes a slice by it.
	if uint64(n)*ItemHeaderBytes > uint64(len(payload)-GroupHeaderBytes) {
		return 0, 0, nil, fmt.Errorf("%w: %d items in %d bytes", ErrCorrupt, n, len(payload))
	}
	return payload[0], int(n), payload[GroupHeaderBytes:len(payload):len(payload)], nil
}

func groupOf(op Opcode, payload []byte) (int, []byte, *Refusal) {
	flags, n, items, err := DecodeGroup(payload)
	if err != nil {
		return 0, nil, refuse(StatusBadRequest, "malformed %s", op)
	}
	if flags&^GroupAtomic != 0 || (flags != 0 && op != OpBatch) {
		return 0, nil, refuse(StatusUnsupported, "flags %#x of %s are not known to this version", flags, op)
	}
	if n == 0 {
		return 0, nil, refuse(StatusBadRequest, "%s without operations", op)
	}
	if n > BatchOpsMax {
		return 0, nil, refuseLimit(BatchOpsMax, "%s of %d operations; at most %d", op, n, BatchOpsMax)
	}
	return n, items, nil
}

// CheckGroup validates every item of a batch or transaction, for whoever executes it from the log: the
// second half of what ParseRequest checks at the door. A refusal depends on the bytes alone.
func CheckGroup(op Opcode, payload []byte) *Refusal {
	_, ref := checkGroup(op, payload)
	return ref
}

// checkGroup validates every item of a batch or transaction and returns their number.
func checkGroup(op Opcode, payload []byte) (int, *Refusal) {
	n, b, ref := groupOf(op, payload)
	if ref != nil {
		return 0, ref
	}
	var it Item
	for i := range n {
		var err error
		if b, err = NextItem(b, &it); err != nil {
			return 0, refuse(StatusBadRequest, "operation %d of %s is malformed", i, op)
		}
		if ref := checkItem(op, &it); ref != nil {
			ref.Text = fmt.Sprintf("operation %d: %s", i, ref.Text)
			return 0, ref
		}
	}
	if len(b) != 0 {
		return 0, refuse(StatusBadRequest, "%d bytes after the last operation of %s", len(b), op)
	}
	return n, nil
}

// checkItem validates one item of a batch or transaction.
func checkItem(group Opcode, it *Item) *Refusal {
	switch {
	case it.Op.IsMutation():
	case group == OpTxn && (it.Op == OpGet || it.Op == OpCheck):
	default:
		return refuse(StatusBadRequest, "%s can't stand in a %s", it.Op, group)
	}
	if it.Status != 0 {
		return refuse(StatusBadRequest, "the status of an operation is 0 in a request")
	}
	if ref := checkKey(it.Key); ref != nil {
		return ref
	}
	var m Mutation
	if ref := decodeMutation(it.Op, it.Ext, &m, 0); ref != nil {
		return ref
	}
	// A check that checks nothing is a caller's mistake, who would believe the transaction guarded.
	if it.Op == OpCheck && m.Conditions == 0 {
		return refuse(StatusBadRequest, "check without a condition")
	}
	return m.checkValue(it.Op, it.Value)
}

// checkMultiGet validates every key of a MULTIGET and returns their number.
func checkMultiGet(payload []byte) (int, *Refusal) {
	n, b, ref := groupOf(OpMultiGet, payload)
	if ref != nil {
		return 0, ref
	}
	var it Item
	for i := range n {
		var err error
		if b, err = NextItem(b, &it); err != nil || it.Op != OpGet || it.Status != 0 || len(it.Ext)+len(it.Value) != 0 {
			return 0, refuse(StatusBadRequest, "key %d of multiget is malformed", i)
		}
		if ref := checkKey(it.Key); ref != nil {
			ref.Text = fmt.Sprintf("key %d: %s", i, ref.Text)
			return 0, ref
		}
	}
	if len(b) != 0 {
		return 0, refuse(StatusBadRequest, "%d bytes after the last key of multiget", len(b))
	}
	return n, nil
}

// ResultHeaderBytes is the length of what precedes the items of an answer to a batch, transaction or
// MULTIGET: {u64 revision, u32 count}.
const ResultHeaderBytes = 12

// AppendResultHeader begins the payload of such an answer with status OK. The revision is that of the
// first mutation of a batch or transaction (0: it made none), or the one that a MULTIGET reflects. The
// items stand in the order of the request's, echo their opcode and have no key. Their values are those of
// the answers to single requests: the version after a put or delete (see AppendVersion), ExtMeta with the
// kept elements and the value after a get, AppendFailed after StatusConditionFailed (in a batch that is not
// atomic), nothing after a check, and otherwise nothing or a text for people.
func AppendResultHeader(dst []byte, rev Revision, count int) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint64(dst, rev), uint32(count))
}

// DecodeResult reads the header of such an answer and returns its items, still encoded.
func DecodeResult(payload []byte) (rev Revision, count int, items []byte, err error) {
	if len(payload) < ResultHeaderBytes {
		return 0, 0, nil, fmt.Errorf("%w: result of %d bytes", ErrCorrupt, len(payload))
	}
	n := binary.LittleEndian.Uint32(payload[8:])
	items = payload[ResultHeaderBytes:len(payload):len(payload)]
	if uint64(n)*ItemHeaderBytes > uint64(len(items)) {
		return 0, 0, nil, fmt.Errorf("%w: %d items in %d bytes", ErrCorrupt, n, len(items))
	}
	return binary.LittleEndian.Uint64(payload), int(n), items, nil
}

// FailedCondition names a condition that did not hold: the operation's place in its batch or
// transaction (0 for a single put or delete) and the condition's place within the operation.
type FailedCondition struct{ Operation, Condition uint32 }

// FailedConditionsMax bounds the failures that one answer lists.
const FailedConditionsMax = 64

// AppendFailed appends the payload of StatusConditionFailed: u32 count, then pairs of u32.
func AppendFailed(dst []byte, failed []FailedCondition) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(failed)))
	for _, f := range failed {
		dst = binary.LittleEndian.AppendUint32(dst, f.Operation)
		dst = binary.LittleEndian.AppendUint32(dst, f.Condition)
	}
	return dst
}

// DecodeFailed reads what AppendFailed wrote. It allocates no more than the bytes of b announce.
func DecodeFailed(b []byte) ([]FailedCondition, error) {
	if len(b) < 4 {
		return nil, fmt.Errorf("%w: failed conditions of %d bytes", ErrCorrupt, len(b))
	}
	n := binary.LittleEndian.Uint32(b)
	if b = b[4:]; uint64(n)*8 != uint64(len(b)) {
		return nil, fmt.Errorf("%w: %d failed conditions in %d bytes", ErrCorrupt, n, len(b))
	}
	out := make([]FailedCondition, n)
	for i := range out {
		out[i] = FailedCondition{binary.LittleEndian.Uint32(b[8*i:]), binary.LittleEndian.Uint32(b[8*i+4:])}
	}
	return out, nil
}
