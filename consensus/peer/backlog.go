package peer

import "github.com/hashicorp/raft"

// backlog counts the commands that were received and are not applied yet. Owned by feed.
type backlog struct {
	items  []appended // by last, ascending
	commit uint64     // the highest commit index seen
	// The first committed items are committed; bytes is their sum.
	committed int
	bytes     int64
}

// appended are the commands of one AppendEntries.
type appended struct {
	last  uint64 // index of the last command
	bytes int64
}

// note counts a request, after its commit index was clamped.
func (b *backlog) note(req *raft.AppendEntriesRequest, applied uint64) {
	b.prune(applied)
	// What the request repeats or overwrites is counted anew.
	first := req.Entries[0].Index
	for n := len(b.items); n > 0 && b.items[n-1].last >= first; n = len(b.items) {
		if b.committed == n {
			b.committed--
			b.bytes -= b.items[n-1].bytes
		}
		b.items = b.items[:n-1]
	}
	var add appended
	for _, e := range req.Entries {
		// The state machine sees nothing but commands: its index stays behind others at the log's end.
		if e.Type == raft.LogCommand && e.Index > applied {
			add.last = e.Index
			add.bytes += int64(len(e.Data) + len(e.Extensions))
		}
	}
	if n := len(b.items); add.last != 0 && n >= backlogMax {
		if b.committed == n {
			b.bytes += add.bytes
		}
		b.items[n-1].last = add.last
		b.items[n-1].bytes += add.bytes
	} else if add.last != 0 {
		b.items = append(b.items, add)
	}
	b.commit = max(b.commit, req.LeaderCommitIndex)
	for b.committed < len(b.items) && b.items[b.committed].last <= b.commit {
		b.bytes += b.items[b.committed].bytes
		b.committed++
	}
}

// prune drops what is applied.
func (b *backlog) prune(applied uint64) {
	n := 0
	for n < len(b.items) && b.items[n].last <= applied {
		if n < b.committed {
			b.bytes -= b.items[n].bytes
		}
		n++
	}
	if n > 0 {
		b.committed = max(0, b.committed-n)
		b.items = append(b.items[:0], b.items[n:]...)
	}
}

// over tells whether more than bytesMax bytes or appendsMax appends are committed and not applied, and
// up to which index must be applied until they are not.
func (b *backlog) over(bytesMax int64, appendsMax int) (until uint64, over bool) {
	if b.bytes <= bytesMax && b.committed <= appendsMax {
		return 0, false
	}
	var bytes int64
	for i := b.committed - 1; i >= 0; i-- {
		bytes += b.items[i].bytes
		if bytes > bytesMax || b.committed-i > appendsMax {
			return b.items[i].last, true
		}
	}
	panic("BUG: the backlog's sum is not that of its parts")
}
