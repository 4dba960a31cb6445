package netloop

import "sync"

// codecPool packs and unpacks large frames away from the event loops.
type codecPool struct {
	jobs chan func()
	stop chan struct{}
	done sync.WaitGroup
}

func newCodecPool(workers, queue int) *codecPool {
	p := &codecPool{jobs: make(chan func(), queue), stop: make(chan struct{})}
	for range workers {
		p.done.Add(1)
		go p.work() // owned by the pool; ends when close closes p.stop
	}
	return p
}

// submit hands over a job, or reports false at once when the queue is full. After close jobs may be
// accepted and never run: the connections they belong to are closed by then.
func (p *codecPool) submit(job func()) bool {
	select {
	case p.jobs <- job:
		return true
	default:
		return false
	}
}

func (p *codecPool) work() {
	defer p.done.Done()
	for {
		select {
		case <-p.stop:
			return
		case job := <-p.jobs:
			job()
		}
	}
}

func (p *codecPool) close() {
	close(p.stop)
	p.done.Wait()
}
