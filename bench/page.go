package bench

import (
	"fmt"
	"os"
	"strings"
)

// ReplaceInPage puts text in the place of what stands between two lines of a page that hold begin and end.
func ReplaceInPage(page, begin, end, text string) error {
	old, err := os.ReadFile(page)
	if err != nil {
		return fmt.Errorf("cannot read the page: %w", err)
	}
	head, rest, begins := strings.Cut(string(old), begin)
	_, tail, ends := strings.Cut(rest, end)
	if !begins || !ends {
		return fmt.Errorf("%s has no part between %q and %q", page, begin, end)
	}
	if err := os.WriteFile(page, []byte(head+begin+"\n"+text+end+tail), 0o644); err != nil {
		return fmt.Errorf("cannot write the page: %w", err)
	}
	return nil
}
