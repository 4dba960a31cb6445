package main

import (
	"bufio"
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"
)

func (a *app) watchCmd() *cobra.Command {
	var o watchOptions
	var key string
	var only []string
	var most int
	c := &cobra.Command{
		Use: "watch [PREFIX]", Short: "Follow changes as they happen", Args: cobra.MaximumNArgs(1),
		Long: `Print each change of the keys that begin with PREFIX, of one key, or of a range, until interrupted: in the order in which
they happened, each once, also when nodes come and go meanwhile. It begins now, or behind a revision that is still kept:
that of a listing, of a write, or of the last line that was printed. Lines go out as changes come in; -o json and jsonl
print one JSON object a line, -o raw key, TAB and value of puts.`,
		Example: `  kvctl watch user:
  kvctl watch --key leader -n 1
  kvctl watch jobs/ --after 44040192 -o jsonl
  kvctl watch --only delete,expire --previous`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.Prefix = args[0]
			}
			if cmd.Flags().Changed("key") {
				if len(args) == 1 || o.Start != "" || o.End != "" {
					return usagef("--key names one key: it takes neither PREFIX nor --start nor --end")
				}
				if err := checkKey(key); err != nil {
					return err
				}
				o.Key = key
			}
			if o.FromStart && o.After != 0 {
				return usagef("--from-start and --after contradict each other")
			}
			if most < 0 {
				return usagef("-n is %d: it must be 0 (no end) or more", most)
			}
			for _, kind := range only {
				if !slices.Contains([]string{"put", "delete", "expire"}, kind) {
					return usagef("unknown kind %q in --only: use put, delete and expire", kind)
				}
			}
			if len(only) > 0 {
				o.NoPut, o.NoDelete, o.NoExpire = !slices.Contains(only, "put"), !slices.Contains(only, "delete"), !slices.Contains(only, "expire")
			}
			return a.with(cmd.Context(), func(s store) error { return a.watch(cmd.Context(), s, o, most) })
		},
	}
	f := c.Flags()
	f.StringVar(&key, "key", "", "follow this one key")
	f.StringVar(&o.Start, "start", "", "first key of the range")
	f.StringVar(&o.End, "end", "", "end of the range, not part of it")
	f.Uint64Var(&o.After, "after", 0, "begin behind this revision (default: now)")
	f.BoolVar(&o.FromStart, "from-start", false, "begin at the first change that is still kept, if that is the first of all")
	f.BoolVar(&o.KeysOnly, "keys-only", false, "do not fetch the values")
	f.BoolVar(&o.Previous, "previous", false, "also tell what was there before, while that is kept")
	f.StringSliceVar(&only, "only", nil, "kinds of changes to tell: put, delete, expire")
	f.IntVarP(&most, "number", "n", 0, "end after this many changes; 0: never")
	return c
}

// watch prints changes until ctx ends, or most of them are printed.
func (a *app) watch(ctx context.Context, s store, o watchOptions, most int) error {
	begin, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	w, err := s.Watch(begin, o)
	if err != nil {
		return compactedWatch(err)
	}
	defer w.Close()
	if a.errTTY {
		a.talk("watching from revision %d on; Ctrl-C ends it\n", w.Revision())
	}
	out := bufio.NewWriterSize(a.out, 64<<10)
	for n := 0; most == 0 || n < most; n++ {
		e, err := w.Next(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return quietError{exitInterrupted} // the usual end of a watch: nothing to tell
			}
			if isKind(err, kindCompacted) {
				return compactedWatch(fmt.Errorf("the watch has ended behind revision %d: %w", w.Revision(), err))
			}
			return fmt.Errorf("the watch has ended behind revision %d (go on with --after %d): %w", w.Revision(), w.Revision(), err)
		}
		if err := a.showEvent(out, &e, o.KeysOnly); err != nil {
			return fmt.Errorf("cannot write to stdout: %w", err)
		}
		if err := out.Flush(); err != nil {
			return fmt.Errorf("cannot write to stdout: %w", err)
		}
	}
	return nil
}

// compactedWatch says what to do when the changes that a watch asks for are no longer kept: not the same as for a listing.
func compactedWatch(err error) error {
	if !isKind(err, kindCompacted) {
		return err
	}
	return &storeError{kind: kindFailed, err: fmt.Errorf("%w: start a watch from now on, and list the keys after that", err)}
}

// jsonEvent is a change in JSON, in the form of REST.
type jsonEvent struct {
	Event    string `json:"event"`
	Revision string `json:"revision"`
	Last     bool   `json:"last"`
	item
	Previous     *item `json:"previous,omitempty"`
	PreviousLost bool  `json:"previous_lost,omitempty"`
}

func (a *app) showEvent(w *bufio.Writer, e *event, keysOnly bool) error {
	keysOnly = keysOnly || e.Kind != "put"
	switch a.output {
	case "json", "jsonl":
		j := jsonEvent{Event: e.Kind, Revision: strconv.FormatUint(e.Revision, 10), Last: e.Last, item: newItem(&e.Record, true, keysOnly), PreviousLost: e.PreviousLost}
		if e.Previous != nil {
			p := newItem(e.Previous, true, false)
			j.Previous = &p
		}
		return writeItem(w, j)
	case "raw":
		if e.Kind != "put" {
			return nil
		}
		return (&rawSink{w: w, keysOnly: keysOnly}).add(&e.Record)
	}
	_, err := fmt.Fprintf(w, "%d %-6s %s", e.Revision, e.Kind, cell(e.Record.Key))
	if err == nil && !keysOnly {
		_, err = fmt.Fprintf(w, " = %s", valueCell(e.Record.Value))
	}
	switch {
	case err != nil:
	case e.PreviousLost:
		_, err = w.WriteString(" (before: no longer kept)")
	case e.Previous != nil:
		_, err = fmt.Fprintf(w, " (before: %s)", valueCell(e.Previous.Value))
	}
	if err == nil {
		err = w.WriteByte('\n')
	}
	return err
}
