package gateway

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/internal/rate"
	"kvstore/wire"
)

const (
	// clientsMax bounds the clients that have a rate of their own, about 10 MiB of them.
	clientsMax = 1 << 16
	// clientsLooked is how many clients a new one looks at for one to forget: in a table that is full by half of idle
	// ones, the next finds none once in 2^16.
	clientsLooked = 16
	// clientPrefixBits is what one client has of IPv6: a host picks freely among the addresses of its /64.
	clientPrefixBits = 64
)

// doorLimits bounds the requests that the doors take: all together, and those of each client.
type doorLimits struct {
	// Immutable after init.
	all, perClient uint64 // a second; 0: no bound
	clientsMax     int

	global rate.Bucket
	// crowd is the rate of all those together for whom clients has no room.
	crowd rate.Bucket

	mu sync.Mutex
	// Guarded by mu.
	clients map[netip.Addr]*rate.Bucket

	limitedAll, limitedClient atomic.Uint64
}

func (l *doorLimits) init(o *Options) {
	l.all, l.perClient, l.clientsMax = o.RequestsPerSecond, o.ClientRequestsPerSecond, cmp.Or(o.clientsMax, clientsMax)
	l.global.Set(l.all)
	l.crowd.Set(l.perClient)
	l.clients = make(map[netip.Addr]*rate.Bucket)
}

// allow takes one request of a client off both rates, or refuses it. What a client has no share for costs the others
// nothing; what all together have no share for costs its client one.
func (l *doorLimits) allow(remote netip.Addr, now int64) *wire.Refusal {
	if l.perClient != 0 {
		if wait := l.takeClient(remote, now); wait != 0 {
			l.limitedClient.Add(1)
			return limited(wait, l.perClient, fmt.Sprintf("a client may send this node %d requests a second (gateway-client-requests-per-second)", l.perClient))
		}
	}
	if wait := l.global.Take(1, now); wait != 0 {
		l.limitedAll.Add(1)
		return limited(wait, l.all, fmt.Sprintf("this node takes %d requests a second from all clients together (gateway-requests-per-second)", l.all))
	}
	return nil
}

// limited is the refusal of a rate that gives way after wait nanoseconds.
func limited(wait int64, limit uint64, what string) *wire.Refusal {
	return &wire.Refusal{
		Status: wire.StatusLimited, Limit: limit, RetryAfterMs: uint32(min((wait+int64(time.Millisecond)-1)/int64(time.Millisecond), math.MaxUint32)),
		Text: what + "; nothing was changed: try again after the pause that the answer names",
	}
}

// takeClient takes one request off the rate of a client. One that has spent nothing is as good as a new one, so that it
// may be forgotten to make room; with as many active ones as there is room for, the others share a rate instead of
// having none.
func (l *doorLimits) takeClient(remote netip.Addr, now int64) (wait int64) {
	remote = clientOf(remote)
	l.mu.Lock()
	defer l.mu.Unlock()
	if b := l.clients[remote]; b != nil {
		return b.Take(1, now)
	}
	// A range over a map begins anywhere.
	looked := 0
	for at, b := range l.clients {
		if b.Full(now) {
			delete(l.clients, at)
		}
		if looked++; looked >= clientsLooked {
			break
		}
	}
	if len(l.clients) >= l.clientsMax {
		return l.crowd.Take(1, now)
	}
	b := new(rate.Bucket)
	b.Set(l.perClient)
	l.clients[remote] = b
	return b.Take(1, now)
}

// clientOf gives the address that stands for all those of one client.
func clientOf(remote netip.Addr) netip.Addr {
	remote = remote.Unmap().WithZone("")
	if remote.Is6() {
		if p, err := remote.Prefix(clientPrefixBits); err == nil {
			return p.Addr()
		}
	}
	return remote
}

// writeMetrics writes what was refused, and how full the table is.
func (l *doorLimits) writeMetrics(w io.Writer) error {
	l.mu.Lock()
	clients := len(l.clients)
	l.mu.Unlock()
	_, err := fmt.Fprintf(w, "# HELP kvstore_gateway_limited_total Requests by REST and gRPC refused for a rate, by whose it was.\n# TYPE kvstore_gateway_limited_total counter\n"+
		"kvstore_gateway_limited_total{limit=\"global\"} %d\nkvstore_gateway_limited_total{limit=\"client\"} %d\n"+
		"# HELP kvstore_gateway_limit_clients Clients whose rate is kept; when there are %d active ones, the others share one.\n# TYPE kvstore_gateway_limit_clients gauge\n"+
		"kvstore_gateway_limit_clients %d\n", l.limitedAll.Load(), l.limitedClient.Load(), l.clientsMax, clients)
	return err
}
