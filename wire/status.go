package wire

import "strconv"

// Status is the outcome of a request or of one item of it. Its high nibble tells the Class, so that a
// client can act on a code that it does not know: 0 to 3 are the classes of that number, 4 is ClassRefused
// once more, all above are unknown.
type Status uint8

// Class says what a status means for the caller.
type Class uint8

// The classes. For a write: ClassResult and the two refusals are certain; ClassUnknown is not, and must
// never be shown as either.
const (
	// ClassResult: the request was executed; the status is its result.
	ClassResult Class = 0
	// ClassRetry: surely not applied; the same request may be sent again.
	ClassRetry Class = 1
	// ClassRefused: surely not applied by this request; sending it again will not help.
	ClassRefused Class = 2
	// ClassUnknown: the write may or may not be applied, now or later. Only a retry with the same session
	// and sequence number, or with the same idempotency key, resolves it.
	ClassUnknown Class = 3
)

// Statuses of ClassResult.
const (
	StatusOK              Status = 0x00
	StatusNotFound        Status = 0x01
	StatusConditionFailed Status = 0x02
)

// Statuses of ClassRetry.
const (
	StatusNotLeader  Status = 0x10
	StatusBusy       Status = 0x11
	StatusTooLate    Status = 0x12
	StatusDraining   Status = 0x13
	StatusNoLeader   Status = 0x14
	StatusLimited    Status = 0x15
	StatusDiskFull   Status = 0x16
	StatusNotReady   Status = 0x17
	StatusReplyFull  Status = 0x18
	StatusRetryLater Status = 0x19
)

// Statuses of ClassRefused.
const (
	StatusBadRequest      Status = 0x20
	StatusTooLarge        Status = 0x21
	StatusUnknownOp       Status = 0x22
	StatusUnsupported     Status = 0x23
	StatusUnauthenticated Status = 0x24
	StatusDenied          Status = 0x25
	StatusCompacted       Status = 0x26
	StatusSessionExpired  Status = 0x27
	StatusSessionStale    Status = 0x28
	StatusBadKey          Status = 0x29
	StatusChecksum        Status = 0x2a
	StatusNoNamespace     Status = 0x2b
	StatusCancelled       Status = 0x2c
	StatusFutureRevision  Status = 0x2d
	StatusDamaged         Status = 0x2e
	StatusSessionsTooMany Status = 0x2f
)

// More statuses of ClassRefused, whose first sixteen are given.
const (
	StatusQuota           Status = 0x40
	StatusNamespaceExists Status = 0x41
	StatusTooMany         Status = 0x42
	StatusNotANumber      Status = 0x43
	StatusKeyReused       Status = 0x44
)

// Statuses of ClassUnknown.
const (
	StatusLeadershipLost Status = 0x30
	StatusTimeout        Status = 0x31
	StatusShutdown       Status = 0x32
	StatusInternal       Status = 0x33
)

// StatusInfo is one row of the status table.
type StatusInfo struct {
	Status Status
	// Name is the constant's name on the wire's documentation, such as NOT_LEADER.
	Name string
	// Code is the stable code for people and for REST: "KV-" and four digits, the first being the class plus
	// one, the others the low nibble of the status in decimal, and 16 more in the second row of ClassRefused:
	// KV-1001 is NOT_FOUND (0x01), KV-3009 BAD_KEY (0x29), KV-3017 NAMESPACE_EXISTS (0x41). For a status that this build does not know 900 is added (KV-2912 for 0x1c); such a code is for
	// reading, not for comparing.
	Code string
	// Message says what, why and what to do, for callers who get no better text.
	Message string
}

var statusTable = [256]StatusInfo{
	StatusOK:              {Name: "OK", Message: "done"},
	StatusNotFound:        {Name: "NOT_FOUND", Message: "the key does not exist"},
	StatusConditionFailed: {Name: "CONDITION_FAILED", Message: "a condition does not hold; nothing was changed: read the key again and decide anew"},

	StatusNotLeader:  {Name: "NOT_LEADER", Message: "this node does not lead; nothing was changed: ask the leader named in the answer"},
	StatusBusy:       {Name: "BUSY", Message: "the server has more work than it may queue; nothing was changed: try again after a pause"},
	StatusTooLate:    {Name: "TOO_LATE", Message: "the deadline passed before execution began; nothing was changed"},
	StatusDraining:   {Name: "DRAINING", Message: "the server is shutting down; nothing was changed: ask another node, or this one after its restart"},
	StatusNoLeader:   {Name: "NO_LEADER", Message: "no leader is known at present; nothing was changed: try again shortly"},
	StatusLimited:    {Name: "LIMITED", Message: "a rate limit was reached; nothing was changed: try again after the pause that the answer names"},
	StatusDiskFull:   {Name: "DISK_FULL", Message: "free disk space is below the floor; writes are refused until space returns, reads and deletes go on: free space or enlarge the volume"},
	StatusNotReady:   {Name: "NOT_READY", Message: "the node is still starting; nothing was changed: try again shortly"},
	StatusReplyFull:  {Name: "REPLY_FULL", Message: "the answer to the whole request is full; ask for this key again"},
	StatusRetryLater: {Name: "RETRY_LATER", Message: "not executed; try again"},

	StatusBadRequest:      {Name: "BAD_REQUEST", Message: "the request is malformed; nothing was changed"},
	StatusTooLarge:        {Name: "TOO_LARGE", Message: "the request is larger than the limit named in the answer; nothing was changed"},
	StatusUnknownOp:       {Name: "UNKNOWN_OP", Message: "the server does not know this operation; nothing was changed"},
	StatusUnsupported:     {Name: "UNSUPPORTED", Message: "the request carries a critical extension that the server does not know; nothing was changed"},
	StatusUnauthenticated: {Name: "UNAUTHENTICATED", Message: "the connection has no identity: log in first"},
	StatusDenied:          {Name: "DENIED", Message: "this identity may not do that; nothing was changed"},
	StatusCompacted:       {Name: "COMPACTED", Message: "that revision is no longer kept: start the listing or the watch anew"},
	StatusSessionExpired:  {Name: "SESSION_EXPIRED", Message: "the session is unknown or expired; this request was not applied, an earlier one with the same sequence number may have been: open a new session"},
	StatusSessionStale:    {Name: "SESSION_STALE", Message: "the sequence number was acknowledged before or is beyond the session's window; this request was not applied"},
	StatusBadKey:          {Name: "BAD_KEY", Message: "a key is valid UTF-8 of 1 to 1024 bytes; nothing was changed"},
	StatusChecksum:        {Name: "CHECKSUM_MISMATCH", Message: "the value does not match the checksum sent with it; nothing was changed: send it again"},
	StatusNoNamespace:     {Name: "NO_NAMESPACE", Message: "the namespace does not exist; nothing was changed"},
	StatusCancelled:       {Name: "CANCELLED", Message: "cancelled before execution; nothing was changed"},
	StatusFutureRevision:  {Name: "FUTURE_REVISION", Message: "the store has not reached that revision yet"},
	StatusDamaged:         {Name: "DAMAGED", Message: "the stored record fails its checksum; the node refuses to answer from it: see the server's log"},
	StatusSessionsTooMany: {Name: "SESSIONS_TOO_MANY", Message: "the store holds as many sessions as it may; close clients that are not needed, or wait until idle sessions expire"},

	StatusQuota:           {Name: "QUOTA_EXCEEDED", Message: "the namespace holds as many keys or bytes as its quota allows; nothing was changed: delete some, or raise the quota"},
	StatusNamespaceExists: {Name: "NAMESPACE_EXISTS", Message: "a namespace of that name exists; nothing was changed"},
	StatusTooMany:         {Name: "TOO_MANY", Message: "there are as many of these as there may be; nothing was changed: end or remove some first"},
	StatusNotANumber:      {Name: "NOT_A_NUMBER", Message: "the value is not a whole number of 64 bits in decimal digits, or the sum is not; nothing was changed"},
	StatusKeyReused:       {Name: "IDEMPOTENCY_KEY_REUSED", Message: "the idempotency key belongs to another request, which was executed before; this one was not applied: give each request a key of its own"},

	StatusLeadershipLost: {Name: "LEADERSHIP_LOST", Message: "leadership was lost while the write was under way; it may or may not be applied"},
	StatusTimeout:        {Name: "TIMEOUT", Message: "the deadline passed while the write was under way; it may or may not be applied"},
	StatusShutdown:       {Name: "SHUTDOWN", Message: "the server stopped while the write was under way; it may or may not be applied"},
	StatusInternal:       {Name: "INTERNAL", Message: "the server failed while the write was under way; it may or may not be applied: see the server's log"},
}

func init() {
	for i := range statusTable {
		if statusTable[i].Name == "" {
			continue
		}
		s := Status(i)
		statusTable[i].Status = s
		statusTable[i].Code = "KV-" + strconv.Itoa((int(s.Class())+1)*1000+int(s&0x0f)+s.row())
	}
}

// nibbleRefused2 is the high nibble of the second sixteen statuses of ClassRefused.
const nibbleRefused2 = 4

// Class gives the meaning of s, also for codes that this build does not know; what is outside the known
// classes counts as unknown, the only safe reading.
func (s Status) Class() Class {
	switch c := Class(s >> 4); {
	case c < ClassUnknown:
		return c
	case c == nibbleRefused2:
		return ClassRefused
	}
	return ClassUnknown
}

// row is what the code of s adds for the place of its nibble within its class.
func (s Status) row() int {
	if s>>4 == nibbleRefused2 {
		return 16
	}
	return 0
}

// Retryable reports whether the same request may be sent again without harm.
func (s Status) Retryable() bool { return s.Class() == ClassRetry }

// Applied says for a write what is known of its effect: "yes", "no" or "unknown".
func (s Status) Applied() string {
	switch {
	case s == StatusOK:
		return "yes"
	case s.Class() == ClassUnknown:
		return "unknown"
	default:
		return "no"
	}
}

// Info gives the row of the status table; for an unknown code a row with a made-up name and its class.
func (s Status) Info() StatusInfo {
	in := statusTable[s]
	if in.Name == "" {
		n := strconv.Itoa(int(s))
		return StatusInfo{Status: s, Name: "STATUS_" + n, Code: "KV-" + strconv.Itoa((int(s.Class())+1)*1000+900+int(s&0x0f)+s.row()), Message: "status " + n + ", unknown to this version"}
	}
	return in
}

// String gives the status's name.
func (s Status) String() string { return s.Info().Name }

// Statuses lists the status table in order of code, for documentation and tests.
func Statuses() []StatusInfo {
	var out []StatusInfo
	for i := range statusTable {
		if statusTable[i].Name != "" {
			out = append(out, statusTable[i])
		}
	}
	return out
}
