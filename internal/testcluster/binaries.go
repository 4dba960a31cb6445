package testcluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// BinEnv names a directory with ready binaries (kvstore, kvctl, kvbench). When it is not set, each one
// is built on first use, with the race detector if the test has it.
const BinEnv = "KVSTORE_TEST_BIN"

// buildDirEnv tells the inner process of Isolate where the outer one puts what it builds.
const buildDirEnv = "KVSTORE_TEST_BUILD_DIR"

// binaries holds what was built in this run.
var binaries struct {
	// Guarded by mu, which is held while a build runs: two at once would only share the processors.
	mu    sync.Mutex
	dir   string
	built map[string]error
	lent  bool // dir belongs to the process outside Isolate
}

// Main runs the tests of a package and removes the binaries that they built. Call it from TestMain and
// exit with what it returns.
func Main(m *testing.M) int {
	code := m.Run()
	binaries.mu.Lock()
	defer binaries.mu.Unlock()
	if binaries.dir != "" && !binaries.lent {
		if err := os.RemoveAll(binaries.dir); err != nil {
			fmt.Fprintln(os.Stderr, "cannot remove the binaries of the test:", err)
			return max(code, 1)
		}
	}
	return code
}

// Binary returns the path of a command of this module, such as kvstore, building it on first use.
func Binary(t testing.TB, name string) string {
	t.Helper()
	path, err := binary(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func binary(name string) (string, error) {
	if dir := os.Getenv(BinEnv); dir != "" {
		path, err := filepath.Abs(filepath.Join(dir, name))
		if err != nil {
			return "", err
		}
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("%s=%s holds no %s: %w", BinEnv, dir, name, err)
		}
		return path, nil
	}
	dir, err := buildDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	b := &binaries
	b.mu.Lock()
	defer b.mu.Unlock()
	err, done := b.built[name]
	if !done {
		if _, serr := os.Stat(path); serr != nil || !b.lent {
			err = build(dir, name)
		}
		b.built[name] = err
	}
	return path, err
}

// buildDir is the directory for what is built, created on first use.
func buildDir() (string, error) {
	b := &binaries
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dir == "" {
		dir := os.Getenv(buildDirEnv)
		if b.lent = dir != ""; !b.lent {
			var err error
			if dir, err = os.MkdirTemp("", "kvstore-bin-"); err != nil {
				return "", err
			}
		}
		b.dir, b.built = dir, make(map[string]error)
	}
	return b.dir, nil
}

// Build builds a command of this module into a directory, with further arguments of go build.
func Build(dir, name string, args ...string) (path string, err error) {
	return filepath.Join(dir, name), build(dir, name, args...)
}

func build(dir, name string, more ...string) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	// -buildvcs=false: the stamp needs a git that trusts the directory, and the tests need no stamp. -pgo=off: with the
	// profile every package is compiled once more, for 40 s; the test of README.md runs the server as it is shipped.
	args := []string{"build", "-buildvcs=false", "-pgo=off", "-o", filepath.Join(dir, name)}
	if Race {
		args = append(args, "-race")
	}
	args = append(args, more...)
	cmd := exec.Command("go", append(args, "./cmd/"+name)...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot build %s: %w\n%s", name, err, out)
	}
	return nil
}

// moduleRoot finds the directory of go.mod, going up from the working directory of the test.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("cannot find go.mod above the working directory")
		}
		dir = up
	}
}
