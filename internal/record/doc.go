// Package record is the one layer through which every file of our own is written and read: CHECKPOINT,
// identity, vote, feed segments, snapshots and backups.
//
// What it does: frames a payload with its length, a CRC32C, a key id and a nonce (Append, Decode,
// Reader), and replaces a whole file with one record in such a way that a crash leaves the old file or
// the new one (WriteFileAtomic, ReadFile).
//
// What it assumes: a local POSIX file system on which rename is atomic and fsync of a file and of its
// directory makes both durable; one writer per path at a time.
//
// Who owns what: Append writes into the caller's slice, Decode returns views of the caller's slice.
// Nothing is kept.
//
// What it never does: decide what a damaged record means. A torn record at the end of an append-only
// file is the usual trace of a crash; the same bytes in the middle are damage. Only the caller knows
// which it is, so the errors say what was seen and no more. Nor does it encrypt yet: key id 0 (clear) is
// the only one it holds, and any other is refused with ErrKey, so that a file sealed by a later version
// is never taken for damage.
package record
