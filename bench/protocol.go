package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
)

// The doors of a server, as ClientOptions.Protocol names them.
const (
	ProtocolNative = "native"
	ProtocolGRPC   = "grpc"
	ProtocolREST   = "rest"
)

// Protocols lists the names that ClientOptions.Protocol takes.
func Protocols() []string { return []string{ProtocolNative, ProtocolGRPC, ProtocolREST} }

// Store is a Target of servers that can be asked how they are.
type Store interface {
	Target
	// Status returns the status of a node as JSON.
	Status(ctx context.Context) ([]byte, error)
	// Close ends the connections.
	Close() error
}

// Connect connects through the door that o.Protocol names.
func Connect(ctx context.Context, o ClientOptions) (Store, error) {
	switch o.Protocol {
	case "", ProtocolNative:
		return Open(ctx, o)
	case ProtocolGRPC:
		return OpenGRPC(ctx, o)
	case ProtocolREST:
		return OpenREST(ctx, o)
	}
	return nil, fmt.Errorf("unknown protocol %q; known: %s", o.Protocol, strings.Join(Protocols(), ", "))
}

// Supports tells whether o's workload can run through a protocol, and what to do where it can't: gRPC and REST are
// driven with single gets and puts, one of each caller at a time.
func (o Options) Supports(protocol string) error {
	if protocol == ProtocolNative || protocol == "" {
		return nil
	}
	if o, _ = o.withDefaults(); o.Pipeline > 1 {
		return fmt.Errorf("protocol %s has no asynchronous form: use concurrency instead of pipeline", protocol)
	}
	if !workloads[o.Workload].async() {
		var able []string
		for _, name := range Workloads() {
			if workloads[name].async() {
				able = append(able, name)
			}
		}
		return fmt.Errorf("workload %s needs protocol %s; %s takes single gets and puts: %s", o.Workload, ProtocolNative, protocol, strings.Join(able, ", "))
	}
	return nil
}

// errKeysOnly is what the operations answer that Supports keeps away.
var errKeysOnly = errors.New("this protocol is driven with single gets and puts alone")

// keysOnly is the part of a Target that gRPC and REST leave out. Only the load phase asks for more than it: PutMany.
type keysOnly struct{}

// Scan implements Target.
func (keysOnly) Scan(context.Context, string, int) (int, error) { return 0, errKeysOnly }

// GetMany implements Target.
func (keysOnly) GetMany(context.Context, []string) (int, error) { return 0, errKeysOnly }

// Transact implements Target.
func (keysOnly) Transact(context.Context, []string, [][]byte) error { return errKeysOnly }

// Kind implements Target.
func (keysOnly) Kind(err error) Kind {
	var e *doorError
	switch {
	case errors.As(err, &e):
		return e.kind
	case errors.Is(err, errKeysOnly):
		return KindRefused
	}
	return KindOther
}

// doorError is a failure of an operation, sorted where it was known what the operation was.
type doorError struct {
	kind Kind
	err  error
}

func (e *doorError) Error() string { return e.err.Error() }
func (e *doorError) Unwrap() error { return e.err }

// reach makes sure that something listens on all endpoints: all of them are used in turn.
func reach(ctx context.Context, endpoints []string) error {
	for _, e := range endpoints {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", e)
		if err != nil {
			return fmt.Errorf("cannot connect to %s: %w", e, err)
		}
		if err := c.Close(); err != nil {
			return fmt.Errorf("cannot connect to %s: %w", e, err)
		}
	}
	return nil
}
