package peer

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"
)

// Purpose is what a connection is for.
type Purpose string

const (
	// PurposeRaft carries raft's calls as messages (message.go), one after the other.
	PurposeRaft Purpose = "calls"
	// PurposeInstall carries one snapshot.
	PurposeInstall Purpose = "install"
	// PurposePulse carries a question about a node's clocks and state, and the answer, again and again.
	PurposePulse Purpose = "pulse"
	// PurposeFound ends with the handshake: founders make each other's acquaintance.
	PurposeFound Purpose = "found"
	// PurposeFetch carries one snapshot to a node that has lost its state and asks for another's.
	PurposeFetch Purpose = "fetch"
)

// Hello is what one node tells another about itself: the dialling side in its first frame, the other in
// its answer.
type Hello struct {
	// Purpose is what the connection is for.
	Purpose Purpose
	// Group is the raft group.
	Group uint32
	// Target is the id of the node that this is meant for.
	Target string
	// Source is the id of the node that speaks.
	Source string
	// Incarnation names the source's data directory.
	Incarnation [16]byte
	// Starts counts the starts that the source's data directory has seen, this one included; 0 if nobody counts.
	Starts uint64
	// Nonce is the number that the source's process drew for itself; 0 if it drew none.
	Nonce uint64
	// Lineage are the nonces of the last starts of the source's data directory, oldest first, the last of them
	// Nonce; at most LineageMax. Empty: not told.
	Lineage []uint64
	// LastIndex and LastTerm are those of the last entry that the source holds durably; zeros if it holds none.
	LastIndex, LastTerm uint64
	// LogTold says that LastIndex and LastTerm mean anything.
	LogTold bool
	// Address is the source's advertised address.
	Address string
	// Cluster and History are the ids of the source's cluster and history; zero while it knows none.
	Cluster, History [16]byte
	// Founders is the hash of the list of founders; zero if the source knows none.
	Founders [32]byte
	// Level is the highest behaviour level that the source's program knows.
	Level uint16
	// StateLevel is the level that the source's state needs.
	StateLevel uint16
	// Heartbeat is the source's heartbeat timeout, to the microsecond.
	Heartbeat time.Duration
	// Card is what the source's node tells about itself.
	Card []byte
}

// process tells one process of a node from all others.
type process struct {
	incarnation [16]byte // its data directory
	starts      uint64   // the count of that directory's starts; 0: nobody counts
	nonce       uint64   // drawn by the process itself; 0: not known
}

func (h *Hello) process() process { return process{h.Incarnation, h.Starts, h.Nonce} }

// denies tells that another process than nonce was start number starts of the source's data directory. What nobody
// noted, or the lineage does not reach back to, it does not deny.
func (h *Hello) denies(starts, nonce uint64) bool {
	back := h.Starts - starts
	return nonce != 0 && starts <= h.Starts && back < uint64(len(h.Lineage)) && h.Lineage[len(h.Lineage)-1-int(back)] != nonce
}

// checkLineage returns what is wrong with the lineage of a process that counts its starts.
func checkLineage(lineage []uint64, starts, nonce uint64) error {
	switch n := len(lineage); {
	case n == 0:
		return nil
	case n > LineageMax || uint64(n) > starts:
		return fmt.Errorf("lineage of %d starts, for start %d; at most %d are told", n, starts, LineageMax)
	case lineage[n-1] != nonce:
		return errors.New("the lineage does not end with the process itself")
	}
	return nil
}

// answer is the second frame of a connection.
type answer struct {
	hello   Hello    // about the answering node, if refusal is nil
	refusal *refusal // why it refuses
}

// hexBytes is a fixed number of bytes as JSON: hexadecimal, "" for zeros.
type hexBytes []byte

// MarshalText implements encoding.TextMarshaler.
func (h hexBytes) MarshalText() ([]byte, error) {
	if len(bytes.Trim(h, "\x00")) == 0 {
		return nil, nil
	}
	return hex.AppendEncode(nil, h), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *hexBytes) UnmarshalText(b []byte) error {
	if len(b) > 64 {
		return fmt.Errorf("%d hexadecimal digits are too many", len(b))
	}
	out, err := hex.AppendDecode(nil, b)
	*h = out
	return err
}

// into copies h to dst. No bytes mean zeros.
func (h hexBytes) into(dst []byte) error {
	if len(h) == 0 {
		clear(dst)
		return nil
	}
	if len(h) != len(dst) {
		return fmt.Errorf("%d bytes instead of %d", len(h), len(dst))
	}
	copy(dst, h)
	return nil
}

// frameJSON is the payload of both frames.
type frameJSON struct {
	Purpose     Purpose  `json:"purpose,omitempty"`
	Group       uint32   `json:"group,omitempty"`
	Target      string   `json:"target,omitempty"`
	Source      string   `json:"source,omitempty"`
	Incarnation hexBytes `json:"incarnation,omitempty"`
	Starts      uint64   `json:"starts,omitempty"`
	Nonce       uint64   `json:"nonce,omitempty"`
	Lineage     []byte   `json:"lineage,omitempty"` // 8 bytes each, little endian
	LastIndex   uint64   `json:"last_index,omitempty"`
	LastTerm    uint64   `json:"last_term,omitempty"`
	LogTold     bool     `json:"log_told,omitempty"`
	Address     string   `json:"address,omitempty"`
	Cluster     hexBytes `json:"cluster,omitempty"`
	History     hexBytes `json:"history,omitempty"`
	Founders    hexBytes `json:"founders,omitempty"`
	Level       uint16   `json:"level,omitempty"`
	StateLevel  uint16   `json:"state_level,omitempty"`
	HeartbeatUs uint64   `json:"heartbeat_us,omitempty"`
	Card        []byte   `json:"card,omitempty"`
	Code        string   `json:"code,omitempty"`
	Text        string   `json:"text,omitempty"`
	Final       bool     `json:"final,omitempty"`
}

func (h *Hello) json() frameJSON {
	var lineage []byte
	for _, n := range h.Lineage {
		lineage = binary.LittleEndian.AppendUint64(lineage, n)
	}
	return frameJSON{
		Purpose: h.Purpose, Group: h.Group, Target: h.Target, Source: h.Source,
		Incarnation: h.Incarnation[:], Address: h.Address,
		Starts: h.Starts, Nonce: h.Nonce, Lineage: lineage, LastIndex: h.LastIndex, LastTerm: h.LastTerm, LogTold: h.LogTold,
		Cluster: h.Cluster[:], History: h.History[:], Founders: h.Founders[:],
		Level: h.Level, StateLevel: h.StateLevel, HeartbeatUs: uint64(h.Heartbeat / time.Microsecond), Card: h.Card,
	}
}

// hello checks and converts. Everything in it is within the package's bounds.
func (f *frameJSON) hello() (Hello, error) {
	h := Hello{
		Purpose: f.Purpose, Group: f.Group, Target: f.Target, Source: f.Source, Address: f.Address,
		Starts: f.Starts, Nonce: f.Nonce, LastIndex: f.LastIndex, LastTerm: f.LastTerm, LogTold: f.LogTold,
		Level: f.Level, StateLevel: f.StateLevel, Heartbeat: time.Duration(f.HeartbeatUs) * time.Microsecond, Card: f.Card,
	}
	err := errors.Join(
		f.Incarnation.into(h.Incarnation[:]), f.Cluster.into(h.Cluster[:]),
		f.History.into(h.History[:]), f.Founders.into(h.Founders[:]),
	)
	if len(f.Lineage)%8 != 0 || len(f.Lineage) > 8*LineageMax {
		return Hello{}, fmt.Errorf("lineage of %d bytes", len(f.Lineage))
	}
	for b := f.Lineage; len(b) > 0; b = b[8:] {
		h.Lineage = append(h.Lineage, binary.LittleEndian.Uint64(b))
	}
	lineage := checkLineage(h.Lineage, h.Starts, h.Nonce)
	switch {
	case lineage != nil:
		return Hello{}, lineage
	case err != nil:
		return Hello{}, fmt.Errorf("an id in it is malformed: %w", err)
	case !validID(h.Source):
		return Hello{}, fmt.Errorf("source %.80q is no node id", h.Source)
	case !validID(h.Target):
		return Hello{}, fmt.Errorf("target %.80q is no node id", h.Target)
	case !validAddress(h.Address):
		return Hello{}, fmt.Errorf("%.300q is no address", h.Address)
	case h.Incarnation == [16]byte{}:
		return Hello{}, errors.New("it names no incarnation")
	case f.HeartbeatUs > uint64(24*time.Hour/time.Microsecond):
		return Hello{}, fmt.Errorf("heartbeat timeout of %d µs", f.HeartbeatUs)
	case len(h.Card) > cardBytesMax:
		return Hello{}, fmt.Errorf("card of %d bytes is larger than %d", len(h.Card), cardBytesMax)
	}
	return h, nil
}

// appendHello appends the first frame of a connection.
func appendHello(dst []byte, h *Hello) ([]byte, error) { return appendFrame(dst, kindHello, h.json()) }

// ReadHello reads the first frame of a connection from r, and not a byte more. Errors: those of r, and
// what is wrong with the frame.
func ReadHello(r io.Reader) (Hello, error) {
	var f frameJSON
	if err := readFrame(r, kindHello, helloBytesMax, &f); err != nil {
		return Hello{}, err
	}
	return f.hello()
}

func appendAnswer(dst []byte, a *answer) ([]byte, error) {
	if a.refusal == nil {
		return appendFrame(dst, kindAnswer, a.hello.json())
	}
	text := a.refusal.text[:min(len(a.refusal.text), refusalBytesMax)]
	return appendFrame(dst, kindAnswer, frameJSON{Code: string(a.refusal.code), Text: text, Final: a.refusal.final()})
}

func readAnswer(r io.Reader) (answer, error) {
	var f frameJSON
	if err := readFrame(r, kindAnswer, helloBytesMax, &f); err != nil {
		return answer{}, err
	}
	if f.Code != "" {
		text := f.Text[:min(len(f.Text), refusalBytesMax)]
		return answer{refusal: &refusal{code: code(f.Code), text: text, told: &f.Final}}, nil
	}
	h, err := f.hello()
	return answer{hello: h}, err
}
