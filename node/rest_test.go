package node

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// rest asks a node by REST and reads the JSON that comes back.
func rest(t *testing.T, address, method, target, body string) (status int, doc map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+address+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	status, _, doc = answerOf(t, req)
	return status, doc
}

// answerOf sends a request and reads the JSON that comes back.
func answerOf(t *testing.T, req *http.Request) (status int, etag string, doc map[string]any) {
	t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatalf("%s %s: %d %v: %.500q", req.Method, req.URL, resp.StatusCode, err, b)
	}
	return resp.StatusCode, resp.Header.Get("ETag"), doc
}

// texts gives the strings under name in each object of a list.
func texts(list any, name string) (out []string) {
	for _, o := range list.([]any) {
		s, _ := o.(map[string]any)[name].(string)
		out = append(out, s)
	}
	return out
}

// The routes that take or give many records do on real nodes what they promise, whoever is asked.
func TestREST_BatchesListsTransactionsAndNumbers_OnLeaderAndFollower(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	for _, id := range c.ids {
		at := c.places[id].http
		ask := func(want int, method, target, body string) map[string]any {
			t.Helper()
			status, doc := rest(t, at, method, target, body)
			if status != want {
				t.Fatalf("%s: %s %s %s: %d %v, want %d", id, method, target, body, status, doc, want)
			}
			return doc
		}
		doc := ask(200, "POST", "/api/v1/batch/put", fmt.Sprintf(`{"items":[{"key":"%[1]s/a","text":"1"},{"key":"%[1]s/b/1","value":"AP8=","ttl_seconds":1000,"tags":{"t":"v"},"content_type":"text/x"},{"key":"%[1]s/b/2","text":"3"},{"key":"%[1]s/c","text":"4"}]}`, id))
		first := doc["version"].(string)
		if got := texts(doc["results"], "key"); !slices.Equal(got, []string{id + "/a", id + "/b/1", id + "/b/2", id + "/c"}) {
			t.Errorf("%s: put %v", id, got)
		}
		doc = ask(200, "POST", "/api/v1/batch/get", fmt.Sprintf(`{"keys":["%[1]s/c","%[1]s/absent","%[1]s/b/1"]}`, id))
		if items := doc["items"].([]any); items[0].(map[string]any)["value"] != "NA==" || items[1].(map[string]any)["found"] != false || items[2].(map[string]any)["content_type"] != "text/x" || items[2].(map[string]any)["value"] != "AP8=" {
			t.Errorf("%s: got %v", id, items)
		}
		var keys []string
		cursor, revision := "", ""
		for {
			target := "/api/v1/keys?limit=3&keys_only=true&prefix=" + id + "/"
			if cursor != "" {
				target += "&cursor=" + cursor
			}
			doc = ask(200, "GET", target, "")
			keys = append(keys, texts(doc["items"], "key")...)
			if cursor = doc["next_cursor"].(string); revision != "" && doc["revision"] != revision {
				t.Errorf("%s: pages of the revisions %s and %s", id, revision, doc["revision"])
			}
			revision = doc["revision"].(string)
			if cursor == "" {
				break
			}
			ask(200, "PUT", "/api/v1/keys/"+id+"/z", "written between two pages")
		}
		if !slices.Equal(keys, []string{id + "/a", id + "/b/1", id + "/b/2", id + "/c"}) {
			t.Errorf("%s: listed %v", id, keys)
		}
		doc = ask(200, "GET", "/api/v1/keys?delimiter=/&reverse=true&prefix="+id+"/", "")
		if got := doc["common_prefixes"].([]any); len(got) != 1 || got[0] != id+"/b/" || len(doc["items"].([]any)) != 3 {
			t.Errorf("%s: one level: %v", id, doc)
		}
		if doc = ask(200, "GET", "/api/v1/keys?count=true&prefix="+id+"/", ""); doc["count"] != 5.0 {
			t.Errorf("%s: counted %v", id, doc)
		}
		ask(200, "DELETE", "/api/v1/keys/"+id+"/z", "")
		txn := `{"operations":[{"type":"CHECK","key":"%[1]s/b/1","conditions":[{"if_exists":true},{"if_value_match":"AP8="},{"if_tag_match":{"name":"t","value":"%[2]s"}}]},{"type":"GET","key":"%[1]s/a"},` +
			`{"type":"PUT","key":"%[1]s/t","text":"new"},{"type":"DELETE","key":"%[1]s/absent"},{"type":"INCREMENT","key":"%[1]s/n","delta":41},{"type":"TOUCH","key":"%[1]s/c","ttl_seconds":500}]}`
		doc = ask(412, "POST", "/api/v1/transaction", fmt.Sprintf(txn, id, "other"))
		if failed := doc["failed"].([]any); doc["committed"] != false || len(failed) != 1 || failed[0].(map[string]any)["condition"] != 2.0 || failed[0].(map[string]any)["key"] != id+"/b/1" {
			t.Errorf("%s: refused with %v", id, doc)
		}
		doc = ask(200, "POST", "/api/v1/transaction", fmt.Sprintf(txn, id, "v"))
		results := doc["results"].([]any)
		if doc["committed"] != true || results[1].(map[string]any)["value"] != "MQ==" || results[3].(map[string]any)["deleted"] != false || results[4].(map[string]any)["value"] != "41" || results[5].(map[string]any)["found"] != true {
			t.Errorf("%s: committed %v", id, doc)
		}
		if doc = ask(200, "POST", "/api/v1/increment/"+id+"/n?delta=-50", ""); doc["value"] != "-9" {
			t.Errorf("%s: incremented %v", id, doc)
		}
		if doc = ask(422, "POST", "/api/v1/increment/"+id+"/b/1", ""); doc["title"] != "NOT_A_NUMBER" || doc["applied"] != "no" {
			t.Errorf("%s: incremented a text: %v", id, doc)
		}
		expires := func() any {
			t.Helper()
			return ask(200, "POST", "/api/v1/batch/get", `{"keys":["`+id+`/c"]}`)["items"].([]any)[0].(map[string]any)["expires_at"]
		}
		if expires() == nil {
			t.Errorf("%s: touched in a transaction, it has no deadline", id)
		}
		ask(200, "PATCH", "/api/v1/keys/"+id+"/c?ttl_seconds=0", "")
		if at := expires(); at != nil {
			t.Errorf("%s: touched, it expires at %v", id, at)
		}
		ask(404, "PATCH", "/api/v1/keys/"+id+"/absent?ttl_seconds=5", "")
		doc = ask(200, "POST", "/api/v1/batch/delete", fmt.Sprintf(`{"keys":["%[1]s/a","%[1]s/absent","%[1]s/b/1"]}`, id))
		if got := doc["results"].([]any); got[0].(map[string]any)["deleted"] != true || got[1].(map[string]any)["deleted"] != false || doc["version"] == first {
			t.Errorf("%s: deleted %v", id, doc)
		}
		if doc = ask(200, "GET", "/api/v1/keys?keys_only=true&prefix="+id+"/&revision="+revision, ""); len(doc["items"].([]any)) != 4 {
			t.Errorf("%s: the past at %s: %v", id, revision, doc)
		}
	}
}

// event is one server-sent event.
type event struct{ kind, id, data string }

// events reads n events of a watch at address.
func events(t *testing.T, address, target, lastID string, n int) (out []event) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+address+target, nil)
	if err != nil {
		t.Fatal(err)
	}
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("watch: %d %s", resp.StatusCode, b)
	}
	var e event
	for sc := bufio.NewScanner(resp.Body); len(out) < n; {
		if !sc.Scan() {
			t.Fatalf("the watch ended behind %v: %v", out, sc.Err())
		}
		switch name, value, _ := strings.Cut(sc.Text(), ": "); {
		case name == "event":
			e.kind = value
		case name == "id":
			e.id = value
		case name == "data":
			e.data = value
		case sc.Text() == "" && e.data != "":
			out = append(out, e)
			e = event{id: e.id}
		}
	}
	return out
}

// Whoever takes a few events here and comes back elsewhere with the id of the last has seen each once and in order.
func TestREST_Watch_ResumesByItsLastEventIDOnAnyNode(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	_, doc := rest(t, c.places[c.ids[0]].http, "PUT", "/api/v1/keys/other", "v")
	from := doc["version"].(string)
	const writes = 30
	var want []event
	for i := range writes {
		at, key := c.places[c.ids[i%3]].http, fmt.Sprintf("w/%d", i/2)
		kind, method := "put", "PUT"
		if i%2 == 1 {
			kind, method = "delete", "DELETE"
		}
		status, doc := rest(t, at, method, "/api/v1/keys/"+key, fmt.Sprint(i))
		if status != 200 {
			t.Fatal(status, doc)
		}
		want = append(want, event{kind, doc["version"].(string), key})
		if status, doc := rest(t, at, "PUT", "/api/v1/keys/other", "between"); status != 200 {
			t.Fatal(status, doc)
		}
	}
	var got []event
	last := ""
	for i := 0; len(got) < writes; i++ {
		some := events(t, c.places[c.ids[i%3]].http, "/api/v1/watch/w%2F?previous=true&from_revision="+from, last, min(7, writes-len(got)))
		got = append(got, some...)
		last = some[len(some)-1].id
	}
	for i, e := range got {
		var item struct {
			Key, Version string
			Value        []byte
			Previous     *struct{ Value []byte }
		}
		if err := json.Unmarshal([]byte(e.data), &item); err != nil {
			t.Fatal(err)
		}
		if e.data = item.Key; e != want[i] || item.Version != e.id {
			t.Errorf("event %d is %+v, want %+v", i, e, want[i])
		}
		if i%2 == 0 && string(item.Value) != fmt.Sprint(i) || i%2 == 1 && (item.Previous == nil || !bytes.Equal(item.Previous.Value, []byte(fmt.Sprint(i-1)))) {
			t.Errorf("event %d: %s", i, e.data)
		}
	}
	if status, doc := rest(t, c.places[c.ids[1]].http, "GET", "/api/v1/watch/?from_revision=18446744073709551615", ""); status != 400 || doc["title"] != "FUTURE_REVISION" {
		t.Errorf("from the future: %d %v", status, doc)
	}
}

func TestREST_Namespaces_AreMadeSetShownAndDropped(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	at := func(i int) string { return c.places[c.ids[i%3]].http }
	for i := range 3 {
		name := fmt.Sprintf("app/%d", i)
		if status, doc := rest(t, at(i), "PUT", "/api/v1/keys/k?namespace="+name, "v"); status != 404 || doc["title"] != "NO_NAMESPACE" || doc["applied"] != "no" {
			t.Errorf("a write into nothing: %d %v", status, doc)
		}
		if status, doc := rest(t, at(i), "POST", "/api/v1/admin/namespaces", `{"name":"`+name+`","settings":{"keys_max":1}}`); status != 200 {
			t.Fatalf("create: %d %v", status, doc)
		}
		if status, doc := rest(t, at(i), "POST", "/api/v1/admin/namespaces", `{"name":"`+name+`"}`); status != 409 || doc["title"] != "NAMESPACE_EXISTS" {
			t.Errorf("create again: %d %v", status, doc)
		}
		if status, doc := rest(t, at(i+1), "PUT", "/api/v1/keys/k?namespace="+name, "v"); status != 200 {
			t.Errorf("the first key: %d %v", status, doc)
		}
		if status, doc := rest(t, at(i+2), "PUT", "/api/v1/keys/l?namespace="+name, "v"); status != 429 || doc["title"] != "QUOTA_EXCEEDED" || doc["applied"] != "no" {
			t.Errorf("the second key: %d %v", status, doc)
		}
		if status, doc := rest(t, at(i), "PUT", "/api/v1/admin/namespaces/"+name, `{"settings":{"keys_max":2}}`); status != 200 {
			t.Errorf("set: %d %v", status, doc)
		}
		if status, doc := rest(t, at(i+2), "PUT", "/api/v1/keys/l?namespace="+name, "v"); status != 200 {
			t.Errorf("the second key, now: %d %v", status, doc)
		}
		status, doc := rest(t, at(i), "GET", "/api/v1/admin/namespaces/"+name, "")
		if status != 200 || len(doc["namespaces"].([]any)) != 1 {
			t.Fatalf("describe: %d %v", status, doc)
		}
		if ns := doc["namespaces"].([]any)[0].(map[string]any); ns["name"] != name || ns["keys"] != 2.0 || ns["settings"].(map[string]any)["keys_max"] != 2.0 {
			t.Errorf("describe: %v", ns)
		}
		if status, doc := rest(t, at(i), "DELETE", "/api/v1/admin/namespaces/"+name, ""); status != 200 {
			t.Errorf("drop: %d %v", status, doc)
		}
		if status, doc := rest(t, at(i), "GET", "/api/v1/admin/namespaces/"+name, ""); status != 404 {
			t.Errorf("describe, dropped: %d %v", status, doc)
		}
	}
}
