package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"

	"kvstore/client"
)

// clients is several native clients, used in turn, as if they were programs of their own.
type clients struct {
	// Target is the first client, which serves what is not spread.
	Target
	all  []*ClientTarget
	turn turns
}

// openClients opens n clients with the same options.
func openClients(ctx context.Context, n int, o ClientOptions) (_ *clients, err error) {
	return gatherClients(n, func(int) (*ClientTarget, error) { return Open(ctx, o) })
}

// openOwnNode opens a client for each endpoint that reads from that node alone, whoever leads.
func openOwnNode(ctx context.Context, o ClientOptions) (*clients, error) {
	return gatherClients(len(o.Endpoints), func(i int) (*ClientTarget, error) {
		own := o
		own.Endpoints = o.Endpoints[i : i+1]
		// Clients learn of the other nodes and spread such reads over them all: this one gets through to its own only.
		t, err := open(ctx, own, client.WithDialer(func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr != own.Endpoints[0] {
				return nil, fmt.Errorf("%s is not this client's own node", addr)
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		}))
		if err == nil {
			t.reads = []client.GetOption{client.AnyNode()}
		}
		return t, err
	})
}

func gatherClients(n int, open func(int) (*ClientTarget, error)) (*clients, error) {
	c := &clients{}
	for i := range n {
		t, err := open(i)
		if err != nil {
			return nil, errors.Join(err, c.close())
		}
		c.all = append(c.all, t)
	}
	c.Target = c.all[0]
	return c, nil
}

// Get implements Target: through the next client.
func (c *clients) Get(ctx context.Context, key string, dst []byte) ([]byte, bool, error) {
	return c.all[c.turn.next(len(c.all))].Get(ctx, key, dst)
}

func (c *clients) close() error {
	var errs []error
	for _, t := range slices.Backward(c.all) {
		errs = append(errs, t.Close())
	}
	return errors.Join(errs...)
}
