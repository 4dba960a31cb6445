package bench

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// cgroup is a control group that holds this process.
type cgroup struct{ dir, home string }

// newCgroup makes a group with that much CPU time per period and moves this process into it.
func newCgroup(quota, period time.Duration) (_ *cgroup, err error) {
	name := "kvbench-" + strconv.Itoa(os.Getpid())
	us := func(d time.Duration) string { return strconv.FormatInt(d.Microseconds(), 10) }
	g := &cgroup{}
	var limits [][2]string
	if root := "/sys/fs/cgroup"; exists(filepath.Join(root, "cgroup.controllers")) {
		g.home, limits = root, [][2]string{{"cpu.max", us(quota) + " " + us(period)}}
	} else {
		g.home, limits = filepath.Join(root, "cpu"), [][2]string{{"cpu.cfs_period_us", us(period)}, {"cpu.cfs_quota_us", us(quota)}}
	}
	g.dir = filepath.Join(g.home, name)
	if err := os.Mkdir(g.dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(g.dir))
		}
	}()
	for _, l := range limits {
		if err := os.WriteFile(filepath.Join(g.dir, l[0]), []byte(l[1]), 0o600); err != nil {
			return nil, err
		}
	}
	if err := enter(g.dir); err != nil {
		return nil, err
	}
	return g, nil
}

// leave moves this process out and removes the group.
func (g *cgroup) leave() error {
	if err := enter(g.home); err != nil {
		return err
	}
	if err := os.Remove(g.dir); err != nil {
		return fmt.Errorf("cannot remove control group: %w", err)
	}
	return nil
}

func enter(dir string) error {
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0o600)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
