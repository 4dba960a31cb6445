package wire

import (
	"encoding/binary"
	"fmt"
	"strconv"
)

// Version is the protocol version that this build speaks, both as the oldest and the newest.
const Version = 1

// PrefaceBytes is the length of the preface that opens a connection in each direction:
//
//	client: 0x8B 'K' 'V' '1' | u16 oldest version | u16 newest version
//	server: 0x8B 'K' 'V' '1' | u16 version chosen, 0 = none | u16 0
//
// The first byte is neither ASCII nor that of a TLS record. The client may send its HELLO frame at
// once, and nothing behind it until HELLO is answered; with version 0 the server closes after its preface.
const PrefaceBytes = 8

var prefaceMagic = [4]byte{0x8B, 'K', 'V', '1'}

// AppendPreface appends a preface with the two numbers of its direction.
func AppendPreface(dst []byte, a, b uint16) []byte {
	dst = append(dst, prefaceMagic[:]...)
	dst = binary.LittleEndian.AppendUint16(dst, a)
	return binary.LittleEndian.AppendUint16(dst, b)
}

// DecodePreface reads a preface. REQUIRES: len(p) ≥ PrefaceBytes.
func DecodePreface(p []byte) (a, b uint16, err error) {
	p = p[:PrefaceBytes]
	if [4]byte(p[:4]) != prefaceMagic {
		return 0, 0, fmt.Errorf("%w: not the preface of this protocol: % x", ErrCorrupt, p[:4])
	}
	return binary.LittleEndian.Uint16(p[4:]), binary.LittleEndian.Uint16(p[6:]), nil
}

// ChooseVersion picks the version for a client that speaks oldest to newest; 0 means none.
func ChooseVersion(oldest, newest uint16) uint16 {
	if oldest <= Version && Version <= newest {
		return Version
	}
	return 0
}

// Features is a bit set of what a peer can do beyond the base protocol.
type Features uint64

// The features.
const (
	FeatureCRC         Features = 1 << 0 // every frame carries a checksum
	FeatureCompression Features = 1 << 1 // frames may be compressed with the agreed codec
	FeatureSessions    Features = 1 << 2
	FeatureWatch       Features = 1 << 3 // watches and streamed listings
)

// Hello is the body of the first frame of a client (request id 0), in its extension block.
type Hello struct {
	Features   Features
	Codecs     []Codec // in order of preference, at most CodecsMax
	MaxFrame   uint32  // largest frame body the client accepts, MaxFrameMin or more; 0: FrameBodyBytesMax
	ClientName string  // printable ASCII, at most ClientNameBytesMax
	// ClusterID, when set, makes a server of another cluster refuse.
	ClusterID []byte
}

// AppendHello appends the HELLO frame.
func AppendHello(dst []byte, h *Hello) []byte {
	ext := AppendExtU64(nil, ExtFeatures, uint64(h.Features))
	if len(h.Codecs) > 0 {
		b := make([]byte, len(h.Codecs))
		for i, c := range h.Codecs {
			b[i] = byte(c)
		}
		ext = AppendExt(ext, ExtCodecs, b)
	}
	if h.MaxFrame != 0 {
		ext = AppendExtU32(ext, ExtMaxFrame, h.MaxFrame)
	}
	if h.ClientName != "" {
		ext = AppendExtString(ext, ExtClientName, h.ClientName)
	}
	if len(h.ClusterID) != 0 {
		ext = AppendExt(ext, ExtClusterID, h.ClusterID)
	}
	return AppendFrame(dst, Header{Op: OpHello, Flags: FlagCRC}, ext, nil, nil)
}

// ParseHello checks the frame of a HELLO and decodes it. body is the decompressed body: HELLO is never
// compressed, since nothing is agreed yet.
func ParseHello(fh *Header, body []byte, h *Hello) *Refusal {
	if fh.Op != OpHello {
		return refuse(StatusBadRequest, "the first frame of a connection is HELLO, not %s", fh.Op)
	}
	if fh.Flags&flagsMustUnderstand != 0 {
		return refuse(StatusUnsupported, "flags %#x are not known to this version", uint8(fh.Flags&flagsMustUnderstand))
	}
	if fh.Flags&^FlagCRC != 0 || fh.StatusOrGroup != 0 || fh.ID != 0 {
		return refuse(StatusBadRequest, "HELLO has flags %#x, group %d and request id %d", uint8(fh.Flags), fh.StatusOrGroup, fh.ID)
	}
	if len(body) > HelloBytesMax {
		return refuseLimit(HelloBytesMax, "HELLO of %d bytes", len(body))
	}
	if fh.KeyLen != 0 || int(fh.ExtLen) != len(body) {
		return refuse(StatusBadRequest, "HELLO is an extension block and nothing else")
	}
	return DecodeHello(body, h)
}

// DecodeHello reads the extension block of a HELLO. MaxFrame comes back within its bounds.
func DecodeHello(ext []byte, h *Hello) *Refusal {
	*h = Hello{MaxFrame: FrameBodyBytesMax}
	var seen extSet
	for len(ext) > 0 {
		t, v, rest, err := NextExt(ext)
		if err != nil {
			return refuse(StatusBadRequest, "hello is malformed")
		}
		ext = rest
		if seen&extsHello&(1<<t) != 0 {
			return refuse(StatusBadRequest, "element %d stands twice in hello", t)
		}
		seen |= 1 << t
		switch {
		case t == ExtFeatures && len(v) == 8:
			h.Features = Features(binary.LittleEndian.Uint64(v))
		case t == ExtCodecs && len(v) <= CodecsMax:
			for _, c := range v {
				h.Codecs = append(h.Codecs, Codec(c))
			}
		case t == ExtMaxFrame && len(v) == 4:
			n := binary.LittleEndian.Uint32(v)
			if n != 0 && n < MaxFrameMin {
				return refuse(StatusBadRequest, "a client accepts answers of at least %d bytes, not %d", MaxFrameMin, n)
			}
			if n != 0 && n < FrameBodyBytesMax {
				h.MaxFrame = n
			}
		case t == ExtClientName && len(v) <= ClientNameBytesMax && printable(v):
			h.ClientName = string(v)
		case t == ExtClusterID && len(v) == 16:
			h.ClusterID = append([]byte(nil), v...)
		case t == ExtFeatures, t == ExtCodecs, t == ExtMaxFrame, t == ExtClientName, t == ExtClusterID:
			return refuse(StatusBadRequest, "element %d of hello is malformed (%d bytes)", t, len(v))
		case t.Critical():
			return refuse(StatusUnsupported, "critical extension %d of hello is not known to this version", t)
		}
	}
	return nil
}

// MemberInfo is one member as HELLO's answer lists it.
type MemberInfo struct {
	ID      string
	Address string // of its binary port, as advertised
	Voter   bool
	Leader  bool
}

// bytes bounds the encoded length of m.
func (m *MemberInfo) bytes() int { return 8 + len(m.ID) + len(m.Address) }

// HelloAck is the server's answer to HELLO.
type HelloAck struct {
	Features      Features // those in force on this connection
	Codec         Codec    // CodecNone: frames are not compressed
	MaxFrame      uint32   // largest frame body the server accepts
	Inflight      uint32   // credit: unanswered requests
	InflightBytes uint32   // credit: bytes of their bodies
	ClusterID     [16]byte // zero while the cluster has none yet
	NodeID        string
	Version       string
	Term          uint64
	Members       []MemberInfo
	SessionTTLMs  uint64
}

// AppendHelloAck appends the answering frame. It leaves out members that would take it beyond
// HelloBytesMax, the leader never. REQUIRES: node id, version and members' ids have at most 255 bytes,
// addresses at most 1024; it panics otherwise.
func AppendHelloAck(dst []byte, a *HelloAck) []byte {
	ext := AppendExtU64(nil, ExtFeatures, uint64(a.Features))
	ext = AppendExt(ext, ExtCodecs, []byte{byte(a.Codec)})
	ext = AppendExtU32(ext, ExtMaxFrame, a.MaxFrame)
	ext = append(ext, byte(ExtCredits), 8)
	ext = binary.LittleEndian.AppendUint32(ext, a.Inflight)
	ext = binary.LittleEndian.AppendUint32(ext, a.InflightBytes)
	ext = AppendExt(ext, ExtClusterInfo, a.ClusterID[:])
	ext = AppendExtString(ext, ExtNodeID, a.NodeID)
	ext = AppendExtString(ext, ExtVersion, a.Version)
	ext = AppendExtU64(ext, ExtTerm, a.Term)
	ext = AppendExtU64(ext, ExtSessionTTL, a.SessionTTLMs)
	if len(a.NodeID) > 255 || len(a.Version) > 255 {
		panic("BUG: node id or version of more than 255 bytes")
	}
	leaderBytes := 0
	for i := range a.Members {
		m := &a.Members[i]
		if len(m.ID) > 255 || len(m.Address) > 1024 {
			panic("BUG: member with an id of " + strconv.Itoa(len(m.ID)) + " and an address of " + strconv.Itoa(len(m.Address)) + " bytes")
		}
		if m.Leader {
			leaderBytes += m.bytes()
		}
	}
	for i := range a.Members {
		m := &a.Members[i]
		switch {
		case m.Leader:
			leaderBytes -= m.bytes()
		case len(ext)+m.bytes()+leaderBytes > HelloBytesMax:
			continue
		}
		var role byte
		if m.Voter {
			role |= 1
		}
		if m.Leader {
			role |= 2
		}
		ext = append(appendExtHead(ext, ExtMember, 2+len(m.ID)+len(m.Address)), role, byte(len(m.ID)))
		ext = append(ext, m.ID...)
		ext = append(ext, m.Address...)
	}
	return AppendFrame(dst, Header{Op: OpHello, Flags: FlagCRC | FlagResponse}, ext, nil, nil)
}

// DecodeHelloAck reads the extension block of HELLO's answer.
func DecodeHelloAck(ext []byte, a *HelloAck) error {
	*a = HelloAck{}
	var seen extSet
	for len(ext) > 0 {
		t, v, rest, err := NextExt(ext)
		if err != nil {
			return err
		}
		ext = rest
		if seen&extsHello&(1<<t) != 0 {
			return fmt.Errorf("%w: element %d stands twice in the hello answer", ErrCorrupt, t)
		}
		seen |= 1 << t
		want := -1
		switch t {
		case ExtFeatures, ExtTerm, ExtSessionTTL, ExtCredits:
			want = 8
		case ExtCodecs:
			want = 1
		case ExtMaxFrame:
			want = 4
		case ExtClusterInfo:
			want = 16
		}
		if want >= 0 && len(v) != want {
			return fmt.Errorf("%w: element %d of the hello answer has %d bytes", ErrCorrupt, t, len(v))
		}
		switch t {
		case ExtFeatures:
			a.Features = Features(binary.LittleEndian.Uint64(v))
		case ExtCodecs:
			a.Codec = Codec(v[0])
		case ExtMaxFrame:
			a.MaxFrame = binary.LittleEndian.Uint32(v)
		case ExtCredits:
			a.Inflight, a.InflightBytes = binary.LittleEndian.Uint32(v), binary.LittleEndian.Uint32(v[4:])
		case ExtClusterInfo:
			a.ClusterID = [16]byte(v)
		case ExtNodeID:
			a.NodeID = string(v)
		case ExtVersion:
			a.Version = string(v)
		case ExtTerm:
			a.Term = binary.LittleEndian.Uint64(v)
		case ExtSessionTTL:
			a.SessionTTLMs = binary.LittleEndian.Uint64(v)
		case ExtMember:
			if len(v) < 2 || 2+int(v[1]) > len(v) {
				return fmt.Errorf("%w: member of %d bytes", ErrCorrupt, len(v))
			}
			n := 2 + int(v[1])
			a.Members = append(a.Members, MemberInfo{ID: string(v[2:n]), Address: string(v[n:]), Voter: v[0]&1 != 0, Leader: v[0]&2 != 0})
		default:
			if t.Critical() {
				return fmt.Errorf("%w: critical extension %d in the hello answer", ErrCorrupt, t)
			}
		}
	}
	return nil
}
