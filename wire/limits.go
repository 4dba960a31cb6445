package wire

import "time"

// The bounds that client, server and log share. Relations between them are asserted below at compile
// time. Bounds that belong to a single package stand in that package's Options.
const (
	// KeyBytesMax is the longest key; keys are valid UTF-8 of 1 to KeyBytesMax bytes.
	KeyBytesMax = 1024
	// ValueBytesMax is the largest value of one key.
	ValueBytesMax = 16 << 20
	// ExtBytesMax is the largest extension block: its length is a u16.
	ExtBytesMax = 1<<16 - 1
	// FrameBodyBytesMax bounds what follows a frame header, as sent and after decompression. It holds the
	// largest value, the largest key, a full extension block and the framing of a batch around them.
	FrameBodyBytesMax = ValueBytesMax + 128<<10
	// EntryBytesMax bounds one Raft entry: one largest frame body with its headers.
	EntryBytesMax = FrameBodyBytesMax + EntryHeaderBytes + OpHeaderBytes
	// HelloBytesMax bounds the body of HELLO and of its answer: it is read before anyone is known.
	HelloBytesMax = 16 << 10
	// CodecsMax bounds the codecs that a HELLO offers, ClientNameBytesMax the client's name in it.
	CodecsMax          = 16
	ClientNameBytesMax = 256
	// MaxFrameMin is the smallest limit on answers that a client may set: an error with its text and its
	// elements always fits.
	MaxFrameMin = 4 << 10
	// PingBytesMax bounds the payload that PING echoes.
	PingBytesMax = 1 << 10
	// AdminBytesMax bounds the document that OpAdmin carries.
	AdminBytesMax = 16 << 10
	// NodeIDBytesMax, AddressBytesMax and VersionBytesMax bound what a member record holds.
	NodeIDBytesMax  = 64
	AddressBytesMax = 256
	VersionBytesMax = 64
	// MessageBytesMax bounds the text of an error answer.
	MessageBytesMax = 1 << 10

	// BatchOpsMax bounds the operations of one batch or transaction and the keys of one MULTIGET.
	BatchOpsMax = 1 << 16
	// PositionBits is the width of a mutation's place within its entry; see Revision.
	PositionBits = 20
	// EntryItemsMax bounds the mutations of one entry, the items of batches and transactions counted each
	// (Request.Items): a mutation takes at most two positions, the expiry of the old record and the write.
	EntryItemsMax = 1 << (PositionBits - 1)
	// ConditionsMax bounds the conditions of one operation.
	ConditionsMax = 64
	// ConditionValueBytesMax is the longest value that ConditionValue compares: it travels in the
	// extension block.
	ConditionValueBytesMax = 32 << 10
	// TagsMax, TagNameBytesMax and TagValueBytesMax bound the tags of one record.
	TagsMax          = 64
	TagNameBytesMax  = 64
	TagValueBytesMax = 512
	// ContentTypeBytesMax and EncodingBytesMax bound the hints kept with a value.
	ContentTypeBytesMax = 256
	EncodingBytesMax    = 64
	// NamespaceBytesMax is the longest name of a namespace.
	NamespaceBytesMax = 128
	// NamespacesMax bounds the namespaces of a group, those that are being removed included: each node holds them in
	// memory. It belongs to the behaviour level.
	NamespacesMax = 4096
	// PurgeMax bounds the records that one entry removes from a dropped namespace. It belongs to the behaviour level.
	PurgeMax = 4096
	// TTLMsMax is the longest time to live: 100 years, so that deadlines never overflow.
	TTLMsMax = 100 * 366 * 24 * 3600 * 1000

	// ScanLimitMax bounds the items of one page, ScanBytesMax the bytes of its items. A page always holds
	// at least the first item that there is, so it exceeds ScanBytesMax only when it holds that one alone.
	// Zero in a request asks for the defaults.
	ScanLimitMax     = 10_000
	ScanLimitDefault = 1_000
	ScanBytesMax     = 4 << 20
	ScanBytesDefault = 1 << 20
	// CursorBytesMax bounds an opaque cursor.
	CursorBytesMax = KeyBytesMax + 128

	// StreamCreditDefault is the credit, in bytes of payload, that a watch or a streamed listing starts with when its
	// request names none, StreamCreditMax the most that it holds.
	StreamCreditDefault = 1 << 20
	StreamCreditMax     = 64 << 20
	// EventBytesMax bounds the payload of one frame of events unless it holds a single event.
	EventBytesMax = 256 << 10
	// ProgressMsDefault is how often a watch without events tells how far it has come, in milliseconds;
	// ProgressMsMin and ProgressMsMax bound what a request may ask for.
	ProgressMsDefault = 5_000
	ProgressMsMin     = 100
	ProgressMsMax     = 60_000

	// SessionWindow is how far a session's sequence numbers may run ahead of its acknowledgement floor:
	// the answers that the state machine keeps for a session are at most this many.
	SessionWindow = 8192
	// SessionsMax bounds the sessions alive at once in one group.
	SessionsMax = 1 << 16
	// SessionReplayBytesMax is the largest result payload that is kept for a replay; a longer one is
	// replayed as status and revision only, with FlagReplayed set on the answer.
	SessionReplayBytesMax = 1 << 10
	// SessionsBytesMax bounds the memory of all answers kept for replays in one group. Beyond it the
	// sessions that have been idle for longest are ended.
	SessionsBytesMax = 256 << 20
	// SessionTTL is how long (in log time) a session lives after its last write.
	SessionTTL = 10 * time.Minute

	// IdempotencyTTL is how long (in log time) the answer to a write with ExtIdempotency is kept, from its execution on.
	IdempotencyTTL = 10 * time.Minute
	// IdempotencyAnswerBytesMax bounds the payload of such an answer: a longer one could not be given again. A group
	// whose answer takes more even without the values that it reads is refused with StatusTooLarge.
	IdempotencyAnswerBytesMax = 64 << 10
	// IdempotencyBytesMax bounds the memory of all those answers in one group, IdempotencyOverheadBytes is what each
	// counts besides its payload: at most 524,288 are kept. Beyond it new keys are refused with StatusRetryLater.
	IdempotencyBytesMax      = 128 << 20
	IdempotencyOverheadBytes = 256

	// ConnInflightMax and ConnInflightBytesMax are the credits of a connection: requests, and bytes of
	// request bodies, that may be unanswered at once. Beyond them the answer is StatusBusy.
	ConnInflightMax      = 16384
	ConnInflightBytesMax = 64 << 20

	// TimeoutDefault is a request's deadline when it carries none, TimeoutMax the longest that counts.
	TimeoutDefault = 10 * time.Second
	TimeoutMax     = 10 * time.Minute
)

// keptBytesMax is the most that the elements kept with a value take (Mutation.Kept): 6 bytes of head each.
const keptBytesMax = TagsMax*(6+1+TagNameBytesMax+TagValueBytesMax) + 6 + ContentTypeBytesMax + 6 + EncodingBytesMax

// Relations between the bounds: a negative difference does not compile.
const (
	_ = uint(FrameBodyBytesMax - ValueBytesMax - ExtBytesMax - KeyBytesMax)
	_ = uint(EntryItemsMax - 4*BatchOpsMax)
	// A page of one item of the largest key, ext and value, with its cursor.
	_ = uint(FrameBodyBytesMax - ScanPageHeaderBytes - ItemHeaderBytes - ExtBytesMax - KeyBytesMax - ValueBytesMax - CursorBytesMax)
	_ = uint(FrameBodyBytesMax - ScanBytesMax - ScanPageHeaderBytes - CursorBytesMax)
	// The elements kept with a value and its meta fit one extension block: an answer can always be framed.
	_ = uint(ExtBytesMax - keptBytesMax - 2 - MetaBytes)
	_ = uint(MaxFrameMin - MessageBytesMax - 2048)
	_ = uint(HelloBytesMax - MessageBytesMax - 1024)
	_ = uint(ExtBytesMax - ConditionValueBytesMax - 4096)
)
