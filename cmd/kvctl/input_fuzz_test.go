package main

import (
	"bytes"
	"context"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"kvstore/wire"
)

// Whatever the text of a transaction is, it is refused, or is operations that a server can take.
func FuzzParseTxn(f *testing.F) {
	for _, s := range []string{
		"put a 1\nif version=5\nput \"b c\" \"\\xff\"\nget c\ncheck d\nif absent\ndel e\n# comment\n", "if exists", "put a", "put \"a b", "check a", "if version=-1",
		`{"operations":[{"type":"put","key":"a","text":"x","ttl_seconds":60,"tags":{"a":"b"},"conditions":[{"if_version_match":"5"},{"if_not_exists":true}]}]}`,
		`{"operations":[{"type":"GET","key":"a"},{"type":"CHECK","key":"b","conditions":[{"if_value_match":"AA=="}]}]}`, `{"operations":[null]}`,
		`{"operations":[{"type":"PUT","key":"a","value":null}]}`, `{"operations":[{"type":"CHECK","key":"b","conditions":[null]}]}`, "{", "", `{"operations":[{"type":"PUT","key":"a","text":"\ud800"}]}`,
		"incr n\nincr n -5\ntouch k\ntouch k 30m\nif tag:team=a\nif tag:env\nif no-tag:x\n", "incr n 9223372036854775808", "touch k -1s", "touch k 1 2", "get a\nif tag:", "get a\nif tag:=x", "get a\nif no-tag:a=b",
		`{"operations":[{"type":"INCREMENT","key":"n","delta":-2},{"type":"TOUCH","key":"k","ttl_seconds":60,"conditions":[{"if_tag_match":{"name":"a","value":""}},{"if_tag_present":"b"},{"if_tag_absent":"c"}]}]}`,
		`{"operations":[{"type":"PUT","key":"n","text":"","delta":1}]}`, `{"operations":[{"type":"INCREMENT","key":"n","delta":1e30}]}`, `{"operations":[{"type":"GET","key":"n","conditions":[{"if_tag_match":null}]}]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		ops, err := parseTxn(text)
		if err != nil {
			if err.Error() == "" || len(ops) != 0 {
				t.Fatalf("%v beside %v", ops, err)
			}
			return
		}
		if len(ops) == 0 || len(ops) > wire.BatchOpsMax {
			t.Fatalf("%d operations", len(ops))
		}
		for _, op := range ops {
			if !slices.Contains([]string{txnPut, txnDelete, txnGet, txnCheck, txnTouch, txnIncrement}, op.Type) || validKey(op.Key) != nil || op.Options.TTL < 0 ||
				op.Type == txnCheck && len(op.Options.Conditions) == 0 || op.Type != txnPut && op.Value != nil {
				t.Fatalf("accepted %+v", op)
			}
			for _, c := range op.Options.Conditions {
				if !slices.Contains([]conditionKind{ifVersion, ifExists, ifAbsent, ifValue, ifTag, ifTagPresent, ifTagAbsent}, c.Kind) {
					t.Fatalf("accepted %+v", op)
				}
			}
		}
	})
}

// Words that were quoted come back as they were, and any others are taken or refused.
func FuzzSplitWords(f *testing.F) {
	f.Add("put", `b "c\`, "x\ty")
	f.Add("", "\xff", "\n")
	f.Fuzz(func(t *testing.T, a, b, line string) {
		got, err := splitWords(strconv.Quote(a) + " \t" + strconv.Quote(b) + "\n")
		if err != nil || !slices.Equal(got, []string{a, b}) {
			t.Fatalf("%q, %q became %q, %v", a, b, got, err)
		}
		words, err := splitWords(line)
		if n := 0; err == nil {
			for _, w := range words {
				n += len(w)
			}
			if n > 4*len(line) {
				t.Fatalf("%q became %q", line, words)
			}
		}
	})
}

// Whatever lines are imported, the command says what is wrong with which of them, or the store holds all of them, and
// their export, imported again, gives the same store.
func FuzzImport(f *testing.F) {
	for _, s := range []string{
		"{\"key\":\"a\",\"text\":\"x\"}\n\n{\"key\":\"b\",\"value\":\"/w==\",\"content_type\":\"t\",\"encoding\":\"e\",\"tags\":{\"a\":\"b\"}}", "\xef\xbb\xbf{\"key\":\"a\",\"text\":\"\"}\r\n",
		`{"key":"a","text":"x","expires_at":"2030-01-01T00:00:00Z"}`, `{"key":"a","text":"x","expires_at":"2020-01-01T00:00:00Z"}`, `{"key":"a","text":"x","ttl_seconds":1e-9}`, `{"key":"a"}`, "x", `{"key":"a","text":"1"}{"key":"a","text":"2"}`,
	} {
		f.Add([]byte(s))
	}
	run := func(t *testing.T, s *fakeStore, stdin []byte, args ...string) (int, string, string) {
		var out, errs bytes.Buffer
		a := &app{in: bytes.NewReader(stdin), out: &out, err: &errs, getenv: func(string) string { return "" }, now: func() time.Time { return testNow },
			open: func(context.Context, openOptions) (store, error) { return s, nil }}
		code := a.run(t.Context(), args)
		return code, out.String(), errs.String()
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		s := newFakeStore()
		code, _, errs := run(t, s, in, "import", "-")
		if code != exitOK {
			if !strings.Contains(errs, "line ") {
				t.Fatalf("exit %d: %s", code, errs)
			}
			return
		}
		for key, r := range s.data {
			if !utf8.ValidString(key) || key == "" || len(r.Value) > wire.ValueBytesMax {
				t.Fatalf("imported %+v", r)
			}
		}
		code, lines, errs := run(t, s, nil, "export")
		if code != exitOK {
			t.Fatalf("export: exit %d: %s", code, errs)
		}
		again := newFakeStore()
		if code, _, errs := run(t, again, []byte(lines), "import", "-"); code != exitOK {
			t.Fatalf("own export: exit %d: %s\n%s", code, errs, lines)
		}
		if len(again.data) != len(s.data) {
			t.Fatalf("%d keys became %d", len(s.data), len(again.data))
		}
		for key, r := range s.data {
			w := again.data[key]
			if !bytes.Equal(r.Value, w.Value) || r.ContentType != w.ContentType || r.Encoding != w.Encoding || !sameTags(r.Tags, w.Tags) || !r.ExpiresAt.Equal(w.ExpiresAt) {
				t.Fatalf("%+v became %+v", r, w)
			}
		}
	})
}

func sameTags(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

// Whatever a server answers about itself and its members, it is shown, or is said not to be understood.
func FuzzServerDocuments(f *testing.F) {
	f.Add([]byte(`{"node_id":"n","leader_id":"n","term":"7","is_leader":true,"nodes":[{"id":"n","role":"leader","lag":"0"}]}`))
	f.Add([]byte(`{"members":[{"id":"a","raft_address":"a:1","voter":true,"last_contact_ms":"7"},null],"pending":{}}`))
	f.Add([]byte(`{"leader_id":""}`))
	f.Add([]byte(`[]`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		for _, line := range [][]string{{"status"}, {"status", "-o", "json"}, {"member", "list"}, {"member", "list", "-o", "json"}} {
			s := newFakeStore()
			s.status, s.members = string(doc), string(doc)
			var out, errs bytes.Buffer
			a := &app{in: strings.NewReader(""), out: &out, err: &errs, getenv: func(string) string { return "" }, now: func() time.Time { return testNow },
				open: func(context.Context, openOptions) (store, error) { return s, nil }}
			if code := a.run(t.Context(), line); code != exitOK && errs.Len() == 0 {
				t.Fatalf("%q: exit %d without a word", line, code)
			}
			if strings.Contains(out.String(), "\x1b") {
				t.Fatalf("%q shows what a terminal obeys: %q", line, out.String())
			}
		}
	})
}
