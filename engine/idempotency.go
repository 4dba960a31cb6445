package engine

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"kvstore/wire"
)

// idempotencyTTL is wire.IdempotencyTTL in the unit of log time.
const idempotencyTTL = int64(wire.IdempotencyTTL / time.Microsecond)

// idempotencyForgetMax bounds the answers that one entry forgets because their time has passed: after a quiet hour
// hundreds of thousands may be due at once. One that is due and still there counts for nothing but its room. It
// belongs to the behaviour level.
const idempotencyForgetMax = 1024

// Writes with an idempotency key are done once: the table keeps the answer to each for idempotencyTTL of log time, and
// whoever sends the write again gets it. Unlike a session's, these answers are forgotten by time alone, never to make
// room: a client that repeats its write knows nothing of the others.
//
// The table lives in memory and is stored beside the records, I|ts|operation for the answer of that operation of the
// entry at ts. A place is used once, so that a key that is forgotten and used again within one entry is no special case.
// loadIdempotency rebuilds precisely the table that was there.
//
// Owned by the applier.
type idempotency struct {
	byKey map[idempotencyKey]*onceDone

	// oldest is a ring through all answers, in order of execution; oldest itself is its end mark.
	// Invariant: neither place nor at falls along it.
	oldest onceDone

	// bytes estimates the memory of all answers; it is a function of the table alone.
	// Invariant: bytes <= bytesMax.
	bytes, bytesMax int64

	// What the entry at hand has done; emptied by flush.
	added   []*onceDone
	dropped []droppedOnce
}

// idempotencyKey is a caller's key within its namespace. That is the namespace by its name: a write that was done
// before its namespace was dropped is told so when it is sent again, like one of a session.
type idempotencyKey [16]byte

// idempotencyKeyOf gives the key of a write in a namespace. Clients choose the 16 bytes: hashed with the name, those of one
// namespace never meet those of another.
func idempotencyKeyOf(namespace []byte, key [16]byte) idempotencyKey {
	var buf [wire.NamespaceBytesMax + 16]byte
	sum := sha256.Sum256(append(append(buf[:0], namespace...), key[:]...))
	return idempotencyKey(sum[:16])
}

// onceDone is the answer to one write.
type onceDone struct {
	key         idempotencyKey
	fingerprint uint64
	at          int64 // log time
	place       oncePlace
	rev         wire.Revision
	payload     []byte
	status      wire.Status

	digest     digest // of the I record, once it is stored
	prev, next *onceDone
}

// oncePlace names an I record: an operation of the entry at ts.
type oncePlace struct {
	ts        uint64
	operation uint32
}

// droppedOnce is a stored I record that is to go.
type droppedOnce struct {
	place  oncePlace
	digest digest
}

func newIdempotency() *idempotency {
	t := &idempotency{byKey: make(map[idempotencyKey]*onceDone), bytesMax: wire.IdempotencyBytesMax}
	t.oldest.prev, t.oldest.next = &t.oldest, &t.oldest
	return t
}

func (k *onceDone) bytes() int64 { return wire.IdempotencyOverheadBytes + int64(len(k.payload)) }

// due reports whether the time of k has passed.
func (k *onceDone) due(now int64) bool { return now-k.at > idempotencyTTL }

// idempotencyFullText tells people why a write isn't executed. It belongs to the behaviour level, as refusalText.
const idempotencyFullText = "as many answers to writes with an idempotency key are kept as may be; nothing was changed: try again later, or send the write without a key"

// begin decides what becomes of a write: kept is the answer that was given before, or a refusal (answered true);
// else the write is to be executed, and keep called.
func (t *idempotency) begin(key idempotencyKey, fingerprint uint64, now int64) (res wire.Result, answered bool) {
	k := t.byKey[key]
	switch {
	case k != nil && k.due(now):
		t.drop(k)
	case k != nil && k.fingerprint != fingerprint:
		return wire.Result{Status: wire.StatusKeyReused}, true
	case k != nil:
		return wire.Result{Status: k.status, Replayed: true, Rev: k.rev, Payload: k.payload}, true
	}
	// Before the write is executed nobody knows how long its answer will be.
	if t.bytes+wire.IdempotencyOverheadBytes+wire.IdempotencyAnswerBytesMax > t.bytesMax {
		return wire.Result{Status: wire.StatusRetryLater, Payload: []byte(idempotencyFullText)}, true
	}
	return wire.Result{}, false
}

// keep stores the answer of a write that begin let pass. An answer that asks for a retry is not kept: the retry is to be
// executed.
func (t *idempotency) keep(k *onceDone, res *wire.Result) {
	if res.Status.Class() == wire.ClassRetry {
		return
	}
	if len(res.Payload) > wire.IdempotencyAnswerBytesMax {
		panic(fmt.Sprintf("BUG: answer of %d bytes to a write with an idempotency key", len(res.Payload)))
	}
	k.rev, k.payload, k.status = res.Rev, bytes.Clone(res.Payload), res.Status // a clone: a payload may have grown to twice its size
	t.link(k)
	t.added = append(t.added, k)
}

// link puts k at the young end of the ring.
func (t *idempotency) link(k *onceDone) {
	t.byKey[k.key] = k
	t.bytes += k.bytes()
	k.prev, k.next = t.oldest.prev, &t.oldest
	k.prev.next, k.next.prev = k, k
}

// drop forgets k. REQUIRES: an earlier entry has stored it; one of the entry at hand is never due.
func (t *idempotency) drop(k *onceDone) {
	delete(t.byKey, k.key)
	t.bytes -= k.bytes()
	k.prev.next, k.next.prev = k.next, k.prev
	k.prev, k.next = nil, nil
	t.dropped = append(t.dropped, droppedOnce{k.place, k.digest})
}

// forget drops answers whose time has passed, the oldest first, up to idempotencyForgetMax.
func (t *idempotency) forget(now int64) {
	for range idempotencyForgetMax {
		k := t.oldest.next
		if k == &t.oldest || !k.due(now) {
			return
		}
		t.drop(k)
	}
}

// flush stores what the entry at hand has changed, in memory of mem, brings d up to date, and makes ready for the next
// entry.
func (t *idempotency) flush(w storer, mem *arena, d *digest) {
	for _, x := range t.dropped {
		d.sub(x.digest)
		w.del(appendOnceKey(mem.alloc(onceKeyBytes), x.place))
	}
	for _, k := range t.added {
		key := appendOnceKey(mem.alloc(onceKeyBytes), k.place)
		b := appendOnce(mem.alloc(onceBytes+len(k.payload)), key, k)
		k.digest = sealedDigest(key, b)
		d.add(k.digest)
		w.set(key, b)
	}
	clear(t.added) // hold none that is forgotten later
	t.added, t.dropped = t.added[:0], t.dropped[:0]
}

// loadIdempotency rebuilds the table from the state that r reads.
func loadIdempotency(r *reader) (*idempotency, error) {
	t := newIdempotency()
	lower, upper := familyRange(familyOnce)
	err := r.iterate(lower, upper, false, false, func(key []byte, value func() ([]byte, error)) (bool, error) {
		b, err := value()
		if err != nil {
			return false, err
		}
		return true, t.load(key, b)
	})
	if err != nil {
		return nil, fmt.Errorf("cannot load the answers kept for idempotency keys: %w", err)
	}
	return t, nil
}

// load takes one I record; they come in order.
func (t *idempotency) load(key, b []byte) error {
	k, err := decodeOnce(key, b)
	if err != nil {
		return err
	}
	if t.byKey[k.key] != nil || k.at < t.oldest.prev.at && t.oldest.prev != &t.oldest {
		return fmt.Errorf("%w: the answer under key %x is a second one, or older than the one before it", ErrRecordDamaged, key)
	}
	t.link(k)
	return nil
}

const (
	onceFormat = 1
	onceBytes  = onceHeaderBytes + 4

	onceHeaderBytes = 4 + 4 + 16 + 3*8
)

// appendOnce appends the stored form of an answer to dst, which must be empty:
//
//	0 u8 format | 1 u8 status | 2 u16 0 | 4 u32 len | 8 16 bytes key | 24 u64 fingerprint | 32 i64 at | 40 u64 rev
//	48 payload, then u32 crc32c over key and bytes
func appendOnce(dst, key []byte, k *onceDone) []byte {
	dst = append(dst, onceFormat, byte(k.status), 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(k.payload)))
	dst = append(dst, k.key[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, k.fingerprint)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(k.at))
	dst = binary.LittleEndian.AppendUint64(dst, k.rev)
	return appendSeal(append(dst, k.payload...), 0, key)
}

// decodeOnce reads what appendOnce wrote. It fails with ErrRecordDamaged only.
func decodeOnce(key, b []byte) (*onceDone, error) {
	place, ok := splitOnceKey(key)
	if !ok {
		return nil, fmt.Errorf("%w: key %x among the answers kept for idempotency keys", ErrRecordDamaged, key)
	}
	body, err := openSealed(key, b)
	if err != nil {
		return nil, fmt.Errorf("answer kept for an idempotency key: %w", err)
	}
	if len(body) < onceHeaderBytes || body[0] != onceFormat || body[2]|body[3] != 0 ||
		uint64(binary.LittleEndian.Uint32(body[4:])) != uint64(len(body)-onceHeaderBytes) || len(body)-onceHeaderBytes > wire.IdempotencyAnswerBytesMax {
		return nil, fmt.Errorf("%w: answer of %d bytes kept for an idempotency key under %x; this build reads format %d", ErrRecordDamaged, len(b), key, onceFormat)
	}
	k := &onceDone{
		key:         idempotencyKey(body[8:24]),
		fingerprint: binary.LittleEndian.Uint64(body[24:]),
		at:          int64(binary.LittleEndian.Uint64(body[32:])),
		place:       place,
		rev:         binary.LittleEndian.Uint64(body[40:]),
		status:      wire.Status(body[1]),
		digest:      sealedDigest(key, b),
	}
	if len(body) > onceHeaderBytes {
		k.payload = append([]byte(nil), body[onceHeaderBytes:]...)
	}
	return k, nil
}

// onceByKey evaluates a write with an idempotency key, the value of whose element is v, at most once.
func (a *applier) onceByKey(op *wire.Op, v, namespace []byte) wire.Result {
	id, err := wire.DecodeIdempotency(v)
	if err != nil || op.Session != 0 || len(namespace) > wire.NamespaceBytesMax {
		return wire.Result{Status: wire.StatusBadRequest}
	}
	key := idempotencyKeyOf(namespace, id.Key)
	if res, answered := a.once.begin(key, id.Fingerprint, a.now); answered {
		return res
	}
	res := a.mutate(op, wire.IdempotencyAnswerBytesMax)
	a.once.keep(&onceDone{key: key, fingerprint: id.Fingerprint, at: a.now, place: oncePlace{a.ts, uint32(a.operation)}}, &res)
	return res
}
