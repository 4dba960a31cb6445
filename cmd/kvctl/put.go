package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kvstore/wire"
)

func (a *app) putCmd() *cobra.Command {
	var (
		file  string
		tags  []string
		o     putOptions
		conds conditionFlags
	)
	c := &cobra.Command{
		Use: "put KEY VALUE|-", Short: "Write a key", Args: cobra.RangeArgs(1, 2),
		Example: `  kvctl put hello world
  echo -n world | kvctl put hello -
  kvctl put logo --file logo.png --content-type image/png
  kvctl put session:7 x --ttl 30m --tag team=a
  kvctl put counter 6 --if-version 44040192`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			key := args[0]
			if err := checkKey(key); err != nil {
				return err
			}
			if (len(args) == 2) == (file != "") {
				return usagef("put takes a value: as an argument, as - for stdin, or with --file")
			}
			if o.Tags, err = parseTags(tags); err != nil {
				return err
			}
			if o.Conditions, err = conds.conditions(cmd); err != nil {
				return err
			}
			if cmd.Flags().Changed("ttl") && o.TTL < time.Millisecond {
				return usagef("--ttl is %v: it must be at least 1ms", o.TTL)
			}
			if _, ok := compressions[o.Compress]; !ok && o.Compress != "" {
				return usagef("unknown --compress %q: use none, s2, zstd or lz4", o.Compress)
			}
			var value []byte
			switch {
			case file != "":
				value, err = readFile(file)
			case args[1] == "-":
				value, err = readValue(a.in, "stdin")
			default:
				value = []byte(args[1])
			}
			if err != nil {
				return err
			}
			return a.op(cmd.Context(), func(ctx context.Context, s store, since func() string) error {
				v, err := s.Put(ctx, key, value, o)
				if err != nil {
					return err
				}
				return a.acknowledge(map[string]any{"version": strconv.FormatUint(v, 10)}, "OK (version %d, %s)\n", v, since())
			})
		},
	}
	f := c.Flags()
	f.StringVar(&file, "file", "", "read the value from this file")
	f.DurationVar(&o.TTL, "ttl", 0, "let the key expire after this time, such as 30m")
	f.StringVar(&o.ContentType, "content-type", "", "kept with the value")
	f.StringVar(&o.Encoding, "encoding", "", "kept with the value, such as gzip")
	f.StringVar(&o.Compress, "compress", "", "how the store keeps it: s2, zstd, lz4 or none (default: as the namespace says); it is given back as it came")
	f.StringArrayVar(&tags, "tag", nil, "NAME=VALUE kept with the value; may be repeated")
	conds.add(c, true)
	return c
}

// acknowledge prints the result of a write: a line for people, JSON on demand, nothing for raw.
func (a *app) acknowledge(v map[string]any, format string, args ...any) error {
	switch a.output {
	case "json", "jsonl":
		return a.writeJSON(v)
	case "raw":
		return nil
	}
	return a.printf(format, args...)
}

// conditionFlags are --if-… of put and delete.
type conditionFlags struct {
	version        uint64
	exists, absent bool
	value          string
	tags, noTags   []string
}

func (f *conditionFlags) add(c *cobra.Command, absent bool) {
	fl := c.Flags()
	fl.Uint64Var(&f.version, "if-version", 0, "only if the key has this version")
	fl.BoolVar(&f.exists, "if-exists", false, "only if the key exists")
	fl.StringVar(&f.value, "if-value", "", "only if the key has this value")
	fl.StringArrayVar(&f.tags, "if-tag", nil, "only if the key has this tag: NAME=VALUE, or NAME with any value; may be repeated")
	fl.StringArrayVar(&f.noTags, "if-no-tag", nil, "only if the key exists without this tag; may be repeated")
	if absent {
		fl.BoolVar(&f.absent, "if-absent", false, "only if the key does not exist")
	}
}

func (f *conditionFlags) conditions(c *cobra.Command) ([]condition, error) {
	var out []condition
	if c.Flags().Changed("if-version") {
		out = append(out, condition{Kind: ifVersion, Version: f.version})
	}
	if f.exists {
		out = append(out, condition{Kind: ifExists})
	}
	if f.absent {
		out = append(out, condition{Kind: ifAbsent})
	}
	if c.Flags().Changed("if-value") {
		out = append(out, condition{Kind: ifValue, Value: []byte(f.value)})
	}
	for _, t := range f.tags {
		out = append(out, tagCondition(t))
	}
	for _, t := range f.noTags {
		out = append(out, condition{Kind: ifTagAbsent, Tag: t})
	}
	if f.absent && len(out) > 1 {
		return nil, usagef("--if-absent contradicts the other conditions")
	}
	return out, nil
}

// tagCondition reads NAME=VALUE, or NAME.
func tagCondition(s string) condition {
	if name, value, ok := strings.Cut(s, "="); ok {
		return condition{Kind: ifTag, Tag: name, Value: []byte(value)}
	}
	return condition{Kind: ifTagPresent, Tag: s}
}

// readFile reads a value from a file.
func readFile(name string) (_ []byte, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("cannot read the value: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return readValue(f, name)
}

// readValue reads a whole value, bounded by what the store takes.
func readValue(r io.Reader, name string) ([]byte, error) {
	b, err := readBounded(r, wire.ValueBytesMax)
	if err != nil {
		return nil, fmt.Errorf("cannot put the value of %s: %w", name, err)
	}
	return b, nil
}

// readBounded reads all of r, or fails when that is more than most bytes.
func readBounded(r io.Reader, most int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read: %w", err)
	}
	if int64(len(b)) > most {
		return nil, fmt.Errorf("it is longer than %d bytes, which is the limit", most)
	}
	return b, nil
}
