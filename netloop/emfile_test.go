package netloop

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Goal: running out of files keeps newcomers waiting and harms nobody who is connected. Method: a child
// process with a low limit runs the server; this one holds more connections than it can take.

const emfileChildEnv = "KVSTORE_NETLOOP_EMFILE_CHILD"

// emfileChild is the server's process: it prints its address, then its counters for each line it reads.
func emfileChild() {
	fail := func(err error) {
		if err != nil {
			fmt.Println("failed", err)
			os.Exit(1)
		}
	}
	fail(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 64, Max: 64}))
	s, err := Start(Options{Addr: "127.0.0.1:0", Handler: newStore(), Logger: quiet(), Loops: 1, MaxConns: 10_000, HandshakeTimeout: time.Minute})
	fail(err)
	fmt.Println(s.Addr())
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		st := s.Stats()
		fmt.Println(st.ConnsOpen, st.AcceptErrorsTotal, st.Handshakes)
	}
	fail(s.Close())
}

func TestAccept_OutOfFiles_OthersAreServedAndItRecovers(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), emfileChildEnv+"=1")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	t.Cleanup(func() {
		_ = stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("child: %v", err)
		}
	})
	if !lines.Scan() {
		t.Fatal("child says nothing")
	}
	addr := lines.Text()
	stats := func() (open, failed, handshakes int) {
		if _, err := io.WriteString(stdin, "\n"); err != nil {
			t.Fatal(err)
		}
		if !lines.Scan() {
			t.Fatal("child says nothing")
		}
		if _, err := fmt.Sscan(lines.Text(), &open, &failed, &handshakes); err != nil {
			t.Fatal(err)
		}
		return open, failed, handshakes
	}
	var old []*peer
	for range 20 {
		p := greet(t, dialRaw(t, addr), everything)
		// Until its first answer it may be on its way to an event loop, which takes one more descriptor for a moment.
		p.call(16, 1, "k", nil)
		old = append(old, p)
	}
	// Silent newcomers take every descriptor that is left, and more wait in the kernel's queue.
	var crowd []net.Conn
	for range 80 {
		crowd = append(crowd, dialRaw(t, addr))
	}
	eventually(t, "the child runs out of files", func() bool { _, failed, _ := stats(); return failed > 0 })
	for i, p := range old {
		if r := p.call(16, uint32(i+2), "k", nil); r.h.ID != uint32(i+2) {
			t.Fatalf("%s", r)
		}
	}
	for _, c := range crowd {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// A newcomer behind all of them in the kernel's queue: once the child has accepted it, the others are gone, but for those whose end
	// it is just reading.
	last, calm := dialRaw(t, addr), 0
	eventually(t, "the child has accepted all who waited", func() bool {
		if _, _, handshakes := stats(); handshakes == 1 {
			calm++
		} else {
			calm = 0
		}
		return calm == 20
	})
	greet(t, last, everything).call(16, 1, "k", nil)
	if open, _, _ := stats(); open != 21 {
		t.Errorf("%d connections are open, want 21", open)
	}
}

func TestDefaultMaxConns_LeavesFilesForTheStore(t *testing.T) {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	if n := defaultMaxConns(); n < 1 || uint64(n) >= lim.Cur || n > 65536 {
		t.Errorf("%d connections with %d files", n, lim.Cur)
	}
}

// rss is the resident memory of this process in bytes.
func rss(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.Fields(string(b))[1])
	if err != nil {
		t.Fatal(err)
	}
	return n * os.Getpagesize()
}
