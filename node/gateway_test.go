package node

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kvstore/gateway"
)

// What the options say of the doors' rates and log holds on a node as it runs; the operator's port has no rate, and the
// log is whole once the node has stopped.
func TestNode_GatewayOptions_ReachTheDoors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "requests.log")
	c := newCluster(t, 1, func(o *Options) {
		o.Gateway = gateway.Options{ClientRequestsPerSecond: 1, RequestLog: gateway.RequestLogAll, RequestLogFile: path}
	})
	c.start("node-1")
	n := c.node("node-1")
	limited := 0
	for range 50 {
		status, doc := rest(t, n.Addresses().HTTP, "GET", "/api/v1/admin/status", "")
		if status == http.StatusTooManyRequests && doc["title"] == "LIMITED" {
			limited++
		} else if status != http.StatusOK {
			t.Fatalf("%d %v", status, doc)
		}
	}
	if limited == 0 {
		t.Error("50 requests at one a second, and none is refused")
	}
	for range 50 {
		resp, err := http.Get("http://" + n.Addresses().Metrics + "/livez")
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("the operator's port: %v, %v", resp, err)
		}
		_ = resp.Body.Close()
	}
	var b strings.Builder
	if err := (opsView{n}).WriteMetrics(&b); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), `kvstore_gateway_limited_total{limit="client"}`) || strings.Contains(b.String(), `kvstore_gateway_limited_total{limit="client"} 0`) {
		t.Error("the metrics do not tell what was refused")
	}
	c.stop("node-1")
	log, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(string(log), `"protocol":"rest","operation":"status"`); got != 50 {
		t.Errorf("%d lines for 50 requests:\n%s", got, log)
	}
}
