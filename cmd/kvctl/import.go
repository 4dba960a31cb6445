package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/semaphore"

	"kvstore/wire"
)

const (
	// importLineMax bounds one line: the largest value with every byte as a six-character escape.
	importLineMax = 6*(wire.ValueBytesMax+wire.KeyBytesMax) + 1<<20
	// importBudget bounds the bytes of values that are read and not yet acknowledged.
	importBudget = 64 << 20
	importQueue  = 16
	// importPause is how long to wait before a key is written again.
	importPause = 200 * time.Millisecond
)

func (a *app) importCmd() *cobra.Command {
	concurrency, patience := 128, time.Duration(0)
	c := &cobra.Command{
		Use: "import FILE|-", Short: "Write keys from JSON lines", Args: exactArgs("FILE or -"),
		Long: `Write keys from JSON lines as ` + "`kvctl export`" + ` writes them: "key", and "text" or (base64) "value"; if wanted
"content_type", "encoding", "tags" {name: text}, and "expires_at" or "ttl_seconds". Keys that have expired are left
out. Of two lines with the same key the later one counts. After a failure run the same command again: to write the
same keys twice is harmless.

A change of leader in the middle is waited for (--patience). The writes belong to a session, so that one which is sent
again is not done twice; one whose outcome stays unknown is written again, since the same key and value do no harm.`,
		Example: `  kvctl import all.jsonl
  zcat backup.jsonl.gz | kvctl import -`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if concurrency < 1 || concurrency > 4096 {
				return usagef("--concurrency is %d: it must be between 1 and 4096", concurrency)
			}
			if patience < 0 {
				return usagef("--patience is %v: it must be 0 or more", patience)
			}
			a.session = true
			in, total := a.in, int64(0)
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return fmt.Errorf("cannot import: %w", err)
				}
				defer f.Close() // only read
				if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
					total = st.Size()
				}
				in = f
			}
			return a.with(cmd.Context(), func(s store) error { return a.importLines(cmd.Context(), s, in, total, concurrency, patience) })
		},
	}
	c.Flags().IntVar(&concurrency, "concurrency", concurrency, "keys in flight")
	addPatience(c.Flags(), &patience)
	return c
}

// importer writes items with many callers at once. Lines of one key go to the same worker, so that the
// last one wins.
type importer struct {
	// Immutable.
	a        *app
	store    store
	queues   []chan importJob
	budget   *semaphore.Weighted
	bar      *progress
	cancel   context.CancelFunc
	patience time.Duration
	workers  sync.WaitGroup

	// Owned by read.
	expired int

	mu sync.Mutex
	// Guarded by mu.
	first error
	told  time.Time // when it was last told that the import waits
}

type importJob struct {
	line    int
	bytes   int64 // of the line, for the progress
	charge  int64 // taken from the budget
	key     string
	value   []byte
	expires time.Time // zero: never, or Options.TTL says when
	options putOptions
}

func (a *app) importLines(ctx context.Context, s store, in io.Reader, total int64, concurrency int, patience time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	im := &importer{
		a: a, store: s, queues: make([]chan importJob, concurrency), budget: semaphore.NewWeighted(importBudget),
		bar: a.newProgress("import", total, false), cancel: cancel, patience: patience,
	}
	for i := range im.queues {
		q := make(chan importJob, importQueue)
		im.queues[i] = q
		// Workers: owned by importLines; each ends when its queue is closed.
		im.workers.Go(func() { im.work(ctx, q) })
	}
	err := im.read(ctx, in)
	for _, q := range im.queues {
		close(q)
	}
	im.workers.Wait()
	if im.first != nil {
		err = im.first
	}
	if err != nil {
		im.bar.stop()
		a.talk("import stopped: %d keys are written; run the same command again to go on, to write a key twice is harmless\n", im.bar.items())
		return err
	}
	im.bar.finish("imported")
	if im.expired > 0 {
		a.talk("left out %d keys that have expired\n", im.expired)
	}
	if a.output == "json" || a.output == "jsonl" {
		return a.writeJSON(map[string]any{"imported": im.bar.items(), "expired": im.expired})
	}
	return nil
}

// read hands every line to its worker, until the first failure.
func (im *importer) read(ctx context.Context, in io.Reader) error {
	r := bufio.NewReaderSize(in, 256<<10)
	var long []byte
	for n := 1; ctx.Err() == nil; n++ {
		line, err := readLine(r, &long)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("line %d: cannot read: %w", n, err)
		}
		if n == 1 {
			line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
		}
		if len(bytes.TrimSpace(line)) == 0 {
			im.bar.add(0, int64(len(line)))
			continue
		}
		job, gone, err := im.parse(line)
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		if gone {
			im.expired++
			im.bar.add(0, int64(len(line)))
			continue
		}
		job.line, job.charge = n, min(int64(len(job.value)+len(job.key)+256), importBudget)
		if im.budget.Acquire(ctx, job.charge) != nil {
			break // ctx ended: its reason is reported below
		}
		h := fnv.New32a()
		h.Write([]byte(job.key))
		select {
		case im.queues[h.Sum32()%uint32(len(im.queues))] <- job:
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

func (im *importer) parse(line []byte) (job importJob, gone bool, err error) {
	it, err := parseItem(line)
	if err != nil {
		return job, false, err
	}
	job = importJob{bytes: int64(len(line)), key: it.Key, options: putOptions{ContentType: it.ContentType, Encoding: it.Encoding, Tags: it.Tags}}
	if job.value, err = it.bytes(); err != nil {
		return job, false, fmt.Errorf("key %q has %w", it.Key, err)
	}
	if len(job.value) > wire.ValueBytesMax {
		return job, false, fmt.Errorf("key %q has a value of %d bytes: at most %d", it.Key, len(job.value), wire.ValueBytesMax)
	}
	if job.options.TTL, gone, err = it.ttl(im.a.now()); err != nil {
		return job, false, fmt.Errorf("key %q has %w", it.Key, err)
	}
	if it.ExpiresAt != nil {
		job.expires = *it.ExpiresAt
	}
	return job, gone, nil
}

func (im *importer) work(ctx context.Context, q <-chan importJob) {
	for job := range q {
		if ctx.Err() == nil {
			if err := im.put(ctx, &job); err != nil {
				im.fail(fmt.Errorf("line %d, key %q: %w", job.line, job.key, err))
			} else {
				im.bar.add(1, job.bytes)
			}
		}
		im.budget.Release(job.charge)
	}
}

// put writes one key. While the cluster cannot serve, or when the outcome is unknown, it does so again until
// patience is over: the same key and value do no harm twice, and a later line of the same key waits its turn.
func (im *importer) put(ctx context.Context, job *importJob) error {
	for start := time.Now(); ; {
		if !job.expires.IsZero() { // counted anew: the line may have waited for its turn
			job.options.TTL = max(job.expires.Sub(im.a.now()), time.Millisecond)
		}
		octx, cancel := context.WithTimeout(ctx, im.a.timeout)
		_, err := im.store.Put(octx, job.key, job.value, job.options)
		cancel()
		if !passes(err) || time.Since(start) >= im.patience || ctx.Err() != nil {
			return err
		}
		im.tell(err)
		select {
		case <-time.After(importPause):
		case <-ctx.Done():
		}
	}
}

// tell says that the import waits for the cluster, at most as often as progress is told.
func (im *importer) tell(why error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if now := im.a.now(); now.Sub(im.told) >= progressEvery {
		im.told = now
		im.a.waiting("import", im.patience)(why)
	}
}

// fail keeps the first failure and stops the others.
func (im *importer) fail(err error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.first == nil {
		im.first = err
		im.cancel()
	}
}

// readLine returns the next line without its end; it is valid until the next call. long is its buffer for
// lines that are longer than the reader's own.
func readLine(r *bufio.Reader, long *[]byte) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		*long = (*long)[:0]
		for errors.Is(err, bufio.ErrBufferFull) {
			if *long = append(*long, line...); len(*long) > importLineMax {
				return nil, fmt.Errorf("the line is longer than %d bytes", importLineMax)
			}
			line, err = r.ReadSlice('\n')
		}
		*long = append(*long, line...)
		line = *long
	}
	if errors.Is(err, io.EOF) && len(line) > 0 {
		err = nil // a last line without an end
	}
	return bytes.TrimRight(line, "\r\n"), err
}
