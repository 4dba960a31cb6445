package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// Names of the tests with three processes, as FloorTest.Name has them. A lone replicated PUT is compared
// with the first: its order of work is that of a leader which makes an entry durable before it sends it.
const (
	FloorReplicatedSequential = "4 KiB durable on leader, then on 1 of 2 followers"
	FloorReplicatedOverlapped = "4 KiB durable on leader and 1 of 2 followers at once"
)

const (
	// floorFollowers besides the leader: the smallest cluster that survives the loss of a node.
	floorFollowers = 2
	// floorStall is how long a follower may be silent: far beyond the flush of any disk that works.
	floorStall = 10 * time.Second
	// followerBatch is how many blocks a follower that has fallen behind makes durable with one flush.
	followerBatch = 16
	// ackBytes is an answer of a follower: the number of the newest block that it holds.
	ackBytes = 8
)

// Places of what a follower inherits (os/exec puts ExtraFiles from 3 on).
const (
	followerLogFD  = 3
	followerConnFD = 4
)

// floorReplicated measures one caller at a cluster of three processes that does nothing but what it must:
// this process is the leader. The number of a block stands in its first eight bytes.
//
// The files lose their names at once and are inherited, as are the connections. So nothing is left behind
// even when this process is killed: followers end when their connection does.
func floorReplicated(overlapped bool) func(context.Context, FloorOptions) (FloorTest, error) {
	return func(ctx context.Context, o FloorOptions) (r FloorTest, err error) {
		file, err := namelessLog(o.Dir)
		if err != nil {
			return FloorTest{}, err
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		log := floorLog{fd: int(file.Fd())}
		var group floorGroup
		defer func() { err = errors.Join(err, group.stop()) }()
		for range floorFollowers {
			f, err := startFloorFollower(ctx, o)
			if err != nil {
				return FloorTest{}, fmt.Errorf("cannot start follower: %w", err)
			}
			group = append(group, f)
		}
		block := make([]byte, floorBlock)
		for i := range block {
			block[i] = byte(i * 7)
		}
		last := uint64(0)
		r, err = repeat(ctx, o.Duration, func(i int) error {
			last = uint64(i) + 1
			binary.LittleEndian.PutUint64(block, last)
			first, second := func() error { return log.append(block) }, func() error { return group.send(block) }
			if overlapped {
				first, second = second, first
			}
			if err := first(); err != nil {
				return err
			}
			if err := second(); err != nil {
				return err
			}
			return group.await(last, 1)
		})
		if err != nil {
			return r, err
		}
		// A follower that had stopped working would have made the leader faster, not slower.
		return r, group.await(last, floorFollowers)
	}
}

// floorLog is a preallocated file that is written round and round.
type floorLog struct {
	fd   int
	next int64
}

// append makes whole blocks durable.
func (l *floorLog) append(blocks []byte) error {
	if l.next+int64(len(blocks)) > floorFile {
		l.next = 0
	}
	if n, err := unix.Pwrite(l.fd, blocks, l.next); err != nil || n < len(blocks) {
		return fmt.Errorf("cannot write %d bytes, wrote %d: %w", len(blocks), n, err)
	}
	l.next += int64(len(blocks))
	if err := unix.Fdatasync(l.fd); err != nil {
		return fmt.Errorf("cannot flush: %w", err)
	}
	return nil
}

// namelessLog makes a preallocated file in dir that is gone when its last descriptor closes.
func namelessLog(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, ".kvbench-floor-*")
	if err != nil {
		return nil, err
	}
	if err = os.Remove(f.Name()); err == nil {
		err = preallocate(f)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// floorFollower is a follower's process as the leader sees it.
type floorFollower struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer // read after cmd has ended
	conn   *os.File
	fd     int // of conn, in blocking mode: the leader waits in poll(2) and pays for no goroutine switch

	in    [ackBytes]byte
	have  int
	acked uint64
}

// startFloorFollower runs o.Follower with a log and a connection. The process is killed when ctx ends.
func startFloorFollower(ctx context.Context, o FloorOptions) (_ *floorFollower, err error) {
	log, err := namelessLog(o.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	ours, theirs, err := loopbackPair()
	if err != nil {
		return nil, fmt.Errorf("cannot connect on loopback: %w", err)
	}
	defer func() { err = errors.Join(err, theirs.Close()) }()
	f := &floorFollower{conn: ours, fd: int(ours.Fd())}
	f.cmd = exec.CommandContext(ctx, o.Follower[0], o.Follower[1:]...)
	f.cmd.ExtraFiles = []*os.File{log, theirs}
	f.cmd.Stderr = &f.stderr
	if err := f.cmd.Start(); err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	return f, nil
}

// loopbackPair gives both ends of one TCP connection.
func loopbackPair() (ours, theirs *os.File, err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, ln.Close()) }()
	dialled, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, dialled.Close()) }()
	for {
		accepted, err := ln.Accept()
		if err != nil {
			return nil, nil, err
		}
		if accepted.RemoteAddr().String() != dialled.LocalAddr().String() {
			// A stranger was faster.
			if err := accepted.Close(); err != nil {
				return nil, nil, err
			}
			continue
		}
		ours, err1 := dialled.(*net.TCPConn).File()
		theirs, err2 := accepted.(*net.TCPConn).File()
		return ours, theirs, errors.Join(err1, err2, accepted.Close())
	}
}

// receive takes what has arrived of the follower's answers.
func (f *floorFollower) receive() error {
	n, err := unix.Read(f.fd, f.in[f.have:])
	switch {
	case errors.Is(err, unix.EINTR):
		return nil
	case err != nil:
		return fmt.Errorf("cannot read a follower's answer: %w", err)
	case n == 0:
		return errors.New("a follower has ended")
	}
	if f.have += n; f.have == ackBytes {
		f.acked, f.have = binary.LittleEndian.Uint64(f.in[:]), 0
	}
	return nil
}

// stop ends the process, which ends by itself when its connection does, and waits for it.
func (f *floorFollower) stop() error {
	err := f.conn.Close()
	hung := time.AfterFunc(floorStall, func() {
		// It may end at this moment; Wait tells how it ended either way.
		_ = f.cmd.Process.Kill()
	})
	defer hung.Stop()
	if werr := f.cmd.Wait(); werr != nil {
		err = errors.Join(err, fmt.Errorf("follower: %w: %s", werr, bytes.TrimSpace(f.stderr.Bytes())))
	}
	return err
}

// floorGroup is the followers of one leader.
type floorGroup []*floorFollower

func (g floorGroup) send(block []byte) error {
	for _, f := range g {
		if err := writeFull(f.fd, block); err != nil {
			return fmt.Errorf("cannot send to a follower: %w", err)
		}
	}
	return nil
}

// await waits until n followers hold block number seq.
func (g floorGroup) await(seq uint64, n int) error {
	var polled [floorFollowers]unix.PollFd
	for {
		have := 0
		for i, f := range g {
			if f.acked >= seq {
				have++
			}
			polled[i] = unix.PollFd{Fd: int32(f.fd), Events: unix.POLLIN}
		}
		if have >= n {
			return nil
		}
		ready, err := unix.Poll(polled[:len(g)], int(floorStall/time.Millisecond))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("cannot wait for the followers: %w", err)
		}
		if ready == 0 {
			return fmt.Errorf("no follower answered within %v", floorStall)
		}
		for i, f := range g {
			if polled[i].Revents != 0 {
				if err := f.receive(); err != nil {
					return err
				}
			}
		}
	}
}

func (g floorGroup) stop() error {
	var errs []error
	for _, f := range g {
		errs = append(errs, f.stop())
	}
	return errors.Join(errs...)
}

// FloorFollower is the whole life of a follower: the process that FloorOptions.Follower names calls it. It
// makes durable what arrives on the inherited connection, answers, and returns when the connection ends.
// What has arrived by the time of a flush shares that flush, as in any log.
func FloorFollower() error {
	if _, err := unix.Getpeername(followerConnFD); err != nil {
		return fmt.Errorf("this is a part of the floor's measurement, which starts it by itself: no connection was inherited: %w", err)
	}
	log := floorLog{fd: followerLogFD}
	buf := make([]byte, followerBatch*floorBlock)
	have := 0
	for {
		n, err := unix.Read(followerConnFD, buf[have:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("cannot read from the leader: %w", err)
		case n == 0:
			return nil
		}
		have += n
		whole := have / floorBlock * floorBlock
		if whole == 0 {
			continue
		}
		if err := log.append(buf[:whole]); err != nil {
			return err
		}
		newest := buf[whole-floorBlock:]
		if err := writeFull(followerConnFD, newest[:ackBytes]); err != nil {
			return fmt.Errorf("cannot answer the leader: %w", err)
		}
		have = copy(buf, buf[whole:have])
	}
}

// writeFull writes all of b to a descriptor in blocking mode.
func writeFull(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		b = b[max(n, 0):]
	}
	return nil
}
