package gateway

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"kvstore/wire"
)

// coding is a content coding of an answer's JSON; "" is none.
type coding string

// The codings, zstd before gzip where the client likes both as much: it is smaller and cheaper.
const (
	identity coding = ""
	codeZstd coding = "zstd"
	codeGzip coding = "gzip"
)

const (
	// codeBytesMin is the least JSON worth encoding: below it the headers and the client's work cost more.
	codeBytesMin = 1 << 10
	// codeWindowBytes is the encoders' window, which is what they and their readers hold in memory. RFC 9659 allows
	// 8 MiB; keys and metadata repeat within far less.
	codeWindowBytes = 256 << 10
	// acceptPartsMax bounds the codings that are looked at in one request.
	acceptPartsMax = 32
)

// accepted is what a client takes: its favourite of our codings, and whether even a small answer should have it, since
// the client refuses plain text.
type accepted struct {
	coding coding
	always bool
}

// Names that Accept-Encoding may weigh.
const (
	nameZstd = iota
	nameGzip
	nameIdentity
	nameAny
)

// accept reads Accept-Encoding (RFC 9110, 12.5.3). A client that accepts nothing that we have gets plain JSON: after a
// write has been executed, 406 would hide its outcome.
func accept(values []string) accepted {
	if len(values) == 0 {
		return accepted{}
	}
	// q of each, in thousandths; -1: not named.
	named := [...]int{nameZstd: -1, nameGzip: -1, nameIdentity: -1, nameAny: -1}
	parts := 0
	for part := range strings.SplitSeq(strings.Join(values, ","), ",") {
		if parts++; parts > acceptPartsMax {
			break
		}
		text, params, _ := strings.Cut(part, ";")
		var name int
		switch strings.ToLower(strings.TrimSpace(text)) {
		case "zstd":
			name = nameZstd
		case "gzip", "x-gzip":
			name = nameGzip
		case "identity":
			name = nameIdentity
		case "*":
			name = nameAny
		default:
			continue
		}
		if q, ok := weight(params); ok {
			named[name] = max(named[name], q)
		}
	}
	q := func(name int) int {
		if named[name] >= 0 {
			return named[name]
		}
		return max(named[nameAny], 0)
	}
	plain := named[nameIdentity]
	if plain < 0 && named[nameAny] == 0 {
		plain = 0
	}
	best, most := accepted{coding: codeZstd}, q(nameZstd)
	if gzipped := q(nameGzip); gzipped > most {
		best.coding, most = codeGzip, gzipped
	}
	if most == 0 || plain > most {
		return accepted{}
	}
	best.always = plain == 0
	return best
}

// weight reads the parameters of a coding: none, or a q from 0 to 1 with at most three digits.
func weight(params string) (q int, ok bool) {
	params = strings.TrimSpace(params)
	if params == "" {
		return 1000, true
	}
	name, v, _ := strings.Cut(params, "=")
	if strings.TrimSpace(name) != "q" && strings.TrimSpace(name) != "Q" {
		return 0, false
	}
	whole, part, _ := strings.Cut(strings.TrimSpace(v), ".")
	if whole != "0" && whole != "1" || len(part) > 3 {
		return 0, false
	}
	n, err := strconv.ParseUint((part + "000")[:3], 10, 16)
	if err != nil || whole == "1" && n != 0 {
		return 0, false
	}
	if whole == "1" {
		return 1000, true
	}
	return int(n), true
}

// encoder is what both kinds of encoders do.
type encoder interface {
	io.WriteCloser
	Reset(w io.Writer)
}

// encoders hold the idle encoders of each kind: their tables cost more than most answers.
var (
	zstdEncoders = sync.Pool{New: func() any {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(codeWindowBytes), zstd.WithLowerEncoderMem(true))
		if err != nil {
			panic("BUG: the options of the zstd encoder are refused: " + err.Error())
		}
		return encoder(e)
	}}
	gzipEncoders = sync.Pool{New: func() any {
		e, err := gzip.NewWriterLevel(nil, gzip.BestSpeed)
		if err != nil {
			panic("BUG: the level of the gzip encoder is refused: " + err.Error())
		}
		return encoder(e)
	}}
)

func poolOf(c coding) *sync.Pool {
	if c == codeZstd {
		return &zstdEncoders
	}
	return &gzipEncoders
}

// jsonAnswer is the body of an answer of ours: JSON, encoded as the client likes it. How is decided by the first
// Write, so that one is to bring codeBytesMin or all there is. Errors of writing mean that the client is gone: there
// is nobody to tell.
type jsonAnswer struct {
	w           http.ResponseWriter
	status      int
	contentType string
	accepted    accepted
	// whole: the first Write brings all there is, so that its length can be told.
	whole bool

	begun   bool
	encoder encoder // nil: plain
	coding  coding
}

var noStore = []string{"no-store"}

// newJSONAnswer begins an answer; its caller must call close.
func newJSONAnswer(w http.ResponseWriter, status int, contentType string) *jsonAnswer {
	a := &jsonAnswer{w: w, status: status, contentType: contentType}
	if rec, ok := w.(*recorder); ok {
		a.accepted = rec.accepted
	}
	return a
}

// Write begins the answer, or goes on with it.
func (a *jsonAnswer) Write(b []byte) (int, error) {
	if !a.begun {
		a.begin(len(b))
	}
	if a.encoder != nil {
		return a.encoder.Write(b)
	}
	return a.w.Write(b)
}

func (a *jsonAnswer) begin(n int) {
	a.begun = true
	h := a.w.Header()
	h.Set("Content-Type", a.contentType)
	if _, said := h["Cache-Control"]; !said {
		// A cache may keep a 404 by its own judgement, and would show it when the key is there.
		h["Cache-Control"] = noStore
	}
	h.Add("Vary", "Accept-Encoding")
	if a.accepted.coding != identity && (n >= codeBytesMin || a.accepted.always) {
		a.coding = a.accepted.coding
		h.Set("Content-Encoding", string(a.coding))
		a.encoder = poolOf(a.coding).Get().(encoder)
		a.encoder.Reset(a.w)
	} else if a.whole {
		h.Set("Content-Length", strconv.Itoa(n))
	}
	a.w.WriteHeader(a.status)
}

// close ends the answer.
func (a *jsonAnswer) close() {
	if !a.begun {
		a.begin(0)
	}
	if a.encoder != nil {
		_ = a.encoder.Close() // the client is gone, which it knows
		a.encoder.Reset(nil)
		poolOf(a.coding).Put(a.encoder)
		a.encoder = nil
	}
}

// sendJSON answers with a document that is complete.
func sendJSON(w http.ResponseWriter, status int, contentType string, doc []byte) {
	a := newJSONAnswer(w, status, contentType)
	a.whole = true
	_, _ = a.Write(doc) // the client is gone
	a.close()
}

// streamJSON answers with the document that write writes. size is what it holds on to until it is read, about: it is
// counted against the budget of answers.
func (s *Server) streamJSON(w http.ResponseWriter, size int, change bool, write func(j *jsonWriter)) {
	if !s.answers.TryAcquire(int64(size)) {
		if !change {
			refuse(w, false, wire.StatusBusy, textBusyAnswers)
			return
		}
		// The change has been made: to say otherwise would be a lie, so its answer goes out beyond the budget. It is
		// small unless the transaction read much.
		size = 0
	}
	defer s.answers.Release(int64(size))
	// An error means that there is no connection (any more), which Write meets too.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.o.AnswerTimeout))
	a := newJSONAnswer(w, http.StatusOK, "application/json")
	j := newJSONWriter(a)
	write(j)
	j.raw("\n")
	_ = j.w.Flush() // the client is gone
	a.close()
}
