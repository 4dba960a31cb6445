package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A backup that kvctl makes of a node, by the protocol that every program has, is one that it restores into another.
func TestReal_Backup_CreateVerifyInfoRestore(t *testing.T) {
	from, at := openNode(t)
	to, elsewhere := openNode(t)
	t.Cleanup(func() {
		for _, err := range []error{from.Close(context.Background()), to.Close(context.Background())} {
			if err != nil {
				t.Error(err)
			}
		}
	})
	must := func(endpoint, stdin string, args ...string) (stdout, stderr string) {
		t.Helper()
		code, stdout, stderr := real(t, endpoint, stdin, args...)
		if code != exitOK {
			t.Fatalf("%v: exit code %d\n%s%s", args, code, stdout, stderr)
		}
		return stdout, stderr
	}
	must(at, "", "namespace", "create", "app", "--keys", "500", "--compress", "zstd")
	must(at, "", "put", "a", "1", "--tag", "x=ü", "--tag", "b=2", "--content-type", "text/plain", "--encoding", "gzip", "--ttl", "1h")
	must(at, "", "put", "b", "2")
	must(at, "", "put", "soon", "3", "--ttl", "1h")
	must(at, strings.Repeat("x", 3<<20), "put", "large", "-", "--namespace", "app")
	file := filepath.Join(t.TempDir(), "all.kvbackup")

	out, talk := must(at, "", "backup", "create", file, "-o", "json")
	var doc struct {
		Revision   string
		Records    int
		Namespaces int
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil || doc.Records != 4 || doc.Namespaces != 2 || doc.Revision == "" || !strings.Contains(talk, "backed up 4 keys") {
		t.Errorf("create: %s%s, %v", out, talk, err)
	}
	if out, talk := must(at, "", "backup", "verify", file); !strings.Contains(out, "app ") || !strings.Contains(out, "4 records") || !strings.Contains(talk, "OK") {
		t.Errorf("verify: %s%s", out, talk)
	}
	if out, _ := must(at, "", "backup", "info", file, "-o", "json"); !strings.Contains(out, doc.Revision) || !strings.Contains(out, `"compress":"zstd"`) || !strings.Contains(out, `"keys_max":500`) {
		t.Errorf("info: %s", out)
	}
	if out, talk := must(elsewhere, "", "backup", "restore", file, "-o", "json"); !strings.Contains(out, `"records":4`) || !strings.Contains(out, `"namespaces_created":1`) {
		t.Errorf("restore: %s%s", out, talk)
	}
	for _, ns := range []string{"default", "app"} {
		want, _ := must(at, "", "export", "--namespace", ns)
		got, _ := must(elsewhere, "", "export", "--namespace", ns)
		if strip(t, want) != strip(t, got) {
			t.Errorf("%s: restored was %.300s, not %.300s", ns, got, want)
		}
	}
	if out, _ := must(elsewhere, "", "namespace", "describe", "app", "-o", "json"); !strings.Contains(out, `"keys_max":500`) || !strings.Contains(out, `"compress":"zstd"`) {
		t.Errorf("settings: %s", out)
	}

	// Again: it is not empty.
	if code, _, stderr := real(t, elsewhere, "", "backup", "restore", file); code != exitNotFound || !strings.Contains(stderr, "nothing was changed") {
		t.Errorf("again: exit code %d: %s", code, stderr)
	}
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	must(elsewhere, "", "put", "mine", "4")
	must(elsewhere, "", "put", "b", "other")
	must(elsewhere, string(whole), "backup", "restore", "-", "--merge", "--namespace", "default")
	if b, _ := must(elsewhere, "", "get", "b", "-o", "raw"); b != "2" {
		t.Errorf("merged: b is %q", b)
	}
	if mine, _ := must(elsewhere, "", "get", "mine", "-o", "raw"); mine != "4" {
		t.Errorf("merged: mine is %q", mine)
	}

	// To stdout, and one namespace.
	one, _ := must(at, "", "backup", "create", "-", "--namespace", "app")
	if out, _ := must(at, one, "backup", "verify", "-"); !strings.Contains(out, "1 records") || strings.Contains(out, "default") {
		t.Errorf("one namespace: %s", out)
	}

	// What is broken is found, and changes nothing.
	for name, b := range map[string][]byte{"cut": whole[:len(whole)-1], "more": append(bytes.Clone(whole), 0), "none": []byte("what is this, then")} {
		if code, _, stderr := real(t, at, string(b), "backup", "verify", "-"); code != exitFailed || stderr == "" {
			t.Errorf("%s: verify exits %d: %s", name, code, stderr)
		}
		if code, _, stderr := real(t, elsewhere, string(b), "backup", "restore", "-", "--merge"); code != exitFailed || stderr == "" {
			t.Errorf("%s: restore exits %d: %s", name, code, stderr)
		}
	}

	// A backup that fails leaves no file, and a good one that is there alone.
	if code, _, _ := real(t, at, "", "backup", "create", file, "--namespace", "nope"); code != exitNotFound {
		t.Errorf("no such namespace: exit code %d", code)
	}
	entries, err := os.ReadDir(filepath.Dir(file))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if again, err := os.ReadFile(file); err != nil || !bytes.Equal(whole, again) {
		t.Errorf("the good one was changed: %v", err)
	}
	for _, args := range []string{"backup", "backup what", "backup create", "backup restore a b", "backup create x --patience -1s", "backup create x --namespace -"} {
		if code, _, _ := real(t, at, "", strings.Fields(args)...); code != exitUsage {
			t.Errorf("%s: exit code %d", args, code)
		}
	}
}

// strip takes out of an export what a restore cannot keep to the microsecond.
func strip(t *testing.T, export string) string {
	t.Helper()
	var out strings.Builder
	for line := range strings.Lines(export) {
		var doc map[string]any
		if err := json.Unmarshal([]byte(line), &doc); err != nil {
			t.Fatal(err)
		}
		if v, ok := doc["expires_at"]; ok {
			at, err := time.Parse(time.RFC3339Nano, v.(string))
			if left := time.Until(at); err != nil || left < 50*time.Minute || left > time.Hour+time.Minute {
				t.Errorf("expires at %v, %v", v, err)
			}
			doc["expires_at"] = "then"
		}
		b, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(b)
		out.WriteByte('\n')
	}
	return out.String()
}
