package wire

import "testing"

func TestReadPoint_RoundTripAndOtherLengths(t *testing.T) {
	want := ReadPoint{Index: 1<<63 + 5, Term: 7, Revision: MakeRevision(9, 3)}
	b := AppendReadPoint([]byte("before"), want)
	if got, ok := DecodeReadPoint(b[6:]); !ok || got != want {
		t.Errorf("%+v comes back as %+v, %v", want, got, ok)
	}
	for n := range len(b) + 1 {
		if _, ok := DecodeReadPoint(b[:n]); ok != (n == ReadPointBytes) {
			t.Errorf("%d bytes: %v", n, ok)
		}
	}
}
