package lint

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// The first test is the one that matters: the repository itself. The others feed the checker small bad
// trees, so that each rule is known to be able to fail.

const module = "kvstore"

func TestRepository_KeepsTheHouseRules(t *testing.T) {
	findings, err := Check(os.DirFS("../.."), module)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		t.Error(f)
	}
}

func TestRepository_IsReadAtAll(t *testing.T) {
	tree, err := load(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	if len(tree.packages["internal/lint"]) < 5 || tree.texts["go.mod"] == nil || tree.texts[".ci/run"] == nil {
		t.Fatal("the walk misses its own package, go.mod or .ci/run: the test above checks nothing")
	}
	if !strings.HasPrefix(string(tree.texts["go.mod"]), "module "+module+"\n") {
		t.Fatal("the module has another name than the table assumes")
	}
}

func TestLayers_EveryForbiddenArrow_IsFoundWithItsReason(t *testing.T) {
	const gnet, raft, badger = "github.com/panjf2000/gnet/v2", "github.com/hashicorp/raft", "github.com/dgraph-io/badger/v4"
	type arrow struct{ from, to, reason string }
	var bad []arrow
	middle := []string{"netloop", "gateway", "batcher", "consensus", "engine", "feed", "security", "backup"}
	for _, from := range middle {
		for _, to := range append([]string{"node", "client", "bench"}, middle...) {
			if from != to {
				bad = append(bad, arrow{from, module + "/" + to, "side by side"})
			}
		}
	}
	for _, to := range append([]string{"node", "client", "internal/hist"}, middle...) {
		bad = append(bad, arrow{"wire", module + "/" + to, "at the bottom"})
	}
	for _, to := range append([]string{"node", "cmd/kvstore"}, middle...) {
		bad = append(bad,
			arrow{"client", module + "/" + to, "from outside"},
			arrow{"bench", module + "/" + to, "from outside"},
			arrow{"cmd/kvbench/sub", module + "/" + to, "from outside"},
			arrow{"internal/hist", module + "/" + to, "small shared tools"})
		if to != "backup" { // a file format and loops over what a client can do
			bad = append(bad, arrow{"cmd/kvctl", module + "/" + to, "from outside"})
		}
	}
	bad = append(bad,
		arrow{"node", module + "/bench", "knows no command"},
		arrow{"cmd/kvstore", module + "/engine", "nothing more"},
		arrow{"node", module + "/internal/testcluster", "tests only"},
		arrow{"node", module + "/test/crash", "tests only"},
		arrow{"wire", "golang.org/x/sys/unix", "two codecs"},
		arrow{"wire", "github.com/klauspost/compressor", "two codecs"},
		arrow{"engine/sub", module + "/wireless", "side by side"},
		arrow{"engine", module, "side by side"},
		arrow{"internal/lint", "golang.org/x/sys/unix", "outside what it checks"},
		arrow{"node", gnet, "only netloop"}, arrow{"client", gnet, "only netloop"},
		arrow{"engine", raft, "only consensus"}, arrow{"node", raft + "-wal", "only consensus"},
		arrow{"consensus", badger, "only engine"}, arrow{"cmd/kvstore", badger, "only engine"})
	for _, a := range bad {
		got := checkTree(t, map[string]string{
			a.from + "/doc.go": "// Package p is.\npackage p\n",
			a.from + "/p.go":   fmt.Sprintf("package p\n\nimport _ %q\n", a.to),
		})
		if len(got) != 1 || got[0].Rule != "layers" || got[0].Line != 3 || !strings.Contains(got[0].Text, a.reason) {
			t.Errorf("%s -> %s: findings %v, want one that says %q", a.from, a.to, got, a.reason)
		}
	}
}

func TestLayers_AllowedArrows_AreNotFound(t *testing.T) {
	for from, targets := range map[string][]string{
		"wire":              {"fmt", "encoding/binary", "github.com/klauspost/compress/s2", "github.com/cespare/xxhash/v2"},
		"netloop/sub":       {module + "/netloop", module + "/wire", module + "/internal/hist", "github.com/panjf2000/gnet/v2/pkg/pool"},
		"consensus":         {module + "/wire", "github.com/hashicorp/raft", "github.com/hashicorp/raft-wal/types"},
		"engine":            {module + "/wire", "github.com/dgraph-io/badger/v4/options"},
		"node":              {module + "/engine", module + "/netloop", module + "/wire"},
		"bench":             {module + "/client"},
		"client":            {module + "/wire", module + "/internal/hist"},
		"cmd/kvstore":       {module + "/node", "github.com/spf13/cobra"},
		"internal/hist":     {module + "/wire", module + "/internal/clock"},
		"test/crash":        {module + "/engine", module + "/client", "github.com/hashicorp/raft"},
		"internal/lint":     {"go/ast"},
		"internal/diskgone": {module + "/internal/record"},
	} {
		for _, to := range targets {
			got := checkTree(t, map[string]string{
				from + "/doc.go": "// Package p is.\npackage p\n",
				from + "/p.go":   fmt.Sprintf("package p\n\nimport _ %q\n", to),
			})
			if len(got) != 0 {
				t.Errorf("%s -> %s: findings %v, want none", from, to, got)
			}
		}
	}
	if got := checkTree(t, map[string]string{"client/x_test.go": "package client\n\nimport _ \"kvstore/node\"\n"}); len(got) != 0 {
		t.Errorf("a test that imports more: findings %v, want none", got)
	}
}

func TestCheck_EachOtherRule_CanFail(t *testing.T) {
	const doc = "// Package wire is.\npackage wire\n"
	for name, c := range map[string]struct {
		files map[string]string
		want  []string // rule and a part of the text; none: no finding
	}{
		"clean": {map[string]string{"wire/doc.go": doc, "wire/a.go": `package wire

// A is.
const A = 1

// Kinds.
const (
	B = iota
	C
)

const D = 1 // D is.

// T is.
type T struct{ F int }

// M does.
func (*T) M() {}

type hidden struct{}

func (hidden) Exported() {}

// I is.
type I interface {
	// Do does.
	Do()
}
`}, nil},
		"no doc.go":            {map[string]string{"wire/a.go": doc}, []string{"docs", "no doc.go"}},
		"doc.go says another":  {map[string]string{"wire/doc.go": "// This is wire.\npackage wire\n"}, []string{"docs", "no doc.go"}},
		"doc.go without text":  {map[string]string{"wire/doc.go": "package wire\n"}, []string{"docs", "no doc.go"}},
		"command without text": {map[string]string{"cmd/kvctl/main.go": "package main\n"}, []string{"docs", "command"}},
		"command with text":    {map[string]string{"cmd/kvctl/main.go": "// Command kvctl is.\npackage main\n\nfunc Exported() {}\n"}, nil},
		"function":             {map[string]string{"wire/doc.go": doc + "\nfunc F() {}\n"}, []string{"docs", "exported F"}},
		"method":               {map[string]string{"wire/doc.go": doc + "\n// T is.\ntype T[K any] struct{}\n\nfunc (t *T[K]) M() {}\n"}, []string{"docs", "exported T.M"}},
		"type":                 {map[string]string{"wire/doc.go": doc + "\ntype T int\n"}, []string{"docs", "exported T"}},
		"type in a group":      {map[string]string{"wire/doc.go": doc + "\n// Types.\ntype (\n\tT int\n)\n"}, []string{"docs", "exported T"}},
		"constant":             {map[string]string{"wire/doc.go": doc + "\nconst (\n\tA = 1 // A is.\n\tB = 2\n)\n"}, []string{"docs", "exported B"}},
		"variable":             {map[string]string{"wire/doc.go": doc + "\nvar V int\n"}, []string{"docs", "exported V"}},
		"interface method":     {map[string]string{"wire/doc.go": doc + "\n// I is.\ntype I interface{ Do() }\n"}, []string{"docs", "exported I.Do"}},
		"option":               {map[string]string{"wire/doc.go": doc + "\n// Options of.\ntype Options struct {\n\tA int // A is.\n\tB int\n}\n"}, []string{"docs", "exported Options.B"}},
		"tests are free":       {map[string]string{"wire/doc.go": doc, "wire/a_test.go": "package wire\n\nfunc F() {}\n"}, nil},
		"generated is free":    {map[string]string{"wire/a.go": "// Code generated by x. DO NOT EDIT.\n\npackage wire\n\nfunc F() {}\n" + strings.Repeat("\n", 1000)}, nil},
		"long file":            {map[string]string{"wire/doc.go": doc, "wire/a_test.go": "package wire\n" + strings.Repeat("\n", goLinesMax)}, []string{"length", "901 lines"}},
		"longest file":         {map[string]string{"wire/doc.go": doc, "wire/a_test.go": "package wire\n" + strings.Repeat("\n", goLinesMax-1)}, nil},
		"open mark":            {map[string]string{"wire/doc.go": doc + "\n// TO" + "DO: later\n"}, []string{"words", "in a comment"}},
		"context.TO" + "DO":    {map[string]string{"wire/doc.go": doc + "\nimport \"context\"\n\nvar _ = context.TO" + "DO\n"}, nil},
		"machine path":         {map[string]string{"docs/a.md": "see\n`/wo" + "rk/main`\n"}, []string{"words", "one machine"}},
		"relative path":        {map[string]string{"docs/a.md": "see some/wo" + "rk/dir and ../wo" + "rk/dir\n"}, nil},
		"outside note":         {map[string]string{"Makefile": "# fac" + "ts/badger.md\n"}, []string{"words", "state the fact"}},
		"outside design":       {map[string]string{".ci/run": "# architectur" + "e.md §2\n"}, []string{"words", "state the fact"}},
		"own design":           {map[string]string{"README.md": "docs/ARCHITECTURE.md\n"}, nil},
		"not source":           {map[string]string{"bin/a": "/wo" + "rk/", ".git/a": "/wo" + "rk/", "docs/a.png": "\x00/wo" + "rk/", "kvstore-data/a": "/wo" + "rk/"}, nil},
		"syntax error":         {map[string]string{"wire/doc.go": doc + "\nfunc {\n"}, []string{"syntax", "cannot parse"}},
		"testdata is no code":  {map[string]string{"wire/doc.go": doc, "wire/testdata/a.go": "func {\n"}, nil},
		"folder without place": {map[string]string{"helpers/doc.go": "// Package helpers is.\npackage helpers\n"}, []string{"layers", "no place"}},
	} {
		got := checkTree(t, c.files)
		if c.want == nil && len(got) != 0 {
			t.Errorf("%s: findings %v, want none", name, got)
		}
		if c.want != nil && (len(got) != 1 || got[0].Rule != c.want[0] || !strings.Contains(got[0].String(), c.want[1])) {
			t.Errorf("%s: findings %v, want one of rule %q that says %q", name, got, c.want[0], c.want[1])
		}
	}
}

func TestLayers_Table_NamesEachFolderOnceWithAReason(t *testing.T) {
	var seen []string
	for _, l := range layers {
		if slices.Contains(seen, l.folder) {
			t.Errorf("%s stands in the table twice", l.folder)
		}
		if l.reason == "" && !l.testOnly {
			t.Errorf("%s has no reason", l.folder)
		}
		seen = append(seen, l.folder)
	}
}

func checkTree(t *testing.T, files map[string]string) []Finding {
	t.Helper()
	root := fstest.MapFS{}
	for name, content := range files {
		root[name] = &fstest.MapFile{Data: []byte(content)}
	}
	findings, err := Check(root, module)
	if err != nil {
		t.Fatal(err)
	}
	return findings
}
