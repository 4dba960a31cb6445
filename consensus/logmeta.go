package consensus

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// errMetaDamaged marks a log whose metadata file is not what was written.
var errMetaDamaged = errors.New("the log's metadata is damaged")

// metaWayBack is what can be done about a missing or damaged metadata file.
const metaWayBack = "The log was left as it is. Put back the file from a copy of this directory as it was when the node ended last. In a cluster: remove this member (kvctl member remove), then let it join again with an empty data directory (--join); the others have what it is missing. On a lone node: restore from a backup into a new data directory"

// fileMeta is raft-wal's metadata store, looked at before it is opened. By itself raft-wal v0.4.1
//   - begins a new log where the file is missing, and deletes all segments, which the new one does not list;
//   - deletes also what an older state of the file does not list;
//   - reads it with bbolt v1.3.6, which maps the file and panics on what is damaged, or dies of a fault where the
//     file is too short.
type fileMeta struct {
	metadb.BoltMetaDB
	// hasState tells whether something else says that the log was used.
	hasState func() bool
	looked   bool
}

// Load implements types.MetaStore.
func (m *fileMeta) Load(dir string) (types.PersistentState, error) {
	if !m.looked {
		if err := checkMeta(dir, m.hasState()); err != nil {
			return types.PersistentState{}, err
		}
		m.looked = true
	}
	return m.BoltMetaDB.Load(dir)
}

// checkMeta refuses a log in dir whose metadata file is missing, damaged, or older than its segments. It changes
// nothing. hasState says that the directory of the log was used, whatever is in it.
func checkMeta(dir string, hasState bool) error {
	segments, err := segmentFiles(dir)
	if err != nil {
		return fmt.Errorf("cannot look for the log's segments: %w", err)
	}
	path := filepath.Join(dir, metadb.FileName)
	b, err := readBounded(path)
	switch {
	case errors.Is(err, os.ErrNotExist) && len(segments) == 0 && !hasState:
		return nil // a first start: raft-wal makes the file whole before it has its name
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w in %q: the log was used, but its metadata file %q is missing: without it nobody knows what the log held. %s", ErrContradiction, dir, path, metaWayBack)
	case err != nil:
		return err
	}
	state, err := parseMeta(b)
	if err == nil {
		err = checkSegments(state, segments)
	}
	if err != nil {
		return fmt.Errorf("%w: %q (%d bytes): %w. %s", errMetaDamaged, path, len(b), err, metaWayBack)
	}
	return nil
}

// metaBytesMax bounds what is read of the metadata file: a million segments take less.
const metaBytesMax = 1 << 30

// readBounded reads the file at path.
func readBounded(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > metaBytesMax {
		return nil, fmt.Errorf("%w: %q has %d bytes, more than %d. %s", errMetaDamaged, path, info.Size(), metaBytesMax, metaWayBack)
	}
	return os.ReadFile(path)
}

// segmentFiles gives the first index of each segment file in dir, by the segment's id.
func segmentFiles(dir string) (map[uint64]uint64, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	segments := make(map[uint64]uint64)
	for _, f := range files {
		var base, id uint64
		// Sscanf is content with less than the whole name.
		if n, _ := fmt.Sscanf(f.Name(), "%020d-%016x.wal", &base, &id); n == 2 && f.Name() == segment.FileName(types.SegmentInfo{BaseIndex: base, ID: id}) {
			segments[id] = base
		}
	}
	return segments, nil
}

// checkSegments looks for what can't be in the state of a log, because raft-wal writes it before it creates a file,
// gives each segment the next id, and appends without gaps. Nothing in the file guards the state against bits that
// flip: what is wrong here could be an acknowledged segment that is not listed, and would be deleted.
func checkSegments(state types.PersistentState, files map[uint64]uint64) error {
	for id, base := range files {
		if id >= state.NextSegmentID {
			return fmt.Errorf("it knows segments up to id %d only, but there is one with id %d that begins at entry %d: it is of an older time than the segments", state.NextSegmentID, id, base)
		}
	}
	for i, s := range state.Segments {
		sealed := !s.SealTime.IsZero()
		switch base, there := files[s.ID]; {
		case there && base != s.BaseIndex:
			return fmt.Errorf("segment %d begins at entry %d by its file and at %d by the metadata", s.ID, base, s.BaseIndex)
		case s.BaseIndex == 0 || s.MinIndex < s.BaseIndex || s.SizeLimit == 0 || sealed && (s.MaxIndex < s.MinIndex || s.IndexStart == 0):
			return fmt.Errorf("the bounds of segment %d contradict each other: %+v", s.ID, s)
		case !sealed && i+1 < len(state.Segments):
			return fmt.Errorf("segment %d is written to, and is not the newest", s.ID)
		case i > 0 && (s.BaseIndex != state.Segments[i-1].MaxIndex+1 || s.MinIndex != s.BaseIndex || s.ID <= state.Segments[i-1].ID):
			return fmt.Errorf("segment %d from entry %d does not follow segment %d up to %d", s.ID, s.BaseIndex, state.Segments[i-1].ID, state.Segments[i-1].MaxIndex)
		case i+1 == len(state.Segments) && s.ID+1 != state.NextSegmentID:
			return fmt.Errorf("the newest segment is %d, and the next one would be %d", s.ID, state.NextSegmentID)
		}
	}
	return nil
}

// Layout of a bbolt v1.3.6 file, in the byte order of the machine. A page begins with its id (8 bytes), kind (2), number
// of elements (2) and of further pages that belong to it (4). Pages 0 and 1 hold the two newest transactions, each 64
// bytes: magic (4), version (4), page size (4), flags (4), root page (8), sequence (8), page of the free list (8),
// number of pages (8), number of the transaction (8), checksum of all that (8). A bucket is the value of an element
// with the flag 1: root page (8), sequence (8), and if the root is 0, a page of its own.
const (
	boltMagic       = 0xed0cdaed
	boltVersion     = 2
	boltHeaderBytes = 16
	boltMetaBytes   = 64
	boltBucketBytes = 16
	boltElemBytes   = 16

	boltBranch   = 0x01
	boltLeaf     = 0x02
	boltMeta     = 0x04
	boltFreelist = 0x10

	boltDepthMax = 32
)

var boltOrder = binary.NativeEndian

// boltFile reads a bbolt file without a map of it: whatever it holds is an error at worst.
type boltFile struct {
	b     []byte
	size  uint64          // of a page
	pages uint64          // pages in use are below
	used  map[uint64]bool // pages that were met
}

// parseMeta reads the state in a metadata file. Also a file of which bbolt would use the older of its two transactions
// is damaged: what tells whether a transaction is whole lies in one sector of the disk, so no crash leaves it torn,
// and the older one is not what was acknowledged.
func parseMeta(b []byte) (state types.PersistentState, err error) {
	var newest []byte
	f := &boltFile{b: b, used: map[uint64]bool{0: true, 1: true}}
	for id := range uint64(2) {
		m, err := f.meta(id)
		if err != nil {
			return state, fmt.Errorf("page %d: %w", id, err)
		}
		if newest == nil || boltOrder.Uint64(m[48:]) > boltOrder.Uint64(newest[48:]) {
			newest = m
		}
	}
	f.pages = boltOrder.Uint64(newest[40:])
	if f.pages > uint64(len(b))/f.size {
		return state, fmt.Errorf("it is cut short: %d pages of %d bytes are in use", f.pages, f.size)
	}
	buckets := map[string]map[string][]byte{}
	err = f.tree(boltOrder.Uint64(newest[16:]), 0, func(bucket bool, key, value []byte) error {
		if !bucket {
			return fmt.Errorf("%q is no bucket", key)
		}
		values := map[string][]byte{}
		buckets[string(key)] = values
		return f.bucket(value, func(bucket bool, key, value []byte) error {
			if bucket {
				return fmt.Errorf("%q is a bucket", key)
			}
			values[string(key)] = value
			return nil
		})
	})
	if err != nil {
		return state, err
	}
	if err := f.freelist(boltOrder.Uint64(newest[32:])); err != nil {
		return state, err
	}
	for _, name := range []string{metadb.MetaBucket, metadb.StableBucket} {
		if buckets[name] == nil {
			return state, fmt.Errorf("it holds no bucket %q", name)
		}
	}
	if raw, ok := buckets[metadb.MetaBucket][metadb.MetaKey]; ok {
		if err := json.Unmarshal(raw, &state); err != nil {
			return state, fmt.Errorf("its list of segments can't be read: %w", err)
		}
	} else if len(buckets[metadb.MetaBucket]) > 0 {
		return state, errors.New("it holds no list of segments")
	}
	return state, nil
}

// meta returns what page 0 or 1 says of a transaction, and notes the size of pages.
func (f *boltFile) meta(id uint64) ([]byte, error) {
	at := id * f.size // page 0 tells the size
	if at+boltHeaderBytes+boltMetaBytes > uint64(len(f.b)) {
		return nil, errors.New("it is cut short")
	}
	head, m := f.b[at:], f.b[at+boltHeaderBytes:][:boltMetaBytes]
	sum := fnv.New64a()
	_, _ = sum.Write(m[:boltMetaBytes-8]) // never fails
	size := uint64(boltOrder.Uint32(m[8:]))
	switch {
	case boltOrder.Uint64(head) != id || boltOrder.Uint16(head[8:])&boltMeta == 0:
		return nil, errors.New("its header is wrong")
	case boltOrder.Uint32(m) != boltMagic || boltOrder.Uint32(m[4:]) != boltVersion:
		return nil, errors.New("it is of no known format")
	case boltOrder.Uint64(m[boltMetaBytes-8:]) != sum.Sum64():
		return nil, errors.New("its checksum is wrong")
	case size < 512 || size > 1<<20 || f.size != 0 && size != f.size:
		return nil, fmt.Errorf("it tells of pages of %d bytes", size)
	}
	f.size = size
	return m, nil
}

// page returns a page that is met for the first time, with those that belong to it.
func (f *boltFile) page(id uint64) ([]byte, error) {
	if id < 2 || id >= f.pages {
		return nil, fmt.Errorf("page %d of %d is referred to", id, f.pages)
	}
	p := f.b[id*f.size:]
	run := 1 + uint64(boltOrder.Uint32(p[12:]))
	if boltOrder.Uint64(p) != id || run > f.pages-id {
		return nil, fmt.Errorf("page %d calls itself %d, with %d pages", id, boltOrder.Uint64(p), run)
	}
	for i := id; i < id+run; i++ {
		if f.used[i] {
			return nil, fmt.Errorf("page %d is used twice", i)
		}
		f.used[i] = true
	}
	return p[:run*f.size], nil
}

// visit takes an element of a bucket.
type visit func(bucket bool, key, value []byte) error

// tree visits all elements below page id.
func (f *boltFile) tree(id uint64, depth int, v visit) error {
	if depth > boltDepthMax {
		return fmt.Errorf("page %d is too deep", id)
	}
	p, err := f.page(id)
	if err != nil {
		return err
	}
	return f.elements(p, depth, v)
}

// bucket visits all elements of a bucket.
func (f *boltFile) bucket(b []byte, v visit) error {
	if len(b) < boltBucketBytes {
		return fmt.Errorf("a bucket has %d bytes", len(b))
	}
	if root := boltOrder.Uint64(b); root != 0 {
		return f.tree(root, 0, v)
	}
	if len(b) < boltBucketBytes+boltHeaderBytes || boltOrder.Uint16(b[boltBucketBytes+8:]) != boltLeaf {
		return errors.New("a bucket has no page")
	}
	return f.elements(b[boltBucketBytes:], 0, v)
}

// elements visits the elements of page p, or those below them.
func (f *boltFile) elements(p []byte, depth int, v visit) error {
	id, kind, count := boltOrder.Uint64(p), boltOrder.Uint16(p[8:]), int(boltOrder.Uint16(p[10:]))
	if kind != boltLeaf && kind != boltBranch || boltHeaderBytes+count*boltElemBytes > len(p) || kind == boltBranch && count == 0 {
		return fmt.Errorf("page %d is of kind %#x with %d elements", id, kind, count)
	}
	var last []byte
	for i := range count {
		e := p[boltHeaderBytes+i*boltElemBytes:]
		flags, pos, keyBytes, valueBytes := boltOrder.Uint32(e), uint64(boltOrder.Uint32(e[4:])), uint64(boltOrder.Uint32(e[8:])), uint64(boltOrder.Uint32(e[12:]))
		if kind == boltBranch {
			flags, pos, keyBytes, valueBytes = 0, uint64(boltOrder.Uint32(e)), uint64(boltOrder.Uint32(e[4:])), 0
		}
		if flags > 1 || pos < uint64((count-i)*boltElemBytes) || pos+keyBytes+valueBytes > uint64(len(e)) {
			return fmt.Errorf("element %d of page %d is out of bounds", i, id)
		}
		key, value := e[pos:][:keyBytes], e[pos+keyBytes:][:valueBytes]
		if i > 0 && string(key) <= string(last) {
			return fmt.Errorf("element %d of page %d is out of order", i, id)
		}
		last = key
		var err error
		if kind == boltBranch {
			err = f.tree(boltOrder.Uint64(e[8:]), depth+1, v)
		} else {
			err = v(flags == 1, key, value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// freelist checks that no page that is in use is listed as free. REQUIRES: the tree was read.
func (f *boltFile) freelist(id uint64) error {
	p, err := f.page(id)
	if err != nil {
		return fmt.Errorf("list of free pages: %w", err)
	}
	count, ids := uint64(boltOrder.Uint16(p[10:])), p[boltHeaderBytes:]
	if count == 0xffff { // more than fit there
		count, ids = boltOrder.Uint64(ids), ids[8:]
	}
	if boltOrder.Uint16(p[8:]) != boltFreelist || count > uint64(len(ids))/8 {
		return fmt.Errorf("page %d is no list of free pages", id)
	}
	for i := range count {
		switch free := boltOrder.Uint64(ids[8*i:]); {
		case free >= f.pages:
			return fmt.Errorf("page %d of %d is listed as free", free, f.pages)
		case f.used[free]:
			return fmt.Errorf("page %d is in use or free already, and listed as free", free)
		default:
			f.used[free] = true
		}
	}
	return nil
}
