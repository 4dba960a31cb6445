// Package gateway is the compatibility door beside the binary protocol: REST for keys and administration,
// and the operator's port with metrics, health and profiles.
//
// What it does. It translates HTTP to the operations of the binary protocol and back: each request becomes
// one wire.Request, validated by the same code, executed by the same Service, and answered with the same
// outcome. Values travel as raw bytes in bodies, never wrapped.
//
// What it assumes. The Service answers every request exactly once and within its deadline, and passes on
// by itself what another node must execute: the gateway of a follower is no other than that of the leader.
// The principal given in Options speaks for every caller until there are users.
//
// Who owns what. A Server owns the bytes of requests in progress, counted against Options.BodyBytesMax, and
// the values that wait for their reader, counted against Options.AnswerBytesMax; net/http owns connections
// and goroutines. Whoever sends or takes nothing is cut off by a deadline.
//
// What it never does. It never cleans or redirects a path (the key is what the client wrote), never
// changes a value or its encoding, never wraps a write in a timeout handler that would answer for it, and
// never lets an unknown outcome look like a known one: that is 504 with "applied":"unknown".
package gateway
