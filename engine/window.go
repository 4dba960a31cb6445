package engine

// windowSizeMin is the room of a window that holds anything. One that empties keeps windowSizeKept, so that most never shrink.
const (
	windowSizeMin  = 8
	windowSizeKept = 64
)

// window holds the kept answers of one session by sequence number. Each write looks up, adds and removes one, and a Go map takes tens of
// nanoseconds for each of these. The numbers are their own hash: those on their way follow each other, so that their low bits differ
// and each has a chain of its own.
//
// A client that leaves gaps makes chains longer, not the table larger: a window's room is in proportion to the answers in it, of which
// sessions.bytesMax bounds the sum. A ring that grew until no two numbers met would take half a megabyte for two answers, in each of
// wire.SessionsMax sessions. No more than 64 of wire.SessionWindow numbers meet in one chain, whatever a client chooses: 65 answers have
// 128 chains, and each of these is for 64 numbers.
//
// Nothing that is seen of a window depends on the order in its chains. The zero value is empty.
type window struct {
	// heads begins the chains, that of seq at the place that the low bits of seq tell: 1 + a place in answers, 0 at a chain's end.
	// Invariant: its length is 0 or a power of two, cap(answers), and not above 8*count but where it is windowSizeKept at most.
	heads []uint32

	// answers holds the count answers that are kept, each in the chain of its number, and places that are free again, in that of free.
	// Invariant: each is in precisely one chain.
	answers []windowAnswer
	free    uint32
	count   int
}

// windowAnswer is a place in a window. It takes 64 bytes, a line of the processor's cache.
type windowAnswer struct {
	seq  uint64
	kept keptResult
	next uint32 // of its chain, as in heads
}

func (w *window) len() int { return w.count }

// get gives the answer to seq, or nil. It is valid until the next put or remove.
func (w *window) get(seq uint64) *keptResult {
	if len(w.heads) == 0 {
		return nil
	}
	for at := w.heads[seq&uint64(len(w.heads)-1)]; at != 0; {
		a := &w.answers[at-1]
		if a.seq == seq {
			return &a.kept
		}
		at = a.next
	}
	return nil
}

// put adds the answer to seq. REQUIRES: there is none.
func (w *window) put(seq uint64, k *keptResult) {
	if w.count == len(w.heads) {
		w.resize(max(windowSizeMin, 2*len(w.heads)))
	}
	at := w.free
	if at != 0 {
		w.free = w.answers[at-1].next
	} else {
		w.answers = append(w.answers, windowAnswer{})
		at = uint32(len(w.answers))
	}
	head := &w.heads[seq&uint64(len(w.heads)-1)]
	w.answers[at-1] = windowAnswer{seq, *k, *head}
	*head = at
	w.count++
}

// remove takes out the answer to seq, if there is one.
func (w *window) remove(seq uint64) (k keptResult, ok bool) {
	if len(w.heads) == 0 {
		return keptResult{}, false
	}
	for link := &w.heads[seq&uint64(len(w.heads)-1)]; *link != 0; {
		a := &w.answers[*link-1]
		if a.seq != seq {
			link = &a.next
			continue
		}
		at := *link
		*link = a.next
		k = a.kept
		*a = windowAnswer{next: w.free} // hold no payload
		w.free = at
		w.count--
		// The new table is half full at most, so one that has shrunk doesn't grow again at once.
		if size := len(w.heads); size > windowSizeKept && w.count < size/8 {
			w.resize(max(windowSizeKept, size/4))
		}
		return k, true
	}
	return keptResult{}, false
}

// resize moves the answers to a table of so many. REQUIRES: size is a power of two, and not below w.count.
func (w *window) resize(size int) {
	old := *w
	*w = window{heads: make([]uint32, size), answers: make([]windowAnswer, 0, size)}
	for _, at := range old.heads {
		for at != 0 {
			a := &old.answers[at-1]
			w.put(a.seq, &a.kept)
			at = a.next
		}
	}
}
