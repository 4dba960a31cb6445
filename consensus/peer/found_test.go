package peer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// foundersOptions are those of n fresh nodes that know no cluster yet, and the list of them.
func foundersOptions(t *testing.T, n int) ([]Options, []Founder) {
	t.Helper()
	var all []Options
	var list []Founder
	for i := range n {
		o := testOptions(t, byte(i+1))
		o.Cluster = nil
		all = append(all, o)
		list = append(list, Founder{o.NodeID, string(o.Address)})
	}
	return all, list
}

func found(t *testing.T, o Options, list []Founder) (*Transport, <-chan error) {
	t.Helper()
	tr := open(t, o)
	if err := tr.SetFounders(list); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	ctx := shortContext(t)
	go func() { done <- tr.Found(ctx) }() // owned by the test; ends with its context
	return tr, done
}

func TestFound_ThreeInAnyOrder_MeetAndRememberIt(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 5 {
		all, list := foundersOptions(t, 3)
		order := random.Perm(3)
		trs := make([]*Transport, 3)
		var waits []<-chan error
		for at, i := range order {
			shuffled := append([]Founder(nil), list...)
			random.Shuffle(3, func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
			tr, done := found(t, all[i], shuffled)
			trs[i] = tr
			waits = append(waits, done)
			if at < 2 { // the last is late
				time.Sleep(time.Duration(random.IntN(30)) * time.Millisecond)
				select {
				case err := <-done:
					t.Fatalf("order %v: founded without all: %v", order, err)
				default:
				}
			}
		}
		for i, done := range waits {
			if err := <-done; err != nil {
				t.Fatalf("order %v, %d: %v", order, i, err)
			}
		}
		for i, tr := range trs {
			if !tr.Founded() || len(tr.Peers()) != 2 {
				t.Errorf("order %v, node %d: founded %v, peers %+v", order, i, tr.Founded(), tr.Peers())
			}
			for _, s := range tr.Peers() {
				if s.Incarnation == [16]byte{} {
					t.Errorf("%s is not bound", s.ID)
				}
			}
		}
		if err := trs[0].Close(); err != nil {
			t.Fatal(err)
		}
		all[0].Listener = relisten(t, all[0].Address)
		again := open(t, all[0])
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := again.Found(ctx); err != nil || !again.Founded() {
			t.Errorf("after a restart: %v", err)
		}
	}
}

func TestFound_OneMissing_EndsWithTheContextAndNamesIt(t *testing.T) {
	all, list := foundersOptions(t, 3)
	if err := all[2].Listener.Close(); err != nil {
		t.Fatal(err)
	}
	_, done1 := found(t, all[1], list)
	tr := open(t, all[0])
	if err := tr.SetFounders(list); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(shortContext(t))
	defer cancel()
	go func() { // owned by the test; ends when node-2 is met, or with the test's context
		for ctx.Err() == nil && statusOfOrZero(tr, "node-2").Incarnation == [16]byte{} {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(50 * time.Millisecond) // so that node-3 was tried as well
		cancel()
	}()
	err := tr.Found(ctx)
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "node-3: cannot reach") || strings.Contains(err.Error(), "node-2:") {
		t.Errorf("error = %v", err)
	}
	if tr.Founded() {
		t.Error("founded")
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	if err := tr.Found(context.Background()); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	select {
	case err := <-done1:
		t.Errorf("the other one ended: %v", err)
	default:
	}
}

// Goal: a founder that lost its disk stops, whether the others run already or still wait.
func TestFound_WipedFounder_IsRefusedWithTheWayBack(t *testing.T) {
	for _, running := range []bool{false, true} {
		t.Run(fmt.Sprintf("running=%v", running), func(t *testing.T) {
			all, list := foundersOptions(t, 3)
			if !running {
				all[2].Listener.Close() //nolint:errcheck // nobody is there
			}
			tr0, done0 := found(t, all[0], list)
			tr1, done1 := found(t, all[1], list)
			if running {
				_, done2 := found(t, all[2], list)
				for _, done := range []<-chan error{done0, done1, done2} {
					if err := <-done; err != nil {
						t.Fatal(err)
					}
				}
			} else {
				eventually(t, "node-1 remembers node-2", func() bool { return statusOfOrZero(tr0, "node-2").Incarnation != [16]byte{} })
			}
			if err := tr1.Close(); err != nil {
				t.Fatal(err)
			}
			wiped := all[1]
			wiped.Listener, wiped.Dir, wiped.Incarnation = relisten(t, wiped.Address), t.TempDir(), incarnation(0x22)
			tr, done := found(t, wiped, list)
			err := <-done
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), `run "kvctl member remove node-2" and start node-2 with an empty data directory and --join`) {
				t.Errorf("error = %v", err)
			}
			if strings.Contains(err.Error(), "if the cluster never ran") == running {
				t.Errorf("running = %v, error = %v", running, err)
			}
			if tr.Founded() {
				t.Error("founded")
			}
		})
	}
}

// A list that was corrected before the next start counts from the moment when it is known: until then nobody is
// judged by the old one, and turned away for good.
func TestFound_ListWasCorrected_NobodyIsJudgedByTheOldOne(t *testing.T) {
	all, list := foundersOptions(t, 2)
	wrong := append(slices.Clone(list), Founder{"node-9", "127.0.0.1:1"})
	tr := open(t, all[1])
	if err := tr.SetFounders(wrong); err != nil {
		t.Fatal(err)
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	all[1].Listener = relisten(t, all[1].Address)
	second := open(t, all[1]) // it answers, and was not told the list yet
	_, done := found(t, all[0], list)
	select {
	case err := <-done:
		t.Fatalf("judged by the old list: %v", err)
	case <-time.After(300 * time.Millisecond): // several attempts
	}
	if err := second.SetFounders(list); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(second.Found(shortContext(t)), <-done); err != nil {
		t.Fatal(err)
	}
}

// Goal: a founder that was bound, and fell before it could write that all were met, finishes although the
// others have a cluster by now. One that was removed does not begin a second cluster.
func TestFound_OthersRunAlready_BoundFounderFinishesAndAForgottenOneIsRefused(t *testing.T) {
	all, list := foundersOptions(t, 3)
	var trs []*Transport
	var waits []<-chan error
	for _, o := range all {
		tr, done := found(t, o, list)
		trs, waits = append(trs, tr), append(waits, done)
	}
	for _, done := range waits {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	for i, tr := range trs {
		if err := tr.Close(); err != nil {
			t.Fatal(err)
		}
		all[i].Listener = relisten(t, all[i].Address)
	}
	for i := range 2 {
		all[i].Cluster = func() (cluster, history [16]byte, ok bool) { return incarnation(0xcc), incarnation(0xdd), true }
		trs[i] = open(t, all[i])
	}
	fallen := all[2]
	tr := open(t, fallen)
	if err := tr.book.change(func(p *page) bool { p.founded = false; return true }); err != nil {
		t.Fatal(err)
	}
	if err := tr.SetFounders(list); err != nil {
		t.Fatal(err)
	}
	if err := tr.Found(shortContext(t)); err != nil || !tr.Founded() {
		t.Fatalf("the bound founder: %v", err)
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tr := range trs[:2] {
		if err := tr.Forget("node-3"); err != nil {
			t.Fatal(err)
		}
	}
	fresh := all[2]
	fresh.Listener, fresh.Dir, fresh.Incarnation = relisten(t, fresh.Address), t.TempDir(), incarnation(0x33)
	_, done := found(t, fresh, list)
	if err := <-done; !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "runs already") || !strings.Contains(err.Error(), "--join") {
		t.Errorf("a forgotten founder: %v", err)
	}
}

func TestFound_DifferentLists_AreRefused(t *testing.T) {
	all, list := foundersOptions(t, 3)
	_, done0 := found(t, all[0], list)
	_, done1 := found(t, all[1], list[:2])
	if err := <-done1; !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "different lists of --initial-cluster") {
		t.Errorf("error = %v", err)
	}
	if err := <-done0; !errors.Is(err, ErrRefused) {
		t.Errorf("error at the other = %v", err)
	}
}

func TestSetFounders_ChangedList_CountsOnlyBeforeFounding(t *testing.T) {
	all, list := foundersOptions(t, 1)
	tr := open(t, all[0])
	if err := tr.Found(context.Background()); err == nil {
		t.Error("founded without a list")
	}
	two := append([]Founder{{"node-9", "h:9"}}, list...)
	for _, l := range [][]Founder{two, list} {
		if err := tr.SetFounders(l); err != nil {
			t.Fatal(err)
		}
	}
	if err := tr.Found(shortContext(t)); err != nil { // alone
		t.Fatal(err)
	}
	if err := tr.SetFounders(two); err == nil {
		t.Error("the list of a founding that is over was changed")
	}
	if err := tr.SetFounders(list); err != nil {
		t.Error(err)
	}
	if got := tr.book.read(); len(got.founders) != 1 || got.hash != hashFounders(0, list) {
		t.Errorf("founders = %+v", got.founders)
	}
	if err := tr.SetFounders(two[:1]); err == nil {
		t.Error("a list without this node was taken")
	}
}

// Goal: a node that joined knows no founders, a founder that slept since the first minute knows no
// cluster. They can talk once the joined one has met any founder that knows both.
func TestSetJoined_SleepyFounder_IsRecognisedThroughAnother(t *testing.T) {
	all, list := foundersOptions(t, 2)
	all[1].Timeout = 300 * time.Millisecond // one call below is answered by nobody
	awake, done0 := found(t, all[0], list)
	sleepy, done1 := found(t, all[1], list)
	for _, done := range []<-chan error{done0, done1} {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if err := awake.Close(); err != nil {
		t.Fatal(err)
	}
	all[0].Listener = relisten(t, all[0].Address)
	all[0].Cluster = func() (cluster, history [16]byte, ok bool) { return incarnation(0xcc), incarnation(0xdd), true }
	awake = open(t, all[0])
	serve(t, awake, agree)
	serve(t, sleepy, agree)

	oj := testOptions(t, 9)
	oj.Cluster = nil
	joined := open(t, oj)
	if err := beat(joined, awake, 1); err == nil || errors.Is(err, ErrRefused) {
		t.Fatalf("before joining: %v", err)
	}
	members := []Bound{{"node-1", string(all[0].Address), incarnation(1)}, {"node-2", string(all[1].Address), incarnation(2)}, {"node-9", string(oj.Address), incarnation(9)}}
	if err := joined.SetJoined(incarnation(0xcc), incarnation(0xdd), members); err != nil {
		t.Fatal(err)
	}
	if err := beat(joined, sleepy, 1); err == nil || errors.Is(err, ErrRefused) {
		t.Fatalf("nothing in common yet: %v", err)
	}
	if err := beat(joined, awake, 1); err != nil {
		t.Fatal(err)
	}
	if err := beat(joined, sleepy, 1); err != nil {
		t.Fatal(err)
	}
	if err := beat(sleepy, joined, 1); err == nil { // nobody consumes: the handshake is what matters
		t.Error("answered by nobody")
	} else if errors.Is(err, ErrRefused) {
		t.Error(err)
	}
	if err := joined.Close(); err != nil {
		t.Fatal(err)
	}
	oj.Listener = relisten(t, oj.Address)
	joined = open(t, oj)
	if err := beat(joined, sleepy, 1); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	for _, bad := range [][]Bound{{{"", "h:1", incarnation(1)}}, {{"n", "", incarnation(1)}}, {{"n", "h:1", [16]byte{}}}, make([]Bound, peersMax+1)} {
		if err := joined.SetJoined(incarnation(1), incarnation(1), bad); err == nil {
			t.Errorf("%+v was taken", bad[0])
		}
	}
}
