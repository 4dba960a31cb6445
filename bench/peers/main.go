package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"kvstore/bench"
)

const usage = `usage:
  peers etcd FLAG…      runs a node of etcd until SIGTERM
  peers run FLAG…       measures etcd or Redis alone, as kvbench run does
  peers compare FLAG…   measures KVStore beside etcd and Redis, by turns; one line of JSON on stdout
  peers table FILE…     writes the tables of docs/performance.md from lines of compare and of kvbench growth
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := command(ctx, os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

// command runs one subcommand.
func command(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return wrongUse()
	}
	switch args[0] {
	case "etcd":
		return etcdNode(ctx, args[1:])
	case "run":
		return run(ctx, args[1:])
	case "compare":
		return compareCommand(ctx, args[1:])
	case "table":
		return tableCommand(args[1:])
	case followerCommand:
		return bench.FloorFollower()
	}
	return wrongUse()
}

// wrongUse shows how the command is used; main turns it into an exit code.
func wrongUse() error {
	fmt.Fprint(os.Stderr, usage)
	return flag.ErrHelp
}

// followerCommand is what bench.Floor starts for its floor of three processes.
const followerCommand = "floor-follower"

// list reads words between commas.
func list(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, ",")
}

// processes reads process ids between commas, whose CPU clocks must be readable.
func processes(text string) ([]int, error) {
	var pids []int
	for _, word := range list(text) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			return nil, fmt.Errorf("%q is no process id: %w", word, err)
		}
		if _, err := bench.ProcessCPU(pid); err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}
