package main

import (
	"context"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"kvstore/client"
)

func (a *app) touchCmd() *cobra.Command {
	var ttl time.Duration
	var conds conditionFlags
	c := &cobra.Command{
		Use: "touch KEY", Short: "Give a key a new time to live", Args: exactArgs("KEY"),
		Long: `Let a key expire --ttl from now, or never without --ttl. Value, tags and content type stay; the version is a new one.
When there is no such key, (nil) goes to stderr and the exit code is 4.`,
		Example: `  kvctl touch session:7 --ttl 30m
  kvctl touch session:7`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkKey(args[0]); err != nil {
				return err
			}
			conditions, err := conds.conditions(cmd)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("ttl") && ttl < time.Millisecond {
				return usagef("--ttl is %v: it must be at least 1ms", ttl)
			}
			return a.op(cmd.Context(), func(ctx context.Context, s store, since func() string) error {
				v, err := s.Touch(ctx, args[0], ttl, conditions)
				if err != nil {
					return err
				}
				return a.acknowledge(map[string]any{"version": strconv.FormatUint(v, 10)}, "OK (version %d, %s)\n", v, since())
			})
		},
	}
	c.Flags().DurationVar(&ttl, "ttl", 0, "let the key expire after this time, such as 30m; without it never")
	conds.add(c, false)
	return c
}

func (a *app) incrCmd() *cobra.Command {
	var o putOptions
	var conds conditionFlags
	c := &cobra.Command{
		Use: "incr KEY [DELTA]", Aliases: []string{"increment"}, Short: "Add to the number that a key holds", Args: cobra.RangeArgs(1, 2),
		Long: `Add DELTA (default 1, may be negative) to a value that is a whole number in decimal digits, and print the sum. A key
that there is not counts as 0. Retries are exactly-once. In front of a negative DELTA write --.`,
		Example: `  kvctl incr visits
  kvctl incr stock:7 -- -3
  kvctl incr limit:ada --ttl 1m`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if err := checkKey(args[0]); err != nil {
				return err
			}
			delta := int64(1)
			if len(args) == 2 {
				if delta, err = strconv.ParseInt(args[1], 10, 64); err != nil {
					return usagef("DELTA is %q: it must be a whole number of 64 bits", args[1])
				}
			}
			if o.Conditions, err = conds.conditions(cmd); err != nil {
				return err
			}
			if cmd.Flags().Changed("ttl") && o.TTL < time.Millisecond {
				return usagef("--ttl is %v: it must be at least 1ms", o.TTL)
			}
			a.session = true // a blind retry of an increment would count twice
			return a.op(cmd.Context(), func(ctx context.Context, s store, _ func() string) error {
				n, v, err := s.Increment(ctx, args[0], delta, o)
				if err != nil {
					return err
				}
				if a.output == "json" || a.output == "jsonl" {
					return a.writeJSON(map[string]any{"counter": n, "version": strconv.FormatUint(v, 10)})
				}
				return a.printf("%d\n", n)
			})
		},
	}
	c.Flags().DurationVar(&o.TTL, "ttl", 0, "let the key expire after this time, such as 30m; without it a new key never expires, and others keep their time")
	conds.add(c, true)
	return c
}

// incrementOpts are the options of an increment.
func incrementOpts(o *putOptions) (out []client.IncrementOption) {
	if o.TTL > 0 {
		out = append(out, client.WithTTL(o.TTL))
	}
	for _, c := range conditionsOf(o.Conditions) {
		out = append(out, c)
	}
	return out
}
