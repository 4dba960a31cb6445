package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// A size is read as what it was written as, and never wraps around.
func FuzzParseBytes(f *testing.F) {
	for _, s := range []string{"0", "64MiB", "1 GB", " 7B ", "-1", "99999999TiB", "9223372036854775807", "12 parsecs", "+5", "1e3", "0x10", "1_000"} {
		f.Add(s, int64(len(s)))
	}
	f.Fuzz(func(t *testing.T, s string, n int64) {
		if n >= 0 {
			if got, err := ParseBytes(FormatBytes(n)); err != nil || got != n {
				t.Fatalf("%d comes back as %d, %v", n, got, err)
			}
		}
		got, err := ParseBytes(s)
		if err != nil {
			if got != 0 || !strings.Contains(err.Error(), "is not a size") {
				t.Fatalf("%d beside %v", got, err)
			}
			return
		}
		if again, err := ParseBytes(FormatBytes(got)); got < 0 || err != nil || again != got {
			t.Fatalf("%q is %d, which comes back as %d, %v", s, got, again, err)
		}
	})
}

// Whatever stands in the file, the environment and the command line, what is accepted is within its bounds, and what is
// not accepted is named.
func FuzzLoad(f *testing.F) {
	for _, c := range [][3]string{
		{"data_dir: /file\nmax-conns: 5\nwait: 5s\n", "7", "--data-dir=/flag\n--insecure\nserver"},
		{"wait: 5s\n---\nwait: 6s\n", "", ""}, {"a: [\n", "", ""}, {"- a", "", ""}, {"# nothing\n", "", "--version=x"},
		{"wait: &a 5s\nmemtable: *a\n", "", ""}, {"? [x]\n: y\n", "", ""}, {"<<: {wait: 5s}\n", "", ""}, {"%YAML 1.2\n---\n", "1e9", "-"},
		{"memtable: !!binary AA==\n", "0x10", "--wait\n1h"}, {"wait: |\n  5s\n", "9", "--no-such"},
	} {
		f.Add([]byte(c[0]), c[1], c[2])
	}
	f.Fuzz(func(t *testing.T, file []byte, conns, line string) {
		path := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		args := []string{"--config", path}
		if line != "" {
			args = append(args, strings.Split(line, "\n")...)
		}
		var v values
		s := newSet(&v)
		rest, err := s.Load(args, env(map[string]string{"PROG_MAX_CONNS": conns}), new(strings.Builder))
		switch {
		case errors.Is(err, ErrHelp):
			return
		case err != nil && (err.Error() == "" || !utf8.ValidString(err.Error()) && utf8.Valid(file) && utf8.ValidString(conns+line)):
			t.Fatalf("error %q", err)
		}
		if v.conns < 1 || v.conns > 1000 || v.wait < time.Millisecond || v.wait > time.Minute || v.size < 1<<20 || v.size > 1<<30 ||
			v.mode != "lease" && v.mode != "readindex" {
			t.Fatalf("out of bounds: %+v, %v", v, err)
		}
		if err == nil && len(rest) > strings.Count(line, "\n")+1 {
			t.Fatalf("%q are left of %q", rest, line)
		}
		for _, name := range []string{"data-dir", "max-conns", "wait", "memtable"} {
			if s.Origin(name) == "" {
				t.Fatalf("%s has no origin", name)
			}
		}
	})
}
