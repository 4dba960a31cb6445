package peer

import (
	"strings"
	"time"
)

// Bounds of what other nodes can make this one hold or do.
const (
	// idBytesMax and addressBytesMax are those of member records.
	idBytesMax      = 64
	addressBytesMax = 256
	// cardBytesMax holds four addresses and a version as JSON several times over.
	cardBytesMax = 4 << 10
	// refusalBytesMax bounds a refusal's text.
	refusalBytesMax = 1 << 10
	// LineageMax is how many starts of its data directory a node tells the others: 8 bytes each in every handshake.
	LineageMax = 64

	// handshakesMax is how many inbound connections may be in their handshake at once, inboundMax how
	// many may be open. A peer keeps at most poolMax idle connections and one per call under way.
	handshakesMax = 64
	inboundMax    = 256
	poolMax       = 4

	// peersMax bounds the ids that this node remembers, pastMax the former data directories of one.
	peersMax = 256
	pastMax  = 8
	// foundersMax bounds the first configuration; raft groups have 3, 5 or 7 voters.
	foundersMax = 64

	// heldAppendsMax is how many committed appends may wait to be applied before answers are held back.
	// raft's main goroutine, which also answers heartbeats, stops when 128 batches wait.
	heldAppendsMax = 64
	// backlogMax bounds the appends that are counted one by one.
	backlogMax = 16 << 10

	// vitalsBytesMax bounds what a node tells about itself with each pulse, heldMax of how many others it tells;
	// pulseBytesMax is a question with so many of the longest names.
	vitalsBytesMax = 4 << 10
	heldMax        = 32
	pulseBytesMax  = 16 << 10

	descriptorBytesMax = 1 << 20
	// installRequestBytesMax bounds the frame before a snapshot's stream: a configuration of 64 members
	// is below 32 KiB.
	installRequestBytesMax = 256 << 10
)

// offerTimeout bounds the wait for the state that another node fetches to be opened: it may have to become durable
// first, and a leader may have to ask whether it still leads.
const offerTimeout = 20 * time.Second

// Pauses.
const (
	// refusedPause is how long a node that refused for good is not dialled again.
	refusedPause = time.Second
	// rejectedShown is how long the refusal of a process is told while another one of that name is connected.
	rejectedShown = time.Minute
	// Between two log lines about the same thing.
	refusalLogEvery = 10 * time.Second
	foundLogEvery   = 5 * time.Second

	// pulsePauseMax is the longest pause between attempts to reach a node with pulses.
	pulsePauseMax = time.Second

	foundPauseMin  = 20 * time.Millisecond
	foundPauseMax  = 500 * time.Millisecond
	acceptPauseMin = 5 * time.Millisecond
	acceptPauseMax = time.Second
	// holdPoll is how often a held answer looks whether it may go.
	holdPoll = 2 * time.Millisecond
)

// stampSeparator joins an address and the term of a TimeoutNow.
const stampSeparator = "|"

func validID(id string) bool { return id != "" && len(id) <= idBytesMax }

func validAddress(a string) bool {
	return a != "" && len(a) <= addressBytesMax && !strings.Contains(a, stampSeparator)
}
