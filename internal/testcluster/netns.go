package testcluster

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// raftPort is the first of the ports of a node in a namespace. All are below those that the kernel gives to
// connections.
const raftPort = 7000

// space is the network namespace of one node. It is named by nothing but a descriptor: it ends with the last process
// that is in it or has it open.
type space struct {
	// Immutable.
	ns   netns.NsHandle
	ip   net.IP // 4 bytes
	link string // the end of its cable that is at the bridge
}

func (s *space) raftAddr() string { return net.JoinHostPort(s.ip.String(), strconv.Itoa(raftPort)) }

// port is the i-th port of the node in this namespace; of loopback if s is nil.
func (s *space) port(i int) (*Port, error) {
	if s == nil {
		return ReservePort()
	}
	return &Port{host: s.ip.String(), number: raftPort + i, fd: -1}, nil
}

// do calls f on a thread that is in the namespace meanwhile; nil: on any.
func (s *space) do(f func() error) error {
	if s == nil {
		return f()
	}
	return elsewhere(func() error {
		if err := unix.Setns(int(s.ns), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("cannot enter a network namespace: %w", err)
		}
		return f()
	})
}

// elsewhere calls f, which may take its thread into another network namespace, and takes that back.
func elsewhere(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		return fmt.Errorf("cannot tell the network namespace: %w", err)
	}
	err = f()
	now, back := netns.Get()
	// Who may not enter a namespace may not go back either, but then f has gone nowhere.
	if back == nil && !now.Equal(home) {
		back = unix.Setns(int(home), unix.CLONE_NEWNET)
	}
	if back != nil {
		// Whatever else runs on this thread would run there.
		panic(fmt.Sprintf("cannot leave a network namespace: %v", back))
	}
	return errors.Join(err, now.Close(), home.Close())
}

// fabric is a bridge that joins the namespaces of the nodes, and the rules of what it forwards. The test itself sits at
// the bridge: what it sends to a node is not forwarded, so no rule concerns it.
//
// Its methods are called one at a time.
type fabric struct {
	number int // of the fabrics of this process, in names and addresses
	bridge netlink.Link
	rules  nftables.Conn
	table  *nftables.Table
	chain  *nftables.Chain
	spaces map[string]*space
}

var fabrics atomic.Int64

// newNamespaces makes a network of namespaces with the first nodes of a cluster. On an error nothing is left.
func newNamespaces(t testing.TB, nodes int) (*Network, []string, error) {
	if os.Getenv(ownNetworkEnv) == "" {
		if reason := noNamespaces.Load(); reason != nil {
			return nil, nil, errors.New(*reason)
		}
		return nil, nil, errors.New("the test has no network namespace of its own, which IsolateNetwork makes")
	}
	f, err := newFabric()
	if err != nil {
		return nil, nil, err
	}
	n := newNetwork(t, f)
	addrs, err := n.addAll(nodes)
	if err != nil {
		return nil, nil, err // n, without a user, goes with the test
	}
	return n, addrs, nil
}

// tryNamespaces makes a network of one node, in a namespace of its own, and removes it: what this kernel lacks, or this
// user may not do, shows.
func tryNamespaces() error {
	return elsewhere(func() error {
		ns, err := netns.New()
		if err != nil {
			return fmt.Errorf("cannot make a network namespace: %w", err)
		}
		err = up("lo", nil)
		if err == nil {
			var f *fabric
			if f, err = newFabric(); err == nil {
				_, err = f.add("trial")
				err = errors.Join(err, f.close())
			}
		}
		return errors.Join(err, ns.Close())
	})
}

// newFabric makes a bridge without nodes.
func newFabric() (*fabric, error) {
	f := &fabric{number: int(fabrics.Add(1)), spaces: make(map[string]*space)}
	if f.number > 255 {
		return nil, errors.New("no address is left for one more network of namespaces")
	}
	a := netlink.NewLinkAttrs()
	a.Name = "bridge" + strconv.Itoa(f.number)
	// A bridge without an address of its own takes that of one of its ports, and changes it with them.
	a.HardwareAddr = net.HardwareAddr{2, 0, 0, 0, byte(f.number), 1}
	f.bridge = &netlink.Bridge{LinkAttrs: a}
	if err := netlink.LinkAdd(f.bridge); err != nil {
		return nil, fmt.Errorf("cannot make a bridge: %w", err)
	}
	err := netlink.AddrAdd(f.bridge, &netlink.Addr{IPNet: f.address(1)})
	if err == nil {
		err = netlink.LinkSetUp(f.bridge)
	}
	if err == nil {
		err = f.newRules()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot set up a bridge: %w", err), netlink.LinkDel(f.bridge))
	}
	return f, nil
}

// address is the i-th address of the network.
func (f *fabric) address(i int) *net.IPNet {
	return &net.IPNet{IP: net.IPv4(10, 79, byte(f.number), byte(i)).To4(), Mask: net.CIDRMask(24, 32)}
}

// add makes the namespace of a node, joined to the bridge.
func (f *fabric) add(id string) (*space, error) {
	ns, err := newNamespace()
	if err != nil {
		return nil, fmt.Errorf("cannot make a network namespace: %w", err)
	}
	i := len(f.spaces) + 11 // node-1 has .11
	s := &space{ns: ns, ip: f.address(i).IP, link: fmt.Sprintf("node%d-%d", f.number, len(f.spaces)+1)}
	a := netlink.NewLinkAttrs()
	a.Name, a.MasterIndex = s.link, f.bridge.Attrs().Index
	cable := &netlink.Veth{LinkAttrs: a, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns)}
	if err := netlink.LinkAdd(cable); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot join a network namespace to the bridge: %w", err), ns.Close())
	}
	err = netlink.LinkSetUp(cable)
	if err == nil {
		err = s.do(func() error { return up("eth0", f.address(i)) })
	}
	if err == nil {
		f.spaces[id] = s
		err = f.addCounters(id)
	}
	if err != nil {
		delete(f.spaces, id)
		return nil, errors.Join(fmt.Errorf("cannot set up a network namespace: %w", err), netlink.LinkDel(cable), ns.Close())
	}
	return s, nil
}

// newNamespace makes one whose loopback is up.
func newNamespace() (netns.NsHandle, error) {
	var ns netns.NsHandle
	err := elsewhere(func() (err error) {
		if ns, err = netns.New(); err != nil {
			return err
		}
		if err := up("lo", nil); err != nil {
			return errors.Join(err, ns.Close())
		}
		return nil
	})
	return ns, err
}

// up gives a link an address, unless that is nil, and brings it up, in the namespace of the calling thread.
func up(name string, address *net.IPNet) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("no link %s: %w", name, err)
	}
	if address != nil {
		if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: address}); err != nil {
			return fmt.Errorf("cannot give %s an address: %w", name, err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("cannot bring %s up: %w", name, err)
	}
	return nil
}

// close removes what was made. REQUIRES: no node runs any more.
func (f *fabric) close() error {
	f.rules.DelTable(f.table)
	errs := []error{f.rules.Flush()}
	for _, s := range f.spaces {
		if l, err := netlink.LinkByName(s.link); err != nil {
			errs = append(errs, err)
		} else {
			errs = append(errs, netlink.LinkDel(l))
		}
		errs = append(errs, s.ns.Close())
	}
	return errors.Join(append(errs, netlink.LinkDel(f.bridge))...)
}
