package lint

import (
	"bytes"
	"regexp"
)

// goLinesMax is where a file stops being one that a reader holds in mind.
const goLinesMax = 900

// banned lists what no text file of the tree may hold. The patterns are written so that they do not
// match themselves.
var banned = []struct {
	pattern *regexp.Regexp
	reason  string
}{
	{regexp.MustCompile(`(?:^|[^\w.])/wor[k]/`), "a path of one machine: the project must make sense on every other"},
	{regexp.MustCompile(`/tmp/brie[f]`), "a path of one machine: the project must make sense on every other"},
	{regexp.MustCompile(`\bfact[s]/(badger|net|raft|reliability)`), "a note outside the project: state the fact itself"},
	{regexp.MustCompile(`\bshare[d]/(architecture|contract|facts|models|spec|ux)`), "a note outside the project: state the fact itself"},
	{regexp.MustCompile(`\b(architectur[e]|contrac[t]|model[s])\.md\b`), "a note outside the project: state the fact itself"},
}

// openMark finds what says that something is not finished.
var openMark = regexp.MustCompile(`\b(TODO|FIXME)\b`)

// checkText reports long Go files, banned words, and open marks in Go comments.
func (t *tree) checkText() {
	for name, content := range t.texts {
		number := 0
		for line := range bytes.Lines(content) {
			number++
			for _, b := range banned {
				if found := b.pattern.Find(line); found != nil {
					t.report(name, number, "words", "%q is %s", bytes.TrimSpace(found), b.reason)
				}
			}
		}
	}
	for _, files := range t.packages {
		for _, f := range files {
			if f.generated {
				continue
			}
			if n := bytes.Count(t.texts[f.path], []byte("\n")); n > goLinesMax {
				t.report(f.path, 0, "length", "%d lines, and %d is the limit: split it by noun", n, goLinesMax)
			}
			for _, group := range f.syntax.Comments {
				for _, c := range group.List {
					if mark := openMark.FindString(c.Text); mark != "" {
						t.report(f.path, t.line(c.Pos()), "words", "%s in a comment: do it, or file it as an issue", mark)
					}
				}
			}
		}
	}
}
