// Package client is the Go client of KVStore.
//
// What it does. A Client is shared by any number of goroutines. Their requests travel over one connection
// per node; what several goroutines ask at the same time is gathered into one write without any timer. It
// finds the leader, connects again, retries what may be retried, and tells three outcomes of a write apart:
// done (no error), surely not done (ErrNotApplied), and unknown (ErrMaybeApplied).
//
// One address of a cluster is enough to begin with: servers name each other and the leader. When the leader
// dies, stops or falls silent (a second without a sign of life while something is unanswered), the client turns
// to the other nodes and repeats there what may be repeated; callers notice the delay alone, as long as their
// time lasts.
//
//	c, err := client.Open(ctx, []string{"127.0.0.1:7001"})
//	if err != nil { … }
//	defer c.Close()
//	version, err := c.Put(ctx, "greeting", []byte("hello"))
//	value, err := c.Get(ctx, "greeting")
//
// Reads are linearizable and answered by the leader, unless an option says otherwise: AnyNode spreads them over the
// nodes at the same consistency, Stale and MaxAge give up freshness, and say by how much (Value.Age).
//
// Writes belong to a session by default, registered with the servers at the first write: a write that is
// sent again after a lost connection carries the same session and sequence number, and is applied once. So
// ErrMaybeApplied is left for what time did not allow to find out: the deadline passed or the context ended
// between sending and answer, or the session expired meanwhile. Writes without a session, and administrative
// requests, end with it as soon as an answer is surely lost.
//
// Watch follows changes: each event once and in order, from now or behind a revision. It goes on by itself behind the
// last event where connections and nodes fail, and says ErrCompacted only when no node keeps what follows. List goes
// through a listing of one revision, sent ahead of the caller within a credit. Increment counts exactly once; namespaces
// are managed by CreateNamespace and its kin.
//
// A Pipeline keeps many operations of one goroutine under way, sends what is started together with one write, gives back together
// what has ended, and allocates nothing. GetAsync and PutAsync call a function for each operation instead.
//
// An operation is bounded by its context's deadline or, without one, by WithTimeout, over all attempts. When
// a context ends, the operation returns at once; neither the key, the value nor the destination that the
// caller passed is touched after that.
//
// What it assumes. The server keeps to the protocol of package wire; a peer that doesn't loses the
// connection. The clocks of client and server need not agree.
//
// Who owns what. Each connection has a reader and a writer goroutine; callers write for each other, and the
// writer sleeps unless a socket is full or a value is large. No other goroutine outlives what it was made
// for, and Close ends all of them. DESIGN.md tells more.
//
// A Forwarder is the other way in: a node passes requests of others on to the leader with it, over connections
// of the same kind, and without sessions, hints or retries.
//
// What it never does. It keeps no cache, logs no request, sleeps for no batch, and never sends a write again
// whose earlier attempt might count twice.
package client
