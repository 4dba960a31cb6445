package wire

import (
	"bytes"
	"slices"
	"testing"
)

func TestPutFingerprint_TellsRequestsApartThatDifferInAnything(t *testing.T) {
	type request struct {
		op           Opcode
		element      Idempotency
		ext          []byte
		key, payload string
	}
	fingerprint := func(r request) (uint64, []byte) {
		t.Helper()
		ext := append(AppendExtIdempotency(nil, r.element), r.ext...)
		body := slices.Concat(ext, []byte(r.key), []byte(r.payload))
		before := bytes.Clone(body)
		PutFingerprint(r.op, body, len(ext), len(r.key))
		v, _, found := FindIdempotency(body[:len(ext)])
		id, err := DecodeIdempotency(v)
		if !found || err != nil || id.Key != r.element.Key {
			t.Fatalf("%+v: %v, %v", r, id, err)
		}
		copy(before[idempotencyHeadBytes:], body[idempotencyHeadBytes:idempotencyHeadBytes+8])
		if !bytes.Equal(before, body) {
			t.Fatalf("%+v: more than the fingerprint was changed", r)
		}
		return id.Fingerprint, body
	}
	base := request{OpPut, Idempotency{Key: IdempotencyKey("a")}, AppendExtU64(nil, ExtTTL, 1000), "key", "value"}
	want, _ := fingerprint(base)
	again := base
	again.element = Idempotency{Key: IdempotencyKey("b"), Fingerprint: 7} // what stood there, and the key itself, don't count
	if got, _ := fingerprint(again); got != want {
		t.Errorf("the same request has %#x and %#x", got, want)
	}
	seen := map[uint64]string{want: "the first"}
	for name, change := range map[string]func(r *request){
		"operation":              func(r *request) { r.op = OpDelete },
		"value":                  func(r *request) { r.payload = "valuf" },
		"value with a zero more": func(r *request) { r.payload = "value\x00" },
		"key":                    func(r *request) { r.key = "kez" },
		"where the key ends":     func(r *request) { r.key, r.payload = "keyv", "alue" },
		"where the key begins":   func(r *request) { r.ext, r.key = r.ext[:len(r.ext)-1], "\x00key" },
		"time to live":           func(r *request) { r.ext = AppendExtU64(nil, ExtTTL, 1001) },
		"namespace":              func(r *request) { r.ext = AppendExtString(bytes.Clone(r.ext), ExtNamespace, "app") },
		"no time to live":        func(r *request) { r.ext = nil },
	} {
		r := base
		change(&r)
		got, _ := fingerprint(r)
		if other, ok := seen[got]; ok {
			t.Errorf("%s and %s have one fingerprint", name, other)
		}
		seen[got] = name
	}
}

func TestPutFingerprint_NotAtTheBeginning_Panics(t *testing.T) {
	for name, ext := range map[string][]byte{
		"no element":     AppendExtU64(nil, ExtTTL, 1),
		"behind another": AppendExtIdempotency(AppendExtU64(nil, ExtTTL, 1), Idempotency{}),
		"nothing":        nil,
		"cut":            AppendExtIdempotency(nil, Idempotency{})[:20],
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			PutFingerprint(OpPut, ext, len(ext), 0)
		}()
	}
}

func TestFindIdempotency_FindsItAndTheNamespace(t *testing.T) {
	id := Idempotency{Key: IdempotencyKey("k"), Fingerprint: 9}
	for name, c := range map[string]struct {
		ext       []byte
		namespace string
		found     bool
	}{
		"nothing":       {nil, "default", false},
		"others":        {AppendExtString(AppendExtU64(nil, ExtTTL, 5), ExtNamespace, "app"), "app", false},
		"alone":         {AppendExtIdempotency(nil, id), "default", true},
		"before":        {AppendExtString(AppendExtIdempotency(nil, id), ExtNamespace, "app"), "app", true},
		"behind":        {AppendExtIdempotency(AppendExtString(nil, ExtNamespace, "app"), id), "app", true},
		"before damage": {append(AppendExtIdempotency(nil, id), 40, 9), "default", true},
		"behind damage": {append([]byte{40, 200}, AppendExtIdempotency(nil, id)...), "default", false},
	} {
		v, ns, found := FindIdempotency(c.ext)
		got, err := DecodeIdempotency(v)
		if found != c.found || string(ns) != c.namespace || found && (err != nil || got != id) {
			t.Errorf("%s: %v in %q, %v", name, got, ns, found)
		}
	}
	if _, err := DecodeIdempotency(make([]byte, 23)); err == nil {
		t.Error("23 bytes pass")
	}
}
