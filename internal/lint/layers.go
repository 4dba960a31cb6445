package lint

import (
	"path"
	"strconv"
	"strings"
)

// layer says what the packages in a folder, and below it, may import.
type layer struct {
	folder string

	// own lists the folders of this module that may be imported, each with what lies below it. A
	// package may always import its own layer.
	own []string

	// onlyLibraries, if not nil, lists the only modules of others that may be imported.
	onlyLibraries []string

	// testOnly marks folders that never ship: they may import everything.
	testOnly bool

	reason string
}

const (
	sideBySide = "the parts between wire and node stay side by side and unaware of each other: " +
		"what joins them is an interface that the calling side declares, put together in node"
	blackBox = "client and bench see the server from outside only, as a user's program does"
	thinMain = "commands turn flags, environment and files into Options and call Open and Close, nothing more"
)

// layers is the picture "wire at the bottom, node at the top". The longest folder that matches counts; a
// folder that matches none is itself a finding, so that a new one gets its place on purpose.
var layers = []layer{
	{folder: ".", reason: "the root of the repository holds no code that others need"},

	{folder: "wire", onlyLibraries: []string{"github.com/klauspost/compress", "github.com/cespare/xxhash/v2"},
		reason: "wire lies at the bottom: clients in other programs carry it, so it brings nothing but its two codecs"},

	{folder: "api", own: []string{}, onlyLibraries: []string{"google.golang.org/grpc", "google.golang.org/protobuf"},
		reason: "the interfaces for other programs are generated and stand alone, so that any program can carry them"},

	{folder: "netloop", own: []string{"wire", "internal"}, reason: sideBySide},
	{folder: "gateway", own: []string{"api", "wire", "internal"}, reason: sideBySide},
	{folder: "batcher", own: []string{"wire", "internal"}, reason: sideBySide},
	{folder: "consensus", own: []string{"wire", "internal"}, reason: sideBySide},
	{folder: "engine", own: []string{"wire", "internal"}, reason: sideBySide},
	{folder: "feed", own: []string{"wire", "internal"}, reason: sideBySide},
	{folder: "security", own: []string{"wire", "internal"}, reason: sideBySide},
	{folder: "backup", own: []string{"wire", "internal"}, reason: sideBySide},

	{folder: "node", own: []string{"netloop", "gateway", "batcher", "consensus", "engine", "feed", "security", "backup", "client", "wire", "internal"},
		reason: "node joins the server's parts; it lies above them all and knows no command; what it passes on to the leader goes through the client that users have"},

	{folder: "client", own: []string{"wire", "internal"}, reason: blackBox},
	{folder: "bench", own: []string{"api", "client", "wire", "internal"}, reason: blackBox},
	{folder: "perf", own: []string{"bench", "client", "wire", "internal"}, reason: blackBox},

	{folder: "cmd/kvstore", own: []string{"node", "wire", "internal"}, reason: thinMain},
	{folder: "cmd/kvctl", own: []string{"backup", "bench", "client", "wire", "internal"},
		reason: thinMain + "; " + blackBox + "; of the server's parts it has backup alone, which is a file format and loops over what a client can do"},
	{folder: "cmd/kvbench", own: []string{"bench", "client", "wire", "internal"}, reason: thinMain + "; " + blackBox},

	{folder: "internal", own: []string{"wire"}, reason: "internal packages are small shared tools: a part imported from there would reach every other part"},
	{folder: "internal/lint", onlyLibraries: []string{}, reason: "the checker stands outside what it checks"},
	{folder: "internal/testcluster", testOnly: true},
	{folder: "test", testOnly: true},
}

// owners says which folder alone may import a library (a prefix of import paths).
var owners = []struct {
	library, owner, reason string
}{
	{"github.com/panjf2000/gnet", "netloop", "only netloop knows which gnet calls are safe on which goroutine"},
	{"github.com/hashicorp/", "consensus", "only consensus wraps hashicorp/raft, whose bare form has open safety bugs"},
	{"github.com/dgraph-io/", "engine", "only engine knows which Badger calls lose or resurrect data"},
}

// checkLayers reports every import that the table does not allow.
func (t *tree) checkLayers(module string) {
	for dir, files := range t.packages {
		l := layerOf(dir)
		if l == nil {
			t.report(dir, 0, "layers", "this folder has no place in the table of internal/lint/layers.go: give it one, with the reason")
			continue
		}
		if l.testOnly {
			continue
		}
		for _, f := range files {
			if f.test {
				continue
			}
			for _, spec := range f.syntax.Imports {
				target, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					continue // the parser has checked it
				}
				if text := l.forbids(module, target); text != "" {
					t.report(f.path, t.line(spec.Pos()), "layers", "%s", text)
				}
			}
		}
	}
}

// forbids returns why l may not import target, or "".
func (l *layer) forbids(module, target string) string {
	if target == module || under(target, module) {
		folder := strings.TrimPrefix(strings.TrimPrefix(target, module), "/")
		of := layerOf(folder)
		if of == l {
			return ""
		}
		if of != nil && of.testOnly {
			return l.folder + " may not import " + target + ": it exists for tests only"
		}
		for _, own := range l.own {
			if folder == own || under(folder, own) {
				return ""
			}
		}
		return l.folder + " may not import " + target + ": " + l.reason
	}
	if first, _, _ := strings.Cut(target, "/"); !strings.Contains(first, ".") {
		return "" // standard library
	}
	for _, o := range owners {
		if strings.HasPrefix(target, o.library) && l.folder != o.owner {
			return l.folder + " may not import " + target + ": " + o.reason
		}
	}
	if l.onlyLibraries == nil {
		return ""
	}
	for _, library := range l.onlyLibraries {
		if target == library || under(target, library) {
			return ""
		}
	}
	return l.folder + " may not import " + target + ": " + l.reason
}

// layerOf returns the layer with the longest folder that holds dir, or nil.
func layerOf(dir string) *layer {
	for at := path.Clean(dir); ; at = path.Dir(at) {
		for i := range layers {
			// The root is the layer of root files only, or every new folder would fall under it.
			if layers[i].folder == at && (at != "." || dir == "." || dir == "") {
				return &layers[i]
			}
		}
		if at == "." {
			return nil
		}
	}
}

// under tells whether name lies below folder.
func under(name, folder string) bool {
	return strings.HasPrefix(name, folder+"/")
}
