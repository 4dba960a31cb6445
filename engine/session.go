package engine

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"kvstore/wire"
)

// sessionTTL is wire.SessionTTL in the unit of log time.
const sessionTTL = int64(wire.SessionTTL / time.Microsecond)

// Sessions make retries of writes safe. A client registers through the log, numbers its writes, and says
// up to which number it has seen all answers (the floor). The table keeps each answer above the floor: a
// write that arrives again gets the kept answer and changes nothing.
//
// The table lives in memory and is stored beside the records: S|id holds a session, rewritten once per
// entry that touches it; J|ts|part holds the answers of the entry at ts that were still wanted at its end.
// loadSessions rebuilds precisely the table that was there.
//
// Owned by the applier.
type sessions struct {
	byID map[uint64]*session

	// idle is a ring through all sessions, the longest idle first; idle itself is its end mark.
	// Invariant: last never falls along it.
	idle session

	// bytes estimates the memory of all kept answers; it is a function of the table alone.
	// Invariant between entries: bytes <= bytesMax.
	bytes, bytesMax int64

	// What the entry at hand has done; emptied by flush.
	touched  []*session
	produced []producedResult
	emptied  []*journalRecord // stored J records whose last answer was dropped
	journal  *journalRecord   // J record that the next answer goes to; nil: one that is to be made
	part     uint32           // its number
	partUsed int              // bytes of answers given to it

	// spare are J records that nothing points to, for entries to come.
	// Invariant: not longer than spareJournalsMax.
	spare []*journalRecord
}

// spareJournalsMax bounds the J records that are kept to be used again. An entry makes few, and as many are emptied meanwhile.
const spareJournalsMax = 64

// session is one client's registration.
type session struct {
	id     uint64
	opened int64 // log time
	last   int64 // log time of the last write
	floor  uint64

	// results holds the kept answers by sequence number.
	// Invariant: each number is above floor, by at most wire.SessionWindow.
	results window

	stored  bool
	digest  digest // of the S record, if stored
	touched bool   // in sessions.touched
	ended   bool

	prev, next *session
}

// keptResult is the answer to one write.
type keptResult struct {
	journal   *journalRecord // that holds it, once it is stored
	rev       wire.Revision
	payload   []byte
	status    wire.Status
	truncated bool // payload was longer than wire.SessionReplayBytesMax and is not kept
}

// journalPlace names a J record: part of the answers of the entry at ts.
type journalPlace struct {
	ts   uint64
	part uint32
}

// journalRecord is what is known of a J record without reading it. That of the entry at hand is not stored
// yet. It is found through the answers that it holds only, so that no write looks for it.
type journalRecord struct {
	place  journalPlace
	digest digest // once it is stored

	// Invariant: live is the number of kept results that point to it, bytes what these take in it. Between entries
	// live is above 0: a record without answers is deleted, or was never stored.
	live, bytes int

	stored bool
}

// producedResult names an answer that the entry at hand has kept.
type producedResult struct {
	s       *session
	seq     uint64
	journal *journalRecord
}

func newSessions() *sessions {
	t := &sessions{byID: make(map[uint64]*session), bytesMax: wire.SessionsBytesMax}
	t.idle.prev, t.idle.next = &t.idle, &t.idle
	return t
}

// open registers a session. ok is false when there are as many as there may be.
func (t *sessions) open(id uint64, now int64) (ok bool) {
	if len(t.byID) >= wire.SessionsMax {
		return false
	}
	s := &session{id: id, opened: now}
	t.byID[id] = s
	t.touch(s, now)
	return true
}

// begin finds the session of a write and decides what becomes of the write: kept is the answer that was
// given before (ok true), or a refusal; with neither the write is to be executed, and keep called.
// REQUIRES: seq > floor.
func (t *sessions) begin(id, seq, floor uint64, now int64) (s *session, res wire.Result, answered bool) {
	s = t.byID[id]
	if s == nil {
		return nil, wire.Result{Status: wire.StatusSessionExpired}, true
	}
	t.touch(s, now)
	t.raiseFloor(s, floor)
	if seq <= s.floor || seq-s.floor > wire.SessionWindow {
		return s, wire.Result{Status: wire.StatusSessionStale}, true
	}
	if k := s.results.get(seq); k != nil {
		return s, wire.Result{Status: k.status, Replayed: true, Rev: k.rev, Payload: k.payload}, true
	}
	return s, wire.Result{}, false
}

// keep stores the answer of a write that begin let pass. An answer that asks for a retry is not kept: the
// retry is to be executed.
func (t *sessions) keep(s *session, seq, ts uint64, res *wire.Result) {
	if res.Status.Class() == wire.ClassRetry {
		return
	}
	k := keptResult{rev: res.Rev, payload: res.Payload, status: res.Status}
	if len(k.payload) > wire.SessionReplayBytesMax {
		k.payload, k.truncated = nil, true
	}
	size := k.storedBytes()
	if t.partUsed > 0 && t.partUsed+size > journalPartBytesMax {
		t.part, t.partUsed, t.journal = t.part+1, 0, nil
	}
	t.partUsed += size
	if t.journal == nil {
		t.journal = t.newJournal(journalPlace{ts, t.part})
	}
	k.journal = t.journal
	t.put(s, seq, &k)
	t.produced = append(t.produced, producedResult{s, seq, k.journal})
	t.makeRoom(s)
}

// makeRoom ends the sessions that have been idle for longest until the kept answers fit into their bound
// again. Their clients learn it by SESSION_EXPIRED, as after any other end. keep is spared: alone it
// can't fill the bound.
func (t *sessions) makeRoom(keep *session) {
	for t.bytes > t.bytesMax {
		s := t.longestIdle(keep)
		if s == nil {
			return
		}
		t.end(s)
	}
}

// longestIdle gives the session other than keep that has been idle for longest: of those with the same time of
// the last write that of the lowest id. The ring has these in order of use, which is not stored, so after a
// restart it would name another one. It looks at as many sessions as share that time.
func (t *sessions) longestIdle(keep *session) (longest *session) {
	for s := t.idle.next; s != &t.idle && (longest == nil || s.last == longest.last); s = s.next {
		if s != keep && (longest == nil || s.id < longest.id) {
			longest = s
		}
	}
	return longest
}

// keptResultOverheadBytes is what one kept answer costs besides its payload: its place in a window and
// its share of a J record, rounded up. It belongs to the state: which sessions end for room depends on it.
const keptResultOverheadBytes = 128

func (k *keptResult) bytes() int64 { return keptResultOverheadBytes + int64(len(k.payload)) }

// storedBytes is what it takes in its J record.
func (k *keptResult) storedBytes() int { return journalResultBytes + len(k.payload) }

// One session alone fits: a negative difference does not compile.
const _ = uint(wire.SessionsBytesMax - wire.SessionWindow*(wire.SessionReplayBytesMax+keptResultOverheadBytes))

// close ends a session; false when there is none.
func (t *sessions) close(id uint64) bool {
	s := t.byID[id]
	if s == nil {
		return false
	}
	t.end(s)
	return true
}

// expire ends every session that has been idle for longer than wire.SessionTTL, in order of id.
func (t *sessions) expire(now int64) {
	var due []*session
	for s := t.idle.next; s != &t.idle && now-s.last > sessionTTL; s = s.next {
		due = append(due, s)
	}
	slices.SortFunc(due, func(a, b *session) int { return cmp.Compare(a.id, b.id) })
	for _, s := range due {
		t.end(s)
	}
}

func (t *sessions) end(s *session) {
	t.raiseFloor(s, ^uint64(0))
	delete(t.byID, s.id)
	s.unlink()
	s.ended = true
	t.mark(s)
}

// touch moves s to the young end of the idle ring.
func (t *sessions) touch(s *session, now int64) {
	s.last = now
	s.unlink()
	s.prev, s.next = t.idle.prev, &t.idle
	s.prev.next, s.next.prev = s, s
	t.mark(s)
}

func (s *session) unlink() {
	if s.next != nil {
		s.prev.next, s.next.prev = s.next, s.prev
		s.prev, s.next = nil, nil
	}
}

// mark notes that the stored form of s is out of date.
func (t *sessions) mark(s *session) {
	if !s.touched {
		s.touched = true
		t.touched = append(t.touched, s)
	}
}

// raiseFloor drops the answers that the client has seen.
func (t *sessions) raiseFloor(s *session, floor uint64) {
	if floor <= s.floor {
		return
	}
	// No answer lies beyond the window, so this ends however far the floor jumps.
	for n := uint64(1); n <= min(floor-s.floor, wire.SessionWindow) && s.results.len() > 0; n++ {
		if k, ok := s.results.remove(s.floor + n); ok {
			t.release(&k)
		}
	}
	s.floor = floor
}

// put adds an answer to a session, release lets go of one that was taken out.
func (t *sessions) put(s *session, seq uint64, k *keptResult) {
	s.results.put(seq, k)
	t.bytes += k.bytes()
	k.journal.live++
	k.journal.bytes += k.storedBytes()
}

func (t *sessions) release(k *keptResult) {
	t.bytes -= k.bytes()
	j := k.journal
	j.bytes -= k.storedBytes()
	if j.live--; j.live == 0 && j.stored {
		t.emptied = append(t.emptied, j)
	}
}

// newJournal gives the J record of a place, without answers.
func (t *sessions) newJournal(place journalPlace) (j *journalRecord) {
	if n := len(t.spare) - 1; n >= 0 {
		t.spare, j = t.spare[:n], t.spare[n]
	} else {
		j = new(journalRecord)
	}
	*j = journalRecord{place: place}
	return j
}

// reuse takes back a J record. REQUIRES: nothing points to it but what flush is about to clear.
func (t *sessions) reuse(j *journalRecord) {
	if len(t.spare) < spareJournalsMax {
		t.spare = append(t.spare, j)
	}
}

// storer takes the writes of one entry.
type storer interface {
	set(key, value []byte)
	del(key []byte)
}

// flush stores what the entry at hand has changed, in memory of mem, brings d up to date, and makes ready
// for the next entry.
func (t *sessions) flush(w storer, mem *arena, d *digest) {
	for _, s := range t.touched {
		t.flushSession(s, w, mem, d)
	}
	for _, j := range t.emptied {
		d.sub(j.digest)
		w.del(appendJournalKey(mem.alloc(journalKeyBytes), j.place))
		t.reuse(j)
	}
	for rest := t.produced; len(rest) > 0; {
		rest = t.flushJournal(rest, w, mem, d)
	}
	clear(t.touched) // hold no ended session
	clear(t.produced)
	clear(t.emptied)
	t.touched, t.produced, t.emptied = t.touched[:0], t.produced[:0], t.emptied[:0]
	t.journal = nil
	t.part, t.partUsed = 0, 0
}

func (t *sessions) flushSession(s *session, w storer, mem *arena, d *digest) {
	s.touched = false
	if s.ended && !s.stored {
		return // opened and ended by one entry
	}
	key := appendSessionKey(mem.alloc(sessionKeyBytes), s.id)
	if s.stored {
		d.sub(s.digest)
	}
	if s.ended {
		w.del(key)
		return
	}
	b := appendSession(mem.alloc(sessionBytes), key, s)
	s.stored, s.digest = true, sealedDigest(key, b)
	d.add(s.digest)
	w.set(key, b)
}

// flushJournal stores the first of the J records that hold produced, as far as its answers were not dropped
// again, and returns the answers of the next.
func (t *sessions) flushJournal(produced []producedResult, w storer, mem *arena, d *digest) (rest []producedResult) {
	j := produced[0].journal
	n := slices.IndexFunc(produced, func(p producedResult) bool { return p.journal != j })
	if n < 0 {
		n = len(produced)
	}
	produced, rest = produced[:n], produced[n:]
	if j.live == 0 {
		t.reuse(j)
		return rest
	}
	key := appendJournalKey(mem.alloc(journalKeyBytes), j.place)
	b := appendJournalHeader(mem.alloc(journalHeaderBytes+j.bytes+4), j.live)
	for _, p := range produced {
		if k := p.s.results.get(p.seq); k != nil {
			b = appendJournalResult(b, p.s.id, p.seq, k)
		}
	}
	b = appendSeal(b, 0, key)
	j.stored, j.digest = true, sealedDigest(key, b)
	d.add(j.digest)
	w.set(key, b)
	return rest
}

// loadSessions rebuilds the table from the state that r reads.
func loadSessions(r *reader) (*sessions, error) {
	t := newSessions()
	lower, upper := familyRange(familySession)
	err := r.iterate(lower, upper, false, false, func(key []byte, value func() ([]byte, error)) (bool, error) {
		b, err := value()
		if err != nil {
			return false, err
		}
		s, err := decodeSession(key, b)
		if err != nil {
			return false, err
		}
		t.byID[s.id] = s
		return true, nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot load sessions: %w", err)
	}
	t.linkIdle()
	lower, upper = familyRange(familyJournal)
	err = r.iterate(lower, upper, false, false, func(key []byte, value func() ([]byte, error)) (bool, error) {
		b, err := value()
		if err != nil {
			return false, err
		}
		return true, t.loadJournal(key, b)
	})
	if err != nil {
		return nil, fmt.Errorf("cannot load the answers kept for sessions: %w", err)
	}
	return t, nil
}

// linkIdle builds the idle ring. The order among sessions of equal last doesn't matter: expire sorts, and
// longestIdle goes by id.
func (t *sessions) linkIdle() {
	all := make([]*session, 0, len(t.byID))
	for _, s := range t.byID {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *session) int { return cmp.Or(cmp.Compare(a.last, b.last), cmp.Compare(a.id, b.id)) })
	for _, s := range all {
		s.prev, s.next = t.idle.prev, &t.idle
		s.prev.next, s.next.prev = s, s
	}
}

// loadJournal takes the answers of one J record that are still wanted.
func (t *sessions) loadJournal(key, b []byte) error {
	place, ok := splitJournalKey(key)
	if !ok {
		return fmt.Errorf("%w: key %x among the kept answers", ErrRecordDamaged, key)
	}
	j := &journalRecord{place: place, stored: true, digest: sealedDigest(key, b)}
	twice := false
	err := decodeJournal(key, b, func(id, seq uint64, k *keptResult) {
		if s := t.byID[id]; s != nil && seq > s.floor {
			if twice = twice || s.results.get(seq) != nil; !twice {
				k.journal = j
				t.put(s, seq, k)
			}
		}
	})
	if err != nil {
		return err
	}
	if twice {
		return fmt.Errorf("%w: an answer under key %x was kept before", ErrRecordDamaged, key)
	}
	if j.live == 0 {
		return fmt.Errorf("%w: no answer under key %x is wanted, so it should have been deleted", ErrRecordDamaged, key)
	}
	return nil
}

const (
	sessionFormat      = 1
	sessionBytes       = 8 + 3*8 + 4
	journalFormat      = 1
	journalHeaderBytes = 8
	journalResultBytes = 28

	// journalPartBytesMax bounds the answers of one J record, so that it fits one stored value whatever the
	// memtable's size. It belongs to the state: it never changes within a behaviour level.
	journalPartBytesMax = 32 << 10
)

// appendSession appends the stored form of a session to dst, which must be empty:
//
//	0 u8 format | 1 7×0 | 8 i64 opened | 16 i64 last | 24 u64 floor | 32 u32 crc32c over key and bytes
func appendSession(dst, key []byte, s *session) []byte {
	dst = append(dst, sessionFormat, 0, 0, 0, 0, 0, 0, 0)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(s.opened))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(s.last))
	dst = binary.LittleEndian.AppendUint64(dst, s.floor)
	return appendSeal(dst, 0, key)
}

// decodeSession reads what appendSession wrote. It fails with ErrRecordDamaged only.
func decodeSession(key, b []byte) (*session, error) {
	id, ok := splitSessionKey(key)
	if !ok {
		return nil, fmt.Errorf("%w: key %x among the sessions", ErrRecordDamaged, key)
	}
	body, err := openSealed(key, b)
	if err != nil {
		return nil, fmt.Errorf("session %d: %w", id, err)
	}
	if len(body) != sessionBytes-4 || binary.LittleEndian.Uint64(body) != sessionFormat {
		return nil, fmt.Errorf("%w: session %d of %d bytes; this build reads format %d", ErrRecordDamaged, id, len(b), sessionFormat)
	}
	return &session{
		id:     id,
		opened: int64(binary.LittleEndian.Uint64(body[8:])),
		last:   int64(binary.LittleEndian.Uint64(body[16:])),
		floor:  binary.LittleEndian.Uint64(body[24:]),
		stored: true,
		digest: sealedDigest(key, b),
	}, nil
}

// appendJournalHeader begins a J record:
//
//	0 u8 format | 1 3×0 | 4 u32 count
//	then each answer: 0 u64 session | 8 u64 seq | 16 u64 rev | 24 u8 status | 25 u8 flags | 26 u16 len | payload
//	then u32 crc32c over key and bytes
func appendJournalHeader(dst []byte, count int) []byte {
	return binary.LittleEndian.AppendUint32(append(dst, journalFormat, 0, 0, 0), uint32(count))
}

// journalTruncated in an answer's flags: its payload was too long to be kept.
const journalTruncated = 1

func appendJournalResult(dst []byte, id, seq uint64, k *keptResult) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, id)
	dst = binary.LittleEndian.AppendUint64(dst, seq)
	dst = binary.LittleEndian.AppendUint64(dst, k.rev)
	var flags byte
	if k.truncated {
		flags = journalTruncated
	}
	dst = append(dst, byte(k.status), flags)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(k.payload)))
	return append(dst, k.payload...)
}

// decodeJournal reads a J record and calls fn for each answer; k belongs to fn but for its payload, which
// is a fresh copy. It fails with ErrRecordDamaged only.
func decodeJournal(key, b []byte, fn func(id, seq uint64, k *keptResult)) error {
	body, err := openSealed(key, b)
	if err != nil {
		return fmt.Errorf("kept answers: %w", err)
	}
	damaged := func(what string) error {
		return fmt.Errorf("%w: kept answers under key %x: %s", ErrRecordDamaged, key, what)
	}
	if len(body) < journalHeaderBytes || binary.LittleEndian.Uint32(body) != journalFormat {
		return damaged("unknown format")
	}
	count := binary.LittleEndian.Uint32(body[4:])
	body = body[journalHeaderBytes:]
	for range count {
		if len(body) < journalResultBytes {
			return damaged("fewer answers than counted")
		}
		n := int(binary.LittleEndian.Uint16(body[26:]))
		if n > wire.SessionReplayBytesMax || n > len(body)-journalResultBytes || body[25]&^journalTruncated != 0 {
			return damaged("an answer's length or flags are wrong")
		}
		k := keptResult{
			rev:       binary.LittleEndian.Uint64(body[16:]),
			status:    wire.Status(body[24]),
			truncated: body[25] == journalTruncated,
		}
		id, seq := binary.LittleEndian.Uint64(body), binary.LittleEndian.Uint64(body[8:])
		if n > 0 {
			k.payload = append([]byte(nil), body[journalResultBytes:journalResultBytes+n]...)
		}
		body = body[journalResultBytes+n:]
		fn(id, seq, &k)
	}
	if len(body) != 0 {
		return damaged("bytes behind the last answer")
	}
	return nil
}
