package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/pprof/profile"
)

// Every kind of profile of a real node is a profile, with values of its kind.
func TestDebugProfile_RealNode_EveryKind(t *testing.T) {
	n, endpoint := openNode(t)
	defer func() {
		if err := n.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	metrics := n.Addresses().Metrics
	for kind, value := range map[string]string{"cpu": "cpu", "heap": "inuse_space", "allocs": "alloc_space", "mutex": "delay", "block": "delay", "goroutine": "goroutine"} {
		file := filepath.Join(t.TempDir(), kind+".pprof")
		code, out, errs := real(t, endpoint, "", "debug", "profile", kind, "--metrics", "http://"+metrics, "--seconds", "1", "--file", file)
		if code != 0 || out != file+"\n" {
			t.Fatalf("%s: exit %d, %q, %q", kind, code, out, errs)
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		p, err := profile.Parse(f)
		f.Close()
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		found := false
		for _, s := range p.SampleType {
			found = found || s.Type == value
		}
		if !found || kind == "goroutine" && len(p.Sample) == 0 {
			t.Errorf("%s: values %v, %d samples", kind, p.SampleType, len(p.Sample))
		}
		if left, err := os.ReadDir(filepath.Dir(file)); err != nil || len(left) != 1 {
			t.Errorf("%s: %v left beside, %v", kind, left, err)
		}
	}
}

func TestDebugProfile_Refusals_ExitCodesAndNoFile(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "CPU profiling already in use", 500) }))
	address := strings.TrimPrefix(s.URL, "http://")
	dir := t.TempDir()
	file := filepath.Join(dir, "x.pprof")
	for _, c := range []struct {
		args string
		code int
		errs string
	}{
		{"cpu --metrics " + address, exitFailed, "already in use"},
		{"nonsense", exitUsage, "unknown profile"},
		{"cpu --seconds 0", exitUsage, "--seconds is 0"},
		{"cpu --seconds 601", exitUsage, "1 to 600"},
		{"heap --metrics nowhere", exitUsage, "HOST:PORT"},
	} {
		code, out, errs := real(t, "127.0.0.1:1", "", append([]string{"debug", "profile", "--file", file}, strings.Fields(c.args)...)...)
		if code != c.code || out != "" || !strings.Contains(errs, c.errs) {
			t.Errorf("%s: exit %d, %q, %q", c.args, code, out, errs)
		}
	}
	s.Close()
	if code, _, errs := real(t, "127.0.0.1:1", "", "debug", "profile", "heap", "--metrics", address, "--file", file); code != exitConnect {
		t.Errorf("nothing listens: exit %d, %q", code, errs)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("%v left, %v", left, err)
	}
}
