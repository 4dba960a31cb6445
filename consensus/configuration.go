package consensus

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
)

// decodeConfiguration decodes what raft.EncodeConfiguration wrote; raft's own decoder panics, and allocates what any
// length in b claims.
func decodeConfiguration(b []byte) (c raft.Configuration, err error) {
	if err := checkMsgpack(b); err != nil {
		return c, fmt.Errorf("its raft configuration cannot be decoded: %w", err)
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("its raft configuration cannot be decoded: %v", r)
		}
	}()
	if c = raft.DecodeConfiguration(b); len(c.Servers) == 0 {
		return c, errors.New("its raft configuration has no members")
	}
	return c, nil
}

var errMsgpack = errors.New("it is not one value of MessagePack")

// checkMsgpack checks that b is one value whose parts are as long and as many as they claim to be.
func checkMsgpack(b []byte) error {
	// number reads a length of n bytes at the start of b.
	number := func(n int) (v uint64) {
		if len(b) < n {
			b = nil
			return 1 // more than there is
		}
		for _, x := range b[:n] {
			v = v<<8 | uint64(x)
		}
		b = b[n:]
		return v
	}
	for left := uint64(1); left > 0; {
		// Each value has at least one byte.
		if uint64(len(b)) < left {
			return errMsgpack
		}
		kind := b[0]
		b = b[1:]
		left--
		var skip, values uint64
		switch {
		case kind <= 0x7f, kind >= 0xe0, kind == 0xc0, kind == 0xc2, kind == 0xc3: // small numbers, nil, false, true
		case kind <= 0x8f:
			values = 2 * uint64(kind&0x0f)
		case kind <= 0x9f:
			values = uint64(kind & 0x0f)
		case kind <= 0xbf:
			skip = uint64(kind & 0x1f)
		case kind >= 0xc4 && kind <= 0xc6: // bytes
			skip = number(1 << (kind - 0xc4))
		case kind >= 0xc7 && kind <= 0xc9: // extensions: a type stands in front
			skip = number(1<<(kind-0xc7)) + 1
		case kind == 0xca || kind == 0xcb:
			skip = 4 << (kind - 0xca)
		case kind >= 0xcc && kind <= 0xcf:
			skip = 1 << (kind - 0xcc)
		case kind >= 0xd0 && kind <= 0xd3:
			skip = 1 << (kind - 0xd0)
		case kind >= 0xd4 && kind <= 0xd8:
			skip = 1<<(kind-0xd4) + 1
		case kind >= 0xd9 && kind <= 0xdb: // strings
			skip = number(1 << (kind - 0xd9))
		case kind == 0xdc || kind == 0xdd: // lists
			values = number(2 << (kind - 0xdc))
		case kind == 0xde || kind == 0xdf: // maps
			values = 2 * number(2<<(kind-0xde))
		default:
			return errMsgpack
		}
		if uint64(len(b)) < skip {
			return errMsgpack
		}
		b = b[skip:]
		left += values
	}
	if len(b) > 0 {
		return errMsgpack
	}
	return nil
}
