// Package backup makes copies of a store, checks them, and writes them into a store again.
//
// What it does. Take reads every record of all namespaces, or of one, as of one revision, and writes them as one stream
// (format.go; docs/backup.md has it byte by byte): blocks that are compressed and have checksums, and a trailer with counts
// and a checksum of all. Verify reads such a stream and believes nothing. Restore verifies all of one, and only then puts
// its records into a store, in batches. FromService lets both work on a node's own Service.
//
// What it assumes. A Source shows each namespace at the revision that it is asked for, or fails; a Target's batch of puts is
// applied whole or not at all, and both may be unknown for a while. The list of namespaces tells their numbers, which are
// never given twice.
//
// Who owns what. Nothing is kept between calls, and no goroutine is left behind: a Writer and a Reader hold a few blocks of
// at most blockBytesMax, whatever the length of the stream. Streams belong to the caller, who closes them.
//
// What it never does. It never mixes two revisions in a copy, never takes a stream that is cut short or changed for a whole
// one, never writes a record of a stream before all of that was verified, and never says of a restore that was not finished
// that nothing was changed: it tells how much was. It copies neither members nor sessions nor the history: records get new
// versions where they are restored.
package backup
