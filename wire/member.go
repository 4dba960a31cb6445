package wire

import (
	"encoding/binary"
	"fmt"
)

// MemberPriorityMax is the highest Member.Priority.
const MemberPriorityMax = 100

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
	// NoPromote: an operator keeps the node a learner; nothing makes it a voter by itself.
	NoPromote bool
	// Priority is how much the node is wished for as the leader, up to MemberPriorityMax; 0 is no wish.
	Priority uint8
	// RaftAddress, Address, HTTPAddress and GRPCAddress are where the node advertises its doors, host:port;
	// those that it does not have are empty.
	RaftAddress, Address, HTTPAddress, GRPCAddress string
	// Version is that of its build, for people.
	Version string
	// Level is the highest behaviour level that its build knows.
	Level uint16
}

// memberFormat is the first byte of a member record. Format 1, which has no priority and no flag but the
// first, is read.
const memberFormat = 2

// memberFixedBytes is the length of a record's fixed part, memberFixedBytes1 that of format 1.
const (
	memberFixedBytes  = memberFixedBytes1 + 1
	memberFixedBytes1 = 1 + 1 + 2 + 16
)

// Flags of a member record.
const (
	memberRemoved   = 1
	memberNoPromote = 2
)

// AppendMember appends the stored form; integers are little endian:
//
//	0 u8 format | 1 u8 flags (1: removed, 2: not to be promoted) | 2 u16 level | 4 16×u8 incarnation | 20 u8 priority
//	21 six times u16 length and as many bytes: id, raft, binary, HTTP and gRPC address, version
func AppendMember(dst []byte, m *Member) []byte {
	flags := byte(0)
	if m.Removed {
		flags |= memberRemoved
	}
	if m.NoPromote {
		flags |= memberNoPromote
	}
	dst = append(dst, memberFormat, flags)
	dst = binary.LittleEndian.AppendUint16(dst, m.Level)
	dst = append(dst, m.Incarnation[:]...)
	dst = append(dst, m.Priority)
	for _, s := range [...]string{m.ID, m.RaftAddress, m.Address, m.HTTPAddress, m.GRPCAddress, m.Version} {
		dst = binary.LittleEndian.AppendUint16(dst, uint16(len(s)))
		dst = append(dst, s...)
	}
	return dst
}

// DecodeMember reads what AppendMember wrote, and format 1. It fails, with ErrCorrupt, also for a record whose
// parts are empty where they may not be or longer than the limits.
func DecodeMember(b []byte, m *Member) error {
	fixed, flags := memberFixedBytes, byte(memberRemoved|memberNoPromote)
	if len(b) > 0 && b[0] == 1 {
		fixed, flags = memberFixedBytes1, memberRemoved
	}
	if len(b) < fixed || b[0] > memberFormat || b[0] == 0 || b[1]&^flags != 0 {
		return fmt.Errorf("%w: member record of %d bytes", ErrCorrupt, len(b))
	}
	*m = Member{Removed: b[1]&memberRemoved != 0, NoPromote: b[1]&memberNoPromote != 0, Level: binary.LittleEndian.Uint16(b[2:])}
	copy(m.Incarnation[:], b[4:])
	if fixed > memberFixedBytes1 {
		m.Priority = b[memberFixedBytes1]
	}
	if m.Priority > MemberPriorityMax {
		return fmt.Errorf("%w: member record with priority %d", ErrCorrupt, m.Priority)
	}
	b = b[fixed:]
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
