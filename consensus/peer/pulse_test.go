package peer

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// skewedClock runs at a rate of its own on whatever time there is.
type skewedClock struct {
	began     time.Time
	boot, raw float64
	wall      time.Duration
}

func (c *skewedClock) Now() time.Time { return time.Now().Add(c.wall) }
func (c *skewedClock) Boot() time.Duration {
	return time.Duration(float64(time.Since(c.began)) * c.boot)
}
func (c *skewedClock) Raw() time.Duration { return time.Duration(float64(time.Since(c.began)) * c.raw) }

// Goal: a pulse comes each interval, with the clocks of the other node between two readings of the own one,
// and its vitals.
func TestPulse_TwoNodes_TellClocksAndVitalsEachInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var network memoryNet
		oa, ob := testOptions(t, 1), testOptions(t, 2)
		network.inMemory(t, &oa)
		network.inMemory(t, &ob)
		began := time.Now()
		oa.Clock = &skewedClock{began: began, boot: 1, raw: 1}
		ob.Clock = &skewedClock{began: began, boot: 2, raw: 3, wall: time.Hour}
		ob.Vitals = func() []byte { return fmt.Append(nil, "at ", time.Since(began)) }
		var mu sync.Mutex
		var got []Pulse
		oa.OnPulse = func(p Pulse) { mu.Lock(); defer mu.Unlock(); got = append(got, p) }
		a, b := open(t, oa), open(t, ob)
		serve(t, b, agree)
		time.Sleep(time.Second)
		if err := beat(a, b, 1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10*a.o.PulseInterval + time.Millisecond)
		mu.Lock()
		defer mu.Unlock()
		if len(got) != 11 {
			t.Fatalf("%d pulses in ten intervals and one at their beginning", len(got))
		}
		for i, p := range got {
			at := time.Second + time.Duration(i)*a.o.PulseInterval
			want := Pulse{
				Peer: "node-2", Incarnation: incarnation(2), SentAt: int64(at), ReceivedAt: int64(at),
				Boot: int64(2 * at), Raw: int64(3 * at), Wall: began.Add(time.Hour + at).UnixMicro(), Vitals: fmt.Append(nil, "at ", at),
			}
			if fmt.Sprint(p) != fmt.Sprint(want) {
				t.Errorf("pulse %d: %+v, want %+v", i, p, want)
			}
		}
	})
}

// Goal: pulses survive the other node's restart, end when it is forgotten, and begin again when it comes anew.
func TestPulse_PeerRestartedAndForgotten_EndsAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var network memoryNet
		oa, ob := testOptions(t, 1), testOptions(t, 2)
		network.inMemory(t, &oa)
		network.inMemory(t, &ob)
		pulses := make(chan Pulse, 1000)
		oa.OnPulse = func(p Pulse) { pulses <- p }
		a, b := open(t, oa), open(t, ob)
		serve(t, b, agree)
		if err := beat(a, b, 1); err != nil {
			t.Fatal(err)
		}
		within := func(d time.Duration) (n int) {
			for end := time.After(d); ; n++ {
				select {
				case <-pulses:
				case <-end:
					return n
				}
			}
		}
		if within(time.Second) < 3 {
			t.Fatal("no pulses")
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		within(0)
		if n := within(10 * time.Second); n != 0 {
			t.Errorf("%d pulses from a node that is down", n)
		}
		ob.Listener = network.listen(string(ob.Address))
		b = open(t, ob)
		serve(t, b, agree)
		if within(2*time.Second) < 3 {
			t.Error("no pulses after the restart")
		}
		if err := a.Forget("node-2"); err != nil {
			t.Fatal(err)
		}
		within(0)
		if n := within(10 * time.Second); n != 0 {
			t.Errorf("%d pulses from a node that was forgotten", n)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		ob.Listener, ob.Incarnation, ob.Dir = network.listen(string(ob.Address)), incarnation(0x22), t.TempDir()
		b = open(t, ob)
		serve(t, b, agree)
		if err := beat(a, b, 1); err != nil {
			t.Fatal(err)
		}
		if within(time.Second) < 3 {
			t.Error("no pulses from the node that came anew")
		}
	})
}

// Goal: a node that takes connections but answers nothing costs one connection at a time, and is asked again.
func TestPulse_SilentPeer_OneConnectionAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var network memoryNet
		oa, ob := testOptions(t, 1), testOptions(t, 2)
		network.inMemory(t, &oa)
		network.inMemory(t, &ob)
		frozen := make(chan struct{})
		var once sync.Once
		thaw := func() { once.Do(func() { close(frozen) }) }
		t.Cleanup(thaw)
		var mu sync.Mutex
		freeze, asked, pulses := false, 0, 0
		ob.Vitals = func() []byte {
			mu.Lock()
			f := freeze
			asked++
			mu.Unlock()
			if f {
				<-frozen
			}
			return nil
		}
		oa.OnPulse = func(Pulse) { mu.Lock(); defer mu.Unlock(); pulses++ }
		a, b := open(t, oa), open(t, ob)
		serve(t, b, agree)
		if err := beat(a, b, 1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		mu.Lock()
		freeze, asked, pulses = true, 0, 0
		mu.Unlock()
		time.Sleep(time.Minute)
		open := func() (n int) {
			a.conns.mu.Lock()
			defer a.conns.mu.Unlock()
			for c := range a.conns.open {
				if c.pulse && !c.inbound {
					n++
				}
			}
			return n
		}
		mu.Lock()
		if most := int(time.Minute/a.o.Timeout) + 1; pulses != 0 || asked < 2 || asked > most || open() > 1 {
			t.Errorf("%d pulses, asked %d times (at most %d), %d connections open", pulses, asked, most, open())
		}
		freeze = false
		mu.Unlock()
		thaw()
		time.Sleep(10 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		if pulses < 10 {
			t.Errorf("%d pulses after it speaks again", pulses)
		}
	})
}

// Goal: too much is not sent, and said once; the clocks still are.
func TestPulse_VitalsTooLarge_ClocksStillCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var network memoryNet
		oa, ob := testOptions(t, 1), testOptions(t, 2)
		network.inMemory(t, &oa)
		network.inMemory(t, &ob)
		var log bytes.Buffer // written by one goroutine
		size := vitalsBytesMax
		var mu sync.Mutex
		ob.Vitals = func() []byte { mu.Lock(); defer mu.Unlock(); return make([]byte, size) }
		ob.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError}))
		pulses := make(chan Pulse, 1000)
		oa.OnPulse = func(p Pulse) { pulses <- p }
		a, b := open(t, oa), open(t, ob)
		serve(t, b, agree)
		if err := beat(a, b, 1); err != nil {
			t.Fatal(err)
		}
		if p := <-pulses; len(p.Vitals) != vitalsBytesMax {
			t.Errorf("%d bytes came", len(p.Vitals))
		}
		mu.Lock()
		size++
		mu.Unlock()
		<-pulses // it may have been asked for before
		for range 3 {
			if p := <-pulses; len(p.Vitals) != 0 || p.Boot == 0 {
				t.Errorf("%+v", p)
			}
		}
		synctest.Wait()
		if n := strings.Count(log.String(), "too large"); n != 1 {
			t.Errorf("said %d times: %s", n, log.String())
		}
	})
}

// Goal: the largest question fits into its frame.
func TestPulse_LargestQuestion_FitsItsBound(t *testing.T) {
	q := pulseQuestion{Seq: 1<<64 - 1, Applied: 1<<64 - 1}
	for range heldMax {
		inc := incarnation(0xff)
		q.Held = append(q.Held, held{ID: strings.Repeat("\x01", idBytesMax), Incarnation: inc[:], Starts: 1<<64 - 1, Index: 1<<64 - 1})
	}
	frame, err := appendFrame(nil, kindPulse, &q)
	if err != nil || len(frame) > frameHeader+pulseBytesMax {
		t.Fatalf("%d bytes, %v", len(frame), err)
	}
	var back pulseQuestion
	if err := readFrame(bytes.NewReader(frame), kindPulse, pulseBytesMax, &back); err != nil || fmt.Sprint(back) != fmt.Sprint(q) {
		t.Errorf("%v", err)
	}
}
