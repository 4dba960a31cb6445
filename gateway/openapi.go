package gateway

import (
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strings"
	"sync"

	"github.com/cespare/xxhash/v2"
	"go.yaml.in/yaml/v3"
)

const (
	openAPIYAMLPath = "/api/v1/openapi.yaml"
	openAPIJSONPath = "/api/v1/openapi.json"
)

// openAPISource describes the REST door as OpenAPI 3.1. It is written by hand, and a test holds it against the
// handlers.
//
//go:embed openapi.yaml
var openAPISource []byte

// openAPIDocument is one form of the description, ready to be sent.
type openAPIDocument struct {
	contentType string
	body        []byte
	// etag is a weak one: the bytes that go out depend on Accept-Encoding.
	etag string
}

var openAPIDocuments = map[string]func() *openAPIDocument{
	openAPIYAMLPath: sync.OnceValue(func() *openAPIDocument { return newOpenAPIDocument("application/yaml", openAPISource) }),
	openAPIJSONPath: sync.OnceValue(func() *openAPIDocument {
		var doc map[string]any
		if err := yaml.Unmarshal(openAPISource, &doc); err != nil {
			panic("BUG: openapi.yaml is no YAML: " + err.Error())
		}
		b, err := json.Marshal(doc)
		if err != nil {
			panic("BUG: openapi.yaml holds what JSON can't: " + err.Error())
		}
		return newOpenAPIDocument("application/json", append(b, '\n'))
	}),
}

func newOpenAPIDocument(contentType string, body []byte) *openAPIDocument {
	sum := xxhash.New()
	_, _ = sum.Write(body) // a hash takes everything
	return &openAPIDocument{contentType, body, `W/"` + hex.EncodeToString(sum.Sum(nil)) + `"`}
}

// openAPI serves the description in the form that path names. It changes with the server's version alone, so clients
// may keep it, and ask whether it is still the one.
func (s *Server) openAPI(w http.ResponseWriter, r *http.Request, path string) {
	if !allow(w, r, http.MethodGet, http.MethodHead) {
		return
	}
	if ref := namespaceAlone(r); ref != nil {
		refuse(w, false, ref.Status, ref.Text)
		return
	}
	doc := openAPIDocuments[path]()
	h := w.Header()
	h.Set("Cache-Control", "no-cache")
	h.Set("ETag", doc.etag)
	for part := range strings.SplitSeq(strings.Join(r.Header.Values("If-None-Match"), ","), ",") {
		if part = strings.TrimSpace(part); part == "*" || strings.TrimPrefix(part, "W/") == strings.TrimPrefix(doc.etag, "W/") {
			h.Set("Vary", "Accept-Encoding")
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	sendJSON(w, http.StatusOK, doc.contentType, doc.body)
}
