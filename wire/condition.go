package wire

import (
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// ConditionKind says what an ExtCondition element demands of the key that its operation names.
type ConditionKind uint8

// The conditions. All conditions of an operation must hold.
const (
	// ConditionVersion: the record exists and its version is one of the listed u64.
	ConditionVersion ConditionKind = 1
	// ConditionExists: the record exists. No operand.
	ConditionExists ConditionKind = 2
	// ConditionAbsent: the record does not exist. No operand.
	ConditionAbsent ConditionKind = 3
	// ConditionValue: the record exists and its value equals the operand byte for byte.
	ConditionValue ConditionKind = 4
	// ConditionTag: the record exists and has the tag with the value; the operand is as in ExtTag. Known from behaviour
	// level 2 on, as are the two below.
	ConditionTag ConditionKind = 5
	// ConditionTagPresent: the record exists and has the tag, with whatever value. The operand is its name.
	ConditionTagPresent ConditionKind = 6
	// ConditionTagAbsent: the record exists and doesn't have the tag. The operand is its name.
	ConditionTagAbsent ConditionKind = 7
)

// Condition is one decoded condition; Operand is a view.
type Condition struct {
	Kind    ConditionKind
	Operand []byte
}

// AppendExtVersions appends a condition on the version: any of the given ones satisfies it.
// REQUIRES: at least one version.
func AppendExtVersions(dst []byte, versions ...Revision) []byte {
	dst = append(appendExtHead(dst, ExtCondition, 1+8*len(versions)), byte(ConditionVersion))
	for _, v := range versions {
		dst = binary.LittleEndian.AppendUint64(dst, v)
	}
	return dst
}

// AppendExtCondition appends a condition without operand, or ConditionValue with the value to compare.
func AppendExtCondition(dst []byte, kind ConditionKind, operand []byte) []byte {
	dst = append(appendExtHead(dst, ExtCondition, 1+len(operand)), byte(kind))
	return append(dst, operand...)
}

// AppendExtTagCondition appends a ConditionTag. REQUIRES: name and value are those of a tag, see AppendExtTag.
func AppendExtTagCondition(dst []byte, name, value string) []byte {
	if len(name) > 255 {
		lengthBug("tag name", len(name))
	}
	dst = append(appendExtHead(dst, ExtCondition, 2+len(name)+len(value)), byte(ConditionTag), byte(len(name)))
	return append(append(dst, name...), value...)
}

// DecodeCondition reads the value of an ExtCondition element.
func DecodeCondition(v []byte) (Condition, error) {
	if len(v) < 1 {
		return Condition{}, fmt.Errorf("%w: empty condition", ErrCorrupt)
	}
	c := Condition{Kind: ConditionKind(v[0]), Operand: v[1:]}
	switch c.Kind {
	case ConditionVersion:
		if len(c.Operand) == 0 || len(c.Operand)%8 != 0 {
			return Condition{}, fmt.Errorf("%w: version condition of %d bytes", ErrCorrupt, len(c.Operand))
		}
	case ConditionExists, ConditionAbsent:
		if len(c.Operand) != 0 {
			return Condition{}, fmt.Errorf("%w: condition %d takes no operand", ErrCorrupt, c.Kind)
		}
	case ConditionValue:
		if len(c.Operand) > ConditionValueBytesMax {
			return Condition{}, fmt.Errorf("%w: condition value of %d bytes, at most %d", ErrCorrupt, len(c.Operand), ConditionValueBytesMax)
		}
	case ConditionTag:
		name, value, err := SplitTag(c.Operand)
		if err != nil || !validTagName(name) || len(value) > TagValueBytesMax || !utf8.Valid(value) {
			return Condition{}, fmt.Errorf("%w: condition on a tag that no record can have", ErrCorrupt)
		}
	case ConditionTagPresent, ConditionTagAbsent:
		if !validTagName(c.Operand) {
			return Condition{}, fmt.Errorf("%w: condition on a tag that no record can have", ErrCorrupt)
		}
	default:
		return Condition{}, fmt.Errorf("%w: unknown condition %d", ErrCorrupt, c.Kind)
	}
	return c, nil
}

// HasVersion reports whether a ConditionVersion lists v.
func (c *Condition) HasVersion(v Revision) bool {
	for b := c.Operand; len(b) >= 8; b = b[8:] {
		if binary.LittleEndian.Uint64(b) == v {
			return true
		}
	}
	return false
}
