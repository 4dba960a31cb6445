package node

import (
	"net/http"
	"reflect"
	"strings"
	"testing"

	"kvstore/wire"
)

// restOnce is rest with an idempotency key.
func restOnce(t *testing.T, address, method, target, body, key string) (status int, etag string, doc map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+address+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Idempotency-Key", key)
	return answerOf(t, req)
}

// A write with a key is done once, whichever node is asked, over a change of the leader and restarts of all nodes, and even
// when its namespace is gone; it always has the answer that it had first.
func TestREST_IdempotencyKey_IsDoneOnceAndAnsweredTheSameByEveryNode(t *testing.T) {
	slow(t)
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	leader, others := c.leader()
	mustAdminister[namespacesDocument](t, leader, `{"action":"namespace_create","namespace":"app"}`)
	if st, doc := rest(t, c.places[others[0].info.NodeID].http, "PUT", "/api/v1/keys/there", "v"); st != 200 {
		t.Fatal(st, doc)
	}
	type answer struct {
		status int
		etag   string
		doc    map[string]any
	}
	requests := map[string]struct {
		method, target, body string
		want                 int
	}{
		"put":                {"PUT", "/api/v1/keys/k?ttl_seconds=1000&tag.a=b", "one", 200},
		"increment":          {"POST", "/api/v1/increment/n?delta=3", "", 200},
		"increment in app":   {"POST", "/api/v1/increment/n?namespace=app", "", 200},
		"delete":             {"DELETE", "/api/v1/keys/there", "", 200},
		"touch of nothing":   {"PATCH", "/api/v1/keys/nothing?ttl_seconds=9", "", 404},
		"no number":          {"POST", "/api/v1/increment/text", "", 422},
		"batch put":          {"POST", "/api/v1/batch/put", `{"items":[{"key":"a","text":"1"},{"key":"b","text":"2"}]}`, 200},
		"batch delete":       {"POST", "/api/v1/batch/delete", `{"keys":["a","zz"]}`, 200},
		"transaction":        {"POST", "/api/v1/transaction", `{"operations":[{"type":"GET","key":"k"},{"type":"INCREMENT","key":"m","delta":4}]}`, 200},
		"failed transaction": {"POST", "/api/v1/transaction", `{"operations":[{"type":"CHECK","key":"k2","conditions":[{"if_exists":true}]},{"type":"PUT","key":"x","text":"1"}]}`, 412},
	}
	if st, doc := rest(t, c.places[c.ids[0]].http, "PUT", "/api/v1/keys/text", "some words"); st != 200 {
		t.Fatal(st, doc)
	}
	// In this order: some look at what others have done.
	names := []string{"put", "increment", "increment in app", "delete", "touch of nothing", "no number", "batch put", "batch delete", "transaction", "failed transaction"}
	if len(names) != len(requests) {
		t.Fatal("a request is not sent")
	}
	first := make(map[string]answer)
	ask := func(id, name string) answer {
		t.Helper()
		r := requests[name]
		st, etag, doc := restOnce(t, c.places[id].http, r.method, r.target, r.body, "the key of "+name)
		delete(doc, "request_id") // a request that is sent again is another one
		return answer{st, etag, doc}
	}
	for i, name := range names {
		first[name] = ask(c.ids[i%len(c.ids)], name)
		if first[name].status != requests[name].want {
			t.Errorf("%s: %+v, want %d", name, first[name], requests[name].want)
		}
	}
	// All of it would be answered otherwise now.
	for target, body := range map[string]string{"k": "two", "k2": "2", "there": "again", "nothing": "something", "text": "7"} {
		if st, doc := rest(t, c.places[c.ids[0]].http, "PUT", "/api/v1/keys/"+target, body); st != 200 {
			t.Fatal(st, doc)
		}
	}
	everyoneAnswers := func(when string) {
		t.Helper()
		for _, id := range c.ids {
			for _, name := range names {
				if got := ask(id, name); !reflect.DeepEqual(got, first[name]) {
					t.Errorf("%s, %s: %s is answered %+v, at first %+v", when, id, name, got, first[name])
				}
			}
			if st, _, doc := restOnce(t, c.places[id].http, "PUT", "/api/v1/keys/k?ttl_seconds=1000&tag.a=b", "three", "the key of put"); st != 422 || doc["applied"] != "no" || doc["code"] != "KV-3020" {
				t.Errorf("%s, %s: another body: %d %v", when, id, st, doc)
			}
		}
	}
	everyoneAnswers("at once")
	administer[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "transfer", ID: others[0].info.NodeID}))
	until(t, "another node leads", func() bool { l, _ := c.leader(); return l != leader })
	everyoneAnswers("after a transfer")
	for _, id := range c.ids {
		c.stop(id)
	}
	c.start(c.ids...)
	leader, _ = c.leader()
	everyoneAnswers("after a restart")
	mustAdminister[namespacesDocument](t, leader, `{"action":"namespace_drop","namespace":"app"}`)
	until(t, "the namespace is purged", func() bool { _, ok := leader.shard.engine.Purging(); return !ok })
	everyoneAnswers("after the drop")
	if st, _, doc := restOnce(t, c.places[leader.info.NodeID].http, "POST", "/api/v1/increment/n?namespace=app", "", "a new key"); st != 404 {
		t.Errorf("a new key in a namespace that is gone: %d %v", st, doc)
	}
	for key, want := range map[string]string{"k": "two", "n": "3", "m": "4"} {
		if r := do(t, leader, wire.OpGet, nil, key, nil); string(r.Payload) != want {
			t.Errorf("%s is %q, want %q", key, r.Payload, want)
		}
	}
	c.same()
}
