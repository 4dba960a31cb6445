package node

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"kvstore/wire"
)

// clusterNodesMax is the largest cluster: nine voters survive the loss of four, and each more makes every
// write slower.
const clusterNodesMax = 9

// Founder is one node of a new cluster.
type Founder struct {
	// ID is the node's id and Address the host:port at which it listens for other nodes, as all of them
	// write it.
	ID, Address string
}

// ParseInitialCluster reads a list NAME=HOST:PORT,NAME=HOST:PORT,… and nothing looser. What the list must be
// to a node, Options.Check tells.
func ParseInitialCluster(text string) ([]Founder, error) {
	var out []Founder
	var errs []error
	for part := range strings.SplitSeq(text, ",") {
		id, addr, ok := strings.Cut(part, "=")
		if !ok {
			errs = append(errs, fmt.Errorf("%q is not NAME=HOST:PORT", part))
			continue
		}
		out = append(out, Founder{ID: id, Address: addr})
	}
	return out, errors.Join(errs...)
}

// validateCluster lists the faults of the options by which a node comes to its cluster.
func (o *Options) validateCluster() error {
	var errs []error
	fault := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	if len(o.InitialCluster) != 0 && len(o.Join) != 0 {
		fault("initial-cluster and join are both given: a node founds a new cluster or joins a running one")
	}
	if n := len(o.InitialCluster); n > clusterNodesMax {
		fault("initial-cluster lists %d nodes; at most %d", n, clusterNodesMax)
	}
	ids, addrs := map[string]bool{}, map[string]bool{}
	for _, f := range o.InitialCluster {
		if err := checkNodeID(f.ID); err != nil {
			fault("initial-cluster: %w", err)
		}
		if err := checkAddress(f.Address); err != nil {
			fault("initial-cluster: %s: %w", f.ID, err)
		}
		if ids[f.ID] {
			fault("initial-cluster: node %s stands twice", f.ID)
		}
		if addrs[f.Address] {
			fault("initial-cluster: address %s stands twice", f.Address)
		}
		ids[f.ID], addrs[f.Address] = true, true
	}
	if own := (Founder{o.NodeID, cmp.Or(o.RaftAdvertise, o.RaftListen)}); len(o.InitialCluster) != 0 && !slices.Contains(o.InitialCluster, own) {
		fault("initial-cluster does not contain this node as %s=%s: set --node-id and --raft-listen (or --raft-advertise) as the list has them", own.ID, own.Address)
	}
	for _, a := range o.Join {
		if err := checkAddress(a); err != nil {
			fault("join: %w", err)
		}
	}
	if len(o.InitialCluster) > 1 || len(o.Join) != 0 {
		for _, a := range []struct{ listen, advertise, name string }{
			{o.Listen, o.Advertise, "advertise"}, {o.HTTPListen, o.HTTPAdvertise, "http-advertise"}, {o.GRPCListen, o.GRPCAdvertise, "grpc-advertise"}, {o.RaftListen, o.RaftAdvertise, "raft-advertise"},
		} {
			if host, _, err := net.SplitHostPort(a.listen); err == nil && a.advertise == "" && unspecified(host) {
				fault("%s is needed: the listener %q stands for every address of this machine; say by which one the other nodes and clients reach it", a.name, a.listen)
			}
		}
	}
	return errors.Join(errs...)
}

// checkNodeID reports what is wrong with a node's id. It stands in JSON, in labels of metrics, in paths of
// REST and, as NAME=HOST:PORT,…, in lists of members.
func checkNodeID(id string) error {
	if id == "" || len(id) > wire.NodeIDBytesMax {
		return fmt.Errorf("node id %q has %d bytes; 1 to %d", id, len(id), wire.NodeIDBytesMax)
	}
	if strings.ContainsFunc(id, func(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune(`,="\`, c) }) {
		return fmt.Errorf("node id %q holds a character other than printable ASCII without space, comma, equals sign, quote and backslash", id)
	}
	return nil
}

// checkAddress reports what is wrong with an address that others shall use.
func checkAddress(addr string) error {
	if len(addr) > wire.AddressBytesMax {
		return fmt.Errorf("address of %d bytes; at most %d", len(addr), wire.AddressBytesMax)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" {
		return fmt.Errorf("%q is not HOST:PORT", addr)
	}
	if strings.ContainsFunc(addr, func(c rune) bool { return c <= ' ' || c > '~' || c == ',' || c == '=' }) {
		return fmt.Errorf("%q holds a character that no address has", addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q has no port from 1 to 65535", addr)
	}
	if unspecified(host) {
		return fmt.Errorf("%q stands for every address of a machine, by which nobody can reach it from another", addr)
	}
	return nil
}

// unspecified reports whether a host stands for every address of its machine.
func unspecified(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

// card is what a node tells others of itself whenever two nodes connect. The leader makes member records of
// it.
type card struct {
	RaftAddress string `json:"raft_address"`
	Address     string `json:"address"`
	HTTPAddress string `json:"http_address"`
	GRPCAddress string `json:"grpc_address"`
	Version     string `json:"version"`
	Level       uint16 `json:"level"`
	// Priority is the node's own wish to lead, 0 for none.
	Priority uint8 `json:"priority"`
	// Starts counts the starts of the node on its data directory: of two cards the one with more is the newer.
	Starts uint64 `json:"starts"`
}

// encodeCard makes the card of the node that m describes, in its starts-th start.
func encodeCard(m *wire.Member, starts uint64) []byte {
	b, err := json.Marshal(card{m.RaftAddress, m.Address, m.HTTPAddress, m.GRPCAddress, m.Version, m.Level, m.Priority, starts})
	if err != nil {
		panic("BUG: cannot encode a card: " + err.Error())
	}
	return b
}

// decodeCard reads the card of the node id; ok is false for one that no record could be made of.
func decodeCard(id string, incarnation [16]byte, b []byte) (m wire.Member, starts uint64, ok bool) {
	var c card
	if json.Unmarshal(b, &c) != nil || c.Priority > wire.MemberPriorityMax {
		return m, 0, false
	}
	m = wire.Member{
		ID: id, Incarnation: incarnation, RaftAddress: c.RaftAddress, Address: c.Address,
		HTTPAddress: c.HTTPAddress, GRPCAddress: c.GRPCAddress, Version: c.Version, Level: c.Level, Priority: c.Priority,
	}
	return m, c.Starts, checkMember(&m) == nil
}

// checkMember reports what is wrong with a member's description as others gave it.
func checkMember(m *wire.Member) error {
	if err := checkNodeID(m.ID); err != nil {
		return err
	}
	if err := checkAddress(m.RaftAddress); err != nil {
		return fmt.Errorf("raft address: %w", err)
	}
	if err := checkAddress(m.Address); err != nil {
		return fmt.Errorf("address: %w", err)
	}
	for _, a := range []struct{ name, addr string }{{"HTTP", m.HTTPAddress}, {"gRPC", m.GRPCAddress}} {
		if a.addr == "" {
			continue
		}
		if err := checkAddress(a.addr); err != nil {
			return fmt.Errorf("%s address: %w", a.name, err)
		}
	}
	if len(m.Version) > wire.VersionBytesMax || strings.ContainsFunc(m.Version, func(c rune) bool { return c < ' ' || c > '~' }) {
		return fmt.Errorf("version %q is not printable ASCII of at most %d bytes", m.Version, wire.VersionBytesMax)
	}
	return nil
}

// clipVersion makes a build's version fit a member record.
func clipVersion(v string) string {
	v = strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, v)
	return v[:min(len(v), wire.VersionBytesMax)]
}
