package gateway

import (
	"fmt"

	"kvstore/wire"
)

// idempotencyHeader names a write, so that it can be sent again without being done again.
const idempotencyHeader = "Idempotency-Key"

// idempotencyKeyBytesMax is the longest value of it.
const idempotencyKeyBytesMax = 255

// idempotencyElement gives the element with which the extension block of a write must begin, for what its caller sent as
// idempotency keys: those are one text, or none, and then there is no element. parseRequest puts the fingerprint in.
func idempotencyElement(keys []string) (ext []byte, ref *wire.Refusal) {
	if len(keys) == 0 {
		return nil, nil
	}
	if len(keys) > 1 {
		return nil, badRequest("%s is given %d times; nothing was changed: a request has one", idempotencyHeader, len(keys))
	}
	if n := len(keys[0]); n == 0 || n > idempotencyKeyBytesMax {
		return nil, badRequest("%s of %d bytes; nothing was changed: it has 1 to %d", idempotencyHeader, n, idempotencyKeyBytesMax)
	}
	for i := range len(keys[0]) {
		if c := keys[0][i]; c < 0x20 || c > 0x7e {
			return nil, badRequest("%s has the byte %#02x at %d; nothing was changed: it is printable ASCII", idempotencyHeader, c, i)
		}
	}
	return wire.AppendExtIdempotency(nil, wire.Idempotency{Key: wire.IdempotencyKey(keys[0])}), nil
}

// parseRequest is wire.ParseRequest for a request that the door has built as ext | key | payload, in body. If it has an
// idempotency key (its ext begins with the element of idempotencyElement), the fingerprint is put into body first: it is that of
// the request as it stands there, so a request that is sent again has the same, through whichever door that encodes it alike.
func parseRequest(h *wire.Header, body []byte, req *wire.Request) *wire.Refusal {
	if h.ExtLen > 0 && wire.ExtType(body[0]) == wire.ExtIdempotency {
		wire.PutFingerprint(h.Op, body, int(h.ExtLen), int(h.KeyLen))
	}
	return wire.ParseRequest(h, body, req)
}

// textIdempotencyWritesOnly refuses a key where nothing would honour it.
var textIdempotencyWritesOnly = fmt.Sprintf("%s belongs to writes of keys: this request can't be made safe to repeat by it; nothing was changed: send it without", idempotencyHeader)
