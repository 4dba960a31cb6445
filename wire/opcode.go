package wire

import "strconv"

// Opcode names what a frame or an operation of a log entry asks for. An answer echoes the opcode of its
// request.
type Opcode uint8

// Opcodes of frames. The high nibble groups them: 0 connection, 1 reads, 2 writes, 3 sessions, 4 watch,
// 5 operations that only the server itself puts into the log.
const (
	OpHello Opcode = 0x01
	// OpGoAway is sent by servers only; see AppendGoAway.
	OpGoAway Opcode = 0x02
	// OpPing answers with its payload; its id may be 0.
	OpPing Opcode = 0x03
	// OpCancel asks to give up the unanswered request that its payload names (u32 id). It is never
	// answered itself: the final answer to the named request is its effect. Its own id is 0.
	OpCancel Opcode = 0x04
	// OpCredit returns credit to a stream: its payload is u32 request id | u32 bytes. It is never answered; its own
	// id is 0. See WatchRequest.Credit.
	OpCredit Opcode = 0x05
	// OpStatus answers with a JSON document about the cluster as the asked node sees it or, when its payload
	// is StatusLocal, about that node alone.
	OpStatus Opcode = 0x06
	// OpAdmin changes or lists the members of the cluster, or moves its leadership: a JSON document asks, a
	// JSON document answers. The leader executes it.
	OpAdmin Opcode = 0x07
	// OpReadIndex asks the leader, once a majority has confirmed it, how far it has applied: the answer's
	// payload is u64 index | u64 term | u64 revision. A follower that has applied as much may serve every
	// linearizable read that it had received before it asked.
	OpReadIndex Opcode = 0x08

	OpGet      Opcode = 0x10
	OpExists   Opcode = 0x11
	OpMultiGet Opcode = 0x12
	OpScan     Opcode = 0x13
	// OpCheck stands only inside a transaction: at least one condition, and no effect.
	OpCheck Opcode = 0x14

	OpPut    Opcode = 0x20
	OpDelete Opcode = 0x21
	OpBatch  Opcode = 0x22
	OpTxn    Opcode = 0x23
	// OpTouch sets the time to live of a record that is there, or takes it away, and leaves all else as it is. The
	// record gets a new version.
	OpTouch Opcode = 0x24
	// OpIncrement adds its payload (i64) to a value that is a whole number in decimal digits; an absent record counts
	// as 0. See AppendIncrement.
	OpIncrement Opcode = 0x25

	OpSessionOpen  Opcode = 0x30
	OpSessionClose Opcode = 0x31

	// OpWatch asks for the changes of a range of keys as they happen, in frames with FlagMore; see WatchRequest.
	OpWatch Opcode = 0x40

	// Those from OpExpire on occur only in log entries; a client that sends one gets StatusUnknownOp.
	OpExpire  Opcode = 0x50
	OpInit    Opcode = 0x51
	OpMember  Opcode = 0x52
	OpRecover Opcode = 0x53
	// OpLevel raises the behaviour level of the state machine; see AppendLevel.
	OpLevel Opcode = 0x54
	// OpNamespace creates or changes a namespace, or removes some of its records; see NamespaceChange.
	OpNamespace Opcode = 0x55
)

// StatusLocal is the payload of an OpStatus that asks about the asked node alone: nodes ask each other so.
const StatusLocal = 0x01

// String gives the name used in metrics and messages; an unknown opcode prints as a number.
func (o Opcode) String() string {
	switch o {
	case OpHello:
		return "hello"
	case OpGoAway:
		return "goaway"
	case OpPing:
		return "ping"
	case OpCancel:
		return "cancel"
	case OpCredit:
		return "credit"
	case OpStatus:
		return "status"
	case OpAdmin:
		return "admin"
	case OpReadIndex:
		return "read_index"
	case OpGet:
		return "get"
	case OpExists:
		return "exists"
	case OpMultiGet:
		return "multiget"
	case OpScan:
		return "scan"
	case OpCheck:
		return "check"
	case OpPut:
		return "put"
	case OpDelete:
		return "delete"
	case OpBatch:
		return "batch"
	case OpTxn:
		return "txn"
	case OpTouch:
		return "touch"
	case OpIncrement:
		return "increment"
	case OpSessionOpen:
		return "session_open"
	case OpSessionClose:
		return "session_close"
	case OpWatch:
		return "watch"
	case OpExpire:
		return "expire"
	case OpInit:
		return "init"
	case OpMember:
		return "member"
	case OpRecover:
		return "recover"
	case OpLevel:
		return "level"
	case OpNamespace:
		return "namespace"
	}
	return "op_0x" + strconv.FormatUint(uint64(o), 16)
}

// IsWrite reports whether a client's request with this opcode goes through the log.
func (o Opcode) IsWrite() bool {
	switch o {
	case OpPut, OpDelete, OpBatch, OpTxn, OpTouch, OpIncrement, OpSessionOpen, OpSessionClose:
		return true
	}
	return false
}

// IsMutation reports whether o changes one key: it may stand alone, in a batch and in a transaction.
func (o Opcode) IsMutation() bool {
	return o == OpPut || o == OpDelete || o == OpTouch || o == OpIncrement
}

// requestable reports whether a client may ask for o once its connection is open.
func (o Opcode) requestable() bool {
	return o.IsRead() || o.IsWrite() || o == OpPing || o == OpCancel || o == OpCredit || o == OpStatus || o == OpAdmin || o == OpReadIndex || o == OpWatch
}

// IsRead reports whether a client's request with this opcode reads the state without the log.
func (o Opcode) IsRead() bool { return o == OpGet || o == OpExists || o == OpMultiGet || o == OpScan }
