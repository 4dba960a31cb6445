package main

import (
	"context"
	"iter"
	"time"
)

// store is what the verbs need of a cluster; client.go implements it with the Go client. Failures are
// storeErrors where the user can do something about them.
type store interface {
	// Put writes a key and returns its version.
	Put(ctx context.Context, key string, value []byte, o putOptions) (uint64, error)
	// Get reads a key; a missing one is kindNotFound.
	Get(ctx context.Context, key string, o readOptions) (record, error)
	// Delete removes a key. deleted is false when there was none.
	Delete(ctx context.Context, key string, conditions []condition) (deleted bool, version uint64, err error)
	// Touch gives a key a new time to live, none for 0, and returns its version; a missing one is kindNotFound.
	Touch(ctx context.Context, key string, ttl time.Duration, conditions []condition) (uint64, error)
	// Increment adds to the number that a key holds, and returns the sum and its version.
	Increment(ctx context.Context, key string, delta int64, o putOptions) (value int64, version uint64, err error)
	// Count counts the keys of a listing, at the revision that it returns.
	Count(ctx context.Context, o listOptions) (n int64, revision uint64, err error)
	// Watch begins to follow changes; ctx bounds the begin alone.
	Watch(ctx context.Context, o watchOptions) (watch, error)
	// List yields records in order of keys, all of one revision, until the first error; kindCompacted when
	// that revision is no longer kept.
	List(ctx context.Context, o listOptions) iter.Seq2[record, error]
	// Txn does all operations, or none when a condition fails.
	Txn(ctx context.Context, ops []txnOp) (txnResult, error)
	// Status returns the cluster's status as JSON.
	Status(ctx context.Context) ([]byte, error)
	// Revision is that of a state which reflects everything that was acknowledged before.
	Revision(ctx context.Context) (uint64, error)
	// PutAll writes all items, which fit one request, or none.
	PutAll(ctx context.Context, items []putItem) error
	// Admin lists or changes the members, or moves leadership, and returns the members as JSON. A change
	// that may or may not be made is kindUnknown.
	Admin(ctx context.Context, q adminRequest) ([]byte, error)
	Close() error
}

// putItem is one item of PutAll.
type putItem struct {
	Key     string
	Value   []byte
	Options putOptions
}

// record is a key with all that is kept with it. Zero times mean unknown, or never for ExpiresAt.
type record struct {
	Key                             string
	Value                           []byte
	Version                         uint64
	CreatedAt, UpdatedAt, ExpiresAt time.Time
	ContentType, Encoding           string
	Tags                            map[string]string
	// Checksum is the xxhash64 of the value, as it was stored.
	Checksum uint64
	// CommonPrefix: it stands for all keys that begin with Key; nothing else is set.
	CommonPrefix bool
	// Age says how old a stale answer may be, negative where nothing is known; 0 for all others.
	Age time.Duration
}

// readOptions say what a read reflects. The zero value is what the leader has.
type readOptions struct {
	Consistency consistency
	// MaxAge bounds the age of a stale read; 0 does not.
	MaxAge time.Duration
	// Revision asks for the past; 0 does not.
	Revision uint64
}

type consistency int

const (
	linearizable consistency = iota
	// anyNode is linearizable too, and any node may answer.
	anyNode
	stale
)

type putOptions struct {
	TTL                   time.Duration
	ContentType, Encoding string
	Tags                  map[string]string
	// Compress names how the store compresses the value: none, s2, zstd, lz4, or "" as the namespace says.
	Compress   string
	Conditions []condition
}

// conditionKind is what a condition demands of its key.
type conditionKind int

const (
	ifVersion conditionKind = iota
	ifExists
	ifAbsent
	ifValue
	ifTag
	ifTagPresent
	ifTagAbsent
)

type condition struct {
	Kind    conditionKind
	Version uint64
	// Value is what ifValue and ifTag compare.
	Value []byte
	Tag   string
}

type listOptions struct {
	Prefix, Start, End string
	// Limit 0 means all.
	Limit    int
	KeysOnly bool
	Reverse  bool
	// Delimiter lists one level of a hierarchy.
	Delimiter string
	Read      readOptions
	// Patience is how long to go on while the cluster cannot serve, counted anew for each page; Waiting is
	// told why before a page is asked for again, once for each page.
	Patience time.Duration
	Waiting  func(why error)
}

// watchOptions say what to follow: one key, or what lies in the range.
type watchOptions struct {
	Key, Prefix, Start, End string
	// After is the revision to begin behind; 0 is now, unless FromStart.
	After                     uint64
	FromStart                 bool
	KeysOnly, Previous        bool
	NoPut, NoDelete, NoExpire bool
}

// watch gives one change after the other.
type watch interface {
	// Next waits for a change; kindCompacted when what follows is no longer kept.
	Next(ctx context.Context) (event, error)
	// Revision is the one up to which everything has been told.
	Revision() uint64
	Close()
}

// event is a change of a key.
type event struct {
	// Kind is put, delete or expire.
	Kind     string
	Revision uint64
	// Last: of its transaction.
	Last bool
	// Record has the key, and what a put made of it.
	Record record
	// Previous is what was there before, nil for nothing; PreviousLost: it is no longer known.
	Previous     *record
	PreviousLost bool
}

// The types of operations in a transaction.
const (
	txnPut       = "PUT"
	txnDelete    = "DELETE"
	txnGet       = "GET"
	txnCheck     = "CHECK"
	txnTouch     = "TOUCH"
	txnIncrement = "INCREMENT"
)

type txnOp struct {
	Type  string
	Key   string
	Value []byte
	// Delta is what an INCREMENT adds.
	Delta int64
	// Options of a PUT; TTL of a TOUCH and an INCREMENT, Conditions of any.
	Options putOptions
}

type txnResult struct {
	Committed bool
	Version   uint64
	// Results has one element per operation when committed.
	Results []txnOpResult
	// Failed names the conditions that do not hold, when they are known.
	Failed []failedCondition
}

type txnOpResult struct {
	// Found: a GET or TOUCH found its key, a DELETE removed one.
	Found  bool
	Record record
	// Counter is what an INCREMENT made of the value.
	Counter int64
}

type failedCondition struct {
	Operation int `json:"operation"`
	Condition int `json:"condition"`
}
