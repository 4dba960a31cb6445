// Package lint keeps the house rules by a test instead of by memory.
//
// What it does: Check reads the tree once and reports every breach of
//
//   - the layers: which folder may import which, and who alone may import gnet, hashicorp/raft and
//     Badger (layers.go; the reason is printed with the finding);
//   - documentation: a doc.go with a package comment in every package, a doc comment on every exported
//     name, interface method and Options field (docs.go);
//   - the text: Go files stay short enough to be read, comments hold no open to-do marks, and nothing
//     speaks of the machine that it was written on (text.go).
//
// What it assumes: the import paths in the files tell everything, so it parses and neither builds nor
// resolves. That takes well under a second, and sees files of every build tag.
//
// What it never does: judge _test.go files and test-only folders by the layers. Tests put real parts
// together, and nothing that ships imports them.
package lint
