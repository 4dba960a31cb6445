package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// profileKinds are the profiles that a node gives, each with its path below /debug/pprof/.
var profileKinds = map[string]string{"cpu": "profile", "heap": "heap", "allocs": "allocs", "mutex": "mutex", "block": "block", "goroutine": "goroutine"}

// profileNames lists them in the order of the help.
var profileNames = []string{"cpu", "heap", "allocs", "mutex", "block", "goroutine"}

const (
	// profileSecondsMax is the longest profile that a node makes.
	profileSecondsMax = 600
	// profileBytesMax bounds what is taken from a node: profiles of busy nodes have some 100 kB.
	profileBytesMax = 256 << 20
)

func (a *app) debugCmd() *cobra.Command {
	c := &cobra.Command{Use: "debug", Short: "Look into a running node"}
	c.AddCommand(a.profileCmd())
	return c
}

func (a *app) profileCmd() *cobra.Command {
	var metrics, file string
	var seconds int
	c := &cobra.Command{
		Use: "profile " + strings.Join(profileNames, "|"), Short: "Fetch a profile of a node into a file", Args: exactArgs("a kind of profile"), ValidArgs: profileNames,
		Long: `Fetch a profile of one node from its metrics port (/debug/pprof) into a file that ` + "`go tool pprof`" + ` reads.

  cpu        where CPU time went, for --seconds
  heap       what lies in memory now
  allocs     what was allocated since the node started
  mutex      who held up others by a lock, for --seconds
  block      who waited for a lock or a channel, for --seconds
  goroutine  what each goroutine does now

Profiles over seconds cost the node some CPU time while they are made; mutex and block are sampled only while they are asked for. The
metrics port has no users: it shows stacks and names of functions, never keys or values.`,
		Example: `  kvctl debug profile cpu --seconds 30
  kvctl debug profile heap --metrics 10.0.1.10:2112 --file heap.pprof
  go tool pprof -http :8080 heap.pprof`,
		RunE: func(cmd *cobra.Command, args []string) error {
			kind := args[0]
			if profileKinds[kind] == "" {
				return usagef("unknown profile %q: %s", kind, strings.Join(profileNames, ", "))
			}
			if seconds < 1 || seconds > profileSecondsMax {
				return usagef("--seconds is %d: 1 to %d", seconds, profileSecondsMax)
			}
			metrics = strings.TrimPrefix(metrics, "http://") // as the server's banner prints it
			if host, port, err := net.SplitHostPort(metrics); err != nil || host == "" || port == "" {
				return usagef("--metrics is %q: write it as HOST:PORT, such as %s", metrics, defaultMetrics)
			}
			if file == "" {
				file = kind + "-" + a.now().UTC().Format("20060102T150405Z") + ".pprof"
			}
			return a.fetchProfile(cmd.Context(), kind, metrics, seconds, file)
		},
	}
	f := c.Flags()
	f.StringVar(&metrics, "metrics", defaultMetrics, "metrics port of the node, HOST:PORT")
	f.IntVar(&seconds, "seconds", 10, "how long a profile of cpu, mutex or block takes")
	f.StringVar(&file, "file", "", "where it goes (default KIND-TIME.pprof here)")
	return c
}

// defaultMetrics is where a node of `make run` has its metrics.
const defaultMetrics = "127.0.0.1:2112"

// fetchProfile writes the file only when the whole profile has come.
func (a *app) fetchProfile(ctx context.Context, kind, metrics string, seconds int, file string) error {
	url := "http://" + metrics + "/debug/pprof/" + profileKinds[kind]
	patience := a.timeout
	if slices.Contains([]string{"cpu", "mutex", "block"}, kind) {
		url += fmt.Sprintf("?seconds=%d", seconds)
		patience += time.Duration(seconds) * time.Second
		a.talk("sampling %s of %s for %d s\n", kind, metrics, seconds)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	body, err := getProfile(ctx, url)
	if err != nil {
		k := kindFailed
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			k = kindConnect
		case errors.Is(err, context.DeadlineExceeded):
			k = kindTimeout
		}
		return &storeError{kind: k, err: fmt.Errorf("cannot fetch the %s profile of %s: %w", kind, metrics, err)}
	}
	if err := writeWhole(file, body); err != nil {
		return fmt.Errorf("cannot write the %s profile: %w", kind, err)
	}
	return a.printf("%s\n", file)
}

func getProfile(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, profileBytesMax+1))
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		text := strings.TrimSpace(string(body[:min(len(body), 500)]))
		return nil, fmt.Errorf("it answers %s: %s", res.Status, text)
	}
	if len(body) > profileBytesMax {
		return nil, fmt.Errorf("it is larger than %d bytes", profileBytesMax)
	}
	return body, nil
}

// writeWhole puts content under a name at once: a file of that name is never half a profile.
func writeWhole(file string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(file), ".profile-*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}
