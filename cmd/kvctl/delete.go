package main

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"
)

func (a *app) deleteCmd() *cobra.Command {
	var conds conditionFlags
	c := &cobra.Command{
		Use: "delete KEY", Aliases: []string{"del", "rm"}, Short: "Delete a key", Args: exactArgs("KEY"),
		Long: "Delete a key. When there is none, (nil) goes to stderr and the exit code is 4.",
		Example: `  kvctl delete hello
  kvctl delete counter --if-version 44040192`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkKey(args[0]); err != nil {
				return err
			}
			conditions, err := conds.conditions(cmd)
			if err != nil {
				return err
			}
			return a.op(cmd.Context(), func(ctx context.Context, s store, since func() string) error {
				deleted, v, err := s.Delete(ctx, args[0], conditions)
				if err != nil {
					return err
				}
				if !deleted {
					if a.output == "json" || a.output == "jsonl" {
						if err := a.writeJSON(map[string]any{"deleted": false, "version": strconv.FormatUint(v, 10)}); err != nil {
							return err
						}
					}
					a.talk("(nil)\n")
					return quietError{exitNotFound}
				}
				return a.acknowledge(map[string]any{"deleted": true, "version": strconv.FormatUint(v, 10)}, "OK (version %d, %s)\n", v, since())
			})
		},
	}
	conds.add(c, false)
	return c
}
