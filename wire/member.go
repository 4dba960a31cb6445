package wire

import (
	"encoding/binary"
	"fmt"
)

// Member is the body of OpMember: what the cluster knows of one of its nodes. It is kept in the system
// keyspace, so that every node can check whom it talks to and tell clients where the others are.
type Member struct {
	// ID is the node's stable name.
	ID string
	// Incarnation names the node's data directory: 128 random bits from its first start. A node that comes
	// back under its id with another incarnation has lost what it had acknowledged.
	Incarnation [16]byte
	// Removed: the node was taken out of the cluster; this incarnation is refused for ever.
	Removed bool
	// RaftAddress, Address, HTTPAddress and GRPCAddress are where the node advertises its doors, host:port;
	// those that it does not have are empty.
	RaftAddress, Address, HTTPAddress, GRPCAddress string
	// Version is that of its build, for people.
	Version string
	// Level is the highest behaviour level that its build knows.
	Level uint16
}

// memberFormat is the first byte of a member record.
const memberFormat = 1

// memberFixedBytes is the length of a record's fixed part.
const memberFixedBytes = 1 + 1 + 2 + 16

// AppendMember appends the stored form; integers are little endian:
//
//	0 u8 format | 1 u8 flags (1: removed) | 2 u16 level | 4 16×u8 incarnation
//	20 six times u16 length and as many bytes: id, raft, binary, HTTP and gRPC address, version
func AppendMember(dst []byte, m *Member) []byte {
	flags := byte(0)
	if m.Removed {
		flags = 1
	}
	dst = append(dst, memberFormat, flags)
	dst = binary.LittleEndian.AppendUint16(dst, m.Level)
	dst = append(dst, m.Incarnation[:]...)
	for _, s := range [...]string{m.ID, m.RaftAddress, m.Address, m.HTTPAddress, m.GRPCAddress, m.Version} {
		dst = binary.LittleEndian.AppendUint16(dst, uint16(len(s)))
		dst = append(dst, s...)
	}
	return dst
}

// DecodeMember reads what AppendMember wrote. It fails, with ErrCorrupt, also for a record whose parts are
// empty where they may not be or longer than the limits.
func DecodeMember(b []byte, m *Member) error {
	if len(b) < memberFixedBytes || b[0] != memberFormat || b[1] > 1 {
		return fmt.Errorf("%w: member record of %d bytes", ErrCorrupt, len(b))
	}
	*m = Member{Removed: b[1] == 1, Level: binary.LittleEndian.Uint16(b[2:])}
	copy(m.Incarnation[:], b[4:])
	b = b[memberFixedBytes:]
	for _, f := range [...]struct {
		to  *string
		max int
	}{
		{&m.ID, NodeIDBytesMax}, {&m.RaftAddress, AddressBytesMax}, {&m.Address, AddressBytesMax},
		{&m.HTTPAddress, AddressBytesMax}, {&m.GRPCAddress, AddressBytesMax}, {&m.Version, VersionBytesMax},
	} {
		if len(b) < 2 {
			return fmt.Errorf("%w: member record ends early", ErrCorrupt)
		}
		n := int(binary.LittleEndian.Uint16(b))
		if b = b[2:]; n > len(b) || n > f.max {
			return fmt.Errorf("%w: member record with a part of %d bytes; %d are left, at most %d are allowed", ErrCorrupt, n, len(b), f.max)
		}
		*f.to, b = string(b[:n]), b[n:]
	}
	if len(b) != 0 || m.ID == "" {
		return fmt.Errorf("%w: member record with %d bytes behind its end, id %q", ErrCorrupt, len(b), m.ID)
	}
	return nil
}
