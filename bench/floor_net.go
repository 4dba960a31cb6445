package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	floorMessage = 64
	floorWindow  = 256
)

// floorPingPong is one caller who waits for each answer: two system calls and two wake-ups on each side.
func floorPingPong(ctx context.Context, o FloorOptions) (FloorTest, error) {
	return withEcho(func(c net.Conn) (FloorTest, error) {
		buf := make([]byte, floorMessage)
		return repeat(ctx, o.Duration, func(int) error {
			if _, err := c.Write(buf); err != nil {
				return err
			}
			_, err := io.ReadFull(c, buf)
			return err
		})
	})
}

// floorPipelined keeps 256 messages in flight on one connection; what is ready is sent with one write.
func floorPipelined(ctx context.Context, o FloorOptions) (FloorTest, error) {
	return withEcho(func(c net.Conn) (FloorTest, error) {
		var (
			h      = newHistogram()
			start  = time.Now()
			sent   = make(chan time.Time, floorWindow) // send times of the messages in flight, oldest first
			credit = make(chan struct{}, floorWindow)
			wg     sync.WaitGroup
			err    error
		)
		for range floorWindow {
			credit <- struct{}{}
		}
		// The reader: owned by this function; ends when the connection closes for writing and all is back.
		wg.Go(func() {
			buf := make([]byte, 64<<10)
			have := 0
			for {
				n, rerr := c.Read(buf)
				now := time.Now()
				for have += n; have >= floorMessage; have -= floorMessage {
					record(h, now.Sub(<-sent))
					credit <- struct{}{}
				}
				if rerr != nil {
					if !errors.Is(rerr, io.EOF) {
						err = rerr
						c.Close() // unblocks the writer
					}
					close(credit)
					return
				}
			}
		})
		werr := pipelineWrites(ctx, o.Duration, start, c, sent, credit)
		wg.Wait()
		return floorResult(h, time.Since(start)), errors.Join(err, werr)
	})
}

func pipelineWrites(ctx context.Context, d time.Duration, start time.Time, c net.Conn, sent chan<- time.Time, credit <-chan struct{}) error {
	out := make([]byte, floorWindow*floorMessage)
	for time.Since(start) < d && ctx.Err() == nil {
		if _, ok := <-credit; !ok {
			return nil // the reader reports why
		}
		n := 1
		for more := true; more && n < floorWindow; {
			select {
			case _, more = <-credit:
				if more {
					n++
				}
			default:
				more = false
			}
		}
		now := time.Now()
		for range n {
			sent <- now
		}
		if _, err := c.Write(out[:n*floorMessage]); err != nil {
			return err
		}
	}
	return c.(*net.TCPConn).CloseWrite()
}

// withEcho gives f a connection to an echo server on loopback and ends both.
func withEcho(f func(net.Conn) (FloorTest, error)) (FloorTest, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return FloorTest{}, fmt.Errorf("cannot listen on loopback: %w", err)
	}
	var wg sync.WaitGroup
	// The echo server: owned by withEcho; ends when its connection or the listener closes.
	wg.Go(func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
	})
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		ln.Close()
		return FloorTest{}, fmt.Errorf("cannot connect on loopback: %w", err)
	}
	r, err := f(c)
	c.Close()
	ln.Close()
	wg.Wait()
	return r, err
}
