package lint

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Finding is one breach of a rule.
type Finding struct {
	// File is the path below the root, with slashes. Line counts from 1; 0 means the file or folder.
	File string
	Line int

	// Rule is the short name of the rule, Text what is wrong and why the rule exists.
	Rule string
	Text string
}

// String returns "file:line: [rule] text".
func (f Finding) String() string {
	at := f.File
	if f.Line > 0 {
		at = fmt.Sprintf("%s:%d", f.File, f.Line)
	}
	return fmt.Sprintf("%s: [%s] %s", at, f.Rule, f.Text)
}

// Check reads the tree at root, a module named module, and returns all findings, sorted. An error means
// that the tree could not be read.
func Check(root fs.FS, module string) ([]Finding, error) {
	t, err := load(root)
	if err != nil {
		return nil, err
	}
	t.checkLayers(module)
	t.checkDocs()
	t.checkText()
	slices.SortFunc(t.findings, func(a, b Finding) int {
		return strings.Compare(a.String(), b.String())
	})
	return t.findings, nil
}

// tree is what one walk has read. Owned by Check.
type tree struct {
	fset     *token.FileSet
	packages map[string][]*goFile // by folder, "." for the root
	texts    map[string][]byte    // every text file, Go or not
	findings []Finding
}

// goFile is a parsed Go file.
type goFile struct {
	path      string
	syntax    *ast.File
	test      bool // _test.go
	generated bool
}

// textBytesMax bounds what is read as text; larger files are data.
const textBytesMax = 1 << 20

// load walks root. Left out: what git ignores at the top (bin, kvstore-data) and hidden folders but .ci.
func load(root fs.FS) (*tree, error) {
	t := &tree{fset: token.NewFileSet(), packages: map[string][]*goFile{}, texts: map[string][]byte{}}
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed while walking, such as an editor's or a test's temporary file
		}
		if err != nil {
			return err
		}
		if d.IsDir() {
			hidden := strings.HasPrefix(d.Name(), ".") && name != "." && name != ".ci"
			if hidden || name == "bin" || name == "kvstore-data" {
				return fs.SkipDir
			}
			return nil
		}
		return t.loadFile(root, name, d)
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read the tree: %w", err)
	}
	return t, nil
}

func (t *tree) loadFile(root fs.FS, name string, d fs.DirEntry) error {
	info, err := d.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() > textBytesMax {
		return nil
	}
	content, err := fs.ReadFile(root, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if bytes.IndexByte(content, 0) >= 0 {
		return nil // binary
	}
	t.texts[name] = content
	if path.Ext(name) != ".go" || slices.Contains(strings.Split(name, "/"), "testdata") {
		return nil
	}
	syntax, err := parser.ParseFile(t.fset, name, content, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.report(name, 0, "syntax", "cannot parse: %v", err)
		return nil
	}
	dir := path.Dir(name)
	t.packages[dir] = append(t.packages[dir], &goFile{
		path:      name,
		syntax:    syntax,
		test:      strings.HasSuffix(name, "_test.go"),
		generated: ast.IsGenerated(syntax),
	})
	return nil
}

func (t *tree) report(file string, line int, rule, format string, args ...any) {
	t.findings = append(t.findings, Finding{File: file, Line: line, Rule: rule, Text: fmt.Sprintf(format, args...)})
}

// line returns the line of a position.
func (t *tree) line(pos token.Pos) int { return t.fset.Position(pos).Line }
