package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"kvstore/internal/config"
	"kvstore/node"
)

const recoverHead = `kvstore recover makes a node the only voter of its cluster, when the majority of the voters is lost for good.
It works on the data directory of a node that is stopped, and takes the same options as the server.

LAST RESORT. What the lost majority acknowledged and this node never received is lost for ever. While one more
voter can be brought back so that a majority runs, nothing is lost: start those nodes instead. Of several
survivors take the one whose log goes furthest (each prints it without --yes-really), and recover that one alone.

Examples:
  kvstore recover --data-dir /data --lost node-2,node-3
                                           check everything, say what would be done and what may be lost, exit 2
  kvstore recover --data-dir /data --lost node-2,node-3 --yes-really 8f3a…
                                           do it: --yes-really takes the cluster's id, as the first command prints it
  kvstore --data-dir /data …               then start the node as before; the others come back one by one with
                                           an empty --data-dir and --join

It refuses while one of the lost nodes answers, and unless --lost names exactly the other voters. What was done
is written into RECOVERY.json in the data directory, and into the log when the node leads for the first time.

Options:`

// recoverSettings are the options of recover besides those of the server.
type recoverSettings struct{ lost, confirm string }

// runRecover is the command recover.
func runRecover(args []string, env func(string) (string, bool), stdout, stderr io.Writer) int {
	var c settings
	var r recoverSettings
	set := c.declare(recoverHead)
	set.Section("Recovery")
	set.String(&r.lost, "lost", "", "NAME,…: the voters that are lost for good: exactly all but this one")
	set.String(&r.confirm, "yes-really", "", "the cluster's id: do it")
	set.FlagOnly("lost", "yes-really")
	rest, err := set.Load(args, env, stdout)
	switch {
	case errors.Is(err, config.ErrHelp):
		return exitOK
	case err == nil && len(rest) > 0:
		err = fmt.Errorf("recover takes no argument, got %q", rest[0])
	}
	if err == nil {
		err = c.check()
	}
	var level slog.Level
	if err == nil {
		err = level.UnmarshalText([]byte(c.logLevel))
	}
	if err != nil {
		fmt.Fprintf(stderr, "kvstore: %v\n", err)
		return exitUsage
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level})))
	if set.Origin("node-id") == "default" {
		c.nodeID = "" // the directory knows
	}
	server := c.options()
	o := node.RecoverOptions{
		NodeID: c.nodeID, DataDir: c.dataDir, Version: version, Confirm: strings.TrimSpace(r.confirm),
		Address: c.raftAddress(), Engine: server.Engine, Consensus: server.Consensus,
	}
	for id := range strings.SplitSeq(r.lost, ",") {
		if id = strings.TrimSpace(id); id != "" {
			o.Lost = append(o.Lost, id)
		}
	}
	report, err := node.Recover(context.Background(), o)
	if errors.Is(err, node.ErrUnconfirmed) {
		fmt.Fprint(stdout, report.Text())
		fmt.Fprintf(stderr, "kvstore: %v; to do it, run the same command with --yes-really %s\n", err, report.ClusterID)
		return exitUsage
	}
	if err != nil {
		fmt.Fprintf(stderr, "kvstore: %v\n", err)
		return exitFailed
	}
	fmt.Fprint(stdout, report.Text())
	fmt.Fprintf(stdout, "\nDone. Now start %s with the same options as before.\n", report.NodeID)
	return exitOK
}
