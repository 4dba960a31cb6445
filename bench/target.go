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

	// GoGet starts a read and returns; it blocks only for back-pressure. done is called once, from any
	// goroutine, maybe before GoGet returns.
	GoGet(ctx context.Context, key string, done func(found bool, err error))
	// GoPut starts a write as GoGet does a read. value stays unchanged until done.
	GoPut(ctx context.Context, key string, value []byte, done func(err error))

	// Kind sorts an error of the methods above.
	Kind(err error) Kind
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
