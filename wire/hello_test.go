package wire

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func parseHello(h Header, ext, key, payload []byte) (Hello, *Refusal) {
	frame := AppendFrame(nil, h, ext, key, payload)
	if err := DecodeHeader(frame, &h); err != nil {
		panic(err)
	}
	var got Hello
	ref := ParseHello(&h, frame[HeaderBytes:], &got)
	return got, ref
}

func TestHello_RoundTrip(t *testing.T) {
	for _, want := range []Hello{
		{MaxFrame: FrameBodyBytesMax},
		{Features: 1<<63 | FeatureCRC, Codecs: []Codec{CodecZstd, 9, CodecS2}, MaxFrame: MaxFrameMin, ClientName: strings.Repeat("n", ClientNameBytesMax), ClusterID: bytes.Repeat([]byte{7}, 16)},
	} {
		frame := AppendHello(nil, &want)
		var h Header
		if err := errors.Join(DecodeHeader(frame, &h), VerifyFrame(frame)); err != nil {
			t.Fatal(err)
		}
		var got Hello
		if ref := ParseHello(&h, frame[HeaderBytes:], &got); ref != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v (%v), want %+v", got, ref, want)
		}
	}
}

func TestParseHello_LimitsAndRules(t *testing.T) {
	hello := Header{Op: OpHello}
	for _, c := range []struct {
		name    string
		h       Header
		ext     []byte
		key     []byte
		payload []byte
		want    Status
	}{
		{"empty", hello, nil, nil, nil, StatusOK},
		{"another operation", Header{Op: OpGet, ID: 1}, nil, []byte("k"), nil, StatusBadRequest},
		{"unknown flag", Header{Op: OpHello, Flags: FlagMustUnderstand2}, nil, nil, nil, StatusUnsupported},
		{"compressed", Header{Op: OpHello, Flags: FlagCompressed}, nil, nil, nil, StatusBadRequest},
		{"an answer", Header{Op: OpHello, Flags: FlagResponse}, nil, nil, nil, StatusBadRequest},
		{"a request id", Header{Op: OpHello, ID: 1}, nil, nil, nil, StatusBadRequest},
		{"a group", Header{Op: OpHello, StatusOrGroup: 1}, nil, nil, nil, StatusBadRequest},
		{"a key", hello, nil, []byte("k"), nil, StatusBadRequest},
		{"a payload", hello, nil, nil, []byte("p"), StatusBadRequest},
		{"largest", hello, AppendExt(nil, 200, make([]byte, HelloBytesMax-6)), nil, nil, StatusOK},
		{"larger", hello, AppendExt(nil, 200, make([]byte, HelloBytesMax-5)), nil, nil, StatusTooLarge},
		{"cut element", hello, []byte{20}, nil, nil, StatusBadRequest},
		{"features of 4 bytes", hello, AppendExtU32(nil, ExtFeatures, 1), nil, nil, StatusBadRequest},
		{"features twice", hello, AppendExtU64(AppendExtU64(nil, ExtFeatures, 1), ExtFeatures, 1), nil, nil, StatusBadRequest},
		{"16 codecs", hello, AppendExt(nil, ExtCodecs, make([]byte, CodecsMax)), nil, nil, StatusOK},
		{"17 codecs", hello, AppendExt(nil, ExtCodecs, make([]byte, CodecsMax+1)), nil, nil, StatusBadRequest},
		{"small frames", hello, AppendExtU32(nil, ExtMaxFrame, MaxFrameMin), nil, nil, StatusOK},
		{"smaller frames", hello, AppendExtU32(nil, ExtMaxFrame, MaxFrameMin-1), nil, nil, StatusBadRequest},
		{"name of 257 bytes", hello, AppendExtString(nil, ExtClientName, strings.Repeat("n", ClientNameBytesMax+1)), nil, nil, StatusBadRequest},
		{"name that breaks a log line", hello, AppendExtString(nil, ExtClientName, "a\nb"), nil, nil, StatusBadRequest},
		{"cluster of 15 bytes", hello, AppendExt(nil, ExtClusterID, make([]byte, 15)), nil, nil, StatusBadRequest},
		{"unknown critical", hello, AppendExt(nil, 41, nil), nil, nil, StatusUnsupported},
		{"reserved credentials", hello, AppendExt(nil, ExtAuth, nil), nil, nil, StatusUnsupported},
		{"unknown ignorable, twice", hello, AppendExt(AppendExt(nil, 42, nil), 42, nil), nil, nil, StatusOK},
	} {
		if _, ref := parseHello(c.h, c.ext, c.key, c.payload); statusOf(ref) != c.want {
			t.Errorf("%s: %v, want %s", c.name, ref, c.want)
		}
	}
	for _, n := range []uint32{0, FrameBodyBytesMax, FrameBodyBytesMax + 1, 1<<32 - 1} {
		if got, ref := parseHello(hello, AppendExtU32(nil, ExtMaxFrame, n), nil, nil); ref != nil || got.MaxFrame != FrameBodyBytesMax {
			t.Errorf("frames of %d: %d, %v", n, got.MaxFrame, ref)
		}
	}
}

func TestHelloAck_RoundTrip(t *testing.T) {
	want := goldenHelloAck()
	frame := AppendHelloAck(nil, want)
	var h Header
	if err := errors.Join(DecodeHeader(frame, &h), VerifyFrame(frame)); err != nil {
		t.Fatal(err)
	}
	if h.Op != OpHello || h.Flags != FlagCRC|FlagResponse || h.Status() != StatusOK || h.ID != 0 || int(h.ExtLen) != len(frame)-HeaderBytes {
		t.Errorf("header %+v", h)
	}
	var got HelloAck
	if err := DecodeHelloAck(frame[HeaderBytes:], &got); err != nil || !reflect.DeepEqual(&got, want) {
		t.Errorf("got %+v (%v), want %+v", got, err, want)
	}
	if err := DecodeHelloAck(AppendExt(frame[HeaderBytes:], 42, nil), &got); err != nil {
		t.Errorf("ignorable element: %v", err)
	}
	for name, e := range map[string][]byte{
		"critical": AppendExt(nil, 41, nil), "cut": {20}, "short term": AppendExtU32(nil, ExtTerm, 1), "no codec": AppendExt(nil, ExtCodecs, nil),
		"two codecs": AppendExt(nil, ExtCodecs, []byte{1, 2}), "term twice": AppendExtU64(AppendExtU64(nil, ExtTerm, 1), ExtTerm, 2),
		"member of one byte": AppendExt(nil, ExtMember, []byte{1}), "member id that lies": AppendExt(nil, ExtMember, []byte{1, 3, 'a', 'b'}),
		"cluster": AppendExt(nil, ExtClusterInfo, []byte{1}), "credits": AppendExtU32(nil, ExtCredits, 1), "frames": AppendExtU64(nil, ExtMaxFrame, 1),
	} {
		if err := DecodeHelloAck(e, &got); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A cluster of any size answers within what clients read; the leader is always named.
func TestAppendHelloAck_ManyMembers_StaysWithinTheLimit(t *testing.T) {
	a := goldenHelloAck()
	a.Members = nil
	for i := range 200 {
		a.Members = append(a.Members, MemberInfo{ID: fmt.Sprintf("node-%d", i), Address: strings.Repeat("a", 250), Leader: i == 199})
	}
	frame := AppendHelloAck(nil, a)
	var got HelloAck
	if err := DecodeHelloAck(frame[HeaderBytes:], &got); err != nil {
		t.Fatal(err)
	}
	if n := len(frame) - HeaderBytes; n > HelloBytesMax || n < HelloBytesMax*9/10 {
		t.Errorf("answer of %d bytes", n)
	}
	if last := got.Members[len(got.Members)-1]; !last.Leader {
		t.Errorf("the leader is missing among %d members", len(got.Members))
	}
}

func TestPreface_RoundTrip(t *testing.T) {
	a, b, err := DecodePreface(append(AppendPreface(nil, 1, 0x102), "HELLO"...))
	if a != 1 || b != 0x102 || err != nil {
		t.Errorf("%d, %d, %v", a, b, err)
	}
	for _, p := range []string{"GET / HTTP/1.1", "\x16\x03\x01\x00\x00\x00\x00\x00", "\x8bKV2\x01\x00\x01\x00"} {
		if _, _, err := DecodePreface([]byte(p)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%q: %v", p, err)
		}
	}
	for _, c := range []struct{ oldest, newest, want uint16 }{{1, 1, 1}, {0, 65535, 1}, {1, 9, 1}, {2, 9, 0}, {0, 0, 0}, {9, 1, 0}, {2, 1, 0}} {
		if got := ChooseVersion(c.oldest, c.newest); got != c.want {
			t.Errorf("%d to %d: %d, want %d", c.oldest, c.newest, got, c.want)
		}
	}
}

func TestChooseCodec_FirstThatIsKnown(t *testing.T) {
	for _, c := range []struct {
		offered []Codec
		want    Codec
	}{{nil, CodecNone}, {[]Codec{9, CodecZstd, CodecS2}, CodecZstd}, {[]Codec{CodecS2}, CodecS2}, {[]Codec{CodecNone, CodecS2}, CodecNone}, {[]Codec{7}, CodecNone}} {
		if got := ChooseCodec(c.offered); got != c.want {
			t.Errorf("%v: %s, want %s", c.offered, got, c.want)
		}
	}
}
