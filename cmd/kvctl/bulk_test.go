package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// What was exported is imported into an empty store, and exported again: same bytes, same records. The
// values are random bytes, random text, and everything that JSON treats specially.
func TestExportImport_RoundTrip_Exact(t *testing.T) {
	const seed = 20260102
	rng := rand.New(rand.NewPCG(seed, 1))
	s := newFakeStore()
	for i, v := range []string{"", "\x00", "<a href=\"x\">&amp;</a>", "\u2028\u2029", "\\u0041 \\ \"", "\ufffd", "😀", "\xff", "é\xff", strings.Repeat("x", 300<<10), "line\nline\r\n", "\x7f"} {
		s.version++
		s.put(fmt.Sprintf("special/%02d/%s", i, strings.ToValidUTF8(v[:min(len(v), 20)], "?")), []byte(v), putOptions{})
	}
	for i := range 500 {
		v := make([]byte, rng.IntN(2000))
		for j := range v {
			v[j] = byte(rng.Uint32())
		}
		if i%2 == 0 {
			v = []byte(strings.ToValidUTF8(string(v), "ü"))
		}
		o := putOptions{}
		if i%3 == 0 {
			o = putOptions{TTL: time.Duration(1+rng.IntN(1e6)) * time.Millisecond, ContentType: "text/plain; charset=utf-8", Encoding: "zstd", Tags: map[string]string{"a": "1", "b.c": "<&>"}}
		}
		s.version++
		s.put(fmt.Sprintf("random/%d", rng.Uint64()), v, o)
	}
	code, first, errs := cli(t, s, "", "export")
	if code != 0 {
		t.Fatalf("exit %d: %s", code, errs)
	}
	back := newFakeStore()
	if code, _, errs := cli(t, back, first, "import", "-"); code != 0 || !strings.Contains(errs, fmt.Sprintf("imported %d keys", len(s.data))) {
		t.Fatalf("exit %d: %s", code, errs)
	}
	for k, want := range s.data {
		got := back.data[k]
		got.Version, want.Version = 0, 0
		if !reflect.DeepEqual(got, want) {
			t.Errorf("seed %d: key %q came back as %+v, was %+v", seed, k, got, want)
		}
	}
	if _, second, _ := cli(t, back, "", "export"); second != first {
		t.Errorf("seed %d: the second export differs from the first", seed)
	}
	if _, third, _ := cli(t, back, "", "export", "--meta"); !strings.Contains(third, `"version"`) {
		t.Error("--meta adds no version")
	} else if code, _, errs := cli(t, newFakeStore(), third, "import", "-"); code != 0 {
		t.Errorf("an export with --meta cannot be imported: %s", errs)
	}
}

func TestExport_File_CompleteOrAbsent(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "all.jsonl")
	s := sampleStore()
	s.fail = func(_, key string) error {
		if key == "user:2" {
			return &storeError{kind: kindConnect, err: errors.New("gone")}
		}
		return nil
	}
	code, _, errs := cli(t, s, "", "export", "--file", name)
	if left, err := os.ReadDir(dir); code != exitConnect || err != nil || len(left) != 0 {
		t.Errorf("exit %d (%s), left behind: %v, %v", code, errs, left, err)
	}
	s.fail = nil
	if code, out, errs := cli(t, s, "", "export", "--file", name); code != 0 || out != "" {
		t.Fatalf("exit %d: %q %s", code, out, errs)
	}
	_, want, _ := cli(t, s, "", "export")
	got, err := os.ReadFile(name)
	if err != nil || string(got) != want {
		t.Errorf("the file differs from stdout: %v", err)
	}
	if code, _, errs := cli(t, newFakeStore(), "", "import", name); code != 0 {
		t.Errorf("exit %d: %s", code, errs)
	}
}

func TestImport_BadLines_NamedAndNothingAltered(t *testing.T) {
	for line, want := range map[string]string{
		`{"key":"a"}`:                                                "neither",
		`{"key":"a","text":"x","value":"eA=="}`:                      "both",
		`{"text":"x"}`:                                               "key is empty",
		`{"key":"a","text":"x","colour":"red"}`:                      "colour",
		`{"key":"a","value":"not base64!"}`:                          "base64",
		`{"key":"a","text":"\ud800"}`:                                "surrogate",
		`{"key":"a","text":"\udc00x"}`:                               "surrogate",
		`{"key":"a","text":"\ud800\u0041"}`:                          "surrogate",
		"{\"key\":\"a\",\"text\":\"\xff\"}":                          "UTF-8",
		`{"key":"a","text":"x"} {"key":"b"}`:                         "more text",
		`["key"]`:                                                    "JSON",
		`{"key":"` + strings.Repeat("k", 1025) + `"}`:                "1025 bytes",
		`{"key":"a","text":"x","ttl_seconds":-1}`:                    "ttl_seconds",
		`{"key":"a","text":"x","expires_at":"monday"}`:               "monday",
		`{"key":"a","text":"x","expires_at":"2300-01-01T00:00:00Z"}`: "hundred years",
		`{"key":"a","text":"x","ttl_seconds":5,"expires_at":"2030-01-01T00:00:00Z"}`: "both",
	} {
		s := newFakeStore()
		code, _, errs := cli(t, s, `{"key":"first","text":"1"}`+"\n\n"+line+"\n", "import", "-")
		if code != exitFailed || !strings.Contains(errs, "line 3: ") || !strings.Contains(errs, want) || !strings.Contains(errs, "import stopped") {
			t.Errorf("%s: exit %d, %q; want line 3 and %q", line, code, errs, want)
		}
		if _, ok := s.data["a"]; ok {
			t.Errorf("%s was written", line)
		}
	}
	// These look alike and are right: a whole pair, an escaped backslash, a real U+FFFD.
	good := `{"key":"a","text":"\ud83d\ude00 \\ud800 \ufffd"}`
	s := newFakeStore()
	if code, _, errs := cli(t, s, "\ufeff"+good, "import", "-"); code != 0 || string(s.data["a"].Value) != "😀 \\ud800 \ufffd" {
		t.Errorf("exit %d, %s, value %q", code, errs, s.data["a"].Value)
	}
}

// Of many lines with the same key the last one wins, whatever the concurrency.
func TestImport_SameKeyTwice_LaterLineWins(t *testing.T) {
	var b strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&b, "{\"key\":\"k%d\",\"text\":\"%d\"}\n", i%7, i)
	}
	s := newFakeStore()
	if code, _, errs := cli(t, s, b.String(), "import", "-", "--concurrency", "32"); code != 0 {
		t.Fatal(errs)
	}
	for i := range 7 {
		want := 2999 - (2999-i)%7
		if got := string(s.data[fmt.Sprintf("k%d", i)].Value); got != fmt.Sprint(want) {
			t.Errorf("k%d is %s, want %d", i, got, want)
		}
	}
}

func TestImport_Expiry_RemainingTimeAndExpiredLeftOut(t *testing.T) {
	s := newFakeStore()
	in := fmt.Sprintf(`{"key":"soon","text":"x","expires_at":%q}`+"\n"+`{"key":"gone","text":"x","expires_at":%q}`+"\n"+`{"key":"ttl","text":"x","ttl_seconds":1.5}`,
		testNow.Add(time.Minute).Format(time.RFC3339Nano), testNow.Add(-time.Second).Format(time.RFC3339Nano))
	code, out, errs := cli(t, s, in, "import", "-", "-o", "json")
	if code != 0 || !strings.Contains(errs, "left out 1 keys") || out != "{\"expired\":1,\"imported\":2}\n" {
		t.Fatalf("exit %d, %q, %q", code, out, errs)
	}
	if got := s.data["soon"].ExpiresAt; !got.Equal(testNow.Add(time.Minute)) {
		t.Errorf("soon expires at %v", got)
	}
	if got := s.data["ttl"].ExpiresAt; !got.Equal(testNow.Add(1500 * time.Millisecond)) {
		t.Errorf("ttl expires at %v", got)
	}
}

// A write with an unknown outcome is repeated, since the same key and value do no harm twice; one that
// stays unknown is reported as that.
func TestImport_UnknownOutcome_RepeatedThenSaid(t *testing.T) {
	s := newFakeStore()
	unknown := 2
	s.fail = func(string, string) error {
		if unknown--; unknown >= 0 {
			return &storeError{kind: kindUnknown, err: errors.New("connection lost"), passing: true}
		}
		return nil
	}
	if code, _, errs := cli(t, s, `{"key":"a","text":"x"}`, "import", "-"); code != 0 || len(s.data) != 1 {
		t.Errorf("exit %d, %s", code, errs)
	}
	unknown = 1 << 30
	code, _, errs := cli(t, s, `{"key":"a","text":"x"}`, "import", "-", "--patience", "1ms")
	if code != exitFailed || !strings.Contains(errs, "may or may not be applied") || !strings.Contains(errs, "line 1") {
		t.Errorf("exit %d, %s", code, errs)
	}
}

// endlessLines is a file without end: import must read no further than its bounds allow. After 64 MiB it
// fails, so that a reader who never stops fails its test.
type endlessLines struct{ read int }

func (e *endlessLines) Read(b []byte) (int, error) {
	if e.read > 64<<20 {
		return 0, errors.New("nobody stopped reading")
	}
	const line = `{"key":"k","text":"0123456789"}` + "\n"
	n := copy(b, strings.Repeat(line, len(b)/len(line)))
	if n == 0 {
		return 0, io.ErrShortBuffer
	}
	e.read += n
	return n, nil
}

// One failed write stops everything, also while the reader waits for a worker: the first failure wins.
func TestImport_WriteFails_StopsReading(t *testing.T) {
	s := newFakeStore()
	s.fail = func(string, string) error {
		if s.calls > 100 {
			return &storeError{kind: kindDenied, err: errors.New("read only")}
		}
		return nil
	}
	in := &endlessLines{}
	code, _, errs, _ := cliApp(t, s, "", func(a *app) { a.in = in }, "import", "-")
	if code != exitDenied || !strings.Contains(errs, "read only") {
		t.Errorf("exit %d, %s", code, errs)
	}
	if in.read > 8<<20 {
		t.Errorf("%d bytes were read ahead", in.read)
	}
}

// Where there is no terminal, one line every five seconds tells how far the import is.
func TestImport_NoTerminal_LineEveryFiveSeconds(t *testing.T) {
	s := newFakeStore()
	now := testNow
	tick := func(a *app) {
		a.now = func() time.Time {
			s.mu.Lock()
			defer s.mu.Unlock()
			now = now.Add(100 * time.Millisecond)
			return now
		}
	}
	var b bytes.Buffer
	for i := range 200 {
		fmt.Fprintf(&b, "{\"key\":\"k%d\",\"text\":\"x\"}\n", i)
	}
	name := filepath.Join(t.TempDir(), "in.jsonl")
	if err := os.WriteFile(name, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	code, _, errs, _ := cliApp(t, s, "", tick, "import", name)
	if n := strings.Count(errs, "import: "); code != 0 || n < 3 || n > 12 || !strings.Contains(errs, "%") {
		t.Errorf("exit %d, %d progress lines:\n%s", code, n, errs)
	}
}

// On a terminal there is a bar on stderr, and stdout stays clean.
func TestImport_Terminal_BarOnStderrOnly(t *testing.T) {
	code, out, errs, _ := cliApp(t, newFakeStore(), `{"key":"a","text":"x"}`, func(a *app) { a.errTTY = true }, "import", "-")
	if code != 0 || out != "" || !strings.Contains(errs, "\r") || !strings.Contains(errs, "imported 1 keys") {
		t.Errorf("exit %d, stdout %q, stderr %q", code, out, errs)
	}
}

func TestImport_Interrupted_SaysHowToGoOn(t *testing.T) {
	s := newFakeStore()
	ctx, cancel := context.WithCancel(t.Context())
	s.fail = func(string, string) error {
		if s.calls == 50 {
			cancel()
		}
		return nil
	}
	var out, errs bytes.Buffer
	a := &app{in: &endlessLines{}, out: &out, err: &errs, getenv: func(string) string { return "" }, now: time.Now,
		open: func(context.Context, openOptions) (store, error) { return s, nil }}
	if code := a.run(ctx, []string{"import", "-"}); code != exitInterrupted || !strings.Contains(errs.String(), "run the same command again") {
		t.Errorf("exit %d, %q", code, errs.String())
	}
}

// Whatever line is accepted comes back as the same item from its own export.
func FuzzParseItem(f *testing.F) {
	for _, s := range []string{`{"key":"a","text":"x"}`, `{"key":"a","value":"/w=="}`, `{"key":"\ud83d\ude00","text":"\\ud800","tags":{"a":"b"}}`, `{"key":"a","text":"x","expires_at":"2030-01-01T00:00:00Z"}`, `[]`, ``} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		it, err := parseItem(line)
		if err != nil {
			return
		}
		v, err := it.bytes()
		if err != nil {
			return
		}
		if !utf8.ValidString(it.Key) {
			t.Fatalf("accepted the key %q", it.Key)
		}
		r := record{Key: it.Key, Value: v, ContentType: it.ContentType, Encoding: it.Encoding, Tags: it.Tags}
		var b bytes.Buffer
		if err := writeItem(&b, newItem(&r, false, false)); err != nil {
			t.Fatal(err)
		}
		again, err := parseItem(b.Bytes())
		if err != nil {
			t.Fatalf("own line is refused: %v\n%s", err, b.Bytes())
		}
		w, err := again.bytes()
		if err != nil || !bytes.Equal(v, w) || again.Key != it.Key {
			t.Fatalf("%q became %q", v, w)
		}
	})
}
