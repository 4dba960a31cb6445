package wire

import (
	"encoding/binary"
	"fmt"
)

// NamespaceNone is a numeric id that no namespace ever has.
const NamespaceNone = 1<<32 - 1

// NamespaceDefaultName is the name of the namespace that operations without a name mean. It always exists.
const NamespaceDefaultName = "default"

// NamespaceSettings are what an operator sets for a namespace. 0 is no limit.
type NamespaceSettings struct {
	// BytesMax bounds the sum over its records of key, kept elements and value, in bytes, as their writers sent them;
	// KeysMax bounds their number. Apply refuses what would exceed them: StatusQuota.
	BytesMax, KeysMax uint64
	// OpsPerSecond bounds the rate of its requests at each node, where one of many items counts as many;
	// WatchesMax its watches at each node. The doors refuse what exceeds them: StatusLimited, StatusTooMany.
	OpsPerSecond, WatchesMax uint64
	// Compress is how the store compresses values whose puts don't say; CodecNone: not.
	Compress Codec
}

// NamespaceAction says what a NamespaceChange does.
type NamespaceAction uint8

// The actions.
const (
	// NamespaceCreate gives a name an id that no namespace had before. StatusNamespaceExists, StatusTooMany.
	NamespaceCreate NamespaceAction = 1
	// NamespaceSet replaces the settings. StatusNoNamespace.
	NamespaceSet NamespaceAction = 2
	// NamespaceDrop takes the name away at once; the records under the id are removed by NamespacePurge. The default
	// namespace stays: StatusBadRequest. StatusNoNamespace.
	NamespaceDrop NamespaceAction = 3
	// NamespacePurge removes up to Max records (at most PurgeMax) of the dropped namespace ID, and the id with the last.
	// StatusNoNamespace: it has been removed, or was not dropped.
	NamespacePurge NamespaceAction = 4
)

// NamespaceChange is the body of OpNamespace; integers are little endian:
//
//	0 u8 format (1) | 1 u8 action | 2 u8 compress | 3 u8 length of name | 4 u32 id | 8 u32 max | 12 u32 0
//	16 u64 bytes max | 24 u64 keys max | 32 u64 operations per second | 40 u64 watches max | 48 name
type NamespaceChange struct {
	Action   NamespaceAction
	Name     string            // of NamespaceCreate, NamespaceSet and NamespaceDrop
	Settings NamespaceSettings // of NamespaceCreate and NamespaceSet
	ID, Max  uint32            // of NamespacePurge
}

const (
	namespaceFormat     = 1
	namespaceFixedBytes = 48
)

// AppendNamespaceChange appends the body of OpNamespace. REQUIRES: the name has at most 255 bytes; it panics otherwise.
func AppendNamespaceChange(dst []byte, n *NamespaceChange) []byte {
	if len(n.Name) > 255 {
		lengthBug("name of a namespace", len(n.Name))
	}
	dst = append(dst, namespaceFormat, byte(n.Action), byte(n.Settings.Compress), byte(len(n.Name)))
	dst = binary.LittleEndian.AppendUint32(dst, n.ID)
	dst = binary.LittleEndian.AppendUint32(dst, n.Max)
	dst = append(dst, 0, 0, 0, 0)
	for _, v := range [...]uint64{n.Settings.BytesMax, n.Settings.KeysMax, n.Settings.OpsPerSecond, n.Settings.WatchesMax} {
		dst = binary.LittleEndian.AppendUint64(dst, v)
	}
	return append(dst, n.Name...)
}

// DecodeNamespaceChange reads what AppendNamespaceChange wrote. It fails, with ErrCorrupt, also for an unknown action
// or codec, for a name that no namespace may have, and for a purge of nothing.
func DecodeNamespaceChange(b []byte, n *NamespaceChange) error {
	if len(b) < namespaceFixedBytes || b[0] != namespaceFormat || binary.LittleEndian.Uint32(b[12:]) != 0 || len(b) != namespaceFixedBytes+int(b[3]) {
		return fmt.Errorf("%w: change of a namespace of %d bytes", ErrCorrupt, len(b))
	}
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
	*n = NamespaceChange{
		Action: NamespaceAction(b[1]),
		Name:   string(b[namespaceFixedBytes:]),
		Settings: NamespaceSettings{
			BytesMax: u64(16), KeysMax: u64(24), OpsPerSecond: u64(32), WatchesMax: u64(40), Compress: Codec(b[2]),
		},
		ID: binary.LittleEndian.Uint32(b[4:]), Max: binary.LittleEndian.Uint32(b[8:]),
	}
	switch n.Action {
	case NamespaceCreate, NamespaceSet, NamespaceDrop:
		if !ValidNamespaceName(n.Name) || n.Settings.Compress > CodecLZ4 {
			return fmt.Errorf("%w: change %d of the namespace %q", ErrCorrupt, n.Action, n.Name)
		}
	case NamespacePurge:
		if n.ID == NamespaceSystem || n.ID == NamespaceDefault || n.Max == 0 {
			return fmt.Errorf("%w: purge of %d records of namespace %d", ErrCorrupt, n.Max, n.ID)
		}
	default:
		return fmt.Errorf("%w: unknown change %d of a namespace", ErrCorrupt, n.Action)
	}
	return nil
}

// ValidNamespaceName reports whether a namespace may have this name: 1 to NamespaceBytesMax characters of
// a-z A-Z 0-9 . _ : / - that begin with a letter or a digit.
func ValidNamespaceName(name string) bool {
	if len(name) == 0 || len(name) > NamespaceBytesMax {
		return false
	}
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == ':' || c == '/' || c == '-'):
		default:
			return false
		}
	}
	return true
}

// LevelBytes is the length of the body of OpLevel: u16, the level to rise to.
const LevelBytes = 2

// AppendLevel appends the body of OpLevel. It raises the state's behaviour level by one; StatusBadRequest for any other
// step, StatusOK without effect when the state has that level already. The leader proposes it once every member of
// the configuration knows the level.
func AppendLevel(dst []byte, level uint16) []byte {
	return binary.LittleEndian.AppendUint16(dst, level)
}

// DecodeLevel reads what AppendLevel wrote.
func DecodeLevel(b []byte) (level uint16, err error) {
	if len(b) != LevelBytes {
		return 0, fmt.Errorf("%w: level of %d bytes", ErrCorrupt, len(b))
	}
	return binary.LittleEndian.Uint16(b), nil
}
