package peer

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/hashicorp/raft"
)

// A message is one call of raft's, or its answer: on a connection with PurposeRaft, behind the handshake, one after the
// other. Integers are little endian; "bytes" are a u32 and so many bytes, "id" a u16 and so many.
//
//	0..4  length of the body
//	4     kind
//	5..8  zero
//	8..   body, by kind
//	last 8  xxHash64 of all before
//
//	every call     protocol version u8 · id of the sender · its address (id)
//	append         term, previous index, previous term, commit index u64 · count u32 · entries:
//	               index, term u64 · type u8 · appended at, Unix ns (0: not told) i64 · data bytes · extensions bytes
//	vote           term, last index, last term u64 · by order of a leader u8
//	pre-vote       term, last index, last term u64
//	timeout now    nothing more
//	answer         error bytes · term u64 · last index u64 · flags u8 (1 success or granted, 2 no back-off)
//
// raft's deprecated fields (the leader's and the candidate's address beside the header, a list of peers) do not travel: it
// reads the header. The form has no version of its own: the handshake's purpose names it.
type messageKind byte

const (
	messageAppend messageKind = iota + 1
	messageVote
	messagePreVote
	messageTimeoutNow
	messageAnswer
)

const (
	messageHeaderBytes = 8
	messageSumBytes    = 8
	entryHeadBytes     = 8 + 8 + 1 + 8 + 4 + 4

	// messageBytesMax bounds the body of a call: one piece of an append (Options.AppendBytes, or one entry of up to
	// 60 MiB), with what each entry takes beside its data. What claims to be longer ends the connection.
	messageBytesMax = 128 << 20
	// answerBytesMax bounds the body of an answer, errorBytesMax the error in it.
	answerBytesMax = 8 << 10
	errorBytesMax  = 4 << 10

	// messageChunk is what a message may collect before it is written.
	messageChunk = 256 << 10
	// messageTrust is how much of the length that a message claims is taken on trust: beyond it the memory grows with what
	// has come. Almost every message fits.
	messageTrust = 1 << 20
	// messageInline is the largest data that is copied to go out in one write with what stands around it.
	messageInline = 32 << 10
)

var errMessage = errors.New("this is no message of a node")

// messageWriter writes messages to one connection, one at a time.
type messageWriter struct {
	w   io.Writer
	buf []byte // not yet written; kept for the next message
	sum xxhash.Digest
	err error
}

func (m *messageWriter) u8(v byte)    { m.buf = append(m.buf, v) }
func (m *messageWriter) u16(v uint16) { m.buf = binary.LittleEndian.AppendUint16(m.buf, v) }
func (m *messageWriter) u32(v uint32) { m.buf = binary.LittleEndian.AppendUint32(m.buf, v) }
func (m *messageWriter) u64(v uint64) { m.buf = binary.LittleEndian.AppendUint64(m.buf, v) }

func (m *messageWriter) flag(v, bit bool) {
	b := byte(0)
	if v {
		b |= 1
	}
	if bit {
		b |= 2
	}
	m.u8(b)
}

// data appends bytes as they are; large ones go out by themselves.
func (m *messageWriter) data(b []byte) {
	if len(b) <= messageInline {
		if m.buf = append(m.buf, b...); len(m.buf) > messageChunk {
			m.flush()
		}
		return
	}
	m.flush()
	_, _ = m.sum.Write(b) // never fails
	m.write(b)
}

// flush writes what is collected.
func (m *messageWriter) flush() {
	_, _ = m.sum.Write(m.buf)
	m.write(m.buf)
	m.buf = m.buf[:0]
}

func (m *messageWriter) write(b []byte) {
	if m.err == nil && len(b) > 0 {
		_, m.err = m.w.Write(b)
	}
}

// begin starts a message. size is that of the body; what follows must be exactly so long.
func (m *messageWriter) begin(kind messageKind, size int) {
	m.sum.Reset()
	m.buf, m.err = m.buf[:0], nil
	m.u32(uint32(size))
	m.u8(byte(kind))
	m.buf = append(m.buf, 0, 0, 0)
}

// end writes what is left of the message.
func (m *messageWriter) end() error {
	_, _ = m.sum.Write(m.buf)
	m.u64(m.sum.Sum64())
	m.write(m.buf)
	m.buf = m.buf[:0]
	return m.err
}

func headBytes(h *raft.RPCHeader) int { return 1 + 2 + len(h.ID) + 2 + len(h.Addr) }

func (m *messageWriter) head(h *raft.RPCHeader) {
	m.u8(byte(h.ProtocolVersion))
	m.u16(uint16(len(h.ID)))
	m.buf = append(m.buf, h.ID...)
	m.u16(uint16(len(h.Addr)))
	m.buf = append(m.buf, h.Addr...)
}

// call writes one of raft's calls. Nothing was written if the error is of errMessage.
func (m *messageWriter) call(args any) error {
	var h *raft.RPCHeader
	var kind messageKind
	size := 0
	switch a := args.(type) {
	case *raft.AppendEntriesRequest:
		h, kind, size = &a.RPCHeader, messageAppend, 4*8+4
		for _, e := range a.Entries {
			size += entryHeadBytes + len(e.Data) + len(e.Extensions)
		}
	case *raft.RequestVoteRequest:
		h, kind, size = &a.RPCHeader, messageVote, 3*8+1
	case *raft.RequestPreVoteRequest:
		h, kind, size = &a.RPCHeader, messagePreVote, 3*8
	case *raft.TimeoutNowRequest:
		h, kind = &a.RPCHeader, messageTimeoutNow
	default:
		return fmt.Errorf("%w: BUG: call of type %T", errMessage, args)
	}
	size += headBytes(h)
	if size > messageBytesMax || len(h.ID) > idBytesMax || len(h.Addr) > headAddressMax {
		return fmt.Errorf("%w: cannot send %d bytes from %.80q at %.80q", errMessage, size, h.ID, h.Addr)
	}
	m.begin(kind, size)
	m.head(h)
	switch a := args.(type) {
	case *raft.AppendEntriesRequest:
		m.u64(a.Term)
		m.u64(a.PrevLogEntry)
		m.u64(a.PrevLogTerm)
		m.u64(a.LeaderCommitIndex)
		m.u32(uint32(len(a.Entries)))
		for _, e := range a.Entries {
			m.entry(e)
		}
	case *raft.RequestVoteRequest:
		m.u64(a.Term)
		m.u64(a.LastLogIndex)
		m.u64(a.LastLogTerm)
		m.flag(a.LeadershipTransfer, false)
	case *raft.RequestPreVoteRequest:
		m.u64(a.Term)
		m.u64(a.LastLogIndex)
		m.u64(a.LastLogTerm)
	}
	return m.end()
}

func (m *messageWriter) entry(e *raft.Log) {
	m.u64(e.Index)
	m.u64(e.Term)
	m.u8(byte(e.Type))
	at := int64(0)
	if !e.AppendedAt.IsZero() {
		at = e.AppendedAt.UnixNano()
	}
	m.u64(uint64(at))
	m.u32(uint32(len(e.Data)))
	m.u32(uint32(len(e.Extensions)))
	m.data(e.Data)
	m.data(e.Extensions)
}

// answer writes raft's answer to a call.
func (m *messageWriter) answer(r *raft.RPCResponse) error {
	text := ""
	if r.Error != nil {
		text = r.Error.Error()
		if text = text[:min(len(text), errorBytesMax)]; text == "" {
			text = "an error without a text"
		}
	}
	var term, last uint64
	var yes, soon bool
	switch a := r.Response.(type) {
	case *raft.AppendEntriesResponse:
		term, last, yes, soon = a.Term, a.LastLog, a.Success, a.NoRetryBackoff
	case *raft.RequestVoteResponse:
		term, yes = a.Term, a.Granted
	case *raft.RequestPreVoteResponse:
		term, yes = a.Term, a.Granted
	case *raft.TimeoutNowResponse, nil:
	default:
		return fmt.Errorf("%w: BUG: answer of type %T", errMessage, r.Response)
	}
	m.begin(messageAnswer, 4+len(text)+8+8+1)
	m.u32(uint32(len(text)))
	m.buf = append(m.buf, text...)
	m.u64(term)
	m.u64(last)
	m.flag(yes, soon)
	return m.end()
}

// readMessage reads one message. Errors: those of r (io.EOF only if there was no byte at all), and errMessage. It takes
// no more memory than has come, but for messageTrust.
func readMessage(r *bufio.Reader, bodyMax int) (messageKind, []byte, error) {
	var header [messageHeaderBytes]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, nil, err
	}
	size := int(binary.LittleEndian.Uint32(header[:]))
	if size > bodyMax || header[5]|header[6]|header[7] != 0 {
		return 0, nil, fmt.Errorf("%w: it claims %d bytes of kind %d; %d are allowed", errMessage, size, header[4], bodyMax)
	}
	want := size + messageSumBytes
	body := make([]byte, 0, min(want, messageTrust))
	for len(body) < want {
		if len(body) == cap(body) {
			body = append(make([]byte, 0, min(want, 4*len(body))), body...)
		}
		n, err := io.ReadFull(r, body[len(body):cap(body)])
		if body = body[:len(body)+n]; err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, nil, err
		}
	}
	var sum xxhash.Digest
	sum.Reset()
	_, _ = sum.Write(header[:]) // never fails
	_, _ = sum.Write(body[:size])
	if told := binary.LittleEndian.Uint64(body[size:]); told != sum.Sum64() {
		return 0, nil, fmt.Errorf("%w: its checksum is %016x, its bytes give %016x", errMessage, told, sum.Sum64())
	}
	return messageKind(header[4]), body[:size:size], nil
}

// messageReader takes a body apart. After the first fault it gives zeros.
type messageReader struct {
	b   []byte
	bad bool
}

func (m *messageReader) take(n uint64) []byte {
	if n > uint64(len(m.b)) {
		m.b, m.bad = nil, true
		return nil
	}
	b := m.b[:n:n]
	m.b = m.b[n:]
	return b
}

func (m *messageReader) u8() byte {
	if b := m.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (m *messageReader) u32() uint32 {
	if b := m.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (m *messageReader) u64() uint64 {
	if b := m.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// flags reads a byte of which only the bits of known may be set.
func (m *messageReader) flags(known byte) byte {
	f := m.u8()
	m.bad = m.bad || f&^known != 0
	return f
}

// name reads an id or an address of the header.
func (m *messageReader) name(most int) []byte {
	b := m.take(2)
	if b == nil {
		return nil
	}
	n := binary.LittleEndian.Uint16(b)
	m.bad = m.bad || int(n) > most
	return m.take(uint64(n))
}

// headAddressMax bounds the address in a call's header: a valid one and what stamps it.
const headAddressMax = addressBytesMax + 64

func (m *messageReader) head() raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersion(m.u8()), ID: m.name(idBytesMax), Addr: m.name(headAddressMax)}
}

// end returns what is wrong with the message, if anything.
func (m *messageReader) end() error {
	if m.bad || len(m.b) > 0 {
		return fmt.Errorf("%w: its fields do not fill it", errMessage)
	}
	return nil
}

// decodeCall gives the call that a body holds. Its entries share the memory of body.
func decodeCall(kind messageKind, body []byte) (any, error) {
	m := messageReader{b: body}
	h := m.head()
	var args any
	switch kind {
	case messageAppend:
		a := &raft.AppendEntriesRequest{RPCHeader: h, Term: m.u64(), PrevLogEntry: m.u64(), PrevLogTerm: m.u64(), LeaderCommitIndex: m.u64()}
		a.Entries = m.entries()
		args = a
	case messageVote:
		args = &raft.RequestVoteRequest{RPCHeader: h, Term: m.u64(), LastLogIndex: m.u64(), LastLogTerm: m.u64(), LeadershipTransfer: m.flags(1) == 1}
	case messagePreVote:
		args = &raft.RequestPreVoteRequest{RPCHeader: h, Term: m.u64(), LastLogIndex: m.u64(), LastLogTerm: m.u64()}
	case messageTimeoutNow:
		args = &raft.TimeoutNowRequest{RPCHeader: h}
	default:
		return nil, fmt.Errorf("%w: kind %d", errMessage, kind)
	}
	return args, m.end()
}

func (m *messageReader) entries() []*raft.Log {
	count := m.u32()
	if uint64(count)*entryHeadBytes > uint64(len(m.b)) {
		m.bad = true
		return nil
	}
	if count == 0 {
		return nil
	}
	logs, list := make([]raft.Log, count), make([]*raft.Log, count)
	for i := range logs {
		l := &logs[i]
		l.Index, l.Term, l.Type = m.u64(), m.u64(), raft.LogType(m.u8())
		if at := int64(m.u64()); at != 0 {
			l.AppendedAt = time.Unix(0, at)
		}
		data, extensions := m.u32(), m.u32()
		l.Data, l.Extensions = m.bytes(data), m.bytes(extensions)
		list[i] = l
	}
	return list
}

// bytes reads n bytes; none are nil, as from the log.
func (m *messageReader) bytes(n uint32) []byte {
	if n == 0 {
		return nil
	}
	return m.take(uint64(n))
}

// decodeAnswer puts an answer into resp, the response to one of raft's calls, and returns the error that it carries, as
// a remoteError.
func decodeAnswer(kind messageKind, body []byte, resp any) error {
	m := messageReader{b: body}
	text := string(m.take(uint64(m.u32())))
	term, last, flags := m.u64(), m.u64(), m.flags(3)
	if err := m.end(); err != nil || kind != messageAnswer {
		return fmt.Errorf("%w: answer of kind %d: %w", errMessage, kind, err)
	}
	yes, soon := flags&1 != 0, flags&2 != 0
	h := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}
	switch r := resp.(type) {
	case *raft.AppendEntriesResponse:
		*r = raft.AppendEntriesResponse{RPCHeader: h, Term: term, LastLog: last, Success: yes, NoRetryBackoff: soon}
	case *raft.RequestVoteResponse:
		*r = raft.RequestVoteResponse{RPCHeader: h, Term: term, Granted: yes}
	case *raft.RequestPreVoteResponse:
		*r = raft.RequestPreVoteResponse{RPCHeader: h, Term: term, Granted: yes}
	case *raft.TimeoutNowResponse:
		*r = raft.TimeoutNowResponse{RPCHeader: h}
	default:
		return fmt.Errorf("%w: BUG: response of type %T", errMessage, resp)
	}
	if text != "" {
		return remoteError(text)
	}
	return nil
}

// remoteError is an error that the other node answered with: the call arrived, and its connection is as good as before.
type remoteError string

func (e remoteError) Error() string { return string(e) }
