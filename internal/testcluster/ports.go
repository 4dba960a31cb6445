package testcluster

import (
	"errors"
	"fmt"
	"net"
	"strconv"

	"golang.org/x/sys/unix"
)

// Port is a TCP port that is held for one node over all its restarts, of 127.0.0.1 or of the node's own namespace.
//
// A bare "listen on 0, close, use the number" is a race: between close and use, and whenever the node is
// down, any connection on this machine may get the number as its own source port. Worse, a client that
// keeps dialling the dead node may get it and be connected to itself. Here a socket stays bound to the
// port without listening. The kernel then gives the number to nobody who lets it choose, while the node,
// which sets SO_REUSEADDR as every Go listener does, may bind and listen beside it.
type Port struct {
	host   string
	number int
	fd     int // -1 in a namespace, where nobody else is
}

// ReservePort takes a free port.
func ReservePort() (*Port, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot reserve a port: %w", err)
	}
	fail := func(err error) (*Port, error) {
		return nil, errors.Join(fmt.Errorf("cannot reserve a port: %w", err), unix.Close(fd))
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return fail(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return fail(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return fail(err)
	}
	return &Port{host: "127.0.0.1", number: sa.(*unix.SockaddrInet4).Port, fd: fd}, nil
}

// Addr is the address, HOST:PORT.
func (p *Port) Addr() string { return net.JoinHostPort(p.host, strconv.Itoa(p.number)) }

// Release gives the port up.
func (p *Port) Release() error {
	if p.fd < 0 {
		return nil
	}
	return unix.Close(p.fd)
}
