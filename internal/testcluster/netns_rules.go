package testcluster

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// counter is one of the two that each direction has in the kernel.
type counter string

const (
	heldCounter counter = "held" // packets that a rule has dropped
	sentCounter counter = "sent" // packets that went through
)

func (k counter) of(d direction) string { return string(k) + " " + d.from + " " + d.to }

// newRules makes the table of the fabric, and tries each kind of rule, so that what this kernel lacks shows now.
func (f *fabric) newRules() error {
	f.table = f.rules.AddTable(&nftables.Table{Family: nftables.TableFamilyBridge, Name: "fabric" + fmt.Sprint(f.number)})
	accept := nftables.ChainPolicyAccept
	f.chain = f.rules.AddChain(&nftables.Chain{Name: "forward", Table: f.table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &accept})
	trial := direction{"trial", "trial"}
	for _, k := range []counter{heldCounter, sentCounter} {
		f.rules.AddObj(&nftables.CounterObj{Table: f.table, Name: k.of(trial)})
	}
	all := make([]byte, 8)
	f.rule(all, lossRule(1), drop(trial))
	f.rule(all, drop(trial))
	if err := f.rules.Flush(); err != nil {
		return fmt.Errorf("this kernel lacks rules for bridges: %w", err)
	}
	f.rules.FlushChain(f.chain)
	if err := f.rules.Flush(); err != nil {
		return fmt.Errorf("cannot remove rules: %w", err)
	}
	return nil
}

// addCounters makes those between a new node and the others.
func (f *fabric) addCounters(id string) error {
	for other := range f.spaces {
		if other == id {
			continue
		}
		for _, d := range []direction{{id, other}, {other, id}} {
			for _, k := range []counter{heldCounter, sentCounter} {
				f.rules.AddObj(&nftables.CounterObj{Table: f.table, Name: k.of(d)})
			}
			f.rule(f.ends(d), counted(sentCounter, d))
		}
	}
	if err := f.rules.Flush(); err != nil {
		return fmt.Errorf("cannot make counters: %w", err)
	}
	return nil
}

// apply replaces all rules by those of the paths, at once. Packets of IP alone are concerned: a node that is not heard
// can still find the others.
func (f *fabric) apply(paths map[direction]*path) error {
	f.rules.FlushChain(f.chain)
	for d, p := range paths {
		if p.cut {
			f.rule(f.ends(d), drop(d))
		} else if p.loss > 0 {
			f.rule(f.ends(d), lossRule(p.loss), drop(d))
		}
	}
	for from := range f.spaces {
		for to := range f.spaces {
			if d := (direction{from, to}); from != to {
				f.rule(f.ends(d), counted(sentCounter, d))
			}
		}
	}
	return f.rules.Flush()
}

// count reads a counter: packets that were dropped, bytes that went through.
func (f *fabric) count(d direction, k counter) (int64, error) {
	o, err := f.rules.GetObject(&nftables.CounterObj{Table: f.table, Name: k.of(d)})
	if err != nil {
		return 0, fmt.Errorf("cannot read %q: %w", k.of(d), err)
	}
	c, ok := o.(*nftables.CounterObj)
	if !ok {
		return 0, fmt.Errorf("%q is no counter", k.of(d))
	}
	if k == sentCounter {
		return int64(c.Bytes), nil
	}
	return int64(c.Packets), nil
}

// ends is the source and the target address of the packets of a direction, as they stand in the header.
func (f *fabric) ends(d direction) []byte {
	return slices.Concat(f.spaces[d.from].ip, f.spaces[d.to].ip)
}

// rule adds a rule for the IP packets with these ends.
func (f *fabric) rule(ends []byte, more ...[]expr.Any) {
	exprs := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(unix.ETH_P_IP)},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 8},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ends},
	}
	f.rules.AddRule(&nftables.Rule{Table: f.table, Chain: f.chain, Exprs: append(exprs, slices.Concat(more...)...)})
}

// lossRule matches so many of a hundred packets at random.
func lossRule(percent int) []expr.Any {
	return []expr.Any{
		&expr.Numgen{Register: 1, Type: unix.NFT_NG_RANDOM, Modulus: 100},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binaryutil.BigEndian.PutUint32(uint32(percent))},
	}
}

func counted(k counter, d direction) []expr.Any {
	return []expr.Any{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: k.of(d)}}
}

func drop(d direction) []expr.Any {
	return append(counted(heldCounter, d), &expr.Verdict{Kind: expr.VerdictDrop})
}
