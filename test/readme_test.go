package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kvstore/internal/testcluster"
)

// grpcurlModule is what README.md tells to use; it is built once for the test and is no part of the product.
const grpcurlModule = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3"

// readmeBlock gives the block of code behind a comment in README.md.
func readmeBlock(t *testing.T, comment string) string {
	t.Helper()
	b, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(b), "<!-- "+comment+" -->\n```")
	_, rest, line := strings.Cut(rest, "\n")
	block, _, end := strings.Cut(rest, "\n```")
	if !found || !line || !end {
		t.Fatalf("README.md has no block of code behind %q", comment)
	}
	return block
}

// TestREADME_ExamplesOfTheDoors runs what README.md shows of gRPC and REST, with the ports of a node of the test.
func TestREADME_ExamplesOfTheDoors_DoWhatTheySay(t *testing.T) {
	if testing.Short() {
		t.Skip("builds grpcurl")
	}
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("there is no curl here: ", err)
	}
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "install", grpcurlModule)
	build.Env = append(os.Environ(), "GOBIN="+bin, "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("cannot build grpcurl: %v\n%s", err, out)
	}
	n := testcluster.Start(t, testcluster.Options{})
	ports := strings.NewReplacer("127.0.0.1:7002", n.GRPCAddr(), "127.0.0.1:7003", n.HTTPAddr())
	want := []string{`"version"`, `"value": "aGVsbG8="`, `{"version":"`, "hello, REST"}
	commands := strings.Split(readmeBlock(t, "run by test/readme_test.go"), "\n")
	if len(commands) != len(want) {
		t.Fatalf("%d commands, %d are known here", len(commands), len(want))
	}
	for i, command := range commands {
		cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", ports.Replace(command))
		cmd.Env = append(os.Environ(), "PATH="+bin+string(filepath.ListSeparator)+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), want[i]) {
			t.Errorf("%s\n%v, and it prints %s; want %s", command, err, out, want[i])
		}
	}
}
