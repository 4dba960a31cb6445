package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"kvstore/bench"
)

// echoCommand is the name of the command that `kvbench cost` runs for each protocol.
const echoCommand = "echo"

func (a *app) echoCmd() *cobra.Command {
	var (
		protocol, listen string
		valueBytes       int
		stdin            bool
	)
	c := &cobra.Command{
		Use: echoCommand, Short: "Serve an empty server, to compare with", Args: noArgs,
		Long: `Serve gets and puts of keys as a KVStore does, with nothing behind: each get is answered with the same value, each
put with the same version. What a server takes beyond it is the store's, and not that of the protocol's library.`,
		Example: `  kvbench echo --protocol grpc --listen 127.0.0.1:7102
  kvbench run --protocol grpc --endpoints 127.0.0.1:7102 --workload get --server-pid $(pgrep -f 'kvbench echo')`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if protocol != bench.ProtocolGRPC && protocol != bench.ProtocolREST {
				return usageError{fmt.Errorf("--protocol is %q: %s or %s", protocol, bench.ProtocolGRPC, bench.ProtocolREST)}
			}
			l, err := net.Listen("tcp", listen)
			if err != nil {
				return fmt.Errorf("cannot listen: %w", err)
			}
			if err := bench.AnnounceEcho(a.out, l.Addr()); err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			if stdin {
				go func() { // ends with stdin, or with this process
					_, _ = io.Copy(io.Discard, os.Stdin) // an error ends it as well
					cancel()
				}()
			}
			return bench.ServeEcho(ctx, protocol, l, valueBytes)
		},
	}
	f := c.Flags()
	f.StringVar(&protocol, "protocol", bench.ProtocolGRPC, "grpc or rest")
	f.StringVar(&listen, "listen", "127.0.0.1:0", "where to listen; port 0 takes a free one, which is printed")
	f.IntVar(&valueBytes, "value-size", 128, "bytes of the value that gets are answered with")
	f.BoolVar(&stdin, "until-eof", false, "end when stdin does")
	return c
}

// startEcho runs this program as an echo.
func startEcho(protocol string, valueBytes int) (*bench.EchoProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("cannot find this program, to start an echo: %w", err)
	}
	return bench.StartEcho([]string{self, echoCommand, "--protocol", protocol, "--value-size", strconv.Itoa(valueBytes), "--until-eof"})
}
