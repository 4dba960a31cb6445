package consensus

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/types"
)

// rotatedLog makes a log of several segments and returns its directory and last index.
func rotatedLog(tb testing.TB) (dir string, last uint64) {
	tb.Helper()
	dir = tb.TempDir()
	s := mustOpenLog(tb, dir)
	appendEntries(tb, s, 60, 4000)
	_, last, err := s.bounds()
	if err != nil {
		tb.Fatal(err)
	}
	s.mustClose(tb)
	return dir, last
}

// contents reads all files of dir.
func contents(tb testing.TB, dir string) map[string]string {
	tb.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		tb.Fatal(err)
	}
	all := make(map[string]string)
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			tb.Fatal(err)
		}
		all[f.Name()] = string(b)
	}
	return all
}

// mustRefuseMeta opens a log whose metadata is damaged, and then with the metadata as it was.
func mustRefuseMeta(t *testing.T, dir string, was []byte, last uint64, want error) {
	t.Helper()
	path := filepath.Join(dir, metadb.FileName)
	before := contents(t, dir)
	s, err := openTestLog(t, dir)
	if err == nil {
		s.mustClose(t)
		t.Fatal("the log was opened")
	}
	for _, part := range []string{path, wayBackPart} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the refusal does not tell %q: %v", part, err)
		}
	}
	if !errors.Is(err, want) {
		t.Errorf("refused with %v, want %v", err, want)
	}
	if !maps.Equal(before, contents(t, dir)) {
		t.Error("the refused start changed the log")
	}
	if err := os.WriteFile(path, was, 0o600); err != nil {
		t.Fatal(err)
	}
	s = mustOpenLog(t, dir)
	checkEntries(t, s, 1, last, 4000)
	s.mustClose(t)
}

// wayBackPart is in every refusal that a member of a cluster may meet.
const wayBackPart = "member remove"

func TestOpenLog_MetadataDamaged_RefusedUnchangedAndWholeOncePutBack(t *testing.T) {
	for name, harm := range map[string]func(b []byte) []byte{
		"deleted":            func([]byte) []byte { return nil },
		"emptied":            func([]byte) []byte { return []byte{} },
		"one byte":           func([]byte) []byte { return []byte{1} },
		"cut in half":        func(b []byte) []byte { return b[:len(bytes.TrimRight(b, "\x00"))/2] },
		"cut at a page":      func(b []byte) []byte { return b[:2*os.Getpagesize()] },
		"all pages zeroed":   func(b []byte) []byte { clear(b[2*os.Getpagesize():]); return b },
		"zeros":              func(b []byte) []byte { clear(b); return b },
		"first transaction":  func(b []byte) []byte { b[16+40]++; return b },
		"second transaction": func(b []byte) []byte { b[os.Getpagesize()+16+40]++; return b },
		"list of segments": func(b []byte) []byte {
			return bytes.ReplaceAll(b, []byte(`"NextSegmentID"`), []byte(`"NextSegmentIE"`))
		},
		"first segment":  func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(`"BaseIndex":1,`), []byte(`"BaseIndex":2,`)) },
		"bucket renamed": func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(metadb.StableBucket), []byte("stabla")) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, last := rotatedLog(t)
			path := filepath.Join(dir, metadb.FileName)
			was, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			want := errMetaDamaged
			if now := harm(slices.Clone(was)); now == nil {
				want, err = ErrContradiction, os.Remove(path)
			} else if bytes.Equal(now, was) {
				t.Fatal("nothing was damaged")
			} else {
				err = os.WriteFile(path, now, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			mustRefuseMeta(t, dir, was, last, want)
		})
	}
}

func TestOpenLog_MetadataOlderThanItsSegments_RefusedUnchanged(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, metadb.FileName)
	s := mustOpenLog(t, dir)
	appendEntries(t, s, 5, 4000)
	s.mustClose(t)
	older, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s = mustOpenLog(t, dir)
	appendEntries(t, s, 40, 4000)
	_, last, err := s.bounds()
	if err != nil {
		t.Fatal(err)
	}
	s.mustClose(t)
	was, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, older, 0o600); err != nil {
		t.Fatal(err)
	}
	mustRefuseMeta(t, dir, was, last, errMetaDamaged)
}

func TestOpen_MetadataMissingBesideVoteOrCheckpoint_RefusedUnchanged(t *testing.T) {
	for name, keep := range map[string][]string{"vote": {"log/vote"}, "checkpoint": {"checkpoint"}} {
		t.Run(name, func(t *testing.T) {
			dir, o, _ := usedGroup(t)
			for _, pattern := range []string{"log/*", "checkpoint"} {
				paths, err := filepath.Glob(filepath.Join(dir, pattern))
				if err != nil {
					t.Fatal(err)
				}
				for _, path := range paths {
					if rel, err := filepath.Rel(dir, path); err != nil || slices.Contains(keep, rel) {
						continue
					}
					if err := os.Remove(path); err != nil {
						t.Fatal(err)
					}
				}
			}
			before := contents(t, o.Dir)
			_, err := Open(context.Background(), o, openMachine(t, dir))
			if !errors.Is(err, ErrContradiction) || !strings.Contains(err.Error(), metadb.FileName) {
				t.Errorf("Open = %v", err)
			}
			if !maps.Equal(before, contents(t, o.Dir)) {
				t.Error("the refused start changed the log's directory")
			}
		})
	}
}

// TestParseMeta_AnyByteWrong_NeverPanics flips each bit of a metadata file and cuts it at every eighth byte.
func TestParseMeta_AnyByteWrong_NeverPanics(t *testing.T) {
	dir, _ := rotatedLog(t)
	b, err := os.ReadFile(filepath.Join(dir, metadb.FileName))
	if err != nil {
		t.Fatal(err)
	}
	files, err := segmentFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	look := func(b []byte) error {
		state, err := parseMeta(b)
		if err == nil {
			err = checkSegments(state, files)
		}
		return err
	}
	if err := look(b); err != nil {
		t.Fatalf("a whole file is refused: %v", err)
	}
	refused := 0
	for at := range b {
		for bit := range 8 {
			b[at] ^= 1 << bit
			if look(b) != nil {
				refused++
			}
			b[at] ^= 1 << bit
		}
	}
	inUse := 0
	for n := 0; n < len(b); n += 8 {
		if look(b[:n]) != nil {
			inUse = n
		}
	}
	if inUse < 4*os.Getpagesize()-8 {
		t.Errorf("cut to %d bytes it is taken for whole", inUse+8)
	}
	if refused < 8*boltMetaBytes*2 {
		t.Errorf("%d of %d flips are refused, fewer than in the two transactions alone", refused, 8*len(b))
	}
	t.Logf("%d of %d flips are refused", refused, 8*len(b))
}

func TestCheckSegments_EveryContradiction_Refused(t *testing.T) {
	dir, _ := rotatedLog(t)
	b, err := os.ReadFile(filepath.Join(dir, metadb.FileName))
	if err != nil {
		t.Fatal(err)
	}
	files, err := segmentFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(s *types.PersistentState, newest *types.SegmentInfo){
		"next id lower":       func(s *types.PersistentState, _ *types.SegmentInfo) { s.NextSegmentID-- },
		"next id higher":      func(s *types.PersistentState, _ *types.SegmentInfo) { s.NextSegmentID++ },
		"newest not listed":   func(s *types.PersistentState, _ *types.SegmentInfo) { s.Segments = s.Segments[:len(s.Segments)-1] },
		"newest another id":   func(_ *types.PersistentState, newest *types.SegmentInfo) { newest.ID += 4 },
		"newest begins later": func(_ *types.PersistentState, newest *types.SegmentInfo) { newest.BaseIndex++ },
		"newest min lower":    func(_ *types.PersistentState, newest *types.SegmentInfo) { newest.MinIndex-- },
		"first base lower":    func(s *types.PersistentState, _ *types.SegmentInfo) { s.Segments[0].BaseIndex = 0 },
		"first max lower":     func(s *types.PersistentState, _ *types.SegmentInfo) { s.Segments[0].MaxIndex-- },
		"first index lost":    func(s *types.PersistentState, _ *types.SegmentInfo) { s.Segments[0].IndexStart = 0 },
		"first not sealed":    func(s *types.PersistentState, newest *types.SegmentInfo) { s.Segments[0].SealTime = newest.SealTime },
	} {
		state, err := parseMeta(b)
		if err != nil {
			t.Fatal(err)
		}
		if len(state.Segments) < 2 {
			t.Fatalf("the log has %d segments, too few for this test", len(state.Segments))
		}
		if err := checkSegments(state, files); err != nil {
			t.Fatalf("a whole log is refused: %v", err)
		}
		change(&state, &state.Segments[len(state.Segments)-1])
		if err := checkSegments(state, files); err == nil {
			t.Errorf("%s: not refused", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}
