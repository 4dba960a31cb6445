package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"kvstore/wire"
)

// Real parts up to the socket: the command line and the Go client, against a server whose answers the test
// decides, so that each stage of a change of leader can be had.

// serveWire answers each request by f, one at a time, and returns the address.
func serveWire(t *testing.T, f func(r *wire.Request) wire.Response) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	var mu sync.Mutex
	serving.Go(func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { // ends with its connection
				defer c.Close()
				if err := serveConn(c, &mu, f); err != nil && !strings.Contains(err.Error(), "closed") && err != io.EOF {
					t.Logf("connection ended: %v", err)
				}
			})
		}
	})
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		serving.Wait() // clients are closed by then, and with them their connections
	})
	return l.Addr().String()
}

func serveConn(c net.Conn, mu *sync.Mutex, f func(r *wire.Request) wire.Response) error {
	if _, err := io.ReadFull(c, make([]byte, wire.PrefaceBytes)); err != nil {
		return err
	}
	greeted := false
	for {
		head := make([]byte, wire.HeaderBytes)
		if _, err := io.ReadFull(c, head); err != nil {
			return err
		}
		var h wire.Header
		if err := wire.DecodeHeader(head, &h); err != nil {
			return err
		}
		body := make([]byte, h.BodyLen)
		if _, err := io.ReadFull(c, body); err != nil {
			return err
		}
		var out []byte
		if !greeted {
			greeted = true
			out = wire.AppendHelloAck(wire.AppendPreface(nil, wire.Version, 0), &wire.HelloAck{
				Features: wire.FeatureCRC | wire.FeatureSessions, MaxFrame: wire.FrameBodyBytesMax, Inflight: wire.ConnInflightMax,
				InflightBytes: wire.ConnInflightBytesMax, ClusterID: [16]byte{1}, NodeID: "n1", Version: "test",
				SessionTTLMs: uint64(wire.SessionTTL / time.Millisecond),
			})
		} else {
			var r wire.Request
			var resp wire.Response
			if ref := wire.ParseRequest(&h, body, &r); ref != nil {
				resp = wire.ErrorResponse(ref, nil)
			} else {
				mu.Lock()
				resp = f(&r)
				mu.Unlock()
			}
			out = wire.AppendResponse(nil, r.Token(), &resp, true, 0)
		}
		if _, err := c.Write(out); err != nil {
			return err
		}
	}
}

// page answers a listing of the keys a to d, two on a page: the cursor is the number of keys that are done.
func page(r *wire.Request, rev wire.Revision) wire.Response {
	var q wire.ScanRequest
	if ref := wire.DecodeScanRequest(r.Payload, &q); ref != nil {
		return wire.ErrorResponse(ref, nil)
	}
	from, keys, cursor := len(q.Cursor), "abcd", ""
	b := make([]byte, wire.ScanPageHeaderBytes)
	for _, k := range keys[from : from+2] {
		meta := wire.Meta{Version: 1 << 20, CreatedAt: 1, UpdatedAt: 1, Checksum: wire.Checksum([]byte("v"))}
		ext := wire.AppendExtMeta(nil, &meta)
		b = wire.AppendItemHeader(b, wire.OpGet, wire.StatusOK, len(ext), 1, 1)
		b = append(append(append(b, ext...), byte(k)), 'v')
	}
	if from+2 < len(keys) {
		cursor = strings.Repeat("x", from+2)
	}
	wire.PutScanPageHeader(b, rev, 2, len(cursor))
	return wire.Response{Payload: append(b, cursor...)}
}

const exported = `{"key":"a","text":"v"}` + "\n" + `{"key":"b","text":"v"}` + "\n" + `{"key":"c","text":"v"}` + "\n" + `{"key":"d","text":"v"}` + "\n"

// Between two pages the leader changes: the cluster does not serve for longer than one operation may take,
// and then goes on with the same moment, does not have it any more, or shows another one.
func TestReal_ExportOverAChangeOfLeader(t *testing.T) {
	const rev = wire.Revision(7 << 20)
	for name, c := range map[string]struct {
		outage wire.Status
		after  func(r *wire.Request) wire.Response
		args   string
		code   int
		out    string
		errs   string
	}{
		"no leader, same moment":     {wire.StatusNoLeader, func(r *wire.Request) wire.Response { return page(r, rev) }, "--patience 1m", 0, exported, "waiting up to 1m0s"},
		"follower, same moment":      {wire.StatusNotLeader, func(r *wire.Request) wire.Response { return page(r, rev) }, "--patience 1m", 0, exported, "exported 4 keys"},
		"not as far, same moment":    {wire.StatusFutureRevision, func(r *wire.Request) wire.Response { return page(r, rev) }, "--patience 1m", 0, exported, "waiting up to 1m0s"},
		"no patience":                {wire.StatusNoLeader, func(r *wire.Request) wire.Response { return page(r, rev) }, "--patience 0", 7, exported[:len(exported)/2], "not complete, 2 keys"},
		"moment not kept":            {wire.StatusNoLeader, func(*wire.Request) wire.Response { return wire.Response{Status: wire.StatusCompacted} }, "--patience 1m", 1, exported[:len(exported)/2], "no longer kept"},
		"another moment, not asked":  {wire.StatusNoLeader, func(r *wire.Request) wire.Response { return page(r, rev+1<<20) }, "--patience 1m", 1, exported[:len(exported)/2], "a page shows revision"},
		"the key's bytes are broken": {wire.StatusNoLeader, func(*wire.Request) wire.Response { return wire.Response{Payload: []byte("??")} }, "--patience 1m", 1, exported[:len(exported)/2], "not complete"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they wait most of the time
			pages := 0
			var until time.Time
			addr := serveWire(t, func(r *wire.Request) wire.Response {
				if r.Op != wire.OpScan {
					return wire.Response{Status: wire.StatusUnknownOp}
				}
				if pages++; pages == 1 {
					return page(r, rev)
				}
				// The pause that is asked for is longer than --timeout: whole operations fail, not only attempts.
				if until.IsZero() {
					until = time.Now().Add(500 * time.Millisecond)
				}
				if time.Now().Before(until) {
					return wire.Response{Status: c.outage, Ext: wire.AppendExtU32(nil, wire.ExtRetryAfter, 600_000)}
				}
				return c.after(r)
			})
			code, out, errs := real(t, addr, "", append(strings.Fields(c.args), "export", "--timeout", "200ms")...)
			if code != c.code || out != c.out || !strings.Contains(errs, c.errs) {
				t.Errorf("exit %d, stdout %q, stderr %q; want exit %d, %q, %q", code, out, errs, c.code, c.out, c.errs)
			}
		})
	}
}

// The import's writes carry a session, and go on after a time without a leader.
func TestReal_ImportOverAChangeOfLeader(t *testing.T) {
	var until time.Time
	stored, sessions, puts := map[string]int{}, 0, 0
	addr := serveWire(t, func(r *wire.Request) wire.Response {
		switch r.Op {
		case wire.OpSessionOpen:
			sessions++
			return wire.Response{Payload: wire.AppendSessionGrant(nil, wire.SessionGrant{Session: 9, TTLMs: 60_000})}
		case wire.OpSessionClose:
			return wire.Response{}
		case wire.OpPut:
			if puts++; puts == 10 {
				until = time.Now().Add(500 * time.Millisecond)
			}
			if time.Now().Before(until) {
				return wire.Response{Status: wire.StatusNoLeader, Ext: wire.AppendExtU32(nil, wire.ExtRetryAfter, 600_000)}
			}
			if r.Session != 9 || r.Seq == 0 {
				t.Errorf("put of %q in session %d, sequence %d", r.Key, r.Session, r.Seq)
			}
			stored[string(r.Key)]++
			return wire.Response{Payload: wire.AppendVersion(nil, 1<<20)}
		}
		return wire.Response{Status: wire.StatusUnknownOp}
	})
	var in strings.Builder
	for _, k := range "abcdefghijklmnopqrst" {
		in.WriteString(`{"key":"` + string(k) + `","text":"v"}` + "\n")
	}
	code, _, errs := real(t, addr, in.String(), "import", "-", "--timeout", "200ms", "--concurrency", "4")
	if code != 0 || len(stored) != 20 || !strings.Contains(errs, "imported 20 keys") || !strings.Contains(errs, "waiting up to 1m0s") {
		t.Errorf("exit %d, %d keys, %d sessions, %q", code, len(stored), sessions, errs)
	}
	for k, n := range stored {
		if n != 1 {
			t.Errorf("%s was stored %d times", k, n)
		}
	}
}

// Each outcome of a change arrives through the client as what it is.
func TestReal_AdminOutcomes(t *testing.T) {
	for st, want := range map[wire.Status]struct {
		code int
		errs string
	}{
		wire.StatusOK:              {0, "To bring the node back"},
		wire.StatusBadRequest:      {1, "the last voter stays"},
		wire.StatusNotFound:        {4, "no member"},
		wire.StatusConditionFailed: {4, "nothing was changed"},
		wire.StatusDenied:          {5, "refused: "},
		wire.StatusNoLeader:        {7, "nothing was changed"},
		wire.StatusTimeout:         {1, "may or may not have been made"},
		wire.StatusLeadershipLost:  {1, "may or may not have been made"},
	} {
		var asked []string
		addr := serveWire(t, func(r *wire.Request) wire.Response {
			if r.Op != wire.OpAdmin {
				return wire.Response{Status: wire.StatusUnknownOp}
			}
			asked = append(asked, string(r.Payload))
			switch st {
			case wire.StatusOK:
				return wire.Response{Payload: []byte(sampleMembers)}
			case wire.StatusNotFound, wire.StatusConditionFailed:
				return wire.Response{Status: st}
			case wire.StatusNoLeader: // a pause that --timeout leaves no room for ends the attempts for sure
				return wire.Response{Status: st, Ext: wire.AppendExtU32(nil, wire.ExtRetryAfter, 600_000)}
			}
			return wire.Response{Status: st, Payload: []byte("the last voter stays")}
		})
		code, out, errs := real(t, addr, "", "member", "remove", "n1", "--timeout", "200ms")
		if code != want.code || !strings.Contains(errs, want.errs) || (out != "") != (code == 0) {
			t.Errorf("%s: exit %d, %q, %q; want %d, %q", st, code, out, errs, want.code, want.errs)
		}
		if len(asked) == 0 || asked[0] != `{"action":"remove","id":"n1"}` || st.Class() == wire.ClassUnknown && len(asked) != 1 {
			t.Errorf("%s: asked %q", st, asked)
		}
	}
}

// The first endpoint accepts connections and never says a word: the second one answers.
func TestReal_StatusBesideAHangingNode(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var sample map[string]any
	if err := json.Unmarshal([]byte(healthy()), &sample); err != nil {
		t.Fatal(err)
	}
	addr := serveWire(t, func(r *wire.Request) wire.Response {
		if r.Op != wire.OpStatus || len(r.Payload) != 0 {
			return wire.Response{Status: wire.StatusUnknownOp}
		}
		return wire.Response{Payload: []byte(healthy())}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out, errs strings.Builder
	a := &app{in: strings.NewReader(""), out: &out, err: &errs, getenv: func(string) string { return "" }, now: time.Now, open: openClient}
	if code := a.run(ctx, []string{"status", "--timeout", "50s", "--endpoints", l.Addr().String() + "," + addr}); code != 0 || !strings.Contains(out.String(), "leader n2 (term 7)") {
		t.Errorf("exit %d, %q, %q", code, out.String(), errs.String())
	}
}
