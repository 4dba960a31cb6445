package engine

import (
	"errors"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"syscall"
)

const (
	// filesWanted is the limit of open files below which we warn: each table is one, and when Badger cannot
	// create one, a compaction loses data without a word. Tables have 2 MiB and more, so that this many
	// hold 32 GiB at least.
	filesWanted = 16 << 10
	// mapsWanted is the kernel's default for the mappings of a process. Each table is one.
	mapsWanted = 65530
)

// File systems on which a synced MANIFEST implies that every file created before it has its name: their
// journals keep that order. Badger's flush relies on it.
var orderedFileSystems = map[int64]string{
	0xEF53:     "ext4",
	0x58465342: "xfs",
}

// warnOfLimits raises the limit of open files as far as it may and warns of what Badger can die of.
func warnOfLimits(log *slog.Logger, dir string) {
	var files syscall.Rlimit
	err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files)
	if err == nil && files.Cur < files.Max {
		files.Cur = files.Max
		err = errors.Join(syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files), syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files))
	}
	switch {
	case err != nil:
		log.Warn("cannot raise the limit of open files", "error", err)
	case files.Cur < filesWanted:
		log.Warn("the limit of open files is low: running out of them can lose data", "limit", files.Cur, "wanted", filesWanted)
	}

	text, err := os.ReadFile("/proc/sys/vm/max_map_count")
	if err == nil {
		var n int
		if n, err = strconv.Atoi(strings.TrimSpace(string(text))); err == nil && n < mapsWanted {
			log.Warn("vm.max_map_count is low: running out of mappings can lose data", "limit", n, "wanted", mapsWanted)
		}
	}
	if err != nil {
		log.Warn("cannot read vm.max_map_count", "error", err)
	}

	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		log.Warn("cannot tell the file system of the data directory", "error", err)
	} else if _, ok := orderedFileSystems[int64(fs.Type)]; !ok {
		log.Warn("the data directory is on a file system that is not known to survive a power cut here: use ext4 or xfs",
			"dir", dir, "type", "0x"+strconv.FormatInt(int64(fs.Type), 16))
	}
}
