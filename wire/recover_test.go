package wire

import (
	"errors"
	"strings"
	"testing"
)

func TestRecover_AppendedAndDecoded_IsTheSame(t *testing.T) {
	for _, r := range []Recover{
		{HistoryID: [16]byte{15: 1}, BaseRaise: 1},
		{HistoryID: [16]byte{1, 2, 3}, BaseRaise: RecoverBaseRaise, At: -7, Text: `{"lost":["node-2"]}`},
		{HistoryID: [16]byte{1}, BaseRaise: 1<<64 - 1, At: 1 << 60, Text: strings.Repeat("é", RecoverTextBytesMax/2)},
	} {
		b := AppendRecover([]byte("x"), &r)
		var got Recover
		if err := DecodeRecover(b[1:], &got); err != nil || got != r {
			t.Errorf("%+v came back as %+v, %v", r, got, err)
		}
		for n := range recoverFixedBytes {
			if err := DecodeRecover(b[1:1+n], &got); !errors.Is(err, ErrCorrupt) {
				t.Errorf("the first %d bytes: %v", n, err)
			}
		}
	}
}

func TestRecover_OutOfBounds_IsRefused(t *testing.T) {
	good := Recover{HistoryID: [16]byte{1}, BaseRaise: 1, Text: "{}"}
	with := func(change func(r *Recover)) []byte {
		r := good
		change(&r)
		return AppendRecover(nil, &r)
	}
	whole := AppendRecover(nil, &good)
	for name, b := range map[string][]byte{
		"format":     append([]byte{2}, whole[1:]...),
		"reserved":   append([]byte{1, 0, 0, 1}, whole[4:]...),
		"no history": with(func(r *Recover) { r.HistoryID = [16]byte{} }),
		"no raise":   with(func(r *Recover) { r.BaseRaise = 0 }),
		"long text":  with(func(r *Recover) { r.Text = strings.Repeat("x", RecoverTextBytesMax+1) }),
		"bad text":   with(func(r *Recover) { r.Text = "\xff" }),
	} {
		var r Recover
		if err := DecodeRecover(b, &r); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDecodeRecover(f *testing.F) {
	f.Add(AppendRecover(nil, &Recover{HistoryID: [16]byte{1}, BaseRaise: RecoverBaseRaise, At: 5, Text: "{}"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r, again Recover
		if DecodeRecover(b, &r) != nil {
			return
		}
		if err := DecodeRecover(AppendRecover(nil, &r), &again); err != nil || again != r {
			t.Fatalf("%+v came back as %+v, %v", r, again, err)
		}
	})
}
