package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type values struct {
	dir, mode string
	conns     int
	wait      time.Duration
	size      int64
	insecure  bool
	version   bool
}

func newSet(v *values) *Set {
	s := New("prog", "PROG_", "prog does things.")
	s.String(&v.dir, "data-dir", "./data", "directory of the data")
	s.Choice(&v.mode, "read-mode", "lease", []string{"lease", "readindex"}, "how reads are served")
	s.Section("Limits")
	s.Int(&v.conns, "max-conns", 100, 1, 1000, "connections")
	s.Duration(&v.wait, "wait", time.Second, time.Millisecond, time.Minute, "how long")
	s.Bytes(&v.size, "memtable", 64<<20, 1<<20, 1<<30, "memory")
	s.Bool(&v.insecure, "insecure", false, "no protection")
	s.Bool(&v.version, "version", false, "print the version")
	s.FlagOnly("version")
	return s
}

func env(m map[string]string) func(string) (string, bool) {
	return func(k string) (string, bool) { v, ok := m[k]; return v, ok }
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestLoad_EverySource_FlagBeatsEnvironmentBeatsFileBeatsDefault(t *testing.T) {
	file := writeFile(t, "data_dir: /file\nmax-conns: 5\nwait: 5s\nread-mode: readindex\n")
	var v values
	s := newSet(&v)
	rest, err := s.Load([]string{"--config", file, "--data-dir=/flag", "--insecure", "server"}, env(map[string]string{
		"PROG_DATA_DIR": "/env", "PROG_MAX_CONNS": "7", "PROG_SERVICE_HOST": "10.0.0.1", "PROG_VERSION": "1.2.3",
	}), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := values{dir: "/flag", mode: "readindex", conns: 7, wait: 5 * time.Second, size: 64 << 20, insecure: true}
	if v != want {
		t.Errorf("got %+v, want %+v", v, want)
	}
	if len(rest) != 1 || rest[0] != "server" {
		t.Errorf("rest %q", rest)
	}
	for name, origin := range map[string]string{
		"data-dir": "flag", "max-conns": "environment PROG_MAX_CONNS", "wait": file + ":3", "memtable": "default",
	} {
		if got := s.Origin(name); got != origin {
			t.Errorf("origin of %s: %q, want %q", name, got, origin)
		}
	}
}

func TestLoad_FaultsInTheFile_AreAllNamedWithTheirLines(t *testing.T) {
	file := writeFile(t, "dta-dir: /x\nmax-conns: 5000\nwait: soon\nwait: 2s\nmemtable: [1]\nread-mode: fast\n")
	var v values
	_, err := newSet(&v).Load([]string{"--config", file}, env(nil), nil)
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		file + ":1: unknown key \"dta-dir\"; did you mean data-dir?",
		file + ":2: option max-conns: 5000 is outside 1 to 1000",
		file + ":3: option wait: \"soon\" is not a duration",
		file + ":4: key \"wait\" stands on line 3 already",
		file + ":5: key \"memtable\" takes one value",
		file + ":6: option read-mode: \"fast\" is not lease or readindex",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q:\n%v", want, err)
		}
	}
}

func TestLoad_UnknownFlag_NamesTheNearest(t *testing.T) {
	var v values
	_, err := newSet(&v).Load([]string{"--max-cons", "3"}, env(nil), nil)
	if err == nil || !strings.Contains(err.Error(), "unknown option --max-cons; did you mean max-conns?") {
		t.Errorf("got %v", err)
	}
}

func TestLoad_Help_ListsEveryOptionWithDefaultAndBounds(t *testing.T) {
	var v values
	var out bytes.Buffer
	if _, err := newSet(&v).Load([]string{"--help"}, env(nil), &out); !errors.Is(err, ErrHelp) {
		t.Fatal(err)
	}
	for _, want := range []string{"prog does things.", "Limits", "--max-conns VALUE", "default 100; 1 to 1000", "64MiB; 1MiB to 1GiB", "PROG_DATA_DIR"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("help lacks %q:\n%s", want, out.String())
		}
	}
}

func TestLoad_BrokenFiles_AreErrors(t *testing.T) {
	for name, text := range map[string]string{"list": "- a\n- b\n", "not YAML": "a: [\n", "nested config": "config: other.yaml\n",
		"second document": "wait: 5s\n---\nwait: 6s\n", "broken second document": "wait: 5s\n---\na: [\n", "no value": "data-dir:\n", "null": "data-dir: ~\n"} {
		var v values
		if _, err := newSet(&v).Load([]string{"--config", writeFile(t, text)}, env(nil), nil); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	var v values
	if _, err := newSet(&v).Load([]string{"--config", "/does/not/exist"}, env(nil), nil); err == nil {
		t.Error("a missing file was accepted")
	}
	if _, err := newSet(&v).Load([]string{"--config", writeFile(t, "# nothing\n")}, env(nil), nil); err != nil {
		t.Errorf("an empty file: %v", err)
	}
}

func TestParseBytes_Forms(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "4096": 4096, "64MiB": 64 << 20, "1 GB": 1e9, "2KiB": 2048, "7B": 7} {
		if got, err := ParseBytes(in); err != nil || got != want {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "MiB", "-1", "1.5GiB", "99999999TiB", "12 parsecs"} {
		if got, err := ParseBytes(in); err == nil {
			t.Errorf("%q: accepted as %d", in, got)
		}
	}
	for n, want := range map[int64]string{0: "0", 4096: "4KiB", 64 << 20: "64MiB", 1e9: "1000000000"} {
		if got := FormatBytes(n); got != want {
			t.Errorf("%d: %q", n, got)
		}
	}
}
