package testcluster

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// wired is a network with the nodes "a" and "b", which this test plays. With proxies the kernel names this process as
// the maker of the connections; with namespaces they are made inside those.
type wired struct {
	net  *Network
	addr string // of b, for a
	b    *net.TCPListener
}

func newWired(t *testing.T) *wired {
	w := &wired{net: NewNetwork(t)}
	if _, err := w.net.Add("a"); err != nil {
		t.Fatal(err)
	}
	w.net.Connect("a", "127.0.0.1:1", os.Getpid)
	var err error
	if w.addr, err = w.net.Add("b"); err != nil {
		t.Fatal(err)
	}
	w.listen(t, "127.0.0.1:0")
	w.net.Connect("b", w.b.Addr().String(), func() int { return 0 })
	return w
}

func (w *wired) listen(t *testing.T, addr string) {
	t.Helper()
	l, err := from(w.net.space("b"), func() (net.Listener, error) { return net.Listen("tcp", addr) })
	if err != nil {
		t.Fatal(err)
	}
	w.b = l.(*net.TCPListener)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}

// from makes a socket in a namespace; nil: in that of the test.
func from[T any](s *space, open func() (T, error)) (made T, err error) {
	err = s.do(func() error {
		made, err = open()
		return err
	})
	return made, err
}

// side is one end of a connection, read line by line by a goroutine, so that a test can ask what came so far.
type side struct {
	t     *testing.T
	conn  net.Conn
	lines chan string
	ended chan error // how reading ended; lines is closed then
}

func newSide(t *testing.T, c net.Conn) *side {
	s := &side{t: t, conn: c, lines: make(chan string, 1000), ended: make(chan error, 1)}
	done := make(chan struct{})
	go func() { // ends when the connection ends, at the latest with the test
		defer close(done)
		r := bufio.NewReader(c)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				s.ended <- err
				close(s.lines)
				return
			}
			s.lines <- strings.TrimSpace(line)
		}
	}()
	t.Cleanup(func() {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		<-done
	})
	return s
}

func (s *side) say(line string) {
	s.t.Helper()
	if _, err := io.WriteString(s.conn, line+"\n"); err != nil {
		s.t.Fatal(err)
	}
}

func (s *side) hear(want string) {
	s.t.Helper()
	select {
	case got, ok := <-s.lines:
		if !ok {
			s.t.Fatalf("the connection ended (%v), want %q", <-s.ended, want)
		}
		if got != want {
			s.t.Fatalf("heard %q, want %q", got, want)
		}
	case <-time.After(exitTimeout):
		s.t.Fatalf("heard nothing, want %q", want)
	}
}

func (s *side) end() error {
	s.t.Helper()
	select {
	case err := <-s.ended:
		return err
	case <-time.After(exitTimeout):
		s.t.Fatal("the connection has not ended")
		return nil
	}
}

// silent fails if anything came. REQUIRES: the network has counted what it holds, so nothing is on its way.
func (s *side) silent() {
	s.t.Helper()
	select {
	case got, ok := <-s.lines:
		if !ok {
			s.t.Fatalf("the end (%v) came through a cut", <-s.ended)
		}
		s.t.Fatalf("heard %q through a cut", got)
	default:
	}
}

func (w *wired) dial(t *testing.T) *side {
	t.Helper()
	c, err := from(w.net.space("a"), func() (net.Conn, error) { return net.Dial("tcp", w.addr) })
	if err != nil {
		t.Fatal(err)
	}
	return newSide(t, c)
}

func (w *wired) pair(t *testing.T) (a, b *side) {
	t.Helper()
	a = w.dial(t)
	c, err := w.b.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return a, newSide(t, c)
}

func (w *wired) waitHeld(t *testing.T, from, to string, n int64) {
	t.Helper()
	for deadline := time.Now().Add(exitTimeout); w.net.Held(from, to) < n; time.Sleep(pollInterval) {
		if time.Now().After(deadline) {
			t.Fatalf("%d things are held from %s to %s, want %d", w.net.Held(from, to), from, to, n)
		}
	}
}

func TestNetwork_OneDirectionCut_IsSilentWhileTheOtherCarriesAndHealsLate(t *testing.T) {
	oneDirectionCut(t, newWired(t))
}

func oneDirectionCut(t *testing.T, w *wired) {
	a, b := w.pair(t)
	a.say("one")
	b.hear("one")
	w.net.Cut("a", "b")
	a.say("two")
	w.waitHeld(t, "a", "b", 1)
	b.silent()
	b.say("three")
	a.hear("three")
	a.say("four")
	if err := a.conn.Close(); err != nil {
		t.Fatal(err)
	}
	b.silent()
	if w.net.CanDelay() && (w.net.Sent("a", "b") != 4 || w.net.Sent("b", "a") != 6) || w.net.Held("b", "a") != 0 {
		t.Errorf("%d held from b to a, %d bytes from a to b, %d back", w.net.Held("b", "a"), w.net.Sent("a", "b"), w.net.Sent("b", "a"))
	}
	w.net.Heal()
	b.hear("two")
	b.hear("four")
	if err := b.end(); !errors.Is(err, io.EOF) {
		t.Errorf("the connection ended by %v, want an orderly end", err)
	}
}

func TestNetwork_AnswersCut_RequestsArriveAndTheEndIsNotTold(t *testing.T) {
	answersCut(t, newWired(t))
}

func answersCut(t *testing.T, w *wired) {
	a, b := w.pair(t)
	a.say("one")
	b.hear("one")
	w.net.Cut("b", "a")
	b.say("answer")
	w.waitHeld(t, "b", "a", 1)
	a.say("two")
	b.hear("two")
	// The far process dies with unread data: its kernel resets the connection.
	if err := errors.Join(b.conn.(*net.TCPConn).SetLinger(0), b.conn.Close()); err != nil {
		t.Fatal(err)
	}
	a.silent()
	a.say("three") // into the void
	w.waitHeld(t, "b", "a", 2)
	a.silent()
	w.net.Heal()
	if err := a.end(); err == nil {
		t.Error("after the cut a was not told that b is gone")
	}
}

func TestNetwork_ConnectionMadeDuringACut_ComesAboutAfterIt(t *testing.T) {
	w := newWired(t)
	for _, d := range []direction{{"a", "b"}, {"b", "a"}} {
		w.net.Cut(d.from, d.to)
		a := w.dial(t)
		a.say("hello")
		w.waitHeld(t, d.from, d.to, 1)
		if err := w.b.SetDeadline(time.Now()); err != nil {
			t.Fatal(err)
		}
		if _, err := w.b.Accept(); err == nil {
			t.Fatalf("a connection came about although %v is cut", d)
		}
		if err := w.b.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		w.net.Heal()
		c, err := w.b.Accept()
		if err != nil {
			t.Fatal(err)
		}
		newSide(t, c).hear("hello")
	}
}

func TestNetwork_HealLosing_ResetsWhatWasHeldAndNothingElse(t *testing.T) { healLosing(t, newWired(t)) }

func healLosing(t *testing.T, w *wired) {
	a, b := w.pair(t)
	quietA, quietB := w.pair(t)
	w.net.Isolate("b")
	a.say("lost")
	w.waitHeld(t, "a", "b", 1)
	w.net.HealLosing()
	for _, s := range []*side{a, b} {
		if err := s.end(); err == nil {
			t.Error("no error from a connection that was reset")
		}
		if line, ok := <-s.lines; ok {
			t.Errorf("heard %q, which is lost", line)
		}
	}
	quietA.say("alive")
	quietB.hear("alive")
}

func TestNetwork_DelayAndRate_NothingArrivesEarlierAndOrderIsKept(t *testing.T) {
	w := newWired(t)
	a, b := w.pair(t)
	const by = 80 * time.Millisecond
	w.net.Delay("a", "b", by)
	began := time.Now()
	for i := range 20 {
		a.say(fmt.Sprint(i))
	}
	for i := range 20 {
		b.hear(fmt.Sprint(i))
		if took := time.Since(began); took < by {
			t.Fatalf("line %d arrived after %v, want %v at least", i, took, by)
		}
	}
	w.net.Heal()
	w.net.Rate("a", "b", 1<<20)
	began = time.Now()
	a.say(strings.Repeat("x", 200<<10))
	b.hear(strings.Repeat("x", 200<<10))
	if took := time.Since(began); took < 190*time.Millisecond {
		t.Errorf("200 KiB at 1 MiB/s took %v", took)
	}
}

func TestNetwork_OnlyOneWayOpened_TheOtherStaysCut(t *testing.T) { onlyOneWayOpened(t, newWired(t)) }

func onlyOneWayOpened(t *testing.T, w *wired) {
	a, b := w.pair(t)
	a.say("one")
	b.hear("one")
	w.net.Isolate("b")
	a.say("two")
	b.say("three")
	w.waitHeld(t, "a", "b", 1)
	w.waitHeld(t, "b", "a", 1)
	w.net.Open("a", "b")
	b.hear("two")
	a.say("four")
	b.hear("four")
	a.silent()
	before := w.net.Held("b", "a")
	made := make(chan *side)
	go func() { made <- w.dial(t) }() // ends with the connection
	w.waitHeld(t, "b", "a", before+1)
	a.silent()
	w.net.Open("b", "a")
	a.hear("three")
	<-made
}

func TestNetwork_Loss_StrikesTheWayThatLosesAndNoOther(t *testing.T) { lossStrikes(t, newWired(t)) }

// lossStrikes sends until a good number of losses was counted; everything arrives in order all the same, or the
// connection is reset.
func lossStrikes(t *testing.T, w *wired) {
	w.net.Loss("a", "b", 40)
	const losses = 5
	for w.net.Held("a", "b") < losses {
		a, b := w.pair(t)
		for i := range 30 {
			if w.net.Held("a", "b") >= losses {
				break
			}
			line := fmt.Sprint(i)
			if _, err := io.WriteString(a.conn, line+"\n"); err != nil {
				break // reset
			}
			got, ok := <-b.lines
			if !ok {
				break // reset
			}
			if got != line {
				t.Fatalf("heard %q, want %q", got, line)
			}
		}
	}
	if k := w.net.Held("b", "a"); k != 0 {
		t.Errorf("%d were lost on the way that loses nothing", k)
	}
	w.net.Heal()
	before := w.net.Held("a", "b")
	a, b := w.pair(t)
	for i := range 100 {
		a.say(fmt.Sprint(i))
		b.hear(fmt.Sprint(i))
	}
	if after := w.net.Held("a", "b"); after != before {
		t.Errorf("%d were lost after the healing", after-before)
	}
}

func TestNetwork_TargetDown_ConnectionEnds(t *testing.T) {
	w := newWired(t)
	w.net.Connect("b", "127.0.0.1:1", func() int { return 0 })
	if err := w.dial(t).end(); err == nil {
		t.Error("no error from a connection to nobody")
	}
}

// TestNetwork_SeveralProcesses_ToldApart lets two processes connect to the same node and cuts off only one.
func TestNetwork_SeveralProcesses_ToldApart(t *testing.T) {
	w := newWired(t)
	_, port, err := net.SplitHostPort(w.addr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.net.Add("c"); err != nil {
		t.Fatal(err)
	}
	start := func(id string) io.Writer {
		cmd := exec.Command("bash", "-c", `read; exec 3<>/dev/tcp/127.0.0.1/`+port+`; echo from-`+id+` >&3; read <&3`)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
				t.Error(err)
			}
			if err := cmd.Wait(); err == nil {
				t.Errorf("%s ended by itself", id)
			}
		})
		w.net.Connect(id, "127.0.0.1:1", func() int { return cmd.Process.Pid })
		return in
	}
	goA, goC := start("a"), start("c")
	w.net.Cut("a", "b")
	if _, err := io.WriteString(goA, "go\n"); err != nil {
		t.Fatal(err)
	}
	w.waitHeld(t, "a", "b", 1)
	if _, err := io.WriteString(goC, "go\n"); err != nil {
		t.Fatal(err)
	}
	c, err := w.b.Accept()
	if err != nil {
		t.Fatal(err)
	}
	newSide(t, c).hear("from-c")
	w.net.Heal()
	if c, err = w.b.Accept(); err != nil {
		t.Fatal(err)
	}
	newSide(t, c).hear("from-a")
	// This process is no node of the network any more.
	if err := w.dial(t).end(); err == nil {
		t.Error("a connection of nobody was served")
	}
}
