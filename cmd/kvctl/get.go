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
	var read readFlags
	c := &cobra.Command{
		Use: "get KEY", Short: "Print the value of a key", Args: exactArgs("KEY"),
		Long: `Print the value of a key. On a pipe the bytes pass unchanged; on a terminal a newline follows a value
that has none. A missing key prints (nil) to stderr and exits 4.`,
		Example: `  kvctl get hello
  kvctl get logo > logo.png
  kvctl get hello --meta
  kvctl get hello --consistency stale --max-age 500ms --meta
  kvctl get hello -o json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkKey(args[0]); err != nil {
				return err
			}
			o, err := read.options(cmd)
			if err != nil {
				return err
			}
			return a.op(cmd.Context(), func(ctx context.Context, s store, _ func() string) error {
				r, err := s.Get(ctx, args[0], o)
				if err != nil {
					return err
				}
				switch {
				case a.output == "json" || a.output == "jsonl":
					out := struct {
						item
						AgeMs *float64 `json:"age_ms,omitempty"`
					}{item: newItem(&r, true, false)}
					if o.Consistency == stale && r.Age >= 0 {
						ms := float64(r.Age.Microseconds()) / 1000
						out.AgeMs = &ms
					}
					return a.writeJSON(out)
				case meta && a.output != "raw":
					a.talkMeta(&r)
					if o.Consistency == stale {
						a.talk("%-13s %s\n", "age", ageText(r.Age))
					}
				}
				return a.writeValue(r.Value)
			})
		},
	}
	c.Flags().BoolVar(&meta, "meta", false, "also print version, times, tags and the age of a stale value, to stderr")
	read.add(c)
	return c
}

// readFlags are the flags of verbs that read.
type readFlags struct {
	consistency string
	maxAge      time.Duration
	revision    uint64
}

func (r *readFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&r.consistency, "consistency", "linearizable", "what is read: linearizable (the newest, from the leader), any (the newest, from any node) or stale (what a node has)")
	c.Flags().Uint64Var(&r.revision, "revision", 0, "read the past, as it was at this revision, while that is kept")
	c.Flags().DurationVar(&r.maxAge, "max-age", 0, "how old a stale answer may be, such as 500ms; it implies --consistency stale")
}

// options checks the flags.
func (r *readFlags) options(c *cobra.Command) (readOptions, error) {
	o := readOptions{MaxAge: r.maxAge, Revision: r.revision}
	switch r.consistency {
	case "linearizable":
		o.Consistency = linearizable
	case "any":
		o.Consistency = anyNode
	case "stale":
		o.Consistency = stale
	default:
		return o, usagef("unknown --consistency %q: use linearizable, any or stale", r.consistency)
	}
	if !c.Flags().Changed("max-age") {
		return o, nil
	}
	if r.maxAge < time.Millisecond {
		return o, usagef("--max-age is %v: it must be 1ms or more; for the newest leave it out", r.maxAge)
	}
	if c.Flags().Changed("consistency") && o.Consistency != stale {
		return o, usagef("--max-age bounds stale reads: use it with --consistency stale, or alone")
	}
	o.Consistency = stale
	return o, nil
}

// ageText prints how old an answer may be.
func ageText(d time.Duration) string {
	if d < 0 {
		return "unknown"
	}
	return elapsedText(d)
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
