package node

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"kvstore/engine"
	"kvstore/wire"
)

const (
	// readQueueBytesDefault bounds the copies of requests that wait for a read worker.
	readQueueBytesDefault = 16 << 20
	// readJobItemsMax splits a long bunch, so that two workers share it.
	readJobItemsMax = 64
	// readQueueJobs is the room of the queue in jobs; the bound in bytes is reached first.
	readQueueJobs = 4096
	// readBufferBytesKeep is the largest answer buffer that a worker keeps between jobs.
	readBufferBytesKeep = 1 << 20
)

// readItem is one read of a job; its bytes lie in the job's arena.
type readItem struct {
	token       wire.Token
	ns          uint32
	minRevision wire.Revision
	atRevision  wire.Revision
	deadline    int64
	// age is told with the answer when stale is set; see followerReads.age.
	age   uint64
	stale bool
	// pin is the revision of the state that has to answer; 0: the newest here. See followerReads.
	pin wire.Revision
	// waited: it has waited for minRevision already.
	waited bool
	// begins: a stream asks for the revision that it is to begin with, as appendStart encodes it.
	begins bool
	name   []byte // of the namespace; empty: the default one. ns is what it stood for at the door
	key    []byte // or the payload of a MULTIGET, SCAN or STATUS
}

// readJob is the reads of one bunch, copied off the loop's buffer.
type readJob struct {
	to    wire.Completer
	items []readItem
	arena []byte
	bytes int
	// shares is what it holds of readPool.shares.
	shares []readShare
	// next is queued behind this job in one go, and done by the same worker.
	next *readJob
}

// readPool runs reads that may touch the engine's tables: event loops must not, since a mapped page
// can fault.
type readPool struct {
	s        *Service
	queue    chan *readJob
	bytesMax int64
	bytes    atomic.Int64
	shares   readShares
	// confirmed counts the reads that waited for a majority.
	confirmed atomic.Uint64
	free      sync.Pool
	wg        sync.WaitGroup

	mu     sync.RWMutex // held shared while a job is queued, so that close can't come between
	closed bool         // guarded by mu
}

func newReadPool(s *Service, workers, bytesMax int) *readPool {
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	if bytesMax <= 0 {
		bytesMax = readQueueBytesDefault
	}
	p := &readPool{s: s, queue: make(chan *readJob, readQueueJobs), bytesMax: int64(bytesMax)}
	p.free.New = func() any { return new(readJob) }
	for range workers {
		p.wg.Go(p.work) // owned by the pool; ends when close closes the queue
	}
	return p
}

// readVia is what a read has to wait for before the applied state may answer it.
type readVia uint8

const (
	viaNothing  readVia = iota
	viaMajority         // a majority confirms that this node leads
	viaLeader           // the leader says how far this node must have applied
	readVias
)

// hand passes a job on to where its reads wait.
func (p *readPool) hand(via readVia, job *readJob) {
	switch via {
	case viaNothing:
		p.submit(job)
	case viaMajority:
		p.confirm(job)
	default:
		p.s.follower.wait(job)
	}
}

// add copies r into job, beginning a new job when there is none.
func (p *readPool) add(job *readJob, c wire.Completer, ns uint32, r *wire.Request, deadline int64, age uint64) *readJob {
	if job == nil {
		job = p.free.Get().(*readJob)
		job.to = c
	}
	src := r.Key
	if r.Op != wire.OpGet && r.Op != wire.OpExists {
		src = r.Payload
	}
	at := len(job.arena)
	// A growing arena moves, but items that were cut from the old one keep it alive: they stay valid.
	job.arena = append(append(job.arena, src...), r.Namespace...)
	end := at + len(src)
	job.items = append(job.items, readItem{
		token: r.Token(), ns: ns, minRevision: r.MinRevision, atRevision: r.AtRevision,
		deadline: deadline, age: age, stale: r.Stale, key: job.arena[at:end:end], name: job.arena[end:len(job.arena):len(job.arena)],
	})
	job.bytes += readItemBytes + len(job.arena) - at
	return job
}

// single makes a job of a copy of one read.
func (p *readPool) single(to wire.Completer, it *readItem) *readJob {
	job := p.free.Get().(*readJob)
	job.to = to
	job.arena = append(append(job.arena, it.key...), it.name...)
	job.bytes = readItemBytes + len(job.arena)
	copied := *it
	end := len(it.key)
	copied.key, copied.name = job.arena[:end:end], job.arena[end:len(job.arena):len(job.arena)]
	job.items = append(job.items, copied)
	return job
}

// busy is the refusal of a read that finds no room.
var busy = &wire.Refusal{Status: wire.StatusBusy, RetryAfterMs: retryAfterMs}

// submit queues a job, or refuses its reads when there is no room.
func (p *readPool) submit(job *readJob) {
	if p.reserve(job) {
		p.enqueue(job)
	}
}

// reserve counts a job's bytes until release, or refuses its reads when they exceed the bound, or what its namespaces
// may have of the room that there is.
func (p *readPool) reserve(job *readJob) bool {
	job.bytes += int(p.bytesMax / readQueueJobs) // so that the bytes are used up before the places in the queue are
	all := p.bytes.Add(int64(job.bytes))
	if fits := p.shares.take(job, p.bytesMax-all+int64(job.bytes)); !fits || all > p.bytesMax {
		p.refuse(job, busy)
		return false
	}
	return true
}

// enqueueAll queues jobs that have waited together, few for each worker's turn. REQUIRES: their bytes are counted.
func (p *readPool) enqueueAll(jobs []*readJob) {
	for len(jobs) > 0 {
		n, items := 1, len(jobs[0].items)
		for n < len(jobs) && items+len(jobs[n].items) <= readJobItemsMax {
			jobs[n-1].next = jobs[n]
			items += len(jobs[n].items)
			n++
		}
		p.enqueue(jobs[0])
		jobs = jobs[n:]
	}
}

// enqueue queues a job and those linked to it, or refuses their reads when the queue is full. REQUIRES: their
// bytes are counted.
func (p *readPool) enqueue(job *readJob) {
	refusal := busy
	p.mu.RLock()
	if p.closed {
		refusal = &wire.Refusal{Status: wire.StatusDraining}
	} else {
		select {
		case p.queue <- job:
			p.mu.RUnlock()
			return
		default:
		}
	}
	p.mu.RUnlock()
	p.refuse(job, refusal)
}

// confirm lets a job wait until a majority has confirmed, after this call, that this node leads, and queues
// it then. What waits is bounded like the queue, in bytes, and in time by the group.
func (p *readPool) confirm(job *readJob) {
	if !p.reserve(job) {
		return
	}
	p.confirmed.Add(uint64(len(job.items)))
	asked := p.s.follower.now()
	p.s.shard.group.ReadIndex(func(err error) {
		if err == nil {
			p.s.follower.reflects(asked)
			p.enqueue(job)
			return
		}
		p.refuse(job, p.s.shard.unconfirmed(err))
	})
}

// refuse refuses all reads of a job and of those linked to it. REQUIRES: their bytes are counted.
func (p *readPool) refuse(job *readJob, refusal *wire.Refusal) {
	for job != nil {
		for i := range job.items {
			refuse(job.to, job.items[i].token, refusal)
		}
		next := job.next
		p.release(job)
		job = next
	}
}

func (p *readPool) release(job *readJob) {
	p.bytes.Add(-int64(job.bytes))
	p.shares.release(job)
	clear(job.items)
	*job = readJob{items: job.items[:0], arena: job.arena[:0], shares: job.shares[:0]}
	if cap(job.arena) <= readBufferBytesKeep {
		p.free.Put(job)
	}
}

// work runs jobs until the queue is closed.
func (p *readPool) work() {
	var w readWorker
	for job := range p.queue {
		for job != nil {
			for i := range job.items {
				w.run(p.s, job.to, &job.items[i])
			}
			next := job.next
			p.release(job)
			job = next
		}
	}
}

// close ends the pool, and what waits in front of it, once the queued jobs are answered; later ones are refused.
func (p *readPool) close() {
	p.s.follower.close()
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		close(p.queue)
	}
	p.mu.Unlock()
	p.wg.Wait()
}

// readWorker holds what one goroutine reuses from read to read.
type readWorker struct {
	ext, buf []byte
}

// run answers one read.
func (w *readWorker) run(s *Service, to wire.Completer, it *readItem) {
	if cap(w.buf) > readBufferBytesKeep {
		w.buf = nil
	}
	if it.pin == 0 && it.minRevision > s.shard.engine.Applied().Revision && !it.waited && s.follower.await(to, it) {
		return
	}
	r := w.answerIn(s, it)
	if it.stale && r.Status.Class() == wire.ClassResult {
		// w.ext holds what r.Ext is, if anything.
		w.ext = wire.AppendExtU64(append(w.ext[:0], r.Ext...), wire.ExtAge, it.age)
		r.Ext = w.ext
	}
	to.Complete(it.token, &r)
}

// resolveTriesMax is how often a read begins anew because its namespace was dropped under it.
const resolveTriesMax = 3

// answerIn answers one read in the namespace that its name stands for.
func (w *readWorker) answerIn(s *Service, it *readItem) wire.Response {
	if len(it.name) == 0 {
		return w.answer(s, it)
	}
	for range resolveTriesMax {
		ns, refusal := it.resolve(s)
		if refusal != nil {
			return wire.ErrorResponse(refusal, w.ext[:0])
		}
		it.ns = ns
		r := w.answer(s, it)
		if now, _ := s.shard.namespace(it.name); now == ns {
			return r
		}
		// It was dropped, or came to be, meanwhile: what was read may be what a purge has left.
	}
	return wire.ErrorResponse(lagging, w.ext[:0])
}

func (w *readWorker) answer(s *Service, it *readItem) wire.Response {
	if it.token.Op == wire.OpStatus {
		return wire.Response{Payload: s.statusJSON(len(it.key) != 0)}
	}
	if s.shard.now() > it.deadline {
		return wire.Response{Status: wire.StatusTooLate}
	}
	// Whether the applied state may be read was decided after the request arrived (Shard.howToRead,
	// followerReads). That is what linearizability asks: at that moment the state held everything acknowledged
	// before, and it only grows, so that a read at any later moment, whoever leads then, reflects a point between
	// the request and its answer.
	e := s.shard.engine
	newest := it.pin
	if newest == 0 {
		newest = e.Applied().Revision
	}
	if it.minRevision > newest {
		return wire.Response{Status: wire.StatusRetryLater, Payload: []byte("this node has not reached the revision that the read must reflect")}
	}
	o := engine.ReadOptions{Namespace: it.ns, AtRevision: it.atRevision, MinRevision: it.minRevision}
	pinned := it.pin != 0 && it.atRevision == 0
	switch {
	case pinned:
		o.AtRevision = it.pin
	case it.pin != 0 && it.atRevision > it.pin:
		return wire.Response{Status: wire.StatusFutureRevision}
	}
	if it.begins {
		if it.atRevision != 0 {
			newest = it.atRevision
		}
		w.buf = appendStart(w.buf[:0], newest, it.ns)
		return wire.Response{Payload: w.buf}
	}
	var r wire.Response
	var err error
	switch it.token.Op {
	case wire.OpGet:
		var rec wire.Record
		if rec, w.buf, r.Status, err = e.Get(o, it.key, w.buf[:0]); r.Status == wire.StatusOK {
			w.ext = append(wire.AppendExtMeta(w.ext[:0], &rec.Meta), rec.Ext...)
			r.Ext, r.Payload = w.ext, rec.Value
		}
	case wire.OpExists:
		var meta wire.Meta
		if meta, r.Status, err = e.Exists(o, it.key); r.Status == wire.StatusOK {
			w.ext = wire.AppendExtMeta(w.ext[:0], &meta)
			r.Ext = w.ext
		}
	case wire.OpMultiGet:
		_, n, keys, decodeErr := wire.DecodeGroup(it.key)
		if decodeErr != nil {
			return wire.Response{Status: wire.StatusBadRequest}
		}
		if w.buf, r.Status, err = e.MultiGet(o, keys, n, w.buf[:0]); r.Status == wire.StatusOK {
			r.Payload = w.buf
		}
	case wire.OpScan:
		var q wire.ScanRequest
		if ref := wire.DecodeScanRequest(it.key, &q); ref != nil {
			return wire.ErrorResponse(ref, w.ext[:0])
		}
		pinned = pinned && len(q.Cursor) == 0 // a cursor brings its own revision
		if w.buf, r.Status, err = e.Scan(o, &q, w.buf[:0]); r.Status == wire.StatusOK {
			r.Payload = w.buf
		}
	default:
		panic(fmt.Sprintf("BUG: %s in the read pool", it.token.Op))
	}
	if err != nil {
		s.shard.readFailed(it.token.Op, r.Status, err)
	}
	if pinned && (r.Status == wire.StatusCompacted || r.Status == wire.StatusFutureRevision) {
		// A copy of a newer state was installed here meanwhile, say. Whoever asked named no revision and must hear of none.
		return wire.ErrorResponse(lagging, w.ext[:0])
	}
	return r
}
