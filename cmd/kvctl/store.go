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
	// List yields records in order of keys, all of one revision, until the first error; kindCompacted when
	// that revision is no longer kept.
	List(ctx context.Context, o listOptions) iter.Seq2[record, error]
	// Txn does all operations, or none when a condition fails.
	Txn(ctx context.Context, ops []txnOp) (txnResult, error)
	// Status returns the cluster's status as JSON.
	Status(ctx context.Context) ([]byte, error)
	// Admin lists or changes the members, or moves leadership, and returns the members as JSON. A change
	// that may or may not be made is kindUnknown.
	Admin(ctx context.Context, q adminRequest) ([]byte, error)
	Close() error
}

// record is a key with all that is kept with it. Zero times mean unknown, or never for ExpiresAt.
type record struct {
	Key                             string
	Value                           []byte
	Version                         uint64
	CreatedAt, UpdatedAt, ExpiresAt time.Time
	ContentType, Encoding           string
	Tags                            map[string]string
	// Age says how old a stale answer may be, negative where nothing is known; 0 for all others.
	Age time.Duration
}

// readOptions say what a read reflects. The zero value is what the leader has.
type readOptions struct {
	Consistency consistency
	// MaxAge bounds the age of a stale read; 0 does not.
	MaxAge time.Duration
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
	Conditions            []condition
}

// conditionKind is what a condition demands of its key.
type conditionKind int

const (
	ifVersion conditionKind = iota
	ifExists
	ifAbsent
	ifValue
)

type condition struct {
	Kind    conditionKind
	Version uint64
	Value   []byte
}

type listOptions struct {
	Prefix, Start, End string
	// Limit 0 means all.
	Limit    int
	KeysOnly bool
	Reverse  bool
	Read     readOptions
	// Patience is how long to go on while the cluster cannot serve, counted anew for each page; Waiting is
	// told why before a page is asked for again, once for each page.
	Patience time.Duration
	Waiting  func(why error)
}

// The types of operations in a transaction.
const (
	txnPut    = "PUT"
	txnDelete = "DELETE"
	txnGet    = "GET"
	txnCheck  = "CHECK"
)

type txnOp struct {
	Type  string
	Key   string
	Value []byte
	// Options of a PUT; Conditions of any.
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
	// Found: a GET found its key, a DELETE removed one.
	Found  bool
	Record record
}

type failedCondition struct {
	Operation int `json:"operation"`
	Condition int `json:"condition"`
}
