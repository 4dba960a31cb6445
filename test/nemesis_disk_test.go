package test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"kvstore/internal/testcluster"
)

func init() {
	for _, n := range []nemesis{
		{name: "power-all", needs: needDisks, alone: true, strike: powerAll},
		{name: "power-any", needs: needDisks, strike: powerAny},
		{name: "disk-full", needs: needDisks, strike: diskFull},
		{name: "disk-hang", needs: needDisks, strike: diskHang},
	} {
		nemeses[n.name] = n
	}
}

// cutPowerOf takes the power from some nodes and their disks at the same moment, and gives it back to the disks.
// REQUIRES: r.control is held, none of the disks hangs.
func (r *faultRun) cutPowerOf(which []int) error {
	each := func(f func(i int) error) error {
		errs := make([]error, len(which))
		var wg sync.WaitGroup
		for k, i := range which {
			wg.Go(func() { errs[k] = f(i) })
		}
		wg.Wait()
		return errors.Join(errs...)
	}
	// Frozen first, all of them: what one acknowledges before its end, another may have lost already.
	if err := each(func(i int) error { return freezeIfRunning(r.c.Node(i)) }); err != nil {
		return err
	}
	if err := each(func(i int) error { return r.disks[i].CutPower() }); err != nil {
		return err
	}
	return each(func(i int) error {
		r.c.Kill(i)
		return r.disks[i].PowerOn()
	})
}

// freezeIfRunning freezes a node, unless it ends by itself at this moment.
func freezeIfRunning(n *testcluster.Node) error {
	if !n.Running() {
		return nil
	}
	err := n.Freeze()
	if err == nil {
		return nil
	}
	select {
	case <-n.Exited():
		return nil
	case <-time.After(time.Second):
		return err
	}
}

// anyHangs tells whether a disk hangs. REQUIRES: r.control is held.
func (r *faultRun) anyHangs() bool { return slices.ContainsFunc(r.disks, (*testcluster.Disk).Hangs) }

// inAnyOrder gives a function that starts all nodes in a random order, not at once.
func (r *faultRun) inAnyOrder(rng *rand.Rand) (start func() error) {
	order := rng.Perm(r.c.Size())
	pauses := make([]time.Duration, len(order))
	for k := range pauses {
		pauses[k] = between(rng, 0, 150*time.Millisecond)
	}
	return func() error {
		for k, i := range order {
			if err := r.up(i); err != nil {
				return err
			}
			time.Sleep(pauses[k])
		}
		return nil
	}
}

// powerAll cuts the power of all nodes at the same moment, and at times again while they start.
func powerAll(r *faultRun, rng *rand.Rand) (*fault, error) {
	var all []int
	for i := range r.c.Size() {
		all = append(all, i)
	}
	times := 1
	if rng.IntN(3) == 0 {
		times += 1 + rng.IntN(2)
	}
	f := &fault{what: fmt.Sprintf("power cut of all nodes, %d times", times), count: func() int { return times },
		lasts: between(rng, 0, 300*time.Millisecond), mend: r.inAnyOrder(rng)}
	for k := range times {
		if k > 0 {
			if err := r.inAnyOrder(rng)(); err != nil {
				return nil, err
			}
			time.Sleep(between(rng, 0, 800*time.Millisecond))
		}
		r.control.Lock()
		if r.anyHangs() {
			r.control.Unlock()
			return nil, nil // at the first cut, if at all: no other fault begins meanwhile
		}
		err := r.cutPowerOf(all)
		r.control.Unlock()
		if err != nil {
			return nil, err
		}
	}
	return f, nil
}

// powerAny cuts the power of one node, at times of a second one at the same moment.
func powerAny(r *faultRun, rng *rand.Rand) (*fault, error) {
	which := []int{r.anyNode(rng)}
	what := r.describe(which[0])
	if k := rng.IntN(r.c.Size()); rng.IntN(3) == 0 && k != which[0] {
		which = append(which, k)
		what += " and " + r.describe(k)
	}
	lasts := between(rng, 0, 2500*time.Millisecond)
	r.control.Lock()
	defer r.control.Unlock()
	if slices.ContainsFunc(which, func(i int) bool { return !r.runs(i) }) {
		return nil, nil
	}
	if err := r.cutPowerOf(which); err != nil {
		return nil, err
	}
	return &fault{what: "power cut of " + what, lasts: lasts, mend: func() error {
		for _, i := range which {
			if err := r.up(i); err != nil {
				return err
			}
		}
		return nil
	}}, nil
}

// diskFloor is the free space below which a node takes no more data, unless --disk-floor says otherwise.
func diskFloor(n *testcluster.Node) (int64, error) {
	var memtable int64
	if _, err := fmt.Sscanf(n.Flag("memtable-size"), "%dMiB", &memtable); err != nil {
		return 0, fmt.Errorf("--memtable-size %s: %w", n.Flag("memtable-size"), err)
	}
	return (128 + 16*memtable) * mib, nil
}

// diskFull fills the disks of one node, of a majority or of all, most often below the floor, at times so far that
// nothing is taken any more. What a store has under way at that moment must still fit: it dies of a disk that has no
// space at all, so that is not what is done to it.
func diskFull(r *faultRun, rng *rand.Rand) (*fault, error) {
	order := rng.Perm(r.c.Size())
	if i := slices.Index(order, r.anyNode(rng)); i > 0 {
		order[0], order[i] = order[i], order[0]
	}
	which := order[:[]int{1, 1, r.c.Size()/2 + 1, r.c.Size()}[rng.IntN(4)]]
	deep, share := rng.IntN(4) == 0, rng.Float64()
	var filled []int
	var ids []string
	r.control.Lock()
	defer r.control.Unlock()
	var left int64
	for _, i := range which {
		if !r.runs(i) {
			continue // it could not tell that its disk is full
		}
		floor, err := diskFloor(r.c.Node(i))
		if err != nil {
			return nil, err
		}
		least, most := floor/3, floor*9/10 // low
		if deep {
			least, most = floor*4/20, floor/4 // critical
		}
		left = least + int64(share*float64(most-least))
		if err := r.disks[i].Fill(left); err != nil {
			return nil, err
		}
		filled, ids = append(filled, i), append(ids, r.c.ID(i))
	}
	if len(filled) == 0 {
		return nil, nil
	}
	return &fault{what: fmt.Sprintf("%d MiB left on the disks of %s", left/mib, strings.Join(ids, ", ")),
		lasts: between(rng, 2*time.Second, 4*time.Second),
		struck: func() error {
			said := errors.New("no node was asked")
			for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
				for _, i := range filled {
					s, err := r.c.Node(i).Status()
					if err == nil && s.Disk.State != "ok" {
						return nil
					}
					said = fmt.Errorf("%s says that its disk is %q: %w", r.c.ID(i), s.Disk.State, err)
				}
			}
			return said
		},
		mend: func() error {
			r.control.Lock()
			defer r.control.Unlock()
			var errs []error
			for _, i := range filled {
				errs = append(errs, r.disks[i].Empty())
			}
			return errors.Join(errs...)
		}}, nil
}

// diskHang has the disk of one node answer nothing, at times for longer than the watch on writes allows (5 s).
func diskHang(r *faultRun, rng *rand.Rand) (*fault, error) {
	i := r.anyNode(rng)
	what := "the disk hangs of " + r.describe(i)
	lasts := between(rng, time.Second, 4*time.Second)
	if rng.IntN(2) == 0 {
		lasts = between(rng, 6*time.Second, 8*time.Second)
	}
	r.control.Lock()
	defer r.control.Unlock()
	if !r.runs(i) {
		return nil, nil
	}
	n := r.c.Node(i)
	r.mayEnd(i)
	if err := r.disks[i].Hang(); err != nil {
		return nil, err
	}
	return &fault{what: what, lasts: lasts,
		struck: func() error {
			waits, err := waitsForDisk(n)
			if err == nil && !waits && !strings.Contains(n.LastOutput(), "the disk hangs") {
				err = errors.New("nothing waits for the disk")
			}
			return err
		},
		mend: func() error { return r.thaw(i) }}, nil
}

// waitsForDisk tells whether a thread of the node waits in the kernel and can't be interrupted.
func waitsForDisk(n *testcluster.Node) (bool, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", n.Pid()))
	if err != nil {
		return false, err
	}
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		// "pid (name) state …"; the name may hold anything.
		if _, after, found := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " "); found && strings.HasPrefix(after, "D") {
			return true, nil
		}
	}
	return false, nil
}

// thaw ends the hang of a disk and sees that its node runs. The watch on writes may have ended the process, all but
// what waited for the disk; it may end it now; or the node goes on.
func (r *faultRun) thaw(i int) error {
	r.control.Lock()
	defer r.control.Unlock()
	if err := r.disks[i].Thaw(); err != nil {
		return err
	}
	n := r.c.Node(i)
	for deadline, goesOn := time.Now().Add(patience), false; ; {
		select {
		case <-n.Exited():
			if code := n.WaitExit(); code != 1 {
				r.anomaly("%s has ended with exit code %d on a disk that hung, not with 1:\n%s", r.c.ID(i), code, lastLines(n.LastOutput(), 60))
			}
			return r.upLocked(i)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			if !goesOn {
				return fmt.Errorf("%s neither ends nor goes on, %v after its disk does again", r.c.ID(i), patience)
			}
			r.mu.Lock()
			r.excused[i] = false // it has no reason any more
			r.mu.Unlock()
			return nil
		}
		s, err := n.Status()
		if !goesOn && err == nil && s.LeaderID != "" && !strings.Contains(n.LastOutput(), "the disk hangs") {
			goesOn, deadline = true, time.Now().Add(time.Second) // or it ends within that time
		}
	}
}
