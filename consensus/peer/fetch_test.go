package peer

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// offered is what the fetching side got.
type offered struct {
	o    Offer
	body []byte
}

// takeLength reads a stream of snapshotBytes.
func takeLength(got *offered) func(context.Context, Offer, io.Reader) error {
	return func(_ context.Context, o Offer, s io.Reader) error {
		got.o = o
		var size [8]byte
		if _, err := io.ReadFull(s, size[:]); err != nil {
			return err
		}
		got.body = make([]byte, binary.LittleEndian.Uint64(size[:]))
		_, err := io.ReadFull(s, got.body)
		return err
	}
}

// closeCounter is a stream that counts how often it is closed.
type closeCounter struct {
	io.Reader
	closed *atomic.Int64
}

func (c closeCounter) Close() error { c.closed.Add(1); return nil }

var anOffer = Offer{Index: 70, Term: 4, Configuration: []byte("configuration"), ConfigurationIndex: 60, Size: 12345}

// fetchPair returns a node that asks and one that offers what open returns.
func fetchPair(t *testing.T, open func(ctx context.Context, w Want) (Offer, io.ReadCloser, error)) (a, b *Transport) {
	t.Helper()
	a, b = pair(t, func(_, b *Options) { b.Offer, b.StallTimeout = open, 500*time.Millisecond }, agree)
	return a, b
}

func TestFetch_Whole_BothSidesAgree(t *testing.T) {
	var closed atomic.Int64
	var want Want
	a, b := fetchPair(t, func(_ context.Context, w Want) (Offer, io.ReadCloser, error) {
		want = w
		return anOffer, closeCounter{bytes.NewReader(snapshotBytes(3 << 20)), &closed}, nil
	})
	b.Bind(newFakeNode(5)) // the one that asks has no raft yet
	for range 2 {          // it may be asked again
		var got offered
		if err := a.Fetch(shortContext(t), "node-2", string(b.LocalAddr()), Want{Reach: 50, Confirmed: true}, takeLength(&got)); err != nil {
			t.Fatal(err)
		}
		if o := got.o; o.Index != 70 || o.Term != 4 || string(o.Configuration) != "configuration" || o.ConfigurationIndex != 60 || o.Size != 12345 || len(got.body) != 3<<20 {
			t.Errorf("got %+v and %d bytes", o, len(got.body))
		}
		if want != (Want{Reach: 50, Confirmed: true}) {
			t.Errorf("was asked for %+v", want)
		}
		eventually(t, "the way is free again", func() bool { return !b.serving.Load() })
	}
	if closed.Load() != 2 {
		t.Errorf("the stream was closed %d times", closed.Load())
	}
	if err := beat(a, b, 6); err != nil { // the ordinary connections are untouched
		t.Fatal(err)
	}
}

func TestFetch_NothingOffered_TheReasonArrives(t *testing.T) {
	a, b := fetchPair(t, func(context.Context, Want) (Offer, io.ReadCloser, error) {
		return Offer{}, nil, errors.New("not far enough")
	})
	fetch := func() error {
		return a.Fetch(shortContext(t), "node-2", string(b.LocalAddr()), Want{}, func(context.Context, Offer, io.Reader) error {
			t.Error("something was taken")
			return nil
		})
	}
	if err := fetch(); err == nil || !strings.Contains(err.Error(), errUnbound.Error()) {
		t.Errorf("from a node that is only just starting: %v", err)
	}
	b.Bind(newFakeNode(5))
	if err := fetch(); err == nil || !strings.Contains(err.Error(), "not far enough") || errors.Is(err, ErrRefused) {
		t.Errorf("%v", err)
	}
	if err := b.Fetch(shortContext(t), "node-1", string(a.LocalAddr()), Want{}, nil); err == nil {
		t.Error("a node without a raft offered its state")
	}
}

// Goal: whatever goes wrong while the stream flows, the fetching side gets an error soon, never an early end.
func TestFetch_StreamFails_ErrorOnTheFetchingSideAndTheWayIsFreeAgain(t *testing.T) {
	for name, stream := range map[string]func() io.Reader{
		"can't be read": func() io.Reader {
			return io.MultiReader(bytes.NewReader(snapshotBytes(1 << 20)[:1000]), failingReader{})
		},
		"too long":   func() io.Reader { return bytes.NewReader(append(snapshotBytes(10), "more"...)) },
		"ends early": func() io.Reader { return bytes.NewReader(snapshotBytes(1 << 20)[:1000]) },
		"stalls": func() io.Reader {
			return io.MultiReader(bytes.NewReader(snapshotBytes(1 << 20)[:1000]), slowReader(2*time.Second))
		},
	} {
		a, b := fetchPair(t, func(context.Context, Want) (Offer, io.ReadCloser, error) {
			return anOffer, io.NopCloser(stream()), nil
		})
		a.o.StallTimeout = 500 * time.Millisecond
		b.Bind(newFakeNode(5))
		err := a.Fetch(shortContext(t), "node-2", string(b.LocalAddr()), Want{}, takeLength(new(offered)))
		if err == nil || name == "stalls" && !errors.Is(err, errStalled) || name == "too long" && !errors.Is(err, errLeftOver) {
			t.Errorf("%s: %v", name, err)
		}
		eventually(t, name+": the way is free again", func() bool { return !b.serving.Load() })
	}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errors.New("the disk is gone") }

// slowReader gives nothing for a while, and then the end.
type slowReader time.Duration

func (s slowReader) Read([]byte) (int, error) { time.Sleep(time.Duration(s)); return 0, io.EOF }

func TestFetch_CallerGivesUp_EndsAtOnce(t *testing.T) {
	pr, pw := io.Pipe()
	defer pw.Close() //nolint:errcheck // never fails
	a, b := fetchPair(t, func(context.Context, Want) (Offer, io.ReadCloser, error) { return anOffer, pr, nil })
	b.Bind(newFakeNode(5))
	ctx, cancel := context.WithCancel(context.Background())
	err := a.Fetch(ctx, "node-2", string(b.LocalAddr()), Want{}, func(_ context.Context, _ Offer, s io.Reader) error {
		cancel()
		_, err := io.ReadAll(s)
		return err
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestFetch_TwoAtOnce_TheSecondIsTurnedAway(t *testing.T) {
	pr, pw := io.Pipe()
	a, b := fetchPair(t, func(context.Context, Want) (Offer, io.ReadCloser, error) { return anOffer, pr, nil })
	b.Bind(newFakeNode(5))
	first := make(chan error, 1)
	begun := make(chan struct{})
	go func() { // owned by the test; ends with the pipe
		first <- a.Fetch(shortContext(t), "node-2", string(b.LocalAddr()), Want{}, func(ctx context.Context, o Offer, s io.Reader) error {
			close(begun)
			return takeLength(new(offered))(ctx, o, s)
		})
	}()
	<-begun
	if err := a.Fetch(shortContext(t), "node-2", string(b.LocalAddr()), Want{}, nil); err == nil || !strings.Contains(err.Error(), "fetching the state") {
		t.Errorf("the second: %v", err)
	}
	if _, err := pw.Write(snapshotBytes(100)); err != nil {
		t.Fatal(err)
	}
	if err := pw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-first; err != nil {
		t.Errorf("the first: %v", err)
	}
}

func TestFetch_ByAStranger_IsRefused(t *testing.T) {
	a, b := pair(t, func(_, b *Options) {
		b.Cluster = func() (cluster, history [16]byte, ok bool) { return incarnation(0xee), incarnation(0xdd), true }
		b.Offer = func(context.Context, Want) (Offer, io.ReadCloser, error) {
			t.Error("a stranger may ask")
			return Offer{}, nil, errors.New("no")
		}
	}, agree)
	b.Bind(newFakeNode(5))
	if err := a.Fetch(shortContext(t), "node-2", string(b.LocalAddr()), Want{}, nil); !errors.Is(err, ErrRefused) {
		t.Errorf("%v", err)
	}
}

// Goal: a node that lacks what it once acknowledged is let in for nothing but to fetch it.
func TestFetch_ByANodeThatForgot_IsLetInAndThenWhole(t *testing.T) {
	oa, ob := testOptions(t, 1), testOptions(t, 2)
	ob.Starts = 5
	ob.LogEnd = func() (uint64, uint64, bool) { return 10, 1, true }
	oa.Offer = func(context.Context, Want) (Offer, io.ReadCloser, error) {
		return anOffer, io.NopCloser(bytes.NewReader(snapshotBytes(10))), nil
	}
	a, b := open(t, oa), open(t, ob)
	n := newFakeNode(1)
	a.Bind(n)
	serve(t, a, agree)
	serve(t, b, agree)
	req := heartbeat(a, 1)
	req.Entries = []*raft.Log{{Index: 10, Term: 1}}
	var resp raft.AppendEntriesResponse
	if err := a.AppendEntries("node-2", b.LocalAddr(), req, &resp); err != nil {
		t.Fatal(err)
	}
	n.commit.Store(10)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	var last atomic.Uint64
	oc := copyOf(t, ob, 6)
	oc.LogEnd = func() (uint64, uint64, bool) { return last.Load(), 1, true }
	c := open(t, oc)
	serve(t, c, agree)
	eventually(t, "refused as forgetful", func() bool {
		err := beat(c, a, 1)
		return errors.Is(err, ErrRefused) && strings.Contains(err.Error(), "held committed entries up to 10")
	})
	eventually(t, "it may fetch", func() bool {
		err := c.Fetch(shortContext(t), "node-1", string(a.LocalAddr()), Want{}, takeLength(new(offered)))
		if err != nil && !errors.Is(err, ErrRefused) { // the refusal is kept for a second
			t.Fatal(err)
		}
		return err == nil
	})
	if err := beat(a, c, 1); !errors.Is(err, ErrRefused) {
		t.Errorf("having fetched nothing yet, it is let in: %v", err)
	}
	last.Store(70)
	eventually(t, "it is whole", func() bool { return beat(c, a, 1) == nil && beat(a, c, 1) == nil })
}
