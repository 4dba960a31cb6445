package main

import (
	"encoding/json"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"kvstore/wire"
)

// Set by the linker: -ldflags "-X main.version=… -X main.commit=…".
var (
	version = "dev"
	commit  = "unknown"
)

func versionLine() string {
	return fmt.Sprintf("kvctl %s (%s, %s/%s, commit %s)", version, runtime.Version(), runtime.GOOS, runtime.GOARCH, commit)
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print version, commit and format numbers", Args: exactArgs(),
		RunE: func(*cobra.Command, []string) error {
			if a.output != "json" && a.output != "jsonl" {
				return a.printf("%s\n", versionLine())
			}
			return a.writeJSON(map[string]any{
				"version": version, "commit": commit, "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH,
				"protocol": wire.Version, "entry_format": wire.EntryFormat,
			})
		},
	}
}

// writeJSON prints v as one line, or indented for people.
func (a *app) writeJSON(v any) error {
	enc := json.NewEncoder(a.out)
	enc.SetEscapeHTML(false)
	if a.outTTY && a.output == "json" {
		enc.SetIndent("", "  ")
	}
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("cannot write to stdout: %w", err)
	}
	return nil
}
