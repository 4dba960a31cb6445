// Command pgo puts CPU profiles together into one for the Go compiler: pgo FILE… >default.pgo. It leaves out where the
// program and its sources lay, which the compiler does not look at and which belongs to one machine.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/google/pprof/profile"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "pgo:", err)
		os.Exit(1)
	}
}

func run(paths []string, out io.Writer) error {
	if len(paths) == 0 {
		return errors.New("name the profiles to put together")
	}
	var all []*profile.Profile
	for _, path := range paths {
		p, err := read(path)
		if err != nil {
			return err
		}
		all = append(all, p)
	}
	p, err := profile.Merge(all)
	if err != nil {
		return fmt.Errorf("cannot put the profiles together: %w", err)
	}
	for _, m := range p.Mapping {
		m.File, m.BuildID = "", ""
	}
	for _, f := range p.Function {
		f.Filename = ""
	}
	p.Comments = nil
	return p.Write(out)
}

func read(path string) (*profile.Profile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	p, err := profile.Parse(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	return p, nil
}
