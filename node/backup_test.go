package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"kvstore/backup"
	"kvstore/client"
	"kvstore/wire"
)

// post sends a body and gives what came back.
func post(t *testing.T, address, target string, body io.Reader) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+target, body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, b
}

// everything lists all that a node holds by its own Service, which reads with linearizable reads.
func everything(t *testing.T, n *Node) map[string]string {
	t.Helper()
	src := backup.FromService(n.service, anonymous, nil)
	var b bytes.Buffer
	if _, err := backup.Take(t.Context(), src, &b, backup.TakeOptions{}); err != nil {
		t.Fatal(err)
	}
	return contentOf(t, b.Bytes())
}

// contentOf tells what a backup holds: all but versions, and times of writing.
func contentOf(t *testing.T, stream []byte) map[string]string {
	t.Helper()
	r, err := backup.NewReader(bytes.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, n := range r.Header().Namespaces {
		out[n.Name] = fmt.Sprintf("%+v", n.Settings)
	}
	for {
		var rec backup.Record
		i, err := r.Next(&rec)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		// A time to live is counted anew where it is restored, in milliseconds.
		out[r.Header().Namespaces[i].Name+"/"+string(rec.Key)] = fmt.Sprintf("%x %d bytes %x, expires %v", rec.Meta.Checksum, len(rec.Value), rec.Ext, rec.Meta.ExpiresAt != 0)
	}
}

func dial(t *testing.T, address string, o ...client.Option) *client.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitMax)
	defer cancel()
	c, err := client.Open(ctx, []string{address}, append(o, client.WithTimeout(waitMax))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// lone starts a cluster of one node.
func lone(t *testing.T) (n *Node, at string) {
	t.Helper()
	c := newCluster(t, 1, nil)
	c.start(c.ids...)
	return c.node(c.ids[0]), c.places[c.ids[0]].http
}

// While money moves between accounts of two namespaces' worth of keys, each copy, of any node, holds exactly as much as
// there is, and a cluster that it is restored into holds what the copy does.
func TestBackup_UnderTransfers_EachCopyIsOneMoment(t *testing.T) {
	const accounts, balance = 300, 100
	// A value of 16 MiB may hold up a busy machine for longer than other tests let a leader be silent.
	c := newCluster(t, 3, func(o *Options) { o.Consensus.HeartbeatTimeout = time.Second })
	c.start(c.ids...)
	first := dial(t, c.places[c.ids[0]].native)
	if _, err := first.CreateNamespace(t.Context(), "app", client.NamespaceSettings{KeysMax: 5000, Compress: client.CompressZstd}); err != nil {
		t.Fatal(err)
	}
	app := dial(t, c.places[c.ids[0]].native, client.WithNamespace("app"))
	key := func(i int) string { return fmt.Sprintf("account/%05d", i) }
	var items []client.KV
	for i := range accounts {
		items = append(items, client.KV{Key: key(i), Value: fmt.Appendf(bytes.Repeat([]byte(" "), 8<<10), "%d", balance)})
	}
	if _, err := first.BatchPut(t.Context(), items, true); err != nil {
		t.Fatal(err)
	}
	big := make([]byte, wire.ValueBytesMax)
	for i := range big {
		big[i] = byte(rand.Uint32())
	}
	for i, v := range [][]byte{big, []byte("text"), nil} {
		if _, err := app.Put(t.Context(), fmt.Sprint(i), v, client.WithTag("a", "1"), client.WithTag("b", "ü"), client.WithContentType("text/x"), client.WithEncoding("gzip"), client.WithTTL(1000*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	moved := make(chan int, 1)
	moves := 0
	go func() { // ends with ctx
		defer func() { moved <- moves }()
		for ctx.Err() == nil {
			from, to := rand.IntN(accounts), rand.IntN(accounts)
			if from == to {
				continue
			}
			got, err := first.BatchGet(ctx, []string{key(from), key(to)})
			if err != nil {
				continue
			}
			a, b := got.Items[0].Value, got.Items[1].Value
			n, err1 := strconv.Atoi(strings.TrimSpace(string(a.Data)))
			m, err2 := strconv.Atoi(strings.TrimSpace(string(b.Data)))
			if err := errors.Join(err1, err2); err != nil {
				t.Error(err)
				return
			}
			tx := first.Txn()
			tx.Put(key(from), fmt.Appendf(bytes.Repeat([]byte(" "), 8<<10), "%d", n-1), client.IfVersion(a.Version))
			tx.Put(key(to), fmt.Appendf(bytes.Repeat([]byte(" "), 8<<10), "%d", m+1), client.IfVersion(b.Version))
			if _, err := tx.Commit(ctx); err == nil {
				moves++
			}
		}
	}()
	var last []byte
	for i, id := range c.ids {
		resp, stream := post(t, c.places[id].http, "/api/v1/admin/backup", nil)
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s %s", id, resp.Status, stream)
		}
		h, sum, err := backup.Verify(bytes.NewReader(stream))
		if err != nil || fmt.Sprint(h.Revision) != resp.Header.Get("X-KV-Revision") || sum.Records != accounts+3 {
			t.Fatalf("%s: %+v, %v", id, sum, err)
		}
		total := 0
		r, err := backup.NewReader(bytes.NewReader(stream))
		if err != nil {
			t.Fatal(err)
		}
		var rec backup.Record
		for _, err = r.Next(&rec); err == nil; _, err = r.Next(&rec) {
			if strings.HasPrefix(string(rec.Key), "account/") {
				n, err := strconv.Atoi(strings.TrimSpace(string(rec.Value)))
				if err != nil {
					t.Fatal(err)
				}
				total += n
			}
		}
		if total != accounts*balance {
			t.Errorf("copy %d, of %s, holds %d, there are %d", i, id, total, accounts*balance)
		}
		last = stream
	}
	cancel()
	if n := <-moved; n == 0 {
		t.Error("nothing was moved meanwhile")
	}
	target, at := lone(t)
	resp, answer := post(t, at, "/api/v1/admin/restore", bytes.NewReader(last))
	var doc backupDocument
	if err := json.Unmarshal(answer, &doc); err != nil || resp.StatusCode != http.StatusOK || doc.Records != accounts+3 || doc.Created != 1 || doc.Namespaces != 2 || doc.Revision == 0 {
		t.Fatalf("%s %s, %v", resp.Status, answer, err)
	}
	if want, got := contentOf(t, last), everything(t, target); !maps.Equal(want, got) {
		t.Errorf("restored are %d lines, want %d", len(got), len(want))
	}
	v, err := dial(t, target.info.Listen, client.WithNamespace("app")).Get(t.Context(), "0")
	if err != nil || !bytes.Equal(v.Data, big) || v.Tags()["b"] != "ü" || v.ContentType != "text/x" || v.Encoding != "gzip" || v.ExpiresAt.IsZero() {
		t.Errorf("the large value: %d bytes, %v, %v", len(v.Data), v.Tags(), err)
	}
}

func TestRestore_WhatMayNotBe_ChangesNothing(t *testing.T) {
	n, at := lone(t)
	other, elsewhere := lone(t)
	c := dial(t, n.info.Listen)
	for i := range 50 {
		if _, err := c.Put(t.Context(), fmt.Sprint(i), bytes.Repeat([]byte("v"), 100)); err != nil {
			t.Fatal(err)
		}
	}
	_, good := post(t, at, "/api/v1/admin/backup", nil)
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	empty := everything(t, other)
	for name, q := range map[string]struct {
		body   []byte
		status int
		title  string
	}{
		"cut":            {good[:len(good)-1], 422, "CHECKSUM_MISMATCH"},
		"flipped":        {flipped, 422, "CHECKSUM_MISMATCH"},
		"something else": {[]byte("something else that is long enough"), 400, "BAD_REQUEST"},
		"later format":   {append([]byte("KVBACKUP\x02"), good[9:]...), 400, "UNSUPPORTED"},
	} {
		resp, b := post(t, elsewhere, "/api/v1/admin/restore", bytes.NewReader(q.body))
		var doc map[string]any
		if err := json.Unmarshal(b, &doc); err != nil || resp.StatusCode != q.status || doc["title"] != q.title || doc["applied"] != "no" {
			t.Errorf("%s: %s %s", name, resp.Status, b)
		}
		if got := everything(t, other); !maps.Equal(empty, got) {
			t.Fatalf("%s: the store holds %v", name, got)
		}
	}
	before := everything(t, n)
	if status, doc := rest(t, at, "POST", "/api/v1/admin/restore", string(good)); status != 409 || doc["title"] != "NAMESPACE_EXISTS" || doc["applied"] != "no" {
		t.Errorf("into a store that is not empty: %d %v", status, doc)
	}
	if status, doc := rest(t, at, "POST", "/api/v1/admin/restore?namespace=nope", string(good)); status != 404 {
		t.Errorf("a namespace that the copy lacks: %d %v", status, doc)
	}
	if resp, b := post(t, at, "/api/v1/admin/backup?namespace=nope", nil); resp.StatusCode != 404 {
		t.Errorf("a namespace that isn't there: %s %s", resp.Status, b)
	}
	if status, doc := rest(t, at, "POST", "/api/v1/admin/restore?mode=merge", string(good)); status != 200 || doc["records"] != 50.0 {
		t.Errorf("merged: %d %v", status, doc)
	}
	if got := everything(t, n); !maps.Equal(before, got) {
		t.Errorf("merged: %d lines, want %d", len(got), len(before))
	}
	if _, err := os.Stat(filepath.Join(n.o.DataDir, spoolName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the spool is still there: %v", err)
	}
}

// One restore at a time: whoever finds another under way is told so at once. One whose client goes away leaves nothing.
func TestRestore_Another_IsRefusedWhileOneIsUnderWay(t *testing.T) {
	n, at := lone(t)
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "POST /api/v1/admin/restore HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\nKVBACKUP"); err != nil {
		t.Fatal(err)
	}
	b := n.backups
	until(t, "the first restore is under way", func() bool { return len(b.restoring) == 1 })
	if status, doc := rest(t, at, "POST", "/api/v1/admin/restore", "x"); status != 503 || doc["title"] != "BUSY" || doc["applied"] != "no" {
		t.Errorf("the second: %d %v", status, doc)
	}
	if resp, _ := post(t, at, "/api/v1/admin/backup", nil); resp.StatusCode != 200 {
		t.Errorf("a backup beside it: %s", resp.Status)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	until(t, "the first restore has ended", func() bool { return len(b.restoring) == 0 })
	if status, doc := rest(t, at, "POST", "/api/v1/admin/restore", "something else that is long enough"); status != 400 {
		t.Errorf("the next: %d %v", status, doc)
	}
}
