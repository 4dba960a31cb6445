package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	hdr "github.com/HdrHistogram/hdrhistogram-go"

	"kvstore/wire"
)

const (
	// floodTick is how often a connection of a flood sends what has fallen due.
	floodTick = time.Millisecond
	// floodIDs bounds the unanswered requests of one connection: those that the server holds, at most
	// wire.ConnInflightMax, and those that lie in the buffers of the sockets.
	floodIDs = 1 << 16
	// floodTimeout is the time that each request gives the server, and how long the end waits for answers.
	floodTimeout = time.Second
	// floodDialTimeout bounds connecting and HELLO.
	floodDialTimeout = 3 * time.Second
)

// floodOptions describes a flood.
type floodOptions struct {
	address string
	op      wire.Opcode // OpPut or OpGet
	conns   int
	rate    float64 // per second, over all connections
	keys    *keySpace
	run     Options
}

// FloodReport says what became of requests that were sent on a schedule, whatever the server answered.
type FloodReport struct {
	// Seconds is the measured time, Sent what was sent in it.
	Seconds float64 `json:"seconds"`
	Sent    uint64  `json:"sent"`
	// Done were answered with success (a read that finds nothing is one), Refused with a status that says that
	// they were surely not executed; RefusedBy has these by status, Other the rest.
	Done      uint64            `json:"done"`
	Refused   uint64            `json:"refused"`
	RefusedBy map[string]uint64 `json:"refused_by,omitempty"`
	Other     map[string]uint64 `json:"other,omitempty"`
	// Skipped could not be sent on time: the generator, or the network, was too slow.
	Skipped uint64 `json:"skipped"`
	// P50 and P99 are microseconds from sending to the answer, of what was done.
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	// ServerCPU is microseconds of the servers' CPU time in all; 0 when it is not known.
	ServerCPU float64 `json:"server_cpu_us,omitempty"`
}

// flood sends requests as frames made here: the client would spend more on one than a server on refusing it.
func flood(ctx context.Context, o floodOptions) (*FloodReport, error) {
	conns := make([]*floodConn, o.conns)
	for i := range conns {
		c, err := dialFlood(ctx, &o, i)
		if err != nil {
			for _, open := range conns[:i] {
				err = errors.Join(err, open.nc.Close())
			}
			return nil, fmt.Errorf("cannot flood %s: %w", o.address, err)
		}
		conns[i] = c
	}
	var wg sync.WaitGroup
	start := time.Now()
	for _, c := range conns {
		// Owned by flood, two for each connection: send ends with the measured time, receive with the
		// connection, at the latest floodTimeout later.
		wg.Go(func() { c.send(ctx, start) })
		wg.Go(c.receive)
	}
	before := readCPU(nil)
	select {
	case <-time.After(o.run.Warmup):
		before = readCPU(o.run.ServerPIDs)
	case <-ctx.Done():
	}
	select {
	case <-time.After(o.run.Duration):
	case <-ctx.Done():
	}
	after := readCPU(o.run.ServerPIDs)
	wg.Wait()
	rep := &FloodReport{Seconds: o.run.Duration.Seconds(), Other: map[string]uint64{}, RefusedBy: map[string]uint64{}}
	latency := newHistogram()
	for _, c := range conns {
		if c.err != nil && ctx.Err() == nil {
			return nil, fmt.Errorf("a connection of the flood broke: %w", c.err)
		}
		rep.Sent += c.sent
		rep.Skipped += c.skipped
		latency.Merge(c.latency)
		for st, n := range c.answers {
			switch s := wire.Status(st); {
			case n == 0:
			case s == wire.StatusOK || s == wire.StatusNotFound:
				rep.Done += n
			case s.Class() == wire.ClassRetry:
				rep.Refused += n
				rep.RefusedBy[s.String()] += n
			default:
				rep.Other[s.String()] += n
			}
		}
	}
	rep.P50, rep.P99 = quantile(latency, 50), quantile(latency, 99)
	if before.serverKnown && after.serverKnown {
		rep.ServerCPU = micros(after.server - before.server)
	}
	return rep, ctx.Err()
}

// floodConn is one connection of a flood.
type floodConn struct {
	// Immutable.
	o    *floodOptions
	nc   net.Conn
	rng  *rand.Rand
	keys *keySpace
	from time.Duration // of the measured time, since start
	till time.Duration

	// Owned by send until it ends.
	id            uint32
	sent, skipped uint64

	mu sync.Mutex
	// Guarded by mu: when each request was sent, since start; negative: not measured.
	at         [floodIDs]time.Duration
	unanswered int
	start      time.Time

	// Owned by receive until it ends.
	answers [256]uint64
	latency *hdr.Histogram
	err     error
}

func dialFlood(ctx context.Context, o *floodOptions, n int) (*floodConn, error) {
	ctx, cancel := context.WithTimeout(ctx, floodDialTimeout)
	defer cancel()
	nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", o.address)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	if err := errors.Join(nc.SetDeadline(deadline), greet(nc), nc.SetDeadline(time.Time{})); err != nil {
		return nil, errors.Join(err, nc.Close())
	}
	return &floodConn{
		o: o, nc: nc, rng: rand.New(rand.NewPCG(o.run.Seed, uint64(n))), keys: o.keys,
		from: o.run.Warmup, till: o.run.Warmup + o.run.Duration, latency: newHistogram(),
	}, nil
}

// greet says HELLO and reads the answer.
func greet(nc net.Conn) error {
	h := wire.Hello{Features: wire.FeatureCRC, MaxFrame: wire.FrameBodyBytesMax, ClientName: "kvbench flood"}
	if _, err := nc.Write(wire.AppendHello(wire.AppendPreface(nil, wire.Version, wire.Version), &h)); err != nil {
		return err
	}
	in := make([]byte, wire.PrefaceBytes+wire.HeaderBytes)
	if _, err := io.ReadFull(nc, in); err != nil {
		return fmt.Errorf("no answer to HELLO: %w", err)
	}
	var head wire.Header
	if err := wire.DecodeHeader(in[wire.PrefaceBytes:], &head); err != nil {
		return err
	}
	if head.Op != wire.OpHello || head.Status() != wire.StatusOK || head.BodyLen > wire.HelloBytesMax {
		return fmt.Errorf("HELLO was answered by %s with %s", head.Op, head.Status())
	}
	_, err := io.CopyN(io.Discard, nc, int64(head.BodyLen))
	return err
}

// send sends what falls due, tick by tick, and half-closes the connection when the time is over.
func (c *floodConn) send(ctx context.Context, start time.Time) {
	c.mu.Lock()
	c.start = start
	c.mu.Unlock()
	value := make([]byte, c.o.run.ValueBytes)
	for i := range value {
		value[i] = byte(c.rng.Uint32())
	}
	rate := c.o.rate / float64(c.o.conns)
	var buf []byte
	var due float64
	last := time.Duration(0)
	for ctx.Err() == nil {
		now := time.Since(start)
		if now >= c.till {
			break
		}
		due += rate * (now - last).Seconds()
		last = now
		n := int(due)
		due -= float64(n)
		// What one write can't take in ten ticks is not made up for: the schedule would become a burst.
		c.mu.Lock()
		room := floodIDs - c.unanswered
		c.mu.Unlock()
		if most := min(int(rate*(10*floodTick).Seconds())+1, room); n > most {
			if now >= c.from {
				c.skipped += uint64(n - most)
			}
			n = most
		}
		buf = c.frames(buf[:0], n, now, value)
		if err := c.nc.SetWriteDeadline(time.Now().Add(floodTimeout)); err != nil {
			break
		}
		if _, err := c.nc.Write(buf); err != nil {
			break // receive tells why the connection ended, or runs into its deadline
		}
		time.Sleep(floodTick - min(floodTick, time.Since(start)-now))
	}
	// An error here only means that receive has ended already.
	_ = c.nc.SetReadDeadline(time.Now().Add(floodTimeout))
}

// frames appends n requests.
func (c *floodConn) frames(buf []byte, n int, now time.Duration, value []byte) []byte {
	measured := now >= c.from
	at := now
	if !measured {
		at = -1
	}
	var key []byte
	c.mu.Lock()
	defer c.mu.Unlock()
	for range n {
		c.id++
		c.unanswered++
		c.at[c.id%floodIDs] = at
		key = append(key[:0], c.keys.name(c.rng.Int64N(int64(c.o.run.Keys)))...)
		h := wire.Header{Op: c.o.op, Flags: wire.FlagCRC, StatusOrGroup: wire.GroupDefault, ID: c.id, TimeOrTimeout: uint32(floodTimeout / time.Millisecond)}
		payload := value
		if c.o.op == wire.OpGet {
			payload = nil
		} else {
			binary.LittleEndian.PutUint32(value, c.id)
		}
		buf = wire.AppendFrame(buf, h, nil, key, payload)
		if measured {
			c.sent++
		}
	}
	return buf
}

// receive counts answers until the connection ends.
func (c *floodConn) receive() {
	defer func() { c.err = errors.Join(c.err, c.nc.Close()) }()
	buf, n := make([]byte, 1<<20), 0
	for {
		m, err := c.nc.Read(buf[n:])
		n += m
		used := 0
		c.mu.Lock()
		now := time.Since(c.start)
		for n-used >= wire.HeaderBytes {
			var h wire.Header
			if e := wire.DecodeHeader(buf[used:n], &h); e != nil {
				err = e
				break
			}
			size := wire.HeaderBytes + int(h.BodyLen)
			if size > len(buf) {
				err = fmt.Errorf("an answer of %d bytes", size)
				break
			}
			if size > n-used {
				break
			}
			if h.Op == wire.OpGoAway {
				err = fmt.Errorf("the server ends the connection: %s %.200q", h.Status(), buf[used+wire.HeaderBytes:used+size])
				break
			}
			used += size
			c.unanswered--
			if at := c.at[h.ID%floodIDs]; at >= 0 {
				st := h.Status()
				c.answers[st]++
				if st == wire.StatusOK || st == wire.StatusNotFound {
					record(c.latency, now-at)
				}
			}
		}
		c.mu.Unlock()
		n = copy(buf, buf[used:n])
		if err != nil {
			var ne net.Error
			if !errors.As(err, &ne) || !ne.Timeout() {
				c.err = err
			}
			return
		}
	}
}
