package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"kvstore/bench"
	"kvstore/client"
)

// errConnect: no node answers.
var errConnect = errors.New("cannot connect")

// openTarget connects; when nothing answers the error says what to do.
func openTarget(ctx context.Context, o bench.ClientOptions) (target, error) {
	t, err := bench.Connect(ctx, o)
	switch {
	case err == nil:
		return t, nil
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w: nothing answers on %s (connection refused): is a node running? start one with `make run`, or name another with --endpoints", errConnect, strings.Join(o.Endpoints, ", "))
	case errors.Is(err, client.ErrUnavailable), errors.Is(err, client.ErrTimeout), errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("%w to %s: %w: is a node running there? start one with `make run`, or name another with --endpoints", errConnect, strings.Join(o.Endpoints, ", "), err)
	}
	return nil, err
}
