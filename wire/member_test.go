package wire

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestMember_AppendedAndDecoded_IsTheSame(t *testing.T) {
	for _, m := range []Member{
		{ID: "node-1"},
		{ID: "n", Incarnation: [16]byte{1, 2, 15: 16}, Removed: true, RaftAddress: "a:1", Address: "b:2", HTTPAddress: "c:3", GRPCAddress: "d:4", Version: "v1", Level: 7},
		{ID: "learner", NoPromote: true, Priority: MemberPriorityMax},
		{ID: strings.Repeat("i", NodeIDBytesMax), RaftAddress: strings.Repeat("r", AddressBytesMax), Version: strings.Repeat("v", VersionBytesMax)},
	} {
		b := AppendMember(nil, &m)
		var got Member
		if err := DecodeMember(b, &got); err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%+v came back as %+v, %v", m, got, err)
		}
		for n := range b {
			if err := DecodeMember(b[:n], &got); !errors.Is(err, ErrCorrupt) {
				t.Errorf("the first %d of %d bytes: %v", n, len(b), err)
			}
		}
	}
}

func TestMember_OutOfBounds_IsRefused(t *testing.T) {
	good := AppendMember(nil, &Member{ID: "node-1"})
	for name, b := range map[string][]byte{
		"behind its end": append(append([]byte(nil), good...), 0),
		"format":         append([]byte{9}, good[1:]...),
		"flags":          append([]byte{memberFormat, 4}, good[2:]...),
		"format 0":       append([]byte{0}, good[1:]...),
		"flags of 1":     append([]byte{1, memberNoPromote}, good[2:]...),
		"priority":       AppendMember(nil, &Member{ID: "a", Priority: MemberPriorityMax + 1}),
		"no id":          AppendMember(nil, &Member{}),
		"long id":        AppendMember(nil, &Member{ID: strings.Repeat("i", NodeIDBytesMax+1)}),
		"long address":   AppendMember(nil, &Member{ID: "a", Address: strings.Repeat("i", AddressBytesMax+1)}),
	} {
		var m Member
		if err := DecodeMember(b, &m); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// memberFormat1 is a record as builds wrote it that knew no priority.
const memberFormat1 = "\x01\x01\x07\x00" + "0123456789abcdef" + "\x06\x00node-1" + "\x03\x00a:1" + "\x00\x00\x00\x00\x00\x00" + "\x02\x00v1"

func TestMember_OfFormat1_IsReadWithoutPriority(t *testing.T) {
	want := Member{ID: "node-1", Incarnation: [16]byte([]byte("0123456789abcdef")), Removed: true, RaftAddress: "a:1", Version: "v1", Level: 7}
	var got Member
	if err := DecodeMember([]byte(memberFormat1), &got); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
}

func FuzzDecodeMember(f *testing.F) {
	f.Add([]byte(memberFormat1))
	f.Add(AppendMember(nil, &Member{ID: "node-1", Address: "127.0.0.1:7001"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m, again Member
		if DecodeMember(b, &m) != nil {
			return
		}
		if err := DecodeMember(AppendMember(nil, &m), &again); err != nil || again != m {
			t.Fatalf("%+v came back as %+v, %v", m, again, err)
		}
	})
}
