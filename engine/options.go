package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"kvstore/wire"
)

// Defaults and bounds of Options that are derived from each other or used in more than one place.
const (
	memtableBytesDefault = 64 << 20
	memtableBytesMin     = 1 << 20
	memtableBytesMax     = 1 << 30 // Badger maps twice this per log and counts offsets in 32 bits.

	checkpointBytesBoundMax = 1 << 30 // Options.CheckpointBytes: three times as much may stand in memory.

	numMemtablesDefault = 3

	chunkBytesDefault          = 256 << 10
	chunkThresholdBytesDefault = 512 << 10

	// valueThresholdMax is the largest value threshold that Badger takes: a value of this size or more
	// would go to the value log, which this package never uses.
	valueThresholdMax = 1 << 20

	// recordOverheadMax bounds what a stored record or chunk adds to its value, key included: header,
	// family prefix, a full key and a full extension block.
	recordOverheadMax = 4<<10 + wire.KeyBytesMax + wire.ExtBytesMax
)

// Options configures an Engine. The zero value of a field means its default; only Dir has none. Open
// copies the struct.
type Options struct {
	// Dir is the node's data directory. The engine keeps everything below Dir/groups/<Group>. Never
	// share it between processes.
	Dir string
	// Group is the id of the Raft group whose state this is. Default 0 is group 1.
	Group uint32
	// Logger receives this package's and Badger's log lines. Default slog.Default().
	Logger *slog.Logger

	// MemtableBytes is the size of one memtable; twice this is mapped per memtable log. Default 64 MiB, 1
	// MiB to 1 GiB. Smaller: more level-0 tables, slower reads; larger: more memory, longer flushes.
	MemtableBytes int64
	// NumMemtables is how many full memtables may wait for their flush before writes block. Default 3: the
	// two fewer than Badger's own default save 170 MB at the peak of a burst.
	NumMemtables int
	// NumCompactors is the number of compaction workers. Default 3 up to four processors, else 4. Never
	// below 3: only the third worker ever compacts the last level onto itself, and without that
	// deleted keys keep their space for ever. More than 3 on a small machine take time from Apply.
	NumCompactors int

	// CheckpointInterval is the longest time between two durable checkpoints while entries arrive. Default
	// 30 s, which matters where little is written: else CheckpointBytes comes first. Longer: more log to replay at start;
	// shorter: more fdatasyncs beside the log's own, and more versions that Badger needn't have seen.
	CheckpointInterval time.Duration
	// CheckpointBytes is what may gather in memory before a checkpoint brings it to Badger, ahead of its interval. Up to three
	// times this stands there: what a checkpoint is bringing, and twice as much that Apply stores meanwhile; then Apply waits.
	// Default 64 MiB, 1 GiB at most.
	CheckpointBytes int64

	// HistoryWindow is how far back, in log time, past revisions stay readable. Default 60 s; negative:
	// nothing is kept for the past beyond the checkpoint and the pins.
	HistoryWindow time.Duration
	// HistoryBytes bounds the window: when more than this has been stored since, the past is given up
	// early. Default 8 MiB: what the past holds must go to Badger version by version. Negative: no bound.
	HistoryBytes int64
	// PinAgeMax is how long one pin can hold a past revision. Default 10 min. An older pin loses its hold:
	// its reader gets ErrCompacted.
	PinAgeMax time.Duration
	// PinBytesMax is how many bytes may be stored behind a pin before it loses its hold. Default 8 GiB.
	PinBytesMax int64
	// PinsMax bounds the pins that are held at once. Default 4096.
	PinsMax int

	// CacheBytes bounds the hot-record cache. Default 64 MiB; negative: no cache.
	CacheBytes int64
	// ChunkThresholdBytes is the largest value that is stored in one piece. Default 512 KiB, or what a
	// small memtable's transaction can hold. Layout only: it never changes the state or its digest.
	ChunkThresholdBytes int
	// ChunkBytes is the size of the pieces of a larger value. Default 256 KiB, or what a small memtable's
	// transaction can hold. Layout only.
	ChunkBytes int

	// CompressThresholdBytes is the smallest value that is compressed where a put or a namespace asks for it. Default
	// 1 KiB; negative: none is. Layout only.
	CompressThresholdBytes int
	// CompressLevel is the level of zstd, 1 (fastest) to 4 (smallest). Default 1: the values
	// are compressed by Apply, which all writes wait for. Layout only.
	CompressLevel int

	// Sink receives the effects of each entry, in log order. Default: none.
	Sink EffectSink

	// Fatal is called once, from any goroutine, when the engine can't go on: a failed fdatasync, a flush
	// that fails, an entry that can't be applied (ErrDamaged if that is because of what is stored). Default:
	// log the error and exit with status 1. If it returns, the engine stays failed: entries are not
	// applied, checkpoints and waits return the error.
	Fatal func(error)
	// OnDamage is called when a read, a scrub or an entry meets damage, at most once in a minute, from any
	// goroutine; it must not block. The error matches ErrRecordDamaged, ErrDigestMismatch or ErrDamaged.
	// Default: none.
	OnDamage func(error)

	// hooks are for this package's tests.
	hooks hooks
}

// hooks are the seams at which tests of this package look and interfere. All may be zero.
type hooks struct {
	// beforeSync is called before each fdatasync of a memtable log, with its path.
	beforeSync func(path string)
	// beforeCheckpointRename is called when everything that a checkpoint claims is on disk and before
	// its record is written.
	beforeCheckpointRename func(cp Checkpoint)
	// openBadger runs before each opening of Badger; an error is that of Badger's opening.
	openBadger func(dir string) error
	// syncFile stands in for fdatasync.
	syncFile func(f *os.File) error
	// duringRead is called inside store.read between the function and the fence check.
	duringRead func()
	// beforeWait is called inside WaitApplied when the entry was not applied, before it is waited for.
	beforeWait func()
	// now stands in for the monotonic clock of the pins' ages.
	now func() time.Time
	// atStep is called at each step of receiving and installing a snapshot; see stepCreated.
	atStep func(step string)
	// writeCheckpoint stands in for the replacement of CHECKPOINT by an installation.
	writeCheckpoint func(dir string, cp *Checkpoint) error
	// largeStore has the opening take the tables for more than it checks.
	largeStore bool
	// scanVisits stands in for scanVisitsMax.
	scanVisits int
	// markerPoint stands in for the decoder of markers.
	markerPoint func(marker []byte) (point, error)
}

// withDefaults returns o with every unset field set. It doesn't validate.
func (o Options) withDefaults() Options {
	setDefault := func(field *int64, value int64) {
		if *field == 0 {
			*field = value
		}
	}
	if o.Group == 0 {
		o.Group = 1
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	o.Logger = o.Logger.With("package", "engine", "group", o.Group)
	setDefault(&o.MemtableBytes, memtableBytesDefault)
	setDefault(&o.CheckpointBytes, 128<<20)
	setDefault(&o.HistoryBytes, 8<<20)
	setDefault(&o.PinBytesMax, 8<<30)
	setDefault(&o.CacheBytes, 64<<20)
	if o.NumMemtables == 0 {
		o.NumMemtables = numMemtablesDefault
	}
	if o.NumCompactors == 0 {
		o.NumCompactors = 3
		if runtime.GOMAXPROCS(0) > 4 {
			o.NumCompactors = 4
		}
	}
	if o.CheckpointInterval == 0 {
		o.CheckpointInterval = 30 * time.Second
	}
	if o.HistoryWindow == 0 {
		o.HistoryWindow = time.Minute
	}
	if o.PinAgeMax == 0 {
		o.PinAgeMax = 10 * time.Minute
	}
	if o.PinsMax == 0 {
		o.PinsMax = 4096
	}
	inline := int(txnBytesMax(o.MemtableBytes)) - recordOverheadMax
	if o.ChunkThresholdBytes == 0 {
		o.ChunkThresholdBytes = min(chunkThresholdBytesDefault, inline)
	}
	if o.ChunkBytes == 0 {
		o.ChunkBytes = min(chunkBytesDefault, inline)
	}
	if o.CompressThresholdBytes == 0 {
		o.CompressThresholdBytes = compressThresholdBytesDefault
	}
	if o.CompressLevel == 0 {
		o.CompressLevel = 1
	}
	if o.Fatal == nil {
		logger := o.Logger
		o.Fatal = func(err error) {
			logger.Error("engine failed; stopping the process", "error", err)
			os.Exit(1)
		}
	}
	if o.hooks.now == nil {
		o.hooks.now = time.Now
	}
	if o.hooks.syncFile == nil {
		o.hooks.syncFile = fdatasync
	}
	if o.hooks.writeCheckpoint == nil {
		o.hooks.writeCheckpoint = writeCheckpoint
	}
	if o.hooks.scanVisits == 0 {
		o.hooks.scanVisits = scanVisitsMax
	}
	if o.hooks.markerPoint == nil {
		o.hooks.markerPoint = markerPoint
	}
	return o
}

// validate lists all faults of o at once. REQUIRES: o has its defaults.
func (o *Options) validate() error {
	var faults []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	check(o.Dir != "", "Dir is empty")
	check(o.MemtableBytes >= memtableBytesMin && o.MemtableBytes <= memtableBytesMax,
		"MemtableBytes is %d, must be %d to %d", o.MemtableBytes, int64(memtableBytesMin), int64(memtableBytesMax))
	check(o.NumMemtables >= 1 && o.NumMemtables <= 64, "NumMemtables is %d, must be 1 to 64", o.NumMemtables)
	check(o.NumCompactors >= 3 && o.NumCompactors <= 64, "NumCompactors is %d, must be 3 to 64", o.NumCompactors)
	check(o.CheckpointInterval >= time.Millisecond, "CheckpointInterval is %v, must be at least 1ms", o.CheckpointInterval)
	check(o.CheckpointBytes > 0 && o.CheckpointBytes <= checkpointBytesBoundMax, "CheckpointBytes is %d, must be 1 to %d", o.CheckpointBytes, int64(checkpointBytesBoundMax))
	check(o.PinAgeMax > 0, "PinAgeMax is %v, must be positive", o.PinAgeMax)
	check(o.PinBytesMax > 0, "PinBytesMax is %d, must be positive", o.PinBytesMax)
	check(o.PinsMax > 0, "PinsMax is %d, must be positive", o.PinsMax)
	inline := int(txnBytesMax(o.MemtableBytes)) - recordOverheadMax
	check(o.ChunkThresholdBytes >= 0 && o.ChunkThresholdBytes <= min(inline, valueThresholdMax-recordOverheadMax),
		"ChunkThresholdBytes is %d, must be 0 to %d with this MemtableBytes", o.ChunkThresholdBytes, min(inline, valueThresholdMax-recordOverheadMax))
	check(o.ChunkBytes >= 1<<10 && o.ChunkBytes <= min(inline, valueThresholdMax-recordOverheadMax),
		"ChunkBytes is %d, must be 1024 to %d with this MemtableBytes", o.ChunkBytes, min(inline, valueThresholdMax-recordOverheadMax))
	check(o.CompressLevel >= 1 && o.CompressLevel <= 4, "CompressLevel is %d, must be 1 to 4", o.CompressLevel)
	if len(faults) > 0 {
		return fmt.Errorf("invalid engine options: %w", errors.Join(faults...))
	}
	return nil
}

// groupDir is the directory of the group below Dir.
func groupDir(dir string, group uint32) string {
	return filepath.Join(dir, "groups", strconv.FormatUint(uint64(group), 10))
}
