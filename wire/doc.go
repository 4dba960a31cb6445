// Package wire defines every byte that KVStore exchanges or replicates: frames between clients and
// servers, and the entries of the Raft log.
//
// What it does. It holds the frame header, the extension block (TLV), HELLO, the bodies of each
// operation, the status table with its three outcomes, the limits that all layers share, frame
// compression, and the versioned format of log entries. Codecs are append-style
// (AppendX(dst, …) []byte) and allocate nothing; decoders return views over their input.
//
// What it assumes. Integers are little endian. A view dies with the buffer it points into: whoever
// keeps bytes beyond a callback copies them. Lengths are checked before anything is allocated.
//
// Who owns what. The body of a mutation (ext | key | payload) in a client's frame is, byte for byte, the
// body of the operation in the log entry: it is encoded once by the client and replayed as it is.
//
// What it never does. It opens no socket and no file, starts no goroutine, reads no clock, and imports
// nothing of the project. docs/protocol.md describes the same bytes, those of the log included, for readers
// of other languages; the golden frames in testdata tie the two together. `go test ./wire -update` writes
// them and the page's tables anew; what it changes is a change of the protocol.
package wire
