package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

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
"tags" and "expires_at". ` + "`kvctl import`" + ` reads exactly this back.`,
		Example: `  kvctl export > all.jsonl
  kvctl export app: --file app.jsonl
  kvctl export --endpoints old:7001 | kvctl import - --endpoints new:7001`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.Prefix = args[0]
			}
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
	return c
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
	if err := a.export(ctx, s, o, meta, f); err != nil {
		return err
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
func writeItem(w io.Writer, it item) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(it)
}
