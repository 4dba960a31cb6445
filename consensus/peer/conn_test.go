package peer

import (
	"bytes"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// recordingConn keeps what was done to it.
type recordingConn struct {
	net.Conn
	writes         []int // sizes; 0 is a new deadline
	readDeadlineAt time.Time
}

func (c *recordingConn) Write(b []byte) (int, error) {
	c.writes = append(c.writes, len(b))
	return len(b), nil
}
func (c *recordingConn) Read(b []byte) (int, error) { return min(1, len(b)), nil }
func (c *recordingConn) SetWriteDeadline(time.Time) error {
	c.writes = append(c.writes, 0)
	return nil
}
func (c *recordingConn) SetReadDeadline(at time.Time) error { c.readDeadlineAt = at; return nil }

// Goal: it is progress that is bounded, not the size of a message.
func TestConn_LargeMessage_EachStepHasItsDeadlineAndTheAnswerMoreTime(t *testing.T) {
	raw := &recordingConn{}
	c := &conn{Conn: raw, step: time.Second}
	n, err := c.Write(make([]byte, 2*connChunk+1))
	if n != 2*connChunk+1 || err != nil {
		t.Fatal(n, err)
	}
	want := []int{0, connChunk, 0, connChunk, 0, 1}
	for i, w := range want {
		if len(raw.writes) != len(want) || raw.writes[i] != w {
			t.Fatalf("steps = %v, want %v", raw.writes, want)
		}
	}
	if _, err := c.Write(make([]byte, 80<<20-2*connChunk-1)); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	read := func() time.Duration {
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		return raw.readDeadlineAt.Sub(start)
	}
	if wait := read(); wait < 11*time.Second {
		t.Errorf("the answer to 80 MiB has %v", wait)
	}
	start = time.Now()
	if wait := read(); wait < time.Second || raw.readDeadlineAt.After(time.Now().Add(time.Second)) {
		t.Errorf("the rest of it has %v", wait)
	}
	in := &conn{Conn: &recordingConn{}, step: time.Second, inbound: true}
	if _, err := in.Read(make([]byte, 1)); err != nil || !in.Conn.(*recordingConn).readDeadlineAt.IsZero() {
		t.Error("an inbound connection may not be idle")
	}
}

func TestTune_RealSocket_HasItsOptions(t *testing.T) {
	l := newListener(t)
	defer l.Close() //nolint:errcheck // a test's socket
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // a test's socket
	if err := tune(c, 2500*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		for name, o := range map[string][3]int{
			"TCP_NODELAY":      {unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
			"TCP_USER_TIMEOUT": {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 2500},
			"SO_KEEPALIVE":     {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		} {
			if got, err := unix.GetsockoptInt(int(fd), o[0], o[1]); err != nil || got != o[2] {
				t.Errorf("%s = %d, %v; want %d", name, got, err, o[2])
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	for heartbeat, want := range map[time.Duration]time.Duration{
		100 * time.Millisecond: 2 * time.Second, time.Second: 3 * time.Second, time.Minute: 10 * time.Second,
	} {
		if got := (&Transport{o: Options{HeartbeatTimeout: heartbeat}}).userTimeout(); got != want {
			t.Errorf("heartbeat %v: user timeout %v, want %v", heartbeat, got, want)
		}
	}
}

func FuzzReadInstallRequest(f *testing.F) {
	f.Add([]byte(`{"term":3,"id":"bm9kZS0x","configuration":"AAAA"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r installRequest
		if readFrame(bytes.NewReader(sealFrame(kindInstall, b)), kindInstall, installRequestBytesMax, &r) == nil {
			r.raft()
		}
	})
}
