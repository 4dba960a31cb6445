// Package gateway is the compatibility layer beside the binary protocol: REST for keys and administration, gRPC for
// keys, and the operator's port with metrics, health and profiles.
//
// What it does. It translates HTTP and gRPC to the operations of the binary protocol and back: each request becomes
// one wire.Request, validated by the same code, executed by the same Service, and answered with the same
// outcome. Values travel as raw bytes in bodies, never wrapped; batches, transactions, listings and events are JSON,
// with values as base64 (or, on the way in, "text").
//
//	PUT GET HEAD DELETE   /api/v1/keys/{key}                 one record
//	PATCH                 /api/v1/keys/{key}?ttl_seconds=    its time to live, or ttl_ms=; 0 takes the deadline away
//	POST                  /api/v1/increment/{key}?delta=     adds to a number; 1 if nothing is said
//	GET HEAD              /api/v1/keys                       a page of a listing, or a count
//	POST                  /api/v1/batch/{put,get,delete}     many records; puts and deletes all or nothing
//	POST                  /api/v1/transaction                operations under conditions
//	GET                   /api/v1/watch/{prefix}             changes as server-sent events
//	POST                  /api/v1/admin/{backup,restore}     a copy of all records, streamed
//	…                     /api/v1/admin/…                    status, metrics, members, leader, namespaces
//	GET HEAD              /api/v1/openapi.{yaml,json}        all of this as OpenAPI 3.1: openapi.yaml, which a test
//	                                                         holds against the handlers
//
// gRPC is the service kvstore.v1.KVStore of api/kvstorev1, on a listener of its own. (grpc-go behind net/http takes four
// times the CPU.) Each call is one request, as on REST; grpccalls.go has them one after the other. Errors say in ErrorInfo
// what problem JSON says. UNAVAILABLE and RESOURCE_EXHAUSTED mean that nothing was changed, since clients repeat the first
// by themselves; what can't be known is UNKNOWN. What gRPC itself says of a broken connection is the client's guess.
//
// Retries. A write of keys may carry Idempotency-Key: within ten minutes the same request with the same key has the same
// answer and is done once, over whichever node it comes; another request with it is 422. What names a request is its encoding as a
// wire.Request (see parseRequest), so neither a body's spelling of JSON nor the order of a query counts.
//
// The event stream. A watch begins behind Last-Event-ID or from_revision, whichever is larger: a browser that comes
// back sends the URL as it was at first and the id that it saw last. Each event has its revision as its id. A block
// with an id alone moves that place on where nothing happens: every few seconds, and behind events that the watch
// leaves out. The headers X-KV-History and X-KV-Namespace-Id, sent back as history= and namespace_id=, make sure that a
// watch goes on in what it was of. What ends a watch before its first frame is a problem with its status; after that it is an event "error"
// whose data is the problem.
//
// Limits and the log. Each request has an id: the client's X-Request-Id, or a new one; it stands in the answer's header,
// in problems, and in the log. Options.RequestsPerSecond and ClientRequestsPerSecond bound what is taken; beyond them the
// answer is 429 with a pause. The address of a client is that of its connection: no header is believed, so that clients
// behind one proxy share one rate. The log of requests (Options.RequestLog) is a line of JSON for each request that it
// wants: when, id, protocol, operation, route, namespace, address, status, code, duration, bytes, revision. It holds no
// key, value, tag or query, and its rate is bounded; what is missing is told in the next line, by "dropped".
//
// Copies. A backup is streamed as it is read, and broken off where it fails; a restore is read to its end and verified
// before anything is changed. Neither has a limit in bytes or time: each piece of them has a deadline.
//
// What it assumes. The Service answers every request exactly once and within its deadline, and passes on
// by itself what another node must execute: the gateway of a follower is no other than that of the leader.
// The principal given in Options speaks for every caller until there are users.
//
// Who owns what. A Door is what the doors of this package share: the bounds below, the rates, and the log of requests,
// whose one goroutine lives while lines wait for the disk. It owns the bytes of requests in progress, counted against
// Options.BodyBytesMax (a JSON document together with the operations that it becomes), and what waits for its reader,
// counted against Options.AnswerBytesMax: values, pages, results, and the frame of events that a stream is writing.
// net/http owns connections and goroutines; an event stream belongs to the goroutine of its request and ends with it,
// with the server's Shutdown, or with a reader that stalls. Whoever sends or takes nothing is cut off by a deadline.
// Answers of gRPC have a budget of their own, as large, which they leave when they are sent, since a call that takes its
// answer slowly can't be cut off. A watch of gRPC sends from a goroutine of its own, which ends with the call.
//
// What it never does. It never cleans or redirects a path (the key is what the client wrote), never changes a value or
// its encoding (Accept-Encoding counts for JSON alone), never lets the log fail a request or hold it up, never wraps a
// write in a timeout handler that would answer for it, and never lets an unknown outcome look like a known one: that is
// 504 with "applied":"unknown". It changes nothing for a page of another site (http.CrossOriginProtection).
package gateway
