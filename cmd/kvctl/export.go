package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// exportAttempts bounds how often an export into a file begins anew. What writes more in the meantime than
// the store keeps of the past would let no attempt end.
const exportAttempts = 3

func (a *app) exportCmd() *cobra.Command {
	var (
		o    listOptions
		file string
		meta bool
	)
	c := &cobra.Command{
		Use: "export [PREFIX]", Short: "Write keys as JSON lines", Args: cobra.MaximumNArgs(1),
		Long: `Write keys as JSON lines in order of their bytes, all as of one moment. Each line holds "key", the value as
"text" when it is valid UTF-8, else as base64 in "value", and where they are there "content_type", "encoding",
"tags" and "expires_at". ` + "`kvctl import`" + ` reads exactly this back.

A change of leader in the middle is waited for (--patience), and the export goes on as of the same moment where the new
leader still keeps that: by default a minute back, less when very much is written. Two moments are never mixed: where it
is not kept, an export to --file begins anew by itself, at most twice; one to stdout fails, since its lines are with their
reader already. It exits 1 and says how many keys were written: all of one moment, but not all that there are.
In a pipe the reader does not learn that: use --file, or let the shell tell (set -o pipefail).`,
		Example: `  kvctl export > all.jsonl
  kvctl export app: --file app.jsonl
  kvctl export --endpoints old:7001 | kvctl import - --endpoints new:7001`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.Prefix = args[0]
			}
			if o.Patience < 0 {
				return usagef("--patience is %v: it must be 0 or more", o.Patience)
			}
			o.Waiting = a.waiting("export", o.Patience)
			return a.with(cmd.Context(), func(s store) error {
				if file == "" || file == "-" {
					return a.export(cmd.Context(), s, o, meta, a.out)
				}
				return a.exportFile(cmd.Context(), s, o, meta, file)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&file, "file", "", "write to this file, not to stdout; it appears when it is complete")
	f.StringVar(&o.Start, "start", "", "first key of the range")
	f.StringVar(&o.End, "end", "", "end of the range, not part of it")
	f.BoolVar(&meta, "meta", false, "add version, created_at and updated_at to each line")
	addPatience(f, &o.Patience)
	return c
}

// patienceDefault outlives a change of leader (seconds) and a restart of the only node.
const patienceDefault = time.Minute

func addPatience(f *pflag.FlagSet, d *time.Duration) {
	f.DurationVar(d, "patience", patienceDefault, "how long to go on while the cluster has no leader or cannot be reached")
}

// waiting tells that verb goes on although the cluster cannot serve.
func (a *app) waiting(verb string, patience time.Duration) func(why error) {
	return func(why error) {
		a.talk("%s: waiting up to %v for the cluster: %v\n", verb, patience, why)
	}
}

// exportFile exports into a file beside the named one, flushes it, and renames it when it is complete.
func (a *app) exportFile(ctx context.Context, s store, o listOptions, meta bool, name string) (err error) {
	part := name + ".part"
	f, err := os.Create(part)
	if err != nil {
		return fmt.Errorf("cannot export: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(part))
		}
	}()
	for attempt := 1; ; attempt++ {
		err := a.export(ctx, s, o, meta, f)
		if err == nil {
			break
		}
		if !isKind(err, kindCompacted) || attempt == exportAttempts {
			return err
		}
		a.talk("export: beginning anew: %v\n", err)
		if err := f.Truncate(0); err != nil {
			return fmt.Errorf("cannot export: %w", err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("cannot export: %w", err)
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("cannot export: %w", err)
	}
	if err := os.Rename(part, name); err != nil {
		return fmt.Errorf("cannot export: %w", err)
	}
	return f.Close()
}

func (a *app) export(ctx context.Context, s store, o listOptions, meta bool, to io.Writer) error {
	w := bufio.NewWriterSize(to, 256<<10)
	// On a terminal that shows the lines themselves a bar would only be in the way.
	p := a.newProgress("export", 0, to == a.out && a.outTTY)
	out := &lineSink{w: w, meta: meta}
	for r, err := range s.List(ctx, o) {
		if err == nil {
			err = out.add(&r)
		}
		if err != nil {
			p.stop()
			return errors.Join(fmt.Errorf("the export is not complete, %d keys were written: %w", p.items(), err), w.Flush())
		}
		p.add(1, int64(len(r.Key)+len(r.Value)))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("cannot write the export: %w", err)
	}
	p.finish("exported")
	return nil
}

// writeItem writes one JSON line.
func writeItem(w io.Writer, it any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(it)
}
