package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"kvstore/bench"
)

// redisTarget is a bench.Target over one rueidis client with its default settings: operations of many callers share
// connections and are pipelined, those of one are sent at once. Nothing is cached in the client.
type redisTarget struct {
	c rueidis.Client
}

// redisConnections is how many connections rueidis opens by default (PipelineMultiplex 2: two to the power of two).
const redisConnections = 4

// connectRedis waits until the server answers.
func connectRedis(ctx context.Context, endpoints []string, timeout, wait time.Duration) (peer, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		p, err := openRedis(ctx, endpoints, timeout)
		if err == nil {
			return p, nil
		}
		select {
		case <-ctx.Done():
			return peer{}, fmt.Errorf("cannot connect to redis at %s: %w", strings.Join(endpoints, ","), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func openRedis(ctx context.Context, endpoints []string, timeout time.Duration) (peer, error) {
	c, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: endpoints, DisableCache: true, ForceSingleClient: true, ConnWriteTimeout: timeout, Dialer: net.Dialer{Timeout: timeout},
	})
	if err != nil {
		return peer{}, err
	}
	info, err := c.Do(ctx, c.B().Info().Section("server").Build()).ToString()
	if err != nil {
		c.Close()
		return peer{}, err
	}
	version := "redis"
	for line := range strings.Lines(info) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "redis_version:"); ok {
			version += " " + v
		}
	}
	return peer{target: &redisTarget{c}, version: version, address: endpoints[0], nodes: 1, connections: redisConnections}, nil
}

// Close ends the connections.
func (t *redisTarget) Close() error {
	t.c.Close()
	return nil
}

// Get implements bench.Target.
func (t *redisTarget) Get(ctx context.Context, key string, dst []byte) (value []byte, found bool, err error) {
	v, err := t.c.Do(ctx, t.c.B().Get().Key(key).Build()).AsBytes()
	if rueidis.IsRedisNil(err) {
		return dst, false, nil
	}
	return v, err == nil, err
}

// Put implements bench.Target.
func (t *redisTarget) Put(ctx context.Context, key string, value []byte) error {
	return t.c.Do(ctx, t.c.B().Set().Key(key).Value(rueidis.BinaryString(value)).Build()).Error()
}

// errNoScan: Redis keeps no order of keys.
var errNoScan = errors.New("redis has no scan in key order")

// Scan implements bench.Target.
func (t *redisTarget) Scan(context.Context, string, int) (int, error) { return 0, errNoScan }

// GetMany implements bench.Target.
func (t *redisTarget) GetMany(ctx context.Context, keys []string) (found int, err error) {
	values, err := t.c.Do(ctx, t.c.B().Mget().Key(keys...).Build()).ToArray()
	if err != nil {
		return 0, err
	}
	for i := range values {
		if !values[i].IsNil() {
			found++
		}
	}
	return found, nil
}

// PutMany implements bench.Target.
func (t *redisTarget) PutMany(ctx context.Context, keys []string, values [][]byte) error {
	set := t.c.B().Mset().KeyValue()
	for i, key := range keys {
		set = set.KeyValue(key, rueidis.BinaryString(values[i]))
	}
	return t.c.Do(ctx, set.Build()).Error()
}

// Transact implements bench.Target: MULTI, the operations, EXEC, on a connection of their own as rueidis asks for.
func (t *redisTarget) Transact(ctx context.Context, keys []string, values [][]byte) error {
	return t.c.Dedicated(func(c rueidis.DedicatedClient) error {
		commands := []rueidis.Completed{c.B().Multi().Build()}
		writes := (len(keys) + 1) / 2
		for i, key := range keys {
			if i < writes {
				commands = append(commands, c.B().Set().Key(key).Value(rueidis.BinaryString(values[i])).Build())
			} else {
				commands = append(commands, c.B().Get().Key(key).Build())
			}
		}
		for _, r := range c.DoMulti(ctx, append(commands, c.B().Exec().Build())...) {
			if err := r.Error(); err != nil {
				return err
			}
		}
		return nil
	})
}

// Pipeline implements bench.Target; rueidis has no asynchronous form for single commands.
func (t *redisTarget) Pipeline(ctx context.Context, depth int) bench.Pipeline {
	return bench.Spawn(ctx, t, depth)
}

// Kind implements bench.Target. Only what Redis itself answers is surely not applied.
func (t *redisTarget) Kind(err error) bench.Kind {
	if _, ok := rueidis.IsRedisErr(err); ok || errors.Is(err, errNoScan) {
		return bench.KindRefused
	}
	return bench.KindUnknown
}
