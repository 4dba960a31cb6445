package wire

import (
	"errors"
	"strings"
	"testing"
)

var namespaceChanges = []NamespaceChange{
	{Action: NamespaceCreate, Name: "app"},
	{Action: NamespaceCreate, Name: "app:team/one", Settings: NamespaceSettings{BytesMax: 1, KeysMax: 2, OpsPerSecond: 3, WatchesMax: 1<<64 - 1, Compress: CodecLZ4}},
	{Action: NamespaceSet, Name: NamespaceDefaultName, Settings: NamespaceSettings{KeysMax: 10}},
	{Action: NamespaceDrop, Name: strings.Repeat("n", NamespaceBytesMax)},
	{Action: NamespacePurge, ID: 7, Max: 1000},
}

func TestNamespaceChange_AppendedAndDecoded_IsTheSame(t *testing.T) {
	for _, n := range namespaceChanges {
		b := AppendNamespaceChange([]byte("x"), &n)
		var got NamespaceChange
		if err := DecodeNamespaceChange(b[1:], &got); err != nil || got != n {
			t.Errorf("%+v came back as %+v, %v", n, got, err)
		}
		for cut := range b[1:] {
			if err := DecodeNamespaceChange(b[1:1+cut], &got); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%+v, the first %d bytes: %v", n, cut, err)
			}
		}
	}
}

func TestNamespaceChange_OutOfBounds_IsRefused(t *testing.T) {
	for name, n := range map[string]NamespaceChange{
		"no action":           {Name: "app"},
		"unknown action":      {Action: 5, Name: "app"},
		"no name":             {Action: NamespaceCreate},
		"bad name":            {Action: NamespaceCreate, Name: "a b"},
		"long name":           {Action: NamespaceDrop, Name: strings.Repeat("n", NamespaceBytesMax+1)},
		"unknown codec":       {Action: NamespaceSet, Name: "app", Settings: NamespaceSettings{Compress: 4}},
		"purge of the system": {Action: NamespacePurge, ID: NamespaceSystem, Max: 1},
		"purge of default":    {Action: NamespacePurge, ID: NamespaceDefault, Max: 1},
		"purge of nothing":    {Action: NamespacePurge, ID: 7},
	} {
		var got NamespaceChange
		if err := DecodeNamespaceChange(AppendNamespaceChange(nil, &n), &got); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestValidNamespaceName_ByExample(t *testing.T) {
	for _, name := range []string{"default", "a", "A9", "app:orders", "team/x", "v1.2_3-4", strings.Repeat("x", NamespaceBytesMax)} {
		if !ValidNamespaceName(name) {
			t.Errorf("%q is refused", name)
		}
	}
	for _, name := range []string{"", "_hidden", ":a", "/a", "-a", "a b", "a\x00", "ä", "a%", strings.Repeat("x", NamespaceBytesMax+1)} {
		if ValidNamespaceName(name) {
			t.Errorf("%q passes", name)
		}
	}
}

// What an older behaviour level doesn't know must be told by the codec alone: there it has to be refused.
func TestMutation_Level_TellsWhatAnOlderStateDoesNotKnow(t *testing.T) {
	for _, c := range []struct {
		name  string
		op    Opcode
		ext   []byte
		level uint16
	}{
		{"plain put", OpPut, nil, 1},
		{"put with everything old", OpPut, goldenPutExt(), 1},
		{"conditions of old", OpDelete, AppendExtCondition(AppendExtCondition(nil, ConditionExists, nil), ConditionValue, []byte("v")), 1},
		{"put to be compressed", OpPut, AppendExtU8(nil, ExtCompress, byte(CodecS2)), 2},
		{"condition on a tag", OpPut, AppendExtTagCondition(nil, "a", "b"), 2},
		{"condition on a tag, before an old one", OpCheck, AppendExtCondition(AppendExtCondition(nil, ConditionTagAbsent, []byte("a")), ConditionExists, nil), 2},
		{"touch", OpTouch, nil, 2},
		{"increment", OpIncrement, nil, 2},
	} {
		var m Mutation
		if ref := DecodeMutation(c.op, c.ext, &m); ref != nil || m.Level != c.level {
			t.Errorf("%s: level %d, %v, want %d", c.name, m.Level, ref, c.level)
		}
	}
}
