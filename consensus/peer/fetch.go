package peer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// A node that has lost its state but not its log, nor its vote, fetches another's before its raft runs, on a
// connection of its own (purpose "fetch"): a frame that says what is wanted, a frame that says what comes, and the
// snapshot, which delimits itself.

// Want says which state a node that has lost its own can use.
type Want struct {
	// Reach is an index that the state must cover: the node's log begins behind it, or its lost state reached there.
	Reach uint64 `json:"reach,omitempty"`
	// Confirmed says that nobody knows how far the node once was, since its log is empty and its checkpoint can't be
	// read: only a leader may answer, after a majority has confirmed that it leads, with a state that covers all that
	// it had applied by then.
	Confirmed bool `json:"confirmed,omitempty"`
}

// Offer says which state comes.
type Offer struct {
	// Index is that of the last entry that the state covers.
	Index uint64 `json:"index"`
	// Term is the term of that entry.
	Term uint64 `json:"term"`
	// Configuration is raft's, as of Index, and ConfigurationIndex the index that it was committed at.
	Configuration      []byte `json:"configuration"`
	ConfigurationIndex uint64 `json:"configuration_index"`
	// Size is about how many bytes the state takes up.
	Size int64 `json:"size"`
}

// offerAnswer is the answer to a Want: an offer, or why there is none.
type offerAnswer struct {
	Error string `json:"error,omitempty"`
	Offer Offer  `json:"offer"`
}

// Fetch asks node id at address for its state. take reads exactly one snapshot from stream and no byte more; it
// is not called if the node offers none. It must end soon after ctx does (the stream then fails as well). Errors:
// ErrRefused for a definite refusal, take's, ctx's, and those of the network.
func (t *Transport) Fetch(ctx context.Context, id, address string, w Want, take func(ctx context.Context, o Offer, stream io.Reader) error) error {
	c, err := t.dial(ctx, id, address, PurposeFetch, true)
	if err != nil {
		return err
	}
	defer closeQuietly(t, c)
	defer context.AfterFunc(ctx, func() { closeQuietly(t, c) })() // a read under way ends
	if err := t.fetch(ctx, c, w, take); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("cannot fetch the state of node %q: %w", id, err)
	}
	return nil
}

func (t *Transport) fetch(ctx context.Context, c *conn, w Want, take func(context.Context, Offer, io.Reader) error) error {
	frame, err := appendFrame(nil, kindFetch, &w)
	if err != nil {
		return err
	}
	if err := t.writeStep(c, frame); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(offerTimeout + t.o.Timeout)); err != nil {
		return err
	}
	var a offerAnswer
	if err := readFrame(c, kindOffer, installRequestBytesMax, &a); err != nil {
		return err
	}
	if a.Error != "" {
		return errors.New(a.Error)
	}
	a.Offer.Size = max(a.Offer.Size, 0)
	r := bufio.NewReaderSize(&snapshotStream{t: t, c: c, current: ctx.Err}, connChunk)
	if err := take(ctx, a.Offer, r); err != nil {
		return err
	}
	if r.Buffered() > 0 {
		return errLeftOver
	}
	return nil
}

// serveFetch is the other side. It runs in the goroutine of the connection.
func (t *Transport) serveFetch(c *conn, from string) {
	defer closeQuietly(t, c)
	if err := t.offer(c); err != nil {
		t.log.Warn("did not give another node the state that it asked for", "to", from, "error", err)
	}
}

func (t *Transport) offer(c *conn) error {
	var w Want
	if err := c.SetReadDeadline(time.Now().Add(t.o.StallTimeout)); err != nil {
		return err
	}
	if err := readFrame(c, kindFetch, helloBytesMax, &w); err != nil {
		return fmt.Errorf("cannot read the request: %w", err)
	}
	o, data, err := t.open(w)
	var a offerAnswer
	if a.Offer = o; err != nil {
		text := err.Error()
		a = offerAnswer{Error: text[:min(len(text), refusalBytesMax)]}
	} else {
		defer t.serving.Store(false)
		defer closeQuietly(t, data)
	}
	frame, encoding := appendFrame(nil, kindOffer, &a)
	if encoding != nil {
		return encoding
	}
	if sending := t.writeStep(c, frame); err != nil || sending != nil {
		return errors.Join(err, sending)
	}
	_, _, broken, err := t.pour(c, data, nil)
	return errors.Join(broken, err)
}

// open opens the state for a node that wants it. Without an error serving is set.
func (t *Transport) open(w Want) (Offer, io.ReadCloser, error) {
	if t.bound() == nil {
		return Offer{}, nil, errUnbound
	}
	if !t.serving.CompareAndSwap(false, true) {
		return Offer{}, nil, errors.New("another node is fetching the state of this one just now")
	}
	ctx, cancel := context.WithTimeout(t.ctx, offerTimeout)
	defer cancel()
	o, data, err := t.o.Offer(ctx, w)
	if err != nil {
		t.serving.Store(false)
		return Offer{}, nil, err
	}
	return o, data, nil
}
