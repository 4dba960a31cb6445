package gateway

import (
	"net/http"
	"net/url"

	"kvstore/wire"
)

const namespacesPath = adminPath + "namespaces"

// namespaceSettings are what a namespace is set to; what is left out is 0: no limit, no compression.
type namespaceSettings struct {
	BytesMax     uint64 `json:"bytes_max"`
	KeysMax      uint64 `json:"keys_max"`
	OpsPerSecond uint64 `json:"ops_per_second"`
	WatchesMax   uint64 `json:"watches_max"`
	Compress     string `json:"compress"`
}

// namespaces lists and creates.
func (s *Server) namespaces(w http.ResponseWriter, r *http.Request) {
	switch {
	case !allow(w, r, http.MethodGet, http.MethodHead, http.MethodPost):
	case r.Method == http.MethodPost:
		s.changeNamespace(w, r, &adminRequest{Action: "namespace_create"})
	default:
		s.askNamespaces(w, r, &adminRequest{Action: "namespace_list"})
	}
}

// namespace describes, sets and drops one. Its name may hold slashes, so that it is all the rest of the path.
func (s *Server) namespace(w http.ResponseWriter, r *http.Request, escaped string) {
	if !allow(w, r, http.MethodGet, http.MethodHead, http.MethodPut, http.MethodDelete) {
		return
	}
	write := r.Method == http.MethodPut || r.Method == http.MethodDelete
	name, err := url.PathUnescape(escaped)
	if err != nil || !wire.ValidNamespaceName(name) {
		refuse(w, write, wire.StatusBadRequest, textNamespaceName+"; nothing was changed")
		return
	}
	q := adminRequest{Namespace: name}
	switch r.Method {
	case http.MethodPut:
		q.Action = "namespace_set"
		s.changeNamespace(w, r, &q)
	case http.MethodDelete:
		// A body of a DELETE means nothing (RFC 9110, 9.3.5); it is neither read nor waited for.
		if ref := changeHeaders(r); ref != nil {
			refuse(w, true, ref.Status, ref.Text)
			return
		}
		q.Action = "namespace_drop"
		s.answerAdmin(w, r, &q, true)
	default:
		q.Action = "namespace_describe"
		s.askNamespaces(w, r, &q)
	}
}

const textNamespaceName = "a namespace's name has 1 to 128 characters of a-z A-Z 0-9 . _ : / - and begins with a letter or a digit"

// askNamespaces asks what changes nothing.
func (s *Server) askNamespaces(w http.ResponseWriter, r *http.Request, q *adminRequest) {
	if ref := noQuery(r); ref != nil {
		refuse(w, false, ref.Status, ref.Text)
		return
	}
	s.answerAdmin(w, r, q, false)
}

// changeNamespace creates or sets a namespace as the body says.
func (s *Server) changeNamespace(w http.ResponseWriter, r *http.Request, q *adminRequest) {
	ref := changeHeaders(r)
	if ref == nil && !isJSON(r.Header) {
		unsupportedMedia(w)
		return
	}
	var body []byte
	if ref == nil {
		var release func()
		if body, release, ref = s.readBody(w, r, nil, wire.AdminBytesMax/2, "the document"); ref == nil {
			ref = readNamespace(body, q)
			release()
		}
	}
	if ref != nil {
		refuse(w, true, ref.Status, ref.Text)
		return
	}
	s.answerAdmin(w, r, q, true)
}

// readNamespace reads {"name", "settings"}. The name belongs to a namespace that is to be created, whose settings may
// be left out.
func readNamespace(body []byte, q *adminRequest) *wire.Refusal {
	creates := q.Action == "namespace_create"
	set := namespaceSettings{Compress: wire.CodecNone.String()}
	given := false
	ref := readJSON(body, func(r *jsonReader, name []byte) *fault {
		switch {
		case string(name) == "name" && creates:
			v, f := r.string()
			if f == nil && !wire.ValidNamespaceName(string(v)) {
				f = faultf("%s", textNamespaceName)
			}
			q.Namespace = string(v)
			return f
		case string(name) == "settings":
			given = true
			return r.object(func(name []byte) *fault { return readSetting(r, name, &set) })
		}
		return faultf("this field is not known here")
	})
	switch {
	case ref != nil:
		return ref
	case creates && q.Namespace == "":
		return badRequest("name is missing; nothing was changed")
	case !creates && !given:
		return badRequest("settings is missing; nothing was changed")
	}
	q.Settings = &set
	return nil
}

// readSetting reads one member of the settings.
func readSetting(r *jsonReader, name []byte, set *namespaceSettings) (f *fault) {
	to := map[string]*uint64{
		"bytes_max": &set.BytesMax, "keys_max": &set.KeysMax, "ops_per_second": &set.OpsPerSecond, "watches_max": &set.WatchesMax,
	}[string(name)]
	switch {
	case to != nil:
		*to, f = r.uint(1<<64 - 1)
		return f
	case string(name) != "compress":
		return faultf("this field is not known here: there are bytes_max, keys_max, ops_per_second, watches_max and compress")
	}
	v, f := r.string()
	if f != nil {
		return f
	}
	if _, ok := parseCodec(string(v)); !ok {
		return faultf("%.40q is none of %s", v, codecNames)
	}
	set.Compress = string(v)
	return nil
}
