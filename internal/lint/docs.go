package lint

import (
	"go/ast"
	"go/token"
	"path"
	"strings"
)

// checkDocs reports packages without a doc.go and exported names without a doc comment. Generated files
// and tests are left out, and so are the exported names of a main package, which nobody can import.
func (t *tree) checkDocs() {
	for dir, files := range t.packages {
		var written []*goFile
		for _, f := range files {
			if !f.test && !f.generated {
				written = append(written, f)
			}
		}
		if len(written) == 0 {
			continue
		}
		name := written[0].syntax.Name.Name
		t.checkPackageComment(dir, name, written)
		if name == "main" {
			continue
		}
		for _, f := range written {
			for _, decl := range f.syntax.Decls {
				switch d := decl.(type) {
				case *ast.FuncDecl:
					t.checkFunc(f, d)
				case *ast.GenDecl:
					t.checkGroup(f, d)
				}
			}
		}
	}
}

// checkPackageComment wants the package comment in doc.go, and for a command in any file.
func (t *tree) checkPackageComment(dir, name string, files []*goFile) {
	for _, f := range files {
		if f.syntax.Doc == nil || (name != "main" && path.Base(f.path) != "doc.go") {
			continue
		}
		if name == "main" || strings.HasPrefix(f.syntax.Doc.Text(), "Package "+name+" ") {
			return
		}
	}
	if name == "main" {
		t.report(dir, 0, "docs", "the command has no package comment: say what it does")
		return
	}
	t.report(dir, 0, "docs", "package %s has no doc.go that starts with \"Package %s …\": say what it does, assumes, owns and never does", name, name)
}

func (t *tree) checkFunc(f *goFile, d *ast.FuncDecl) {
	if !d.Name.IsExported() || d.Doc != nil {
		return
	}
	name := d.Name.Name
	if d.Recv != nil {
		receiver := receiverName(d.Recv.List[0].Type)
		if !ast.IsExported(receiver) {
			return
		}
		name = receiver + "." + name
	}
	t.undocumented(f, d.Pos(), name)
}

// checkGroup checks the names of a const, var or type declaration. A comment on the group serves all
// constants and variables in it, and a type that stands alone.
func (t *tree) checkGroup(f *goFile, d *ast.GenDecl) {
	for _, spec := range d.Specs {
		switch s := spec.(type) {
		case *ast.ValueSpec:
			if d.Doc != nil || s.Doc != nil || s.Comment != nil {
				continue
			}
			for _, name := range s.Names {
				if name.IsExported() {
					t.undocumented(f, name.Pos(), name.Name)
				}
			}
		case *ast.TypeSpec:
			if !s.Name.IsExported() {
				continue
			}
			if s.Doc == nil && (d.Doc == nil || d.Lparen.IsValid()) {
				t.undocumented(f, s.Pos(), s.Name.Name)
			}
			t.checkMembers(f, s)
		}
	}
}

// checkMembers checks the methods of an interface and the fields of an Options struct: those are what a
// caller has to get right.
func (t *tree) checkMembers(f *goFile, s *ast.TypeSpec) {
	var fields *ast.FieldList
	switch typ := s.Type.(type) {
	case *ast.InterfaceType:
		fields = typ.Methods
	case *ast.StructType:
		if !strings.HasSuffix(s.Name.Name, "Options") {
			return
		}
		fields = typ.Fields
	default:
		return
	}
	for _, field := range fields.List {
		if field.Doc != nil || field.Comment != nil {
			continue
		}
		for _, name := range field.Names {
			if name.IsExported() {
				t.undocumented(f, name.Pos(), s.Name.Name+"."+name.Name)
			}
		}
	}
}

func (t *tree) undocumented(f *goFile, pos token.Pos, name string) {
	t.report(f.path, t.line(pos), "docs", "exported %s has no doc comment: say its meaning, units and errors", name)
}

// receiverName returns the type name of a method's receiver.
func receiverName(e ast.Expr) string {
	for {
		switch x := e.(type) {
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.IndexListExpr:
			e = x.X
		case *ast.Ident:
			return x.Name
		default:
			return ""
		}
	}
}
