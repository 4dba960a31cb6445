package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/pb33f/libopenapi-validator/config"

	"kvstore/wire"
)

// describedOperation is an operation of openapi.yaml.
type describedOperation struct {
	path, method string
	id           string
	// parameters are those of the path and those of its own, by place ("query", "path", "header") and name.
	parameters map[string]map[string]map[string]any
	responses  map[string]any
}

// description reads openapi.yaml as the JSON that is served of it.
func description(t *testing.T) (doc map[string]any, all []*describedOperation) {
	t.Helper()
	if err := json.Unmarshal(openAPIDocuments[openAPIJSONPath]().body, &doc); err != nil {
		t.Fatal(err)
	}
	for path, v := range doc["paths"].(map[string]any) {
		item := v.(map[string]any)
		for method, v := range item {
			if method == "parameters" {
				continue
			}
			op := v.(map[string]any)
			d := &describedOperation{path: path, method: strings.ToUpper(method), id: op["operationId"].(string), responses: op["responses"].(map[string]any)}
			d.parameters = map[string]map[string]map[string]any{"query": {}, "path": {}, "header": {}}
			for _, list := range []any{item["parameters"], op["parameters"]} {
				params, _ := list.([]any)
				for _, v := range params {
					p := resolve(t, doc, v.(map[string]any))
					d.parameters[p["in"].(string)][p["name"].(string)] = p
				}
			}
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b *describedOperation) int { return strings.Compare(a.path+a.method, b.path+b.method) })
	return doc, all
}

// resolve follows the reference that v is, if it is one.
func resolve(t *testing.T, doc map[string]any, v map[string]any) map[string]any {
	t.Helper()
	ref, ok := v["$ref"].(string)
	if !ok {
		return v
	}
	at := any(doc)
	for part := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
		m, _ := at.(map[string]any)
		if at, ok = m[part]; !ok {
			t.Fatalf("%s leads nowhere", ref)
		}
	}
	return at.(map[string]any)
}

// target is the path with the examples of its parameters.
func (d *describedOperation) target(t *testing.T) string {
	t.Helper()
	path := d.path
	for name, p := range d.parameters["path"] {
		path = strings.ReplaceAll(path, "{"+name+"}", p["example"].(string))
	}
	if strings.ContainsAny(path, "{}") {
		t.Fatalf("%s has a parameter that is not described", d.path)
	}
	return path
}

// sample adds the example of a query parameter to q.
func sample(t *testing.T, q url.Values, p map[string]any) {
	t.Helper()
	name := p["name"].(string)
	switch v := p["example"].(type) {
	case nil:
		t.Errorf("query parameter %s has no example", name)
	case map[string]any: // each member is a parameter of its own
		for k, v := range v {
			q.Set(k, v.(string))
		}
	case []any:
		var list []string
		for _, v := range v {
			list = append(list, v.(string))
		}
		q.Set(name, strings.Join(list, ","))
	default:
		q.Set(name, fmt.Sprint(v))
	}
	if name == "max_age_ms" {
		q.Set("consistency", "stale")
	}
}

// describedDoor is a door whose service answers everything with answer.
func describedDoor(answer wire.Response) (*memory, *Server) {
	m := &memory{records: map[string]wire.Record{}, feed: newFeed(), answer: &answer}
	m.refuseWith(&answer)
	return m, New(Options{Service: m, Backups: describedBackups{answer}, Metrics: func(w io.Writer) error {
		_, err := io.WriteString(w, "kvstore_up 1\n")
		return err
	}})
}

// describedBackups gives the same answer to every backup and restore.
type describedBackups struct{ answer wire.Response }

func (b describedBackups) Backup(_ context.Context, _ any, _ string, begin func(wire.Revision, string) io.Writer) wire.Response {
	if b.answer.Status == wire.StatusOK {
		if _, err := begin(1<<20, "name.kvbackup").Write([]byte("copy")); err != nil {
			return wire.Response{Status: wire.StatusCancelled}
		}
	}
	return b.answer
}

func (b describedBackups) Restore(context.Context, any, string, bool, io.Reader) wire.Response {
	return b.answer
}

// ask makes one request without a connection.
func ask(s *Server, method, target, body string, header ...string) *http.Response {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	s.ServeHTTP(rec, r)
	return rec.Result()
}

// problemIn reads the problem of an answer.
func problemIn(t *testing.T, resp *http.Response) problem {
	t.Helper()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return decode(t, string(b))
}

// newValidator reads openapi.yaml with some texts replaced; it wants no member and no parameter that is not described.
func newValidator(t *testing.T, replace ...string) validator.Validator {
	t.Helper()
	doc, err := libopenapi.NewDocument([]byte(strings.NewReplacer(replace...).Replace(string(openAPISource))))
	if err != nil {
		t.Fatal(err)
	}
	v, errs := validator.NewValidator(doc, config.WithStrictMode(), config.WithStrictIgnoredHeadersExtra("X-KV-Tag-Owner"), config.WithFormatAssertions(), config.WithContentAssertions())
	if len(errs) != 0 {
		t.Fatal(errs)
	}
	return v
}

func TestOpenAPI_IsValid(t *testing.T) {
	ok, errs := newValidator(t).ValidateDocument()
	for _, err := range errs {
		t.Errorf("%s: %s", err.Message, err.Reason)
		for _, e := range err.SchemaValidationErrors {
			t.Errorf("%s: %s", e.KeywordLocation, e.Reason)
		}
	}
	if !ok {
		t.Error("not valid")
	}
	doc, all := description(t)
	ids, named := map[string]bool{}, map[string]bool{}
	for _, d := range all {
		if ids[d.id] {
			t.Errorf("operationId %s stands twice", d.id)
		}
		ids[d.id] = true
	}
	// Every reference leads somewhere, and nothing is described that nothing refers to.
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok {
				resolve(t, doc, v)
				named[ref] = true
			}
			for _, v := range v {
				walk(v)
			}
		case []any:
			for _, v := range v {
				walk(v)
			}
		}
	}
	walk(doc)
	for kind, v := range doc["components"].(map[string]any) {
		for name := range v.(map[string]any) {
			if ref := "#/components/" + kind + "/" + name; !named[ref] && ref != "#/components/schemas/WatchEvent" { // which is within a stream
				t.Errorf("nothing refers to %s", ref)
			}
		}
	}
}

// What the description says of lengths is what the protocol has.
func TestOpenAPI_LimitsAreThose(t *testing.T) {
	doc, all := description(t)
	schemas := doc["components"].(map[string]any)["schemas"].(map[string]any)
	at := func(path ...string) any {
		v := any(schemas)
		for _, p := range path {
			v = v.(map[string]any)[p]
		}
		return v
	}
	put := []string{"PutItem", "properties"}
	for want, got := range map[*any]float64{
		ptr(at("Key", "maxLength")): wire.KeyBytesMax, ptr(at("Bytes", "maxLength")): wire.ValueBytesMax,
		ptr(at("TTL", "maximum")): wire.TTLMsMax / 1000, ptr(at("Tags", "maxProperties")): wire.TagsMax,
		ptr(at("Conditions", "maxItems")):                                 wire.ConditionsMax,
		ptr(at(append(put, "content_type", "maxLength")...)):              wire.ContentTypeBytesMax,
		ptr(at(append(put, "encoding", "maxLength")...)):                  wire.EncodingBytesMax,
		ptr(at("NewMember", "properties", "id", "maxLength")):             wire.NodeIDBytesMax,
		ptr(at("NewMember", "properties", "address", "maxLength")):        wire.AddressBytesMax,
		ptr(at("NewMember", "properties", "version", "maxLength")):        wire.VersionBytesMax,
		ptr(at("TouchOperation", "properties", "ttl_seconds", "maximum")): wire.TTLMsMax / 1000,
	} {
		if *want != got {
			t.Errorf("%v is described, %v is so", *want, got)
		}
	}
	for _, c := range []struct {
		pattern string
		most    int
	}{
		{at("NamespaceName", "pattern").(string), wire.NamespaceBytesMax - 1},
		{slices.Collect(maps.Keys(at("Tags", "patternProperties").(map[string]any)))[0], wire.TagNameBytesMax},
	} {
		if !strings.Contains(c.pattern, fmt.Sprintf(",%d}", c.most)) {
			t.Errorf("%s is described, %d is so", c.pattern, c.most)
		}
	}
	for _, d := range all {
		if d.id != "listKeys" {
			continue
		}
		for name, want := range map[string]float64{
			"prefix": wire.KeyBytesMax, "delimiter": wire.ScanDelimiterBytesMax, "cursor": float64((wire.CursorBytesMax*8 + 5) / 6),
		} {
			if got := d.parameters["query"][name]["schema"].(map[string]any)["maxLength"]; got != want {
				t.Errorf("%s: %v is described, %v is so", name, got, want)
			}
		}
	}
}

func ptr(v any) *any { return &v }

func TestOpenAPI_EachOperationIsServed_AndNoOther(t *testing.T) {
	_, all := description(t)
	_, s := describedDoor(wire.Response{Status: wire.StatusBusy})
	methods := map[string][]string{}
	targets := map[string]string{}
	for _, d := range all {
		methods[d.path] = append(methods[d.path], d.method)
		targets[d.path] = d.target(t)
	}
	for path, described := range methods {
		for _, method := range []string{"GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"} {
			resp := ask(s, method, targets[path], "")
			p := problem{}
			if resp.StatusCode >= 400 {
				p = problemIn(t, resp)
			}
			if p.Title == "NO_ROUTE" {
				t.Errorf("%s %s is no route", method, path)
				continue
			}
			if slices.Contains(described, method) {
				if resp.StatusCode == http.StatusMethodNotAllowed {
					t.Errorf("%s %s is described, and refused", method, path)
				}
				continue
			}
			allowed := strings.Split(resp.Header.Get("Allow"), ", ")
			slices.Sort(allowed)
			if want := slices.Sorted(slices.Values(described)); resp.StatusCode != http.StatusMethodNotAllowed || !reflect.DeepEqual(allowed, want) {
				t.Errorf("%s %s: %d, Allow %v; want 405, %v", method, path, resp.StatusCode, allowed, want)
			}
		}
	}
}

// The router knows its places by constants whose names end in Path, by groupRoutes and by memberActions.
func TestOpenAPI_EachRouteIsDescribed(t *testing.T) {
	_, all := description(t)
	paths := map[string]bool{}
	for _, d := range all {
		paths[d.path] = true
		route := placeOf(httptest.NewRequest(d.method, d.target(t), nil)).route
		if want := strings.TrimSuffix(d.path, "{prefix}"); strings.TrimSuffix(route, "{prefix}") != want {
			t.Errorf("%s goes to the route %s", d.path, route)
		}
	}
	described := func(path string) bool {
		if strings.HasSuffix(path, "/") {
			return slices.ContainsFunc(all, func(d *describedOperation) bool { return strings.HasPrefix(d.path, path) })
		}
		return paths[path]
	}
	routes := slices.Concat(slices.Collect(maps.Keys(groupRoutes)), slices.Collect(maps.Keys(openAPIDocuments)))
	for action := range memberActions {
		routes = append(routes, membersPath+"/{id}/"+action)
	}
	constants := pathConstants(t)
	if constants["keysPath"] != keysPath || constants["scrubPath"] != scrubPath {
		t.Fatalf("the constants were not found: %v", constants)
	}
	for _, path := range append(routes, slices.Collect(maps.Values(constants))...) {
		if !described(path) {
			t.Errorf("%s is a route, and not described", path)
		}
	}
}

// pathConstants evaluates the constants of this package whose names end in Path.
func pathConstants(t *testing.T) map[string]string {
	t.Helper()
	exprs := map[string]ast.Expr{}
	names, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range names {
		if !strings.HasSuffix(entry.Name(), ".go") || strings.HasSuffix(entry.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), entry.Name(), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			if gen, ok := decl.(*ast.GenDecl); ok && gen.Tok == token.CONST {
				for _, spec := range gen.Specs {
					v := spec.(*ast.ValueSpec)
					for i := range v.Values {
						exprs[v.Names[i].Name] = v.Values[i]
					}
				}
			}
		}
	}
	var eval func(e ast.Expr) string
	eval = func(e ast.Expr) string {
		switch e := e.(type) {
		case *ast.BasicLit:
			return strings.Trim(e.Value, "`\"")
		case *ast.Ident:
			return eval(exprs[e.Name])
		case *ast.BinaryExpr:
			return eval(e.X) + eval(e.Y)
		}
		t.Fatalf("a path is made of %T, which this test can't read", e)
		return ""
	}
	out := map[string]string{}
	for name, e := range exprs {
		if strings.HasSuffix(name, "Path") {
			out[name] = eval(e)
		}
	}
	return out
}

func TestOpenAPI_DescribedParametersAreTaken_OthersRefused(t *testing.T) {
	_, all := description(t)
	_, s := describedDoor(wire.Response{Status: wire.StatusBusy})
	every := map[string]map[string]any{"nobody_knows": {"name": "nobody_knows", "example": "1"}}
	for _, d := range all {
		maps.Copy(every, d.parameters["query"])
	}
	for _, d := range all {
		required := url.Values{}
		for _, p := range d.parameters["query"] {
			if p["required"] == true {
				sample(t, required, p)
			}
		}
		body := map[string]string{"POST": d.goodBody(t), "PUT": d.goodBody(t)}[d.method]
		for name, p := range every {
			q := maps.Clone(required)
			sample(t, q, p)
			if d.id == "touchKey" && name != "ttl_seconds" && name != "ttl_ms" {
				q.Set("ttl_seconds", "1") // one of both is required, which can't be described
			}
			resp := ask(s, d.method, d.target(t)+"?"+q.Encode(), body)
			_, described := d.parameters["query"][name]
			switch {
			case described && resp.StatusCode == http.StatusBadRequest:
				t.Errorf("%s ?%s is described, and refused: %+v", d.id, q.Encode(), problemIn(t, resp))
			case !described && resp.StatusCode != http.StatusBadRequest:
				t.Errorf("%s ?%s is not described, and answered with %d", d.id, q.Encode(), resp.StatusCode)
			}
		}
	}
}

// goodBody is the example of the operation's body.
func (d *describedOperation) goodBody(t *testing.T) string {
	t.Helper()
	doc, _ := description(t)
	op := doc["paths"].(map[string]any)[d.path].(map[string]any)[strings.ToLower(d.method)].(map[string]any)
	body, ok := op["requestBody"].(map[string]any)
	if !ok {
		return ""
	}
	content := resolve(t, doc, body)["content"].(map[string]any)
	media, ok := content["application/json"].(map[string]any)
	if !ok {
		return "raw bytes"
	}
	b, err := json.Marshal(media["example"])
	if err != nil || media["example"] == nil {
		t.Fatalf("%s has no example of its body: %v", d.id, err)
	}
	return string(b)
}

func TestOpenAPI_IsServedInBothForms(t *testing.T) {
	_, s := start(t, nil)
	for path, contentType := range map[string]string{openAPIYAMLPath: "application/yaml", openAPIJSONPath: "application/json"} {
		resp, body := send(t, s, "GET", path, "")
		tag := resp.Header.Get("ETag")
		if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != contentType || resp.Header.Get("Cache-Control") != "no-cache" || !strings.HasPrefix(tag, `W/"`) {
			t.Fatalf("%s: %d %v", path, resp.StatusCode, resp.Header)
		}
		if path == openAPIYAMLPath && body != string(openAPISource) || path == openAPIJSONPath && !json.Valid([]byte(body)) {
			t.Errorf("%s is another text", path)
		}
		if head, none := send(t, s, "HEAD", path, ""); head.StatusCode != 200 || none != "" || head.Header.Get("ETag") != tag || head.ContentLength != int64(len(body)) {
			t.Errorf("HEAD %s: %d %v", path, head.StatusCode, head.Header)
		}
		for given, want := range map[string]int{tag: 304, strings.TrimPrefix(tag, "W/"): 304, `"1", ` + tag: 304, "*": 304, `"1"`: 200} {
			if resp, body := send(t, s, "GET", path, "", "If-None-Match", given); resp.StatusCode != want || want == 304 && (body != "" || resp.Header.Get("ETag") != tag) {
				t.Errorf("%s, If-None-Match %s: %d, want %d", path, given, resp.StatusCode, want)
			}
		}
		if resp, short := send(t, s, "GET", path, "", "Accept-Encoding", "zstd"); resp.Header.Get("Content-Encoding") != "zstd" || len(short) > len(body)/2 {
			t.Errorf("%s: %d bytes of %d, %v", path, len(short), len(body), resp.Header)
		}
	}
}
