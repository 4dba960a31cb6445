package main

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) getCmd() *cobra.Command {
	var meta bool
	c := &cobra.Command{
		Use: "get KEY", Short: "Print the value of a key", Args: exactArgs("KEY"),
		Long: `Print the value of a key. On a pipe the bytes pass unchanged; on a terminal a newline follows a value
that has none. A missing key prints (nil) to stderr and exits 4.`,
		Example: `  kvctl get hello
  kvctl get logo > logo.png
  kvctl get hello --meta
  kvctl get hello -o json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkKey(args[0]); err != nil {
				return err
			}
			return a.op(cmd.Context(), func(ctx context.Context, s store, _ func() string) error {
				r, err := s.Get(ctx, args[0])
				if err != nil {
					return err
				}
				switch {
				case a.output == "json" || a.output == "jsonl":
					return a.writeJSON(newItem(&r, true, false))
				case meta && a.output != "raw":
					a.talkMeta(&r)
				}
				return a.writeValue(r.Value)
			})
		},
	}
	c.Flags().BoolVar(&meta, "meta", false, "also print version, times and tags, to stderr")
	return c
}

// writeValue writes the bytes of a value to stdout.
func (a *app) writeValue(v []byte) error {
	if a.outTTY && a.output != "raw" && !bytes.HasSuffix(v, []byte("\n")) {
		v = append(slices.Clip(v), '\n')
	}
	if _, err := a.out.Write(v); err != nil {
		return fmt.Errorf("cannot write to stdout: %w", err)
	}
	return nil
}

// talkMeta prints what is kept with a value.
func (a *app) talkMeta(r *record) {
	line := func(name, value string) {
		if value != "" {
			a.talk("%-13s %s\n", name, value)
		}
	}
	line("key", strconv.Quote(r.Key))
	line("version", strconv.FormatUint(r.Version, 10))
	line("bytes", strconv.Itoa(len(r.Value)))
	line("created", timeText(r.CreatedAt))
	line("updated", timeText(r.UpdatedAt))
	line("expires", timeText(r.ExpiresAt))
	line("content-type", r.ContentType)
	line("encoding", r.Encoding)
	for _, name := range slices.Sorted(maps.Keys(r.Tags)) {
		line("tag", name+"="+r.Tags[name])
	}
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}
