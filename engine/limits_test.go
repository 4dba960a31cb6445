package engine

import (
	"bytes"
	"log/slog"
	"strings"
	"syscall"
	"testing"
)

func TestWarnOfLimits_SoftFileLimitIsLow_IsRaisedToTheHardOne(t *testing.T) {
	var before, after syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	low := before
	low.Cur = min(1024, before.Max)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	warnOfLimits(slog.New(slog.NewTextHandler(&text, nil)), t.TempDir())
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &after); err != nil {
		t.Fatal(err)
	}
	if after.Cur != before.Max {
		t.Fatalf("soft limit %d, hard limit %d\n%s", after.Cur, before.Max, text.String())
	}
	if warned := strings.Contains(text.String(), "open files"); warned != (before.Max < filesWanted) {
		t.Fatalf("hard limit %d, warned: %v\n%s", before.Max, warned, text.String())
	}
}

func TestWarnOfLimits_FileSystemWithoutOrder_IsWarnedOf(t *testing.T) {
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, nil))
	warnOfLimits(log, "/proc")
	if !strings.Contains(text.String(), "ext4 or xfs") {
		t.Fatalf("no warning about procfs: %s", text.String())
	}
}
