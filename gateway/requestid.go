package gateway

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
)

const (
	// requestIDHeader is the header of REST; gRPC's metadata has the same name in small letters.
	requestIDHeader = "X-Request-Id"
	// requestIDBytesMax bounds what a client may call a request.
	requestIDBytesMax = 128
)

// requestID gives the id of a request whose client calls it given: that, if it is one of 1 to 128 printable ASCII
// characters without spaces, and else a new one. It is no secret and proves nothing; it joins what a client, a proxy
// and this node's log tell of one request.
func requestID(given []string) string {
	if len(given) == 1 && validRequestID(given[0]) {
		return given[0]
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], rand.Uint64())
	binary.BigEndian.PutUint64(b[8:], rand.Uint64())
	return hex.EncodeToString(b[:])
}

func validRequestID(v string) bool {
	if len(v) == 0 || len(v) > requestIDBytesMax {
		return false
	}
	for _, c := range []byte(v) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}
