package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"kvstore/wire"
)

// frames cuts a snapshot's stream.
func frames(stream []byte) (out [][]byte) {
	for len(stream) >= frameHeaderBytes {
		n := frameHeaderBytes + int(binary.LittleEndian.Uint32(stream[8:]))
		out, stream = append(out, stream[:n:n]), stream[n:]
	}
	return out
}

// disturb applies a fuzzer's bytes as edits to a stream, 6 bytes each, and seals each frame anew if mend says so. Those
// who mend reach what lies behind the checksums of the frames.
func disturb(stream []byte, edits []byte, mend bool) []byte {
	fs := frames(bytes.Clone(stream))
	for ; len(edits) >= 6 && len(fs) > 0; edits = edits[6:] {
		i, j := int(edits[1])%len(fs), int(edits[2])%len(fs)
		if len(fs[i]) == 0 {
			continue // emptied by an edit before
		}
		at := int(binary.LittleEndian.Uint16(edits[3:])) % len(fs[i])
		switch edits[0] % 7 {
		case 0:
			fs[i] = bytes.Clone(fs[i])
			fs[i][at] ^= max(edits[5], 1)
		case 1: // left out
			fs = slices.Delete(fs, i, i+1)
		case 2: // twice
			fs = slices.Insert(fs, j, fs[i])
		case 3: // in another order
			fs[i], fs[j] = fs[j], fs[i]
		case 4: // cut short
			fs = append(fs[:i:i], fs[i][:at])
		case 5: // bytes too many
			fs[i] = slices.Concat(fs[i][:at], []byte{edits[5]}, fs[i][at:])
		case 6: // bytes too few
			fs[i] = slices.Delete(bytes.Clone(fs[i]), at, min(at+int(edits[5]), len(fs[i])))
		}
		if mend {
			for k, b := range fs {
				if len(b) >= frameHeaderBytes && edits[0]%7 != 4 {
					b = bytes.Clone(b)
					rawLen, length := binary.LittleEndian.Uint32(b[4:]), uint32(len(b)-frameHeaderBytes)
					if b[2] == codecNone || rawLen > framePayloadBytesMax {
						rawLen = length
					}
					binary.LittleEndian.PutUint32(b[4:], rawLen)
					binary.LittleEndian.PutUint32(b[8:], length)
					binary.LittleEndian.PutUint32(b[12:], frameChecksum(b[:12], b[frameHeaderBytes:]))
					fs[k] = b
				}
			}
		}
	}
	return slices.Concat(fs...)
}

// FuzzReceiveSnapshot: a stream that is not the one that was sent is refused, and leaves the state and the disk of
// the receiver as they were. One that was sealed anew may pass, but only with the very state that was sent.
func FuzzReceiveSnapshot(f *testing.F) {
	d := newDriver(f, engineOptions(f, f.TempDir()))
	for i := range 40 {
		d.put(fmt.Sprintf("key/%02d", i), strings.Repeat(string(rune('a'+i%26)), i*10))
	}
	d.put("large", strings.Repeat("0123456789abcdef", 75_000)) // pieces, in two frames
	session := d.one(sessionOpenOp()).Rev
	d.apply(putOp("s", []byte("v"), nil).session(session, 1, 0), putOp("t", []byte("v"), withTTL(nil, time.Hour)))
	if err := d.e.CheckpointNow(f.Context()); err != nil {
		f.Fatal(err)
	}
	meta, stream := snapshotOf(f, d.e)
	if n := len(frames(stream)); n < 4 || n > 256 {
		f.Fatalf("%d frames", n)
	}
	e := mustOpen(f, engineOptions(f, f.TempDir()))
	e.Apply(1, 1, sealEntry(testEpoch, initOp(), putOp("mine", []byte("1"), nil)))
	before := dumpState(f, e)
	whole, err := e.ReceiveSnapshot(f.Context(), meta, bytes.NewReader(stream))
	if err != nil {
		f.Fatal(err)
	}
	want := whole.cp
	items := storedItems(f, whole.in)
	whole.Discard()

	f.Add([]byte{}, false)
	f.Add([]byte{0, 1, 0, 20, 0, 1}, false)
	f.Add([]byte{0, 1, 0, 40, 0, 1}, true)
	f.Add([]byte{0, 0, 0, 40, 0, 1}, true)  // the header
	f.Add([]byte{0, 0, 0, 120, 0, 1}, true) // the marker in it
	for kind := range byte(7) {
		f.Add([]byte{kind, 1, 2, 30, 0, 7}, false)
		f.Add([]byte{kind, 2, 1, 30, 0, 7}, true)
	}
	f.Fuzz(func(t *testing.T, edits []byte, mend bool) {
		b := disturb(stream, edits, mend)
		r := bytes.NewReader(b)
		received, err := e.ReceiveSnapshot(t.Context(), meta, r)
		if err == nil {
			defer received.Discard()
			if read := b[:len(b)-r.Len()]; !mend && !bytes.Equal(read, stream) {
				t.Fatalf("%d bytes of a stream that nobody sent were accepted", len(read))
			}
			got := received.cp
			got.Generation = want.Generation
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("accepted as %+v, sent as %+v", got, want)
			}
			if got := storedItems(t, received.in); !slices.Equal(got, items) {
				t.Fatal("accepted with other items than were sent")
			}
			return
		}
		if bytes.HasPrefix(b, stream) {
			t.Fatalf("what was sent is refused: %v", err)
		}
		if received != nil || !errors.Is(err, ErrSnapshotDamaged) && !mend {
			t.Fatalf("%v beside %v", received, err)
		}
		wantGenerations(t, e, 1)
		if after := dumpState(t, e); !reflect.DeepEqual(before, after) {
			t.Fatalf("the state was %v and is %v", before, after)
		}
	})
}

// storedItems lists all that a state consists of.
func storedItems(t testing.TB, in *instance) (items []string) {
	if err := in.store.read(0, func(r *reader) error {
		items = items[:0]
		return r.iterate(nil, nil, false, false, func(k []byte, value func() ([]byte, error)) (bool, error) {
			v, err := value()
			items = append(items, fmt.Sprintf("%x %x", k, wire.Checksum(v)))
			return err == nil, err
		})
	}); err != nil {
		t.Fatal(err)
	}
	if len(items) < 40 {
		t.Fatalf("only %d items", len(items))
	}
	return items
}
