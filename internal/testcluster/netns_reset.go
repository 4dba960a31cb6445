package testcluster

import (
	enc "encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// lose resets the connections that hold something because one of these ways is cut or loses packets.
func (f *fabric) lose(paths map[direction]*path, ways []direction) error {
	for _, d := range ways {
		if p := paths[d]; p != nil && (p.cut || p.loss > 0) {
			if err := loseBetween(f.spaces[d.from], f.spaces[d.to]); err != nil {
				return err
			}
		}
	}
	return nil
}

// ends of a connection: ports.
type ends struct{ a, b uint16 }

// loseBetween resets, at both ends, the connections between two nodes of which one end waits to be answered.
func loseBetween(a, b *space) error {
	ofA, err := a.sockets(b, func(id *netlink.SocketID) ends { return ends{id.SourcePort, id.DestinationPort} })
	if err != nil {
		return err
	}
	ofB, err := b.sockets(a, func(id *netlink.SocketID) ends { return ends{id.DestinationPort, id.SourcePort} })
	if err != nil {
		return err
	}
	waiting := func(e ends) bool { return waits(ofA[e]) || waits(ofB[e]) }
	return errors.Join(a.destroy(ofA, waiting), b.destroy(ofB, waiting))
}

// waits tells whether a socket, if there is one, has sent what is not acknowledged.
func waits(k *netlink.Socket) bool { return k != nil && k.WQueue > 0 }

// sockets lists the ends here of the connections with another node.
func (s *space) sockets(far *space, of func(*netlink.SocketID) ends) (map[ends]*netlink.Socket, error) {
	found := make(map[ends]*netlink.Socket)
	return found, s.do(func() error {
		all, err := netlink.SocketDiagTCP(unix.AF_INET)
		if err != nil {
			return fmt.Errorf("cannot list the sockets of a namespace: %w", err)
		}
		for _, k := range all {
			if k.ID.Destination.Equal(far.ip) {
				found[of(&k.ID)] = k
			}
		}
		return nil
	})
}

// destroy resets some of the connections, unless they have ended by themselves.
func (s *space) destroy(sockets map[ends]*netlink.Socket, some func(ends) bool) error {
	return s.do(func() error {
		for e, k := range sockets {
			if !some(e) {
				continue
			}
			r := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
			r.AddRawData(destroyRequest(&k.ID))
			_, err := r.Execute(unix.NETLINK_INET_DIAG, 0)
			if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ESTALE) {
				return fmt.Errorf("cannot reset a connection in state %d: %w", k.State, err)
			}
		}
		return nil
	})
}

// destroyRequest is a struct inet_diag_req_v2. It names the socket by its cookie, too: when a connection has ended, the
// kernel finds the listening socket for its ends, and would destroy that.
func destroyRequest(id *netlink.SocketID) []byte {
	order := enc.NativeEndian
	b := []byte{unix.AF_INET, unix.IPPROTO_TCP, 0, 0}
	b = order.AppendUint32(b, ^uint32(0)) // all states
	b = enc.BigEndian.AppendUint16(b, id.SourcePort)
	b = enc.BigEndian.AppendUint16(b, id.DestinationPort)
	b = append(append(b, id.Source.To4()...), make([]byte, 12)...)
	b = append(append(b, id.Destination.To4()...), make([]byte, 12)...)
	b = order.AppendUint32(b, id.Interface)
	b = order.AppendUint32(b, id.Cookie[0])
	return order.AppendUint32(b, id.Cookie[1])
}
