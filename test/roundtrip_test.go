package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"kvstore/internal/testcluster"
)

// jsonRecord is a line of `kvctl import` and `kvctl export`, as far as both have it.
type jsonRecord struct {
	Key         string            `json:"key"`
	Text        *string           `json:"text,omitempty"`
	Value       *[]byte           `json:"value,omitempty"`
	ContentType string            `json:"content_type,omitempty"`
	Encoding    string            `json:"encoding,omitempty"`
	Tags        map[string]string `json:"tags,omitempty"`
	ExpiresAt   *time.Time        `json:"expires_at,omitempty"`
}

func (r *jsonRecord) bytes() []byte {
	switch {
	case r.Text != nil:
		return []byte(*r.Text)
	case r.Value != nil:
		return *r.Value
	}
	return nil
}

// setBytes puts the value where the format wants it: text if it is UTF-8.
func (r *jsonRecord) setBytes(b []byte) {
	if utf8.Valid(b) {
		s := string(b)
		r.Text = &s
		return
	}
	r.Value = &b
}

// TestRoundTrip_RealDataSet_ExportGivesBackWhatWasImported imports the operating system's package
// database (where there is none: Go's own source tree) with kvctl, exports it, and exports it once more
// after the node was killed.
func TestRoundTrip_RealDataSet_ExportGivesBackWhatWasImported(t *testing.T) {
	records := packages(t)
	if len(records) == 0 {
		t.Log("no package database here: the data set is Go's source tree")
		records = sources(t)
	}
	awkward(records)
	n := testcluster.Start(t, testcluster.Options{})
	var lines bytes.Buffer
	var size int
	enc := json.NewEncoder(&lines)
	for _, r := range records {
		if err := enc.Encode(r); err != nil {
			t.Fatal(err)
		}
		size += len(r.bytes())
	}
	t.Logf("%d records, %d KiB of values", len(records), size>>10)
	file := filepath.Join(t.TempDir(), "in.jsonl")
	if err := os.WriteFile(file, lines.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	kvctl(t, n, "import", file)

	first := kvctl(t, n, "export")
	compare(t, records, first)
	n.Kill()
	n.Start()
	if again := kvctl(t, n, "export"); !bytes.Equal(again, first) {
		t.Errorf("after kill -9 the export differs: %d bytes, before %d", len(again), len(first))
		compare(t, records, again)
	}
	// What was exported can be imported into another store, and comes out the same.
	other := testcluster.Start(t, testcluster.Options{})
	if err := os.WriteFile(file, first, 0o600); err != nil {
		t.Fatal(err)
	}
	kvctl(t, other, "import", file)
	compare(t, records, kvctl(t, other, "export"))
}

// kvctl runs a command that must succeed, and returns its stdout.
func kvctl(t *testing.T, n *testcluster.Node, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(testcluster.Binary(t, "kvctl"), append([]string{"--endpoints", n.Addr(), "--timeout", "60s"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("kvctl %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	return out
}

// compare checks an export against the records that were imported.
func compare(t *testing.T, want map[string]*jsonRecord, export []byte) {
	t.Helper()
	got := make(map[string]*jsonRecord, len(want))
	last := ""
	for line := range bytes.Lines(export) {
		var r jsonRecord
		dec := json.NewDecoder(bytes.NewReader(line))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&r); err != nil {
			t.Fatalf("a line of the export: %v: %.200s", err, line)
		}
		if r.Key <= last {
			t.Errorf("key %q stands behind %q in the export", r.Key, last)
		}
		last = r.Key
		got[r.Key] = &r
	}
	faults := 0
	fault := func(format string, a ...any) {
		if faults++; faults <= 10 {
			t.Errorf(format, a...)
		}
	}
	for key, w := range want {
		g := got[key]
		if g == nil {
			fault("%q is missing", key)
			continue
		}
		if !bytes.Equal(g.bytes(), w.bytes()) || g.ContentType != w.ContentType || g.Encoding != w.Encoding || !maps.Equal(g.Tags, w.Tags) {
			fault("%q: %d bytes, %q, %q, %v came back from %d bytes, %q, %q, %v", key, len(g.bytes()), g.ContentType, g.Encoding, g.Tags, len(w.bytes()), w.ContentType, w.Encoding, w.Tags)
		}
		switch {
		case (g.ExpiresAt == nil) != (w.ExpiresAt == nil):
			fault("%q expires at %v, want %v", key, g.ExpiresAt, w.ExpiresAt)
		case g.ExpiresAt != nil && g.ExpiresAt.Sub(*w.ExpiresAt).Abs() > 10*time.Minute:
			// A time to live is counted from when the write is applied: the deadline moves by the way there.
			fault("%q expires at %v, want %v", key, g.ExpiresAt, w.ExpiresAt)
		}
	}
	for key := range got {
		if want[key] == nil {
			fault("%q is there although it was not imported", key)
		}
	}
	if faults > 10 {
		t.Errorf("… and %d more", faults-10)
	}
}

// packages turns dpkg's database into records: the status of each package, and its lists and scripts.
func packages(t *testing.T) map[string]*jsonRecord {
	t.Helper()
	b, err := os.ReadFile("/var/lib/dpkg/status")
	if err != nil {
		return nil
	}
	records := make(map[string]*jsonRecord)
	field := regexp.MustCompile(`(?m)^(Package|Architecture|Version|Section): (.*)$`)
	for stanza := range strings.SplitSeq(string(b), "\n\n") {
		f := map[string]string{}
		for _, m := range field.FindAllStringSubmatch(stanza, -1) {
			f[m[1]] = m[2]
		}
		if f["Package"] == "" {
			continue
		}
		r := &jsonRecord{Key: "package/" + f["Package"] + ":" + f["Architecture"], ContentType: "text/plain; charset=utf-8",
			Tags: map[string]string{"version": f["Version"], "section": f["Section"]}}
		r.setBytes([]byte(stanza))
		records[r.Key] = r
	}
	files, err := os.ReadDir("/var/lib/dpkg/info")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join("/var/lib/dpkg/info", f.Name()))
		if err != nil || !f.Type().IsRegular() {
			continue
		}
		r := &jsonRecord{Key: "info/" + f.Name()}
		r.setBytes(b)
		records[r.Key] = r
	}
	return records
}

// sources turns a part of Go's source tree into records.
func sources(t *testing.T) map[string]*jsonRecord {
	t.Helper()
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(strings.TrimSpace(string(out)), "src")
	records := make(map[string]*jsonRecord)
	for _, dir := range []string{"net", "os", "encoding", "image"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			name, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			r := &jsonRecord{Key: "source/" + name, ContentType: "text/x-go", Tags: map[string]string{"folder": filepath.Dir(name)}}
			r.setBytes(b)
			records[r.Key] = r
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return records
}

// awkward adds what a package database lacks: binary, empty and chunked values, an encoding, deadlines,
// and keys that need care in JSON, shells and paths.
func awkward(records map[string]*jsonRecord) {
	add := func(key string, value []byte) *jsonRecord {
		r := &jsonRecord{Key: key}
		r.setBytes(value)
		records[key] = r
		return r
	}
	add("awkward/empty", nil)
	add("awkward/zero", []byte{0})
	add("awkward/invalid", []byte("half \xc3 of a letter"))
	add("awkward/chunked", content("chunked", 0, 1<<20+1))
	add("awkward/"+strings.Repeat("long", 254), []byte("a key of 1024 bytes"))
	for i, k := range []string{"\"quoted\"", "back\\slash", "new\nline", "a//b", "../..", "<html>&", "\u2028", "ünï/çödé/✓/𝄞", " ", "\x00"} {
		add("awkward/"+k, []byte(fmt.Sprintf("value %d of %q\u2028", i, k)))
	}
	r := add("awkward/encoded", []byte{0x1f, 0x8b, 8, 0})
	r.Encoding, r.ContentType = "gzip", "application/json"
	expires := time.Now().Add(10 * 365 * 24 * time.Hour).UTC().Truncate(time.Second)
	add("awkward/deadline", []byte("in ten years")).ExpiresAt = &expires
}
