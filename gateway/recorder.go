package gateway

import (
	"io"
	"net/http"
	"time"

	"kvstore/wire"
)

// recorder remembers of an answer what the statistics and the log of requests want to know.
type recorder struct {
	http.ResponseWriter
	// id is what the request is called.
	id string
	// op is what was asked; noOp: nothing that is counted.
	op wire.Opcode
	// route is where it went, with names in place of what users store.
	route string
	// class is that of the answer; without a problem it is ClassResult. The status of HTTP would not do: 404 is both an absent key, which is a result, and
	// an absent namespace, which is a refusal.
	class wire.Class
	// took, when set, is the duration that counts: of a stream the time until it began.
	took time.Duration
	// accepted is what the client takes of codings.
	accepted accepted

	status int   // as it was sent; 0: nothing was
	out    int64 // bytes of the answer's body
	in     countedBody
	// code and failed tell of a problem, which in a stream comes behind status 200.
	code     string
	failed   bool
	revision wire.Revision
}

// countedBody counts the bytes of a request's body.
type countedBody struct {
	io.ReadCloser
	n int64
}

// Read counts what it reads.
func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n += int64(n)
	return n, err
}

// WriteHeader notes the status.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write counts what it writes.
func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(b)
	r.out += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// sawRevision notes the version that a write gave, or that a read saw.
func sawRevision(w http.ResponseWriter, v wire.Revision) {
	if r, ok := w.(*recorder); ok {
		r.revision = v
	}
}
