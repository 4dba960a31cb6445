package gateway

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/wire"
)

func limitsOf(o Options) *doorLimits {
	l := new(doorLimits)
	l.init(&o)
	return l
}

// Each rate lets its second's worth through, refuses the next, names the pause, and is open again after it.
func TestDoorLimits_EachRate_OverItsEdgeAndBack(t *testing.T) {
	for _, test := range []struct {
		name string
		o    Options
		text string
		// others: what a second client hears at that moment.
		others       bool
		all, clients uint64
	}{
		{"global", Options{RequestsPerSecond: 4}, "gateway-requests-per-second", false, 2, 0},
		{"client", Options{ClientRequestsPerSecond: 4}, "gateway-client-requests-per-second", true, 0, 1},
		{"the client's first", Options{RequestsPerSecond: 100, ClientRequestsPerSecond: 4}, "gateway-client-requests-per-second", true, 0, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			l, now := limitsOf(test.o), int64(1e9)
			a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
			for i := range 4 {
				if ref := l.allow(a, now); ref != nil {
					t.Fatalf("request %d: %v", i, ref)
				}
			}
			ref := l.allow(a, now)
			if ref == nil || ref.Status != wire.StatusLimited || ref.Limit != 4 || ref.RetryAfterMs != 250 || !strings.Contains(ref.Text, test.text) || !strings.Contains(ref.Text, "nothing was changed") {
				t.Fatalf("the fifth: %+v", ref)
			}
			if got := l.allow(b, now) == nil; got != test.others {
				t.Errorf("another client is let through: %v", got)
			}
			now += int64(ref.RetryAfterMs) * int64(time.Millisecond)
			if ref := l.allow(a, now); ref != nil {
				t.Errorf("after the pause: %v", ref)
			}
			if l.allow(a, now) == nil {
				t.Error("one more than the pause has paid for is let through")
			}
			if all, clients := l.limitedAll.Load(), l.limitedClient.Load(); all < test.all || clients < test.clients || test.all == 0 && all != 0 || test.clients == 0 && clients != 0 {
				t.Errorf("counted %d and %d", all, clients)
			}
		})
	}
}

func TestDoorLimits_WithoutRates_AllowEverything(t *testing.T) {
	l := limitsOf(Options{})
	for i := range 1000 {
		if ref := l.allow(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 0); ref != nil {
			t.Fatal(ref)
		}
	}
	if len(l.clients) != 0 {
		t.Errorf("%d clients are kept for nothing", len(l.clients))
	}
}

// One client that asks without end takes nothing of what all together have.
func TestDoorLimits_OneClientFloods_OthersHaveTheirShare(t *testing.T) {
	l := limitsOf(Options{RequestsPerSecond: 10, ClientRequestsPerSecond: 2})
	for range 1000 {
		l.allow(netip.MustParseAddr("192.0.2.1"), 0)
	}
	for i := range 8 {
		if ref := l.allow(netip.AddrFrom4([4]byte{192, 0, 2, byte(2 + i/2)}), 0); ref != nil {
			t.Fatalf("request %d of the others: %v", i, ref)
		}
	}
	if ref := l.allow(netip.MustParseAddr("192.0.2.9"), 0); ref == nil || ref.Limit != 10 {
		t.Errorf("beyond the rate of all: %v", ref)
	}
}

func TestDoorLimits_OneClient_IsAnIPv4AddressOrASlash64(t *testing.T) {
	for _, test := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1", "192.0.2.2", false},
		{"192.0.2.1", "::ffff:192.0.2.1", true},
		{"2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", true},
		{"2001:db8:1:2::1", "2001:db8:1:3::1", false},
		{"fe80::1%eth0", "fe80::2%eth1", true},
	} {
		l := limitsOf(Options{ClientRequestsPerSecond: 1})
		if ref := l.allow(netip.MustParseAddr(test.a), 0); ref != nil {
			t.Fatal(ref)
		}
		if same := l.allow(netip.MustParseAddr(test.b), 0) != nil; same != test.same {
			t.Errorf("%s and %s are one client: %v", test.a, test.b, same)
		}
	}
}

// In a table full of active clients the others share one rate; idle ones make room, and lose nothing by it.
func TestDoorLimits_TableIsFull_OthersShareARate(t *testing.T) {
	l, now := limitsOf(Options{ClientRequestsPerSecond: 2, clientsMax: 8}), int64(0)
	client := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}) }
	for i := range 8 {
		if ref := l.allow(client(i), now); ref != nil {
			t.Fatal(ref)
		}
	}
	for i := range 2 {
		if ref := l.allow(client(100+i), now); ref != nil {
			t.Fatalf("the crowd's request %d: %v", i, ref)
		}
	}
	if l.allow(client(102), now) == nil {
		t.Error("a client without room for it has a rate of its own")
	}
	if ref := l.allow(client(0), now); ref != nil {
		t.Errorf("one of the table: %v", ref)
	}
	now += int64(time.Second) / 2 // what 1 to 7 took is paid for, and half of what 0 took
	for range 2 {
		if ref := l.allow(client(200), now); ref != nil {
			t.Errorf("a new client, with idle ones in the table: %v", ref)
		}
	}
	if l.allow(client(200), now) == nil || l.clients[client(200)] == nil {
		t.Error("the new client has no rate of its own")
	}
	for i := range 1000 {
		now += int64(time.Millisecond)
		l.allow(client(1000+i), now)
		if len(l.clients) > 8 {
			t.Fatalf("%d clients in a table of 8", len(l.clients))
		}
	}
}

// Over HTTP a limit is 429 with a pause, on every route, and lasts no longer than that.
func TestREST_RateLimit_429UntilThePauseIsOver(t *testing.T) {
	var now atomic.Int64
	m, s := start(t, func(o *Options) { o.ClientRequestsPerSecond, o.now = 2, now.Load })
	for i := range 2 {
		if resp, body := send(t, s, "PUT", "/api/v1/keys/k", fmt.Sprint(i)); resp.StatusCode != http.StatusOK {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
	}
	for _, r := range []struct{ method, target string }{
		{"PUT", "/api/v1/keys/k"}, {"GET", "/api/v1/keys/k"}, {"GET", "/api/v1/keys"}, {"GET", "/api/v1/watch/"}, {"POST", "/api/v1/increment/k"},
		{"GET", "/api/v1/admin/status"}, {"DELETE", "/api/v1/admin/members/x"}, {"GET", "/nowhere"},
	} {
		resp, body := send(t, s, r.method, r.target, "x")
		var p problem
		if err := json.Unmarshal([]byte(body), &p); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") != "1" || p.Title != "LIMITED" || !p.Retryable || p.RequestID == "" {
			t.Errorf("%s %s: %d, Retry-After %q, %+v", r.method, r.target, resp.StatusCode, resp.Header.Get("Retry-After"), p)
		}
		if write := r.method != "GET"; (p.Applied == "no") != write {
			t.Errorf("%s %s: applied %q", r.method, r.target, p.Applied)
		}
	}
	if m.last.Op != wire.OpPut || string(m.last.Payload) != "1" {
		t.Errorf("a refused request was executed: %s %q", m.last.Op, m.last.Payload)
	}
	now.Add(int64(time.Second))
	if resp, body := send(t, s, "GET", "/api/v1/keys/k", ""); resp.StatusCode != http.StatusOK || body != "1" {
		t.Errorf("after the pause: %d %s", resp.StatusCode, body)
	}
	door := s.Config.Handler.(*Server)
	var b strings.Builder
	if err := door.WriteMetrics(&b); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{`kvstore_gateway_limited_total{limit="global"} 0`, `kvstore_gateway_limited_total{limit="client"} 8`, `kvstore_gateway_limit_clients 1`} {
		if !strings.Contains(b.String(), line+"\n") {
			t.Errorf("metrics lack %s:\n%s", line, b.String())
		}
	}
}

func TestREST_RequestID_IsTakenOrMade(t *testing.T) {
	m, s := start(t, nil)
	long := strings.Repeat("x", requestIDBytesMax)
	seen := map[string]bool{}
	for _, test := range []struct {
		given []string
		taken bool
	}{
		{nil, false}, {nil, false},
		{[]string{"a-1/ü"}, false},
		{[]string{"abc.~!"}, true},
		{[]string{long}, true},
		{[]string{long + "x"}, false},
		{[]string{"two words"}, false},
		{[]string{""}, false},
		{[]string{"one", "two"}, false},
	} {
		var header []string
		for _, v := range test.given {
			header = append(header, "X-Request-Id", v)
		}
		resp, body := send(t, s, "GET", "/api/v1/keys/absent", "", header...)
		id := resp.Header.Get("X-Request-Id")
		if test.taken && id != test.given[0] || !test.taken && (len(id) != 32 || seen[id]) {
			t.Errorf("%q: %q", test.given, id)
		}
		seen[id] = true
		var p problem
		if err := json.Unmarshal([]byte(body), &p); err != nil || p.RequestID != id {
			t.Errorf("%q: header %q, problem %q, %v", test.given, id, p.RequestID, err)
		}
	}
	m.records["k"] = wire.Record{Value: []byte("v")}
	for _, target := range []string{"/api/v1/keys/k", "/api/v1/admin/status"} {
		if resp, _ := send(t, s, "GET", target, "", "X-Request-Id", "mine"); resp.StatusCode != http.StatusOK || resp.Header.Get("X-Request-Id") != "mine" {
			t.Errorf("%s: %d, %q", target, resp.StatusCode, resp.Header.Get("X-Request-Id"))
		}
	}
}
