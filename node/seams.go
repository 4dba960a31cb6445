package node

import (
	"kvstore/wire"
)

// Principal is who a connection or a call speaks for. Its ids travel with each operation into the log.
type Principal struct {
	// ID is the numeric id of the user; 0 while there are no users.
	ID uint32
	// Name is for logs and audit.
	Name string
	// AuthRevision is the revision of the rules that its rights were read from; 0 while there are none.
	AuthRevision uint64
}

// anonymous is the principal of every connection while there are no users.
var anonymous = &Principal{Name: "anonymous"}

// Access is one question to an Authorizer: may a principal do this operation there?
type Access struct {
	Op        wire.Opcode
	Namespace uint32
	// Key is the key, or the prefix or beginning of a listing or watch.
	Key []byte
	// End bounds a listing or watch: it may return keys in [Key, End) and, when Prefix is true, only those that
	// begin with Key.
	End    []byte
	Prefix bool
}

// Authorizer decides on every operation: each item of a batch, transaction or MULTIGET is a question of
// its own, and an operation with conditions is asked about as OpCheck too, since their outcome tells
// something of the record. Implementations
// are called on event loops and must not block.
type Authorizer interface {
	// Authorize reports whether p may do a.
	Authorize(p *Principal, a *Access) bool
	// Open reports that every question is answered with yes, so that the doors need not ask.
	Open() bool
}

// AllowAll is the Authorizer of a node without users.
type AllowAll struct{}

// Authorize says yes.
func (AllowAll) Authorize(*Principal, *Access) bool { return true }

// Open says that it always says yes.
func (AllowAll) Open() bool { return true }

// Limiter bounds the rate of requests, beside the limits that namespaces have as state. It is asked once for each
// request, on event loops, and must not block.
type Limiter interface {
	// Allow reports whether p may run one request of bytes now, in the namespace ns (wire.NamespaceNone where its
	// name stands for none yet); otherwise after how many milliseconds it may ask again.
	Allow(p *Principal, ns uint32, op wire.Opcode, bytes int) (ok bool, retryAfterMs uint32)
}

// NoLimit is the Limiter of a node without limits.
type NoLimit struct{}

// Allow says yes.
func (NoLimit) Allow(*Principal, uint32, wire.Opcode, int) (bool, uint32) { return true, 0 }

// AuditEvent is what an AuditSink is told.
type AuditEvent struct {
	Principal *Principal
	Op        wire.Opcode
	Namespace uint32
	Key       []byte // a view, valid during the call
	Allowed   bool
}

// AuditSink takes events of access. It is called on event loops and must not block.
type AuditSink interface {
	// Audit takes one event; it copies what it keeps.
	Audit(e *AuditEvent)
	// Wants reports whether the sink wants to hear of op at all.
	Wants(op wire.Opcode, allowed bool) bool
}

// NoAudit is the AuditSink that drops everything.
type NoAudit struct{}

// Audit drops the event.
func (NoAudit) Audit(*AuditEvent) {}

// Wants says no.
func (NoAudit) Wants(wire.Opcode, bool) bool { return false }
