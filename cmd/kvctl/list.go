package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

const (
	// tableRows is how many rows share one set of column widths: a listing of any length takes bounded
	// memory, and starts to print early.
	tableRows = 500
	// tableValueRunes is how much of a value a table shows.
	tableValueRunes = 48
)

func (a *app) listCmd() *cobra.Command {
	var o listOptions
	var read readFlags
	var counts bool
	c := &cobra.Command{
		Use: "list [PREFIX]", Aliases: []string{"ls"}, Short: "List keys in order", Args: cobra.MaximumNArgs(1),
		Long: `List keys in order of their bytes, all as of one moment. -o table shows the beginning of each value, -o json
and jsonl the whole, -o raw a line of key, TAB and value (with --keys-only: the key).`,
		Example: `  kvctl list user:
  kvctl list user: --limit 10 --reverse
  kvctl list --start user:a --end user:n --keys-only
  kvctl list dir/ --delimiter /
  kvctl list user: --count
  kvctl list -o jsonl | jq -r .key`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.Prefix = args[0]
			}
			if o.Limit < 0 {
				return usagef("--limit is %d: it must be 0 (all) or more", o.Limit)
			}
			var err error
			if o.Read, err = read.options(cmd); err != nil {
				return err
			}
			if counts {
				if o.Delimiter != "" || o.Limit != 0 {
					return usagef("--count takes neither --limit nor --delimiter")
				}
				return a.op(cmd.Context(), func(ctx context.Context, s store, _ func() string) error {
					n, rev, err := s.Count(ctx, o)
					if err != nil {
						return err
					}
					if a.output == "json" || a.output == "jsonl" {
						return a.writeJSON(map[string]any{"count": n, "revision": strconv.FormatUint(rev, 10)})
					}
					return a.printf("%d\n", n)
				})
			}
			return a.with(cmd.Context(), func(s store) error { return a.list(cmd.Context(), s, o) })
		},
	}
	read.add(c)
	f := c.Flags()
	f.BoolVar(&counts, "count", false, "print how many keys there are, not the keys")
	f.StringVar(&o.Delimiter, "delimiter", "", "list one level: keys that have this text behind PREFIX are shown once, up to it")
	f.IntVar(&o.Limit, "limit", 0, "at most this many keys; 0 means all")
	f.BoolVar(&o.KeysOnly, "keys-only", false, "do not fetch the values")
	f.BoolVar(&o.Reverse, "reverse", false, "last key first")
	f.StringVar(&o.Start, "start", "", "first key of the range")
	f.StringVar(&o.End, "end", "", "end of the range, not part of it")
	return c
}

// sink takes records one by one.
type sink interface {
	add(r *record) error
	end() error
}

func (a *app) list(ctx context.Context, s store, o listOptions) error {
	w := bufio.NewWriterSize(a.out, 64<<10)
	var out sink
	switch a.output {
	case "json":
		out = &jsonSink{a: a, w: w, keysOnly: o.KeysOnly}
	case "jsonl":
		out = &lineSink{w: w, meta: true, keysOnly: o.KeysOnly}
	case "raw":
		out = &rawSink{w: w, keysOnly: o.KeysOnly}
	default:
		out = newTableSink(w, o.KeysOnly)
	}
	for r, err := range s.List(ctx, o) {
		if err == nil {
			err = out.add(&r)
		}
		if err != nil {
			// What came before the failure is shown; the message says that it is not all.
			return errors.Join(fmt.Errorf("the listing is not complete: %w", err), w.Flush())
		}
	}
	if err := out.end(); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("cannot write to stdout: %w", err)
	}
	return nil
}

// tableSink shows aligned columns.
type tableSink struct {
	w        io.Writer
	tw       *tabwriter.Writer
	rows     int
	keysOnly bool
}

func newTableSink(w io.Writer, keysOnly bool) *tableSink {
	return &tableSink{w: w, tw: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0), keysOnly: keysOnly}
}

func (t *tableSink) add(r *record) error {
	if t.rows == 0 {
		header := "KEY\tVERSION\tBYTES\tVALUE\n"
		if t.keysOnly {
			header = "KEY\tVERSION\n"
		}
		if _, err := io.WriteString(t.tw, header); err != nil {
			return err
		}
	}
	t.rows++
	var err error
	if r.CommonPrefix {
		rest := "\t…\t\t\n" // as many cells as the others have: they would not be aligned else
		if t.keysOnly {
			rest = "\t…\n"
		}
		_, err = fmt.Fprintf(t.tw, "%s%s", cell(r.Key), rest)
	} else if t.keysOnly {
		_, err = fmt.Fprintf(t.tw, "%s\t%d\n", cell(r.Key), r.Version)
	} else {
		_, err = fmt.Fprintf(t.tw, "%s\t%d\t%d\t%s\n", cell(r.Key), r.Version, len(r.Value), valueCell(r.Value))
	}
	if err == nil && t.rows%tableRows == 0 {
		err = t.tw.Flush()
	}
	return err
}

func (t *tableSink) end() error { return t.tw.Flush() }

// cell keeps control characters out of a table: they would break columns or drive the terminal.
func cell(s string) string {
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return strconv.Quote(s)
		}
	}
	return s
}

// valueCell shows the beginning of a value.
func valueCell(v []byte) string {
	if len(v) == 0 {
		return `""`
	}
	if !utf8.Valid(v) {
		return "(binary)"
	}
	s := string(v[:min(len(v), 4*tableValueRunes)])
	cut := len(s) < len(v)
	if n := utf8.RuneCountInString(s); n > tableValueRunes || cut {
		s, cut = string([]rune(s)[:min(n, tableValueRunes)]), true
	}
	s = cell(s)
	if cut {
		s += "…"
	}
	return s
}

// lineSink writes JSON lines.
type lineSink struct {
	w              *bufio.Writer
	meta, keysOnly bool
}

func (l *lineSink) add(r *record) error { return writeItem(l.w, newItem(r, l.meta, l.keysOnly)) }
func (l *lineSink) end() error          { return nil }

// jsonSink writes one JSON object with all items, as they come.
type jsonSink struct {
	a        *app
	w        *bufio.Writer
	n        int
	keysOnly bool
}

func (j *jsonSink) add(r *record) error {
	lead := ","
	if j.n == 0 {
		lead = "{\"items\":[\n"
	}
	j.n++
	if _, err := j.w.WriteString(lead); err != nil {
		return err
	}
	return writeItem(j.w, newItem(r, true, j.keysOnly))
}

func (j *jsonSink) end() error {
	text := "]}\n"
	if j.n == 0 {
		text = "{\"items\":[]}\n"
	}
	_, err := j.w.WriteString(text)
	return err
}

// rawSink writes the bytes as they are.
type rawSink struct {
	w        *bufio.Writer
	keysOnly bool
}

func (s *rawSink) add(r *record) error {
	if _, err := s.w.WriteString(r.Key); err != nil {
		return err
	}
	if !s.keysOnly && !r.CommonPrefix {
		if err := s.w.WriteByte('\t'); err != nil {
			return err
		}
		if _, err := s.w.Write(r.Value); err != nil {
			return err
		}
	}
	return s.w.WriteByte('\n')
}

func (s *rawSink) end() error { return nil }
