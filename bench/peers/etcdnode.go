package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"

	"go.etcd.io/etcd/server/v3/embed"
)

// etcdQuotaBytes bounds etcd's database. Its default of 2 GiB fills up within a long comparison, since nothing compacts
// meanwhile; 8 GiB is the most that etcd advises.
const etcdQuotaBytes = 8 << 30

// etcdNode runs a node of etcd with its default settings until ctx ends.
func etcdNode(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("peers etcd", flag.ContinueOnError)
	name := f.String("name", "etcd-1", "name of this node")
	dir := f.String("data-dir", "", "where its data lies")
	client := f.String("listen", "127.0.0.1:2379", "for clients, HOST:PORT")
	between := f.String("listen-peer", "127.0.0.1:2380", "for the other nodes, HOST:PORT")
	cluster := f.String("initial-cluster", "", "NAME=http://HOST:PORT,… of all nodes (default: this one alone)")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *dir == "" {
		return errors.New("-data-dir is needed")
	}
	c := embed.NewConfig()
	c.Name, c.Dir, c.LogLevel, c.QuotaBackendBytes = *name, *dir, "error", etcdQuotaBytes
	clients, peers := []url.URL{{Scheme: "http", Host: *client}}, []url.URL{{Scheme: "http", Host: *between}}
	c.ListenClientUrls, c.AdvertiseClientUrls, c.ListenPeerUrls, c.AdvertisePeerUrls = clients, clients, peers, peers
	if c.InitialCluster = *cluster; *cluster == "" {
		c.InitialCluster = *name + "=http://" + *between
	}
	e, err := embed.StartEtcd(c)
	if err != nil {
		return fmt.Errorf("cannot start etcd in %q: %w", *dir, err)
	}
	defer e.Close()
	select {
	case <-ctx.Done():
		return nil
	case err := <-e.Err():
		return fmt.Errorf("etcd has ended: %w", err)
	}
}
