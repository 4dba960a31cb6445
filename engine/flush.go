package engine

// expiryValue is what stands under a key of the expiry index, which says all by itself. It isn't empty,
// because the store reads some damage as an empty value.
var expiryValue = []byte{1}

// flush stores what has become of one record within the entry, in as many keys as that takes, and brings
// the sums in m up to date.
func (a *applier) flush(w *write, m *marker, st *staged) {
	if st.oldExists {
		m.digest.sub(recordDigest(st.key, &st.old))
		m.records--
		m.bytes -= liveBytes(st.key, &st.old)
	}
	switch {
	case st.exists:
		m.digest.add(recordDigest(st.key, &st.now))
		m.records++
		m.bytes += liveBytes(st.key, &st.now)
		a.flushRecord(w, st)
	case st.oldExists:
		w.del(st.key)
	}
	// Pieces that the new value doesn't need. Readers of older revisions still find them at theirs.
	for n := st.now.chunks; n < st.old.chunks; n++ {
		w.del(a.chunkKey(st.key, n))
	}
	a.flushDeadline(w, st)
}

// flushRecord stores the record: its value compressed if that was asked for, and in pieces if it is large.
func (a *applier) flushRecord(w *write, st *staged) {
	form := st.now
	a.pack(&form)
	body := form.body()
	if len(body) <= a.in.store.o.ChunkThresholdBytes {
		w.setHashed(st.hash, st.key, appendRecord(a.mem.alloc(form.storedBytes()), st.key, &form))
		return
	}
	form.Value, form.packed = nil, nil
	size := a.in.store.o.ChunkBytes
	for len(body) > 0 {
		data := body[:min(size, len(body))]
		body = body[len(data):]
		key := a.chunkKey(st.key, form.chunks)
		w.set(key, appendChunk(a.mem.alloc(chunkHeaderBytes+len(data)), key, form.Meta.Version, data))
		form.chunks++
	}
	w.setHashed(st.hash, st.key, appendRecord(a.mem.alloc(form.storedBytes()), st.key, &form))
	st.now.chunks = form.chunks
}

func (a *applier) chunkKey(recordKey []byte, n uint32) []byte {
	return appendChunkKey(a.mem.alloc(len(recordKey)+2+4), recordKey, n)
}

// flushDeadline keeps the expiry index in step.
func (a *applier) flushDeadline(w *write, st *staged) {
	before, after := st.old.Meta.ExpiresAt, st.now.Meta.ExpiresAt
	if before == after {
		return
	}
	if before != 0 {
		a.deadlines.remove(before)
		w.del(a.expiryKey(before, st.key))
	}
	if after != 0 {
		a.deadlines.add(after)
		w.set(a.expiryKey(after, st.key), expiryValue)
	}
}

func (a *applier) expiryKey(deadline int64, recordKey []byte) []byte {
	return appendExpiryKey(a.mem.alloc(expiryKeyPrefixBytes+len(recordKey)), deadline, recordKey)
}
