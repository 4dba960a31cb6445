package bench

import "context"

// Target is what a run drives. All methods are safe for concurrent use.
type Target interface {
	// Get reads key into dst (appending from dst[:0]) and reports whether it exists.
	Get(ctx context.Context, key string, dst []byte) (value []byte, found bool, err error)
	// Put writes key; it may not keep value.
	Put(ctx context.Context, key string, value []byte) error
	// Scan reads up to limit records from start on, in key order, and returns how many came.
	Scan(ctx context.Context, start string, limit int) (items int, err error)
	// GetMany reads all keys in one request and returns how many exist.
	GetMany(ctx context.Context, keys []string) (found int, err error)
	// PutMany writes all keys in one atomic request.
	PutMany(ctx context.Context, keys []string, values [][]byte) error
	// Transact writes the first half of keys (rounded up) and reads the rest in one transaction.
	Transact(ctx context.Context, keys []string, values [][]byte) error

	// Pipeline gives one worker the means to keep up to depth operations under way.
	Pipeline(ctx context.Context, depth int) Pipeline

	// Kind sorts an error of the methods above.
	Kind(err error) Kind
}

// Pipeline keeps operations of one goroutine under way. Each is known by its slot, a number below the depth, from its start
// until Take has given it back.
type Pipeline interface {
	// Get starts a read; it blocks only for back-pressure.
	Get(slot int, key string)
	// Put starts a write as Get does a read. value stays unchanged until it has ended.
	Put(slot int, key string, value []byte)
	// Flush sends what was started.
	Flush()
	// Ready receives when operations may have ended since the last Take.
	Ready() <-chan struct{}
	// Take appends the operations that have ended.
	Take(ended []Ended) []Ended
}

// Ended is an operation of a Pipeline that has ended.
type Ended struct {
	Slot  int
	Found bool // of a get
	Err   error
}

// Kind says what became of an operation that did not succeed.
type Kind uint8

// The kinds of failure, by what the caller knows about the effect of a write.
const (
	// KindUnknown: the write may or may not be applied. Never counted with the others.
	KindUnknown Kind = iota
	// KindUnavailable: no node answered, or it said that it cannot serve now; not applied.
	KindUnavailable
	// KindBusy: refused by load or rate limits; not applied.
	KindBusy
	// KindTimeout: the deadline passed; not applied, or a read.
	KindTimeout
	// KindDenied: no permission.
	KindDenied
	// KindRefused: malformed, too large or not supported; sending it again will not help.
	KindRefused
	// KindOther: anything else, such as a damaged answer.
	KindOther
	// KindNotSent: due by the schedule, but dropped by the full backlog of the generator.
	KindNotSent

	kindCount
)

var kindNames = [kindCount]string{"unknown", "unavailable", "busy", "timeout", "denied", "refused", "other", "not_sent"}

// String gives the name used in reports.
func (k Kind) String() string {
	if k >= kindCount {
		return "other"
	}
	return kindNames[k]
}
