// Package netloop is the door for the binary protocol: it accepts connections, agrees on HELLO, turns
// bytes into requests for a Handler, and turns answers into bytes.
//
// What it does. The standard library accepts; a bounded number of goroutines reads preface and HELLO
// with a real deadline; then the socket is handed to gnet's event loops (files loop.go, conn.go). Session
// is the protocol of one connection and knows no socket: bytes go in through Feed, answers come back
// through Complete from any goroutine. A second driver (plain.go) runs the same Session over any
// net.Conn with two goroutines; it serves what gnet can't, such as crypto/tls.
//
// What it assumes. The Handler never blocks in Serve and answers each request exactly once. A client's
// request ids are unique among its unanswered requests; a client that breaks this gets two answers with
// one id and harms only itself, since the server keys nothing by id. Requests of one connection are
// handed on in order of arrival, with one exception: a compressed frame that is larger than 64 KiB,
// packed or unpacked, is unpacked by a worker and may be overtaken. Whoever needs an order waits for the
// answer. The system is Linux (epoll).
//
// Who owns what. Each connection belongs to one event loop, which alone reads, parses, and writes its
// socket. Answers are appended to the connection's out buffer under its lock by whoever has them; the
// first one puts the connection on its loop's dirty list, and the first on that list wakes the loop: one
// wake-up per loop and one write per connection, however many answers. Request views belong to the
// buffer that was read into and die when Serve returns. DESIGN.md has the table of bounds.
//
// What it never does. It executes nothing that failed its checksum, decides nothing about leadership or
// permission, logs nothing per request, never blocks a loop on a peer, and never lets a peer decide how
// much memory it costs.
package netloop
