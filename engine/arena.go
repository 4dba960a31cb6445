package engine

// arenaBlockBytes is the size of an arena's blocks. An entry of 1,000 records of 128 bytes takes five.
const arenaBlockBytes = 64 << 10

// arenaBlocksMax bounds the blocks that an arena keeps from entry to entry: 1 MiB.
const arenaBlocksMax = 16

// arena is the memory of one entry: keys, encoded records and copies that live until the entry is applied.
// It is reset as a whole, so nothing in it is freed alone and nothing of it may be kept.
type arena struct {
	blocks [][]byte
	used   int // blocks in use; the last of them is filled up to off
	off    int
}

// alloc gives an empty slice with room for n bytes. Appending more moves it to the heap, which is correct
// and slow.
func (a *arena) alloc(n int) []byte {
	if n > arenaBlockBytes/4 {
		return make([]byte, 0, n)
	}
	if a.used == 0 || a.off+n > arenaBlockBytes {
		if a.used == len(a.blocks) {
			a.blocks = append(a.blocks, make([]byte, arenaBlockBytes))
		}
		a.used++
		a.off = 0
	}
	b := a.blocks[a.used-1][a.off : a.off : a.off+n]
	a.off += n
	return b
}

// copy gives a copy of b.
func (a *arena) copy(b []byte) []byte { return append(a.alloc(len(b)), b...) }

// reset takes all memory back.
func (a *arena) reset() {
	if len(a.blocks) > arenaBlocksMax {
		clear(a.blocks[arenaBlocksMax:])
		a.blocks = a.blocks[:arenaBlocksMax]
	}
	a.used, a.off = 0, 0
}
