package node

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/engine"
	"kvstore/wire"
)

const (
	// The first scrub after a start begins between scrubFirstMin and scrubFirstMax, at random, or after the interval
	// if that is shorter: nodes that are started together do not read their disks at the same time, and a node that
	// restarts often is scrubbed all the same.
	scrubFirstMin = 10 * time.Minute
	scrubFirstMax = time.Hour
	// scrubRateMin is the least rate that the engine takes.
	scrubRateMin = 1 << 20
	// scrubDamagesMax bounds the damages that the status names.
	scrubDamagesMax = 10
)

// scrubStatus tells about the scrub under way or, between two, about the last one.
type scrubStatus struct {
	Running bool `json:"running"`
	// StartedAt and FinishedAt are those of the newest scrub, NextAt is when the next one is due. Null: never.
	StartedAt  *time.Time `json:"started_at"`
	FinishedAt *time.Time `json:"finished_at"`
	NextAt     *time.Time `json:"next_at"`
	// Records and Bytes were read so far.
	Records uint64 `json:"records"`
	Bytes   int64  `json:"bytes"`
	// Index is that of the state that was checked, DigestMatches whether the records found add up to its digest;
	// null before the first scrub has ended.
	Index         uint64 `json:"index"`
	DigestMatches *bool  `json:"digest_matches"`
	// Damaged are the first records and ranges that cannot be read, in words, DamagedCount how many there are.
	Damaged      []string `json:"damaged"`
	DamagedCount int      `json:"damaged_count"`
	// LogError is what is wrong with the log, empty if nothing is.
	LogError string `json:"log_error"`
	// Error is why the newest scrub did not come to its end; empty if it did.
	Error string `json:"error"`
}

// scrubber is the loop that reads everything that is stored, from time to time, so that damage is found while
// there are other copies.
type scrubber struct {
	loop

	// Immutable after newScrubber.
	interval time.Duration // <= 0: only when it is asked for
	rate     int64
	// state checks the state, log what is in the log. told is told what came of the state, nil if all is well.
	state func(context.Context, engine.ScrubOptions) (engine.ScrubReport, error)
	log   func(ctx context.Context, rate int64) (damage string, err error)
	told  func(damage error)

	kick chan struct{} // at most one token: begin now

	runs, failures, records, bytes, damages atomic.Uint64 // of all scrubs that have ended

	mu sync.Mutex
	// Guarded by mu.
	now scrubStatus
}

func newScrubber(interval time.Duration, rate int64) *scrubber {
	return &scrubber{interval: interval, rate: rate, kick: make(chan struct{}, 1), now: scrubStatus{Damaged: []string{}}}
}

// start begins the loop.
func (x *scrubber) start() {
	x.begin(x.run)
}

// ask has a scrub begin now, or another one after the one under way.
func (x *scrubber) ask() {
	select {
	case x.kick <- struct{}{}:
	default:
	}
}

// status describes the newest scrub.
func (x *scrubber) status() scrubStatus {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.now
}

func (x *scrubber) update(f func(*scrubStatus)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	f(&x.now)
}

func (x *scrubber) run(ctx context.Context) {
	wait := min(x.interval, scrubFirstMin+rand.N(scrubFirstMax-scrubFirstMin))
	for {
		due := (<-chan time.Time)(nil)
		if x.interval > 0 {
			timer := time.NewTimer(wait)
			due = timer.C
			next := time.Now().Add(wait).UTC()
			x.update(func(s *scrubStatus) { s.NextAt = &next })
		}
		select {
		case <-ctx.Done():
			return
		case <-due:
		case <-x.kick:
		}
		x.once(ctx)
		wait = x.interval
	}
}

// once makes one scrub.
func (x *scrubber) once(ctx context.Context) {
	began := time.Now().UTC()
	x.update(func(s *scrubStatus) {
		*s = scrubStatus{Running: true, StartedAt: &began, Damaged: []string{}}
	})
	found, err := x.state(ctx, engine.ScrubOptions{RateBytes: x.rate, OnProgress: func(p engine.ScrubProgress) {
		x.update(func(s *scrubStatus) { s.Records, s.Bytes = p.Records, p.Bytes })
	}})
	logDamage := ""
	if err == nil {
		logDamage, err = x.log(ctx, x.rate)
	}
	ended := time.Now().UTC()
	damages := damagesOf(&found)
	count := len(damages) + found.More
	x.update(func(s *scrubStatus) {
		s.Running, s.FinishedAt = false, &ended
		s.Records, s.Bytes, s.Index, s.LogError = found.Records, found.Bytes, found.Index, logDamage
		s.DamagedCount = count
		s.Damaged = append(s.Damaged, damages[:min(len(damages), scrubDamagesMax)]...)
		if err != nil {
			s.Error = err.Error()
			return
		}
		s.DigestMatches = &found.DigestMatches
	})
	x.records.Add(found.Records)
	x.bytes.Add(uint64(found.Bytes))
	x.damages.Add(uint64(count))
	if err != nil && count == 0 {
		if ctx.Err() == nil {
			x.failures.Add(1)
		}
		return
	}
	x.runs.Add(1)
	switch {
	case count != 0:
		x.told(fmt.Errorf("%w: a scrub found damage in %d places, the first: %s", engine.ErrRecordDamaged, count, damages[0]))
	case !found.DigestMatches:
		x.told(fmt.Errorf("%w: a scrub found that what is stored is not what the log makes of it: %s", engine.ErrDigestMismatch, found.DigestCause))
	default:
		x.told(nil)
	}
}

// damagesOf lists what a scrub found, in words.
func damagesOf(r *engine.ScrubReport) (all []string) {
	for _, d := range r.Damaged {
		all = append(all, d.String())
	}
	for _, d := range r.DamagedRanges {
		all = append(all, d.String())
	}
	return all
}

// scrubRequest is what asks for a scrub.
type scrubRequest struct {
	Action string `json:"action"`
	// ID is the node that is meant; empty: the one that is asked.
	ID string `json:"id"`
}

const scrubAction = "scrub"

// asksForScrub reports whether an admin request is for a scrub.
func asksForScrub(payload []byte) bool {
	var q scrubRequest
	return json.Unmarshal(payload, &q) == nil && q.Action == scrubAction
}

// scrub has a scrub begin, here or on the member that is named, and answers with the status of the scrubber.
func (a *admin) scrub(ctx context.Context, payload []byte) wire.Response {
	shard := a.s.shard
	var q scrubRequest
	d := json.NewDecoder(bytes.NewReader(payload))
	d.DisallowUnknownFields()
	if err := d.Decode(&q); err != nil {
		return wire.ErrorResponse(&wire.Refusal{Status: wire.StatusBadRequest, Text: "a scrub takes the id of a node and nothing else: " + err.Error()}, nil)
	}
	if q.ID != "" && q.ID != shard.roster.self.ID {
		_, _, member := a.configured(q.ID)
		m, known := shard.roster.member(q.ID)
		if !member || !known || m.Address == "" {
			return wire.ErrorResponse(&wire.Refusal{Status: wire.StatusNotFound, Text: fmt.Sprintf("the cluster has no member %q that can be reached; nothing was changed", q.ID)}, nil)
		}
		// Without the id: whoever answers there means itself, and passes it on to nobody.
		payload = []byte(`{"action":"` + scrubAction + `"}`)
		return shard.forwarder.Do(ctx, m.Address, &wire.Request{Op: wire.OpAdmin, Group: wire.GroupDefault, ID: 1, Body: payload, Payload: payload})
	}
	shard.scrub.ask()
	b, err := json.Marshal(shard.scrub.status())
	if err != nil {
		panic("BUG: cannot encode the status of the scrub: " + err.Error())
	}
	return wire.Response{Payload: b}
}
