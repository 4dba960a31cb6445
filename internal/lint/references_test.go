package lint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// reference matches `dir/file.go` and `dir/file.go#Func` in the documents.
var reference = regexp.MustCompile("`([a-z][a-z0-9_/-]*/[A-Za-z0-9_]+\\.(?:go|md))(?:#([A-Za-z0-9_]+))?`")

// The walks through the code in docs/ and README name files and functions; each must be there.
func TestDocuments_NameFilesAndFunctions_ThatExist(t *testing.T) {
	root := "../.."
	docs, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	docs = append(docs, filepath.Join(root, "README.md"))
	found := 0
	for _, doc := range docs {
		b, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range reference.FindAllStringSubmatch(string(b), -1) {
			found++
			if err := resolve(root, m[1], m[2]); err != "" {
				t.Errorf("%s: %s: %s", doc, m[0], err)
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d references found: the pattern no longer fits the documents", found)
	}
}

func TestResolve_WhatIsNotThere_IsReported(t *testing.T) {
	root := "../.."
	for _, c := range [][2]string{{"wire/nothing.go", ""}, {"wire/frame.go", "NoSuchFunction"}} {
		if resolve(root, c[0], c[1]) == "" {
			t.Errorf("%s#%s resolved", c[0], c[1])
		}
	}
	if err := resolve(root, "wire/frame.go", "DecodeHeader"); err != "" {
		t.Error(err)
	}
}

// resolve reports what is wrong with a reference, or nothing.
func resolve(root, file, fn string) string {
	path := filepath.Join(root, file)
	if fn == "" {
		if _, err := os.Stat(path); err != nil {
			return "no such file"
		}
		return ""
	}
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	if err != nil {
		return err.Error()
	}
	for _, d := range f.Decls {
		if fd, ok := d.(*ast.FuncDecl); ok && fd.Name.Name == fn {
			return ""
		}
	}
	return "no such function in it"
}
