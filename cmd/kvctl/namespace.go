package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kvstore/internal/config"
	"kvstore/wire"
)

// namespaceSettings are the limits of a namespace; 0 is none.
type namespaceSettings struct {
	BytesMax     uint64 `json:"bytes_max"`
	KeysMax      uint64 `json:"keys_max"`
	OpsPerSecond uint64 `json:"ops_per_second"`
	WatchesMax   uint64 `json:"watches_max"`
	Compress     string `json:"compress"`
}

// namespaces is what kvctl shows of the answer; the server may say more.
type namespaces struct {
	Namespaces []struct {
		Name      string            `json:"name"`
		State     string            `json:"state"`
		CreatedAt time.Time         `json:"created_at"`
		Keys      uint64            `json:"keys"`
		Bytes     uint64            `json:"bytes"`
		Settings  namespaceSettings `json:"settings"`
	} `json:"namespaces"`
}

func (a *app) namespaceCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "namespace", Aliases: []string{"namespaces", "ns"}, Short: "List, create, limit and drop namespaces",
		Long: `List, create, limit and drop namespaces. Keys of different namespaces have nothing in common; --namespace says in which
one the other verbs work. The namespace "default" is always there.`,
		Example: `  kvctl namespace create app --keys 1000000 --bytes 1GiB
  kvctl put hello world --namespace app
  kvctl namespace list
  kvctl namespace set app --ops-per-second 5000 --compress zstd
  kvctl namespace drop app --yes`,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown verb %q: namespace takes list, create, describe, set or drop", args[0])
			}
			return usagef("namespace takes a verb: list, create, describe, set or drop")
		},
	}
	c.AddCommand(a.namespaceListCmd(), a.namespaceCreateCmd(), a.namespaceDescribeCmd(), a.namespaceSetCmd(), a.namespaceDropCmd())
	return c
}

func (a *app) namespaceListCmd() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the namespaces", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.askNamespaces(cmd.Context(), adminRequest{Action: "namespace_list"}, func(n *namespaces, _ string) error { return a.printf("%s", n.table()) })
		},
	}
}

func (a *app) namespaceDescribeCmd() *cobra.Command {
	return &cobra.Command{
		Use: "describe NAME", Short: "Show one namespace: its keys, bytes and limits", Args: exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := adminRequest{Action: "namespace_describe", Namespace: args[0]}
			return a.askNamespaces(cmd.Context(), q, func(n *namespaces, _ string) error { return a.printf("%s", n.table()) })
		},
	}
}

func (a *app) namespaceCreateCmd() *cobra.Command {
	var f settingFlags
	c := &cobra.Command{
		Use: "create NAME", Short: "Create a namespace", Args: exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var s namespaceSettings
			if err := f.apply(cmd, &s); err != nil {
				return err
			}
			q := adminRequest{Action: "namespace_create", Namespace: args[0], Settings: &s}
			return a.changeNamespace(cmd.Context(), q, "created")
		},
	}
	f.add(c)
	return c
}

func (a *app) namespaceSetCmd() *cobra.Command {
	var f settingFlags
	c := &cobra.Command{
		Use: "set NAME", Short: "Change limits of a namespace; those that are not named stay", Args: exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().NFlag() == 0 {
				return usagef("set takes at least one limit: --keys, --bytes, --ops-per-second, --watches or --compress")
			}
			return a.op(cmd.Context(), func(ctx context.Context, s store, since func() string) error {
				b, err := s.Admin(ctx, adminRequest{Action: "namespace_describe", Namespace: args[0]})
				if err != nil {
					return err
				}
				n, err := decodeNamespaces(b)
				if err != nil {
					return err
				}
				if len(n.Namespaces) != 1 {
					return fmt.Errorf("the server describes %d namespaces of the name %q", len(n.Namespaces), args[0])
				}
				settings := n.Namespaces[0].Settings
				if err := f.apply(cmd, &settings); err != nil {
					return err
				}
				if _, err := s.Admin(ctx, adminRequest{Action: "namespace_set", Namespace: args[0], Settings: &settings}); err != nil {
					return err
				}
				return a.acknowledge(map[string]any{"namespace": args[0], "settings": settings}, "OK (%s is changed, %s)\n", cell(args[0]), since())
			})
		},
	}
	f.add(c)
	return c
}

func (a *app) namespaceDropCmd() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "drop NAME", Aliases: []string{"delete", "rm"}, Short: "Remove a namespace with all its keys", Args: exactArgs("NAME"),
		Long: `Remove a namespace with all its keys, for good: the name is gone at once, the keys in the background. It asks for
--yes, since nothing brings them back.`,
		Example: `  kvctl namespace drop app --yes`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes {
				return usagef("drop removes all keys of %q for good: say so with --yes", args[0])
			}
			return a.changeNamespace(cmd.Context(), adminRequest{Action: "namespace_drop", Namespace: args[0]}, "dropped")
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "yes, remove them")
	return c
}

// changeNamespace makes one change and says what is done.
func (a *app) changeNamespace(ctx context.Context, q adminRequest, done string) error {
	if !wire.ValidNamespaceName(q.Namespace) {
		return usagef("%q is no name of a namespace: 1 to %d of a-z A-Z 0-9 . _ : / -, the first a letter or a digit", q.Namespace, wire.NamespaceBytesMax)
	}
	return a.op(ctx, func(ctx context.Context, s store, since func() string) error {
		if _, err := s.Admin(ctx, q); err != nil {
			return err
		}
		return a.acknowledge(map[string]any{"namespace": q.Namespace, "done": done}, "OK (%s is %s, %s)\n", cell(q.Namespace), done, since())
	})
}

// askNamespaces asks and shows the answer; -o json prints the server's document.
func (a *app) askNamespaces(ctx context.Context, q adminRequest, show func(n *namespaces, since string) error) error {
	return a.op(ctx, func(ctx context.Context, s store, since func() string) error {
		b, err := s.Admin(ctx, q)
		if err != nil {
			return err
		}
		if a.output != "table" {
			return a.printf("%s\n", bytes.TrimSpace(b))
		}
		n, err := decodeNamespaces(b)
		if err != nil {
			return err
		}
		return show(n, since())
	})
}

func decodeNamespaces(b []byte) (*namespaces, error) {
	var n namespaces
	if err := json.Unmarshal(b, &n); err != nil {
		return nil, fmt.Errorf("the server's answer is not what was expected: %w", err)
	}
	return &n, nil
}

func (n *namespaces) table() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	limit := func(v uint64) string {
		if v == 0 {
			return "-"
		}
		return fmt.Sprint(v)
	}
	// Writing to a strings.Builder never fails.
	_, _ = fmt.Fprintln(w, "NAME\tSTATE\tKEYS\tMAX\tBYTES\tMAX\tOPS/S\tWATCHES\tCOMPRESS")
	for _, x := range n.Namespaces {
		s := &x.Settings
		_, _ = fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%d\t%s\t%s\t%s\t%s\n", cell(x.Name), cell(x.State), x.Keys, limit(s.KeysMax), x.Bytes, limit(s.BytesMax), limit(s.OpsPerSecond), limit(s.WatchesMax), cell(s.Compress))
	}
	_ = w.Flush()
	return b.String()
}

// settingFlags are the limits as flags.
type settingFlags struct {
	keys, ops, watches uint64
	bytes, compress    string
}

func (f *settingFlags) add(c *cobra.Command) {
	fl := c.Flags()
	fl.Uint64Var(&f.keys, "keys", 0, "at most this many keys; 0: no limit")
	fl.StringVar(&f.bytes, "bytes", "", "at most this many bytes of keys and values, such as 1GiB; 0: no limit")
	fl.Uint64Var(&f.ops, "ops-per-second", 0, "at most this many operations a second at each node; 0: no limit")
	fl.Uint64Var(&f.watches, "watches", 0, "at most this many watches at each node; 0: no limit")
	fl.StringVar(&f.compress, "compress", "", "how values are stored whose put does not say: none, s2, zstd or lz4")
}

// apply sets what was named.
func (f *settingFlags) apply(c *cobra.Command, s *namespaceSettings) error {
	fl := c.Flags()
	if fl.Changed("keys") {
		s.KeysMax = f.keys
	}
	if fl.Changed("ops-per-second") {
		s.OpsPerSecond = f.ops
	}
	if fl.Changed("watches") {
		s.WatchesMax = f.watches
	}
	if fl.Changed("bytes") {
		n, err := config.ParseBytes(f.bytes)
		if err != nil {
			return usagef("--bytes is %q: write it as 1000000, 64MiB or 1GiB", f.bytes)
		}
		s.BytesMax = uint64(n)
	}
	if fl.Changed("compress") {
		if _, ok := compressions[f.compress]; !ok {
			return usagef("unknown --compress %q: use none, s2, zstd or lz4", f.compress)
		}
		s.Compress = f.compress
	}
	if s.Compress == "" {
		s.Compress = "none"
	}
	return nil
}
