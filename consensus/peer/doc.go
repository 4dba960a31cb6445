// Package peer is the transport between the nodes of a Raft group: it carries hashicorp/raft's calls, and keeps the promises
// that the library's own transport does not.
//
// What it does. A handshake opens each connection (hello.go), and both sides judge the other by the same
// rules (trust.go): cluster, group, name, and the data directory that the name is bound to, so that a
// node which lost its disk is never taken for its old self. Of several processes with copies of one
// directory one is let in, by the count of its starts and the numbers that their processes drew, and none that lacks committed entries which an
// earlier one had acknowledged, as far as anybody remembers (holdings.go). Bindings and counts are in the
// file "peers" (book.go) before anybody acts on them. Found makes the founders of a cluster meet before it
// begins (found.go).
// What raft sends passes through send.go (acks with the time of sending, one call at a time, large appends in pieces) and goes
// out as messages (message.go, calls.go). What others send passes through one gate (feed.go), one call after the other, which
// keeps the promises on which read leases rest: votes are held back after a restart, and a leadership transfer breaks nobody's
// lease but its own leader's; commands that this node has no room for are refused. All nodes ask each other
// for their clocks and their health several times a second (pulse.go). Snapshots have connections of their
// own and are received beside raft (install.go).
//
// What it assumes. The bytes of a connection arrive in order and unchanged (TCP's checksum; TLS may be put
// below the handshake). Others that pass the handshake run this program: their messages are bounded and carry
// a checksum, but are not suspected. raft works on one message at a time, which hashicorp/raft does once its heartbeat fast
// path is off. Node's methods and the callbacks of Options do not block.
//
// Who owns what. Transport owns the listener, all connections in both directions, and the goroutines
// listen, feed, pulse, two per node that is asked for its pulse, one per connection that was accepted, and one per answer that is
// held back; all end in Close. A received snapshot belongs to whoever
// made it in Receive: the transport calls Discard when raft did not take it.
//
// What it never does. It never decides who is leader or voter, never answers for raft except by a refusal
// or about a snapshot that is not needed, never reads a clock for anything but waiting and the stamps of
// acks, never trusts a name without its data directory, and never answers a handshake before what it says
// is durable.
//
// DESIGN.md lists each duty with the defect of the library that it answers.
package peer
