package netloop

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// writeWatch tells when a socket that refused bytes takes more. gnet has no such signal, so blocked
// sockets are also registered here, one shot each, in a second epoll instance. Being a file that can be
// polled itself, that instance is waited for by Go's own poller and occupies no thread.
type writeWatch struct {
	// Immutable after newWriteWatch.
	fd   int
	file *os.File
	done chan struct{}

	// Guarded by mu.
	mu    sync.Mutex
	last  uint64
	conns map[uint64]*conn
}

func newWriteWatch() (*writeWatch, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot create an epoll instance: %w", err)
	}
	// Non-blocking is what makes os.NewFile hand it to Go's poller.
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot make an epoll instance non-blocking: %w", err), unix.Close(fd))
	}
	w := &writeWatch{fd: fd, file: os.NewFile(uintptr(fd), "write-watch"), done: make(chan struct{}), conns: make(map[uint64]*conn)}
	rc, err := w.file.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot poll an epoll instance: %w", err), w.file.Close())
	}
	go func() { // owned by the Server; ends when close closes the file
		defer close(w.done)
		var events [128]unix.EpollEvent
		// RawConn.Read returns when the file is closed; its function asks to be called again by false.
		_ = rc.Read(func(fd uintptr) bool {
			for {
				n, err := unix.EpollWait(int(fd), events[:], 0)
				if err != nil && err != unix.EINTR {
					return true
				}
				w.fire(events[:max(n, 0)])
				// Go's poller tells of changes only: leave nothing behind.
				if n >= 0 && n < len(events) {
					return false
				}
			}
		})
	}()
	return w, nil
}

// fire marks the connections of events.
func (w *writeWatch) fire(events []unix.EpollEvent) {
	for _, ev := range events {
		id := uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32
		w.mu.Lock()
		c := w.conns[id]
		w.mu.Unlock()
		if c != nil {
			c.loop.mark(c)
			c.loop.release() // a blocked connection does not wait for HoldFlush
		}
	}
}

// arm asks for one signal. Loop only: the descriptor is open there.
func (w *writeWatch) arm(c *conn) error {
	op := unix.EPOLL_CTL_MOD
	if !c.watched {
		op = unix.EPOLL_CTL_ADD
		w.mu.Lock()
		w.last++
		c.watchID = w.last // descriptors are reused, these numbers are not
		w.conns[c.watchID] = c
		w.mu.Unlock()
		c.watched = true
	}
	ev := unix.EpollEvent{Events: unix.EPOLLOUT | unix.EPOLLONESHOT, Fd: int32(uint32(c.watchID)), Pad: int32(uint32(c.watchID >> 32))}
	if err := unix.EpollCtl(w.fd, op, c.fd, &ev); err != nil {
		return fmt.Errorf("cannot watch descriptor %d: %w", c.fd, err)
	}
	return nil
}

// forget ends the watch of c, before its descriptor is closed. Loop only.
func (w *writeWatch) forget(c *conn) {
	if !c.watched {
		return
	}
	c.watched = false
	w.mu.Lock()
	delete(w.conns, c.watchID)
	w.mu.Unlock()
	// Closing the descriptor removes it too; this comes first so that no late event names it.
	_ = unix.EpollCtl(w.fd, unix.EPOLL_CTL_DEL, c.fd, nil)
}

// close ends the goroutine. REQUIRES: the event loops have ended.
func (w *writeWatch) close() error {
	err := w.file.Close()
	<-w.done
	return err
}
