package wire

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// Idempotency names a write that is to be done once, however often it is sent. The first request with a key is
// executed, and its answer kept for IdempotencyTTL; later ones of the same namespace with that key get the kept answer,
// or, if they are other requests by their fingerprint, StatusKeyReused.
type Idempotency struct {
	// Key stands for the caller's key; see IdempotencyKey. Whoever sends frames may choose 16 random bytes instead.
	Key [16]byte
	// Fingerprint tells one request from another: it is there to find mistakes, so 64 bits are enough.
	Fingerprint uint64
}

// IdempotencyBytes is the length of the value of ExtIdempotency: the key, then u64, the fingerprint.
const IdempotencyBytes = 16 + 8

// IdempotencyKey gives what stands for a caller's key: the first half of its SHA-256. Nobody finds a text that stands
// for the key of another.
func IdempotencyKey(text string) [16]byte {
	sum := sha256.Sum256([]byte(text))
	return [16]byte(sum[:16])
}

// AppendExtIdempotency appends the element that names a write.
func AppendExtIdempotency(dst []byte, id Idempotency) []byte {
	dst = append(dst, byte(ExtIdempotency), IdempotencyBytes)
	dst = append(dst, id.Key[:]...)
	return binary.LittleEndian.AppendUint64(dst, id.Fingerprint)
}

// DecodeIdempotency reads the value of ExtIdempotency.
func DecodeIdempotency(v []byte) (id Idempotency, err error) {
	if len(v) != IdempotencyBytes {
		return id, fmt.Errorf("%w: idempotency element of %d bytes", ErrCorrupt, len(v))
	}
	return Idempotency{[16]byte(v), binary.LittleEndian.Uint64(v[16:])}, nil
}

// idempotencyHeadBytes is what stands before the fingerprint in an element.
const idempotencyHeadBytes = 2 + 16

// PutFingerprint computes the fingerprint of a request and writes it into the element that body begins with. It covers
// the operation, and every byte behind the element: the other elements, the key and the payload. So whoever always
// encodes a request in the same way has the same fingerprint for it, and any other request another.
// REQUIRES: body is ext | key | payload with the given lengths, and begins with what AppendExtIdempotency appended; it
// panics otherwise.
func PutFingerprint(op Opcode, body []byte, extLen, keyLen int) {
	const element = idempotencyHeadBytes + 8
	if extLen < element || extLen+keyLen > len(body) || ExtType(body[0]) != ExtIdempotency || body[1] != IdempotencyBytes {
		panic("BUG: a fingerprint is put into a request that does not begin with its element")
	}
	var head [1 + 4 + 4]byte
	head[0] = byte(op)
	binary.LittleEndian.PutUint32(head[1:], uint32(extLen))
	binary.LittleEndian.PutUint32(head[5:], uint32(keyLen))
	var h xxhash.Digest
	h.Reset()
	// Write of a hash never fails; see hash.Hash.
	_, _ = h.Write(head[:])
	_, _ = h.Write(body[element:])
	binary.LittleEndian.PutUint64(body[idempotencyHeadBytes:], h.Sum64())
}

var defaultName = []byte(NamespaceDefaultName)

// FindIdempotency finds the element in the extension block of a write, and the name of its namespace. What is behind
// malformed bytes is not found; whoever executes the write refuses those.
func FindIdempotency(ext []byte) (value, namespace []byte, found bool) {
	namespace = defaultName
	for len(ext) > 0 {
		t, v, rest, err := NextExt(ext)
		if err != nil {
			break
		}
		switch t {
		case ExtIdempotency:
			value, found = v, true
		case ExtNamespace:
			namespace = v
		}
		ext = rest
	}
	return value, namespace, found
}
