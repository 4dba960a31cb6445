package consensus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/types"
)

// damage applies a fuzzer's bytes as edits to a file that is used up to used: 7 bytes each, a kind and three numbers.
// It returns the file as it is then.
func damage(b []byte, used int, edits []byte) []byte {
	b = bytes.Clone(b)
	for ; len(edits) >= 7; edits = edits[7:] {
		// A few bytes behind the end are of interest too.
		place := func(at int) int { return min(int(binary.LittleEndian.Uint16(edits[at:]))%(used+64), len(b)) }
		from, to, n := place(1), place(3), int(binary.LittleEndian.Uint16(edits[5:]))
		switch edits[0] % 6 {
		case 0: // other bits
			if from < len(b) {
				b[from] ^= edits[5] | 1
			}
		case 1: // never written
			clear(b[from:min(from+n, len(b))])
		case 2: // written to the wrong place
			copy(b[to:], bytes.Clone(b[from:min(from+n, len(b))]))
		case 3: // cut short
			b = b[:from]
		case 4: // a frame of another length
			if from &^= 7; from+8 <= len(b) {
				b[from], b[from+1], b[from+2], b[from+3] = edits[3]%4, 0, 0, 0
				binary.LittleEndian.PutUint32(b[from+4:], uint32(n)<<(edits[4]%17))
			}
		case 5: // garbage that looks like nothing else
			for i := from; i < min(from+n%64, len(b)); i++ {
				b[i] = byte(i) * 7
			}
		}
	}
	return b
}

// logImage is a closed log, and one of its files, which a fuzzer damages.
type logImage struct {
	dir     string
	path    string // of that file, below dir
	file    []byte
	used    int
	first   uint64 // the first entry in it
	ends    []int  // of its batches, one entry each
	entries uint64 // in the whole log
}

const imageEntryBytes = 100

// newLogImage writes a log; sealed takes its first file instead of its last.
func newLogImage(f *testing.F, entries int, sealed bool) *logImage {
	m := &logImage{dir: f.TempDir(), entries: uint64(entries), first: 1}
	s := mustOpenLog(f, m.dir)
	size := imageEntryBytes
	if sealed {
		size = 10_000
	}
	appendEntries(f, s, entries, size)
	s.mustClose(f)
	files, err := filepath.Glob(filepath.Join(m.dir, "*.wal"))
	if err != nil || (len(files) > 1) != sealed {
		f.Fatalf("%d files, %v", len(files), err)
	}
	m.path = filepath.Base(files[0])
	if m.file, err = os.ReadFile(files[0]); err != nil {
		f.Fatal(err)
	}
	m.used = usedBytes(f, files[0])
	file, err := os.Open(files[0])
	if err != nil {
		f.Fatal(err)
	}
	defer func() { _ = file.Close() }() // it was only read
	info := types.SegmentInfo{ID: binary.LittleEndian.Uint64(m.file[16:]), BaseIndex: 1, Codec: entryCodecID}
	r := &segmentReader{f: file}
	for end := int64(0); ; {
		b, ok, err := r.batch(end, info)
		if err != nil {
			f.Fatal(err)
		}
		if !ok {
			break
		}
		end = b.end
		m.ends = append(m.ends, int(end))
	}
	if len(m.ends) < 3 {
		f.Fatalf("%d batches", len(m.ends))
	}
	return m
}

// open opens a copy of the log in which the file is b.
func (m *logImage) open(t *testing.T, b []byte) (*logStore, error) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(m.dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, m.path), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return openTestLog(t, dir)
}

// read reads entries until one is refused, and fails if one is not what was stored. It returns the last that was read.
func (m *logImage) read(t *testing.T, s *logStore, last uint64, size int) (read uint64) {
	for i := uint64(1); i <= last; i++ {
		var got raft.Log
		if err := s.GetLog(i, &got); err != nil {
			if !errors.Is(err, errDamaged) && s.fault.check() == nil {
				t.Fatalf("entry %d: %v, and the log goes on", i, err)
			}
			return i - 1
		}
		want := testEntry(i, size)
		if i > m.entries || got.Index != i || got.Term != want.Term || got.Type != want.Type || !bytes.Equal(got.Data, want.Data) ||
			!bytes.Equal(got.Extensions, want.Extensions) || !got.AppendedAt.Equal(want.AppendedAt) {
			t.Fatalf("entry %d is not what was stored: %+v", i, got)
		}
	}
	return last
}

// altered tells whether batch i (from 0) of the file is not in b as it was.
func (m *logImage) altered(b []byte, i int) bool {
	from, to := 0, m.ends[i]
	if i > 0 {
		from = m.ends[i-1]
	}
	return len(b) < to || !bytes.Equal(b[from:to], m.file[from:to])
}

// Whatever became of the newest segment, the log is refused, or holds the entries that were stored and no others; and
// it is refused where an acknowledged entry is missing in front of one that is whole.
func FuzzOpenLog_TailSegment(f *testing.F) {
	m := newLogImage(f, 8, false)
	edit := func(kind byte, from, to, n int) []byte {
		b := binary.LittleEndian.AppendUint16([]byte{kind}, uint16(from))
		return binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(b, uint16(to)), uint16(n))
	}
	f.Add([]byte{})
	f.Add(edit(0, m.used-4, 0, 1))                               // the last commit
	f.Add(edit(0, m.ends[2]+20, 0, 1))                           // in the middle
	f.Add(edit(1, m.ends[5], 0, m.used))                         // the end was never written
	f.Add(edit(2, m.ends[3], m.used, m.ends[4]-m.ends[3]))       // a batch once more at the end
	f.Add(edit(2, m.ends[3], m.ends[5], m.ends[4]-m.ends[3]))    // a batch in place of another
	f.Add(edit(2, m.ends[4], m.ends[3], m.used-m.ends[4]))       // one is left out
	f.Add(edit(3, m.ends[0], 0, 0))                              // cut in a batch that was alone
	f.Add(edit(4, m.ends[7], 1, 0xffff))                         // a frame that is longer than the file
	f.Add(append(edit(1, 0, 0, 32), edit(0, m.used-1, 0, 9)...)) // no header
	f.Fuzz(func(t *testing.T, edits []byte) {
		b := damage(m.file, m.used, edits)
		s, err := m.open(t, b)
		if err != nil {
			if bytes.Equal(b, m.file) {
				t.Fatalf("an untouched log is refused: %v", err)
			}
			return
		}
		defer s.mustClose(t)
		first, last, err := s.bounds()
		if err != nil || last > 0 && first != 1 {
			t.Fatalf("entries %d to %d, %v", first, last, err)
		}
		for i := len(m.ends) - 1; i >= int(last); i-- {
			if !m.altered(b, i) {
				t.Fatalf("the log ends with entry %d, but entry %d is whole in the file", last, i+1)
			}
		}
		whole := 0
		for whole < len(m.ends) && !m.altered(b, whole) {
			whole++
		}
		if read := m.read(t, s, last, imageEntryBytes); read < uint64(whole) {
			t.Fatalf("entries up to %d can be read, up to %d nothing was changed", read, whole)
		}
	})
}

// Whatever became of a segment that was finished long ago, each of its entries is read as it was stored or refused.
func FuzzOpenLog_SealedSegment(f *testing.F) {
	m := newLogImage(f, 10, true)
	for _, at := range []int{3, 20, 40, m.ends[0] - 3, m.ends[1] + 9, m.used - 40, m.used - 3} {
		f.Add(binary.LittleEndian.AppendUint16([]byte{0}, uint16(at)), []byte{0, 0, 1, 0})
	}
	f.Add([]byte{4, 32, 0}, []byte{1, 10, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, head, tail []byte) {
		edits := append(bytes.Clone(head), tail...)
		b := damage(m.file, m.used, edits)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		s, err := m.open(t, b)
		if err != nil {
			if bytes.Equal(b, m.file) {
				t.Fatalf("an untouched log is refused: %v", err)
			}
			return
		}
		defer s.mustClose(t)
		first, last, err := s.bounds()
		if err != nil || first != 1 || last != m.entries {
			t.Fatalf("entries %d to %d, %v", first, last, err)
		}
		read := m.read(t, s, last, 10_000)
		if bytes.Equal(b, m.file) && read != last {
			t.Fatalf("an untouched log can be read up to entry %d", read)
		}
		runtime.ReadMemStats(&after)
		// One frame of any length that raft-wal reads at all, and some for what is right.
		if n := after.TotalAlloc - before.TotalAlloc; n > 2*framePayloadMax {
			t.Fatalf("%d bytes were allocated for a log of %d", n, len(b))
		}
	})
}

// raft's decoder panics and trusts lengths; what comes through ours is a configuration, or an error, at a bounded cost.
func FuzzDecodeConfiguration(f *testing.F) {
	f.Add(raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{
		{ID: "node-1", Address: "a:1"}, {ID: "node-2", Address: "b:1", Suffrage: raft.Nonvoter},
	}}))
	f.Add([]byte{0x81, 0xa7, 'S', 'e', 'r', 'v', 'e', 'r', 's', 0xdd, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		c, err := decodeConfiguration(b)
		runtime.ReadMemStats(&after)
		if n, most := after.TotalAlloc-before.TotalAlloc, uint64(4<<20+1000*len(b)); n > most {
			t.Fatalf("%d bytes were allocated for %d", n, len(b))
		}
		if err != nil {
			return
		}
		again, err := decodeConfiguration(raft.EncodeConfiguration(c))
		if err != nil || !reflect.DeepEqual(c, again) {
			t.Fatalf("%+v comes back as %+v, %v", c, again, err)
		}
	})
}
