package node

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/pb33f/libopenapi-validator/config"
)

// The gateway's tests hold the door against openapi.yaml; what nodes say of themselves comes from here.
func TestREST_DocumentsOfNodes_AreAsTheServedDescriptionSays(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	for _, id := range c.ids {
		fetch := func(method, target string) (*http.Request, *http.Response) {
			t.Helper()
			req, err := http.NewRequest(method, "http://"+c.places[id].http+target, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { resp.Body.Close() })
			return req, resp
		}
		_, resp := fetch("GET", "/api/v1/openapi.yaml")
		source, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		doc, err := libopenapi.NewDocument(source)
		if err != nil {
			t.Fatal(err)
		}
		v, errs := validator.NewValidator(doc, config.WithFormatAssertions())
		if len(errs) != 0 {
			t.Fatal(errs)
		}
		for _, route := range []string{"GET status", "GET members", "GET namespaces", "GET namespaces/default", "POST scrub"} {
			method, path, _ := strings.Cut(route, " ")
			req, resp := fetch(method, "/api/v1/admin/"+path)
			if resp.StatusCode != 200 {
				t.Errorf("%s: %s: %d", id, route, resp.StatusCode)
			}
			_, errs := v.ValidateHttpResponse(req, resp)
			for _, err := range errs {
				t.Errorf("%s: %s: %s: %s", id, route, err.Message, err.Reason)
				for _, e := range err.SchemaValidationErrors {
					t.Errorf("%s: %s", e.FieldPath, e.Reason)
				}
			}
		}
		_, resp = fetch("GET", "/api/v1/admin/metrics")
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 || !strings.Contains(string(text), `kvstore_request_duration_seconds_bucket{operation="status",protocol="rest"`) {
			t.Errorf("%s: metrics: %d %v %.200q", id, resp.StatusCode, err, text)
		}
	}
}
