package testcluster

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Variant returns the path of kvstore built with further arguments of go build, which name identifies. It is built
// once for a run of the tests. Where KVSTORE_TEST_BIN holds name/kvstore, that is taken instead.
func Variant(t testing.TB, name string, args ...string) string {
	t.Helper()
	return variant(t, name, func() ([]string, error) { return args, nil })
}

// variant is Variant with arguments that are worked out when it is built.
func variant(t testing.TB, name string, args func() ([]string, error)) string {
	t.Helper()
	if dir := os.Getenv(BinEnv); dir != "" {
		path, err := filepath.Abs(filepath.Join(dir, name, "kvstore"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	dir, err := buildDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name, "kvstore")
	b := &binaries
	b.mu.Lock()
	defer b.mu.Unlock()
	err, done := b.built[name+"/kvstore"]
	if !done {
		if _, serr := os.Stat(path); serr != nil || !b.lent {
			began := time.Now()
			var more []string
			if more, err = args(); err == nil {
				err = build(filepath.Join(dir, name), "kvstore", more...)
			}
			t.Logf("kvstore, variant %s, was built in %v", name, time.Since(began).Round(time.Millisecond))
		}
		b.built[name+"/kvstore"] = err
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Overlay is a set of files that a build sees in the place of others (go build -overlay). What it writes it puts into
// its directory.
type Overlay struct {
	dir     string
	replace map[string]string
}

// NewOverlay makes an empty one with a directory of its own, which the caller removes.
func NewOverlay(dir string) (*Overlay, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make an overlay: %w", err)
	}
	return &Overlay{dir: dir, replace: make(map[string]string)}, nil
}

// Change has the build see to where the file, which is below the root of this module unless its path is absolute, holds
// from. It is an error unless the file holds that exactly once.
func (o *Overlay) Change(file, from, to string) error {
	path, err := o.resolve(file)
	if err != nil {
		return err
	}
	source := path
	if s, ok := o.replace[path]; ok {
		source = s
	}
	b, err := os.ReadFile(source)
	if err != nil {
		return fmt.Errorf("cannot change %s: %w", file, err)
	}
	if n := strings.Count(string(b), from); n != 1 {
		return fmt.Errorf("%s holds %q %d times instead of once: whoever changes it must learn how it is written now", path, from, n)
	}
	return o.write(path, strings.Replace(string(b), from, to, 1))
}

// Add has the build see a file that is not there.
func (o *Overlay) Add(file, text string) error {
	path, err := o.resolve(file)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("cannot add %s: it is there", path)
	}
	return o.write(path, text)
}

// Args are the arguments of go build.
func (o *Overlay) Args() ([]string, error) {
	list, err := json.Marshal(map[string]map[string]string{"Replace": o.replace})
	if err != nil {
		return nil, fmt.Errorf("cannot write an overlay: %w", err)
	}
	path := filepath.Join(o.dir, "overlay.json")
	if err := os.WriteFile(path, list, 0o600); err != nil {
		return nil, fmt.Errorf("cannot write an overlay: %w", err)
	}
	return []string{"-overlay", path}, nil
}

func (o *Overlay) resolve(file string) (string, error) {
	if filepath.IsAbs(file) {
		return file, nil
	}
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, file), nil
}

func (o *Overlay) write(path, text string) error {
	to, ok := o.replace[path]
	if !ok {
		to = filepath.Join(o.dir, fmt.Sprintf("%d-%s", len(o.replace), filepath.Base(path)))
	}
	if err := os.WriteFile(to, []byte(text), 0o600); err != nil {
		return fmt.Errorf("cannot write an overlay: %w", err)
	}
	o.replace[path] = to
	return nil
}
