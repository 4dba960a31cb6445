package node

import (
	"context"
	"fmt"
	"io"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/client"
	"kvstore/wire"
)

// breakersMax bounds the breakers kept: far more than a cluster has nodes, counting those that left it.
const breakersMax = 64

// peers asks other nodes, each through a breaker.
type peers struct {
	// Immutable after newPeers.
	pass func(ctx context.Context, address string, r *wire.Request) (wire.Response, client.Contact)
	now  func() int64
	// name gives the id of the node at an address, "" where none is known.
	name func(address string) string

	mu sync.Mutex
	// Guarded by mu.
	breakers map[string]*breaker // by address

	denied atomic.Uint64 // requests that were not sent
}

func newPeers(s *Shard) *peers {
	return &peers{pass: s.forwarder.Pass, now: s.now, name: s.nameAt, breakers: make(map[string]*breaker)}
}

// nameAt gives the id of the member at an address of the binary protocol, "" where none is known.
func (s *Shard) nameAt(address string) string {
	for _, m := range s.group.Status().Configuration {
		if known, ok := s.roster.member(m.ID); ok && known.Address == address {
			return m.ID
		}
	}
	return ""
}

// do passes r on to the node at address, unless that has been out of reach: then it answers at once that nothing was
// sent, with a denial.
func (p *peers) do(ctx context.Context, address string, r *wire.Request) (wire.Response, *denial) {
	b := p.breaker(address)
	if b == nil {
		a, _ := p.pass(ctx, address, r)
		return a, nil
	}
	began := p.now()
	if d := b.admit(began); d != nil {
		p.denied.Add(1)
		return p.refusal(address, d), d
	}
	a, contact := p.pass(ctx, address, r)
	b.done(began, p.now(), contact)
	return a, nil
}

// refusal says that a request was not sent.
func (p *peers) refusal(address string, d *denial) wire.Response {
	who := address
	if name := p.name(address); name != "" {
		who = name + " at " + address
	}
	wait := max((d.wait+time.Millisecond-1)/time.Millisecond, 1)
	return wire.ErrorResponse(&wire.Refusal{
		Status: wire.StatusNoLeader, RetryAfterMs: uint32(wait),
		Text: fmt.Sprintf("not passed on: the leader, %s, could not be reached the last times; nothing was sent, so nothing was changed: it is tried again in %d ms", who, wait),
	}, nil)
}

// breaker gives the breaker of an address; nil when there are too many that are in use.
func (p *peers) breaker(address string) *breaker {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.breakers[address]
	if b == nil {
		if len(p.breakers) >= breakersMax {
			maps.DeleteFunc(p.breakers, func(_ string, b *breaker) bool { return b.idle() })
		}
		if len(p.breakers) >= breakersMax {
			return nil
		}
		b = new(breaker)
		p.breakers[address] = b
	}
	return b
}

// look tells the state of the breaker of an address, and how often it has opened.
func (p *peers) look(address string) (state int, opened uint64) {
	p.mu.Lock()
	b := p.breakers[address]
	p.mu.Unlock()
	if b == nil {
		return breakerClosed, 0
	}
	return b.look(p.now())
}

// writeBreakerMetrics writes the breakers of the members that have an address.
func (s *Shard) writeBreakerMetrics(w io.Writer) error {
	type row struct {
		id     string
		state  int
		opened uint64
	}
	var rows []row
	for _, m := range s.group.Status().Configuration {
		known, ok := s.roster.member(m.ID)
		if !ok || known.Address == "" || m.ID == s.roster.self.ID {
			continue
		}
		r := row{id: m.ID}
		r.state, r.opened = s.peers.look(known.Address)
		rows = append(rows, r)
	}
	for _, f := range []struct {
		name, kind, help string
		value            func(r row) uint64
	}{
		{"kvstore_peer_breaker_state", "gauge", "Whether requests are passed on to a node: 0 they are, 1 one at a time until one is answered, 2 none for a moment.", func(r row) uint64 { return uint64(r.state) }},
		{"kvstore_peer_breaker_opened_total", "counter", "How often a node could not be reached several times in a row.", func(r row) uint64 { return r.opened }},
	} {
		if len(rows) == 0 {
			break
		}
		if _, err := fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", f.name, f.help, f.name, f.kind); err != nil {
			return err
		}
		for _, r := range rows {
			if _, err := fmt.Fprintf(w, "%s{peer=%q} %d\n", f.name, r.id, f.value(r)); err != nil {
				return err
			}
		}
	}
	return writeSamples(w, []sample{{"kvstore_peer_breaker_refused_total", "counter", "Requests and questions to other nodes that were not sent because of that.", float64(s.peers.denied.Load())}})
}
