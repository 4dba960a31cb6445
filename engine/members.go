package engine

import (
	"cmp"
	"fmt"
	"slices"

	"kvstore/wire"
)

// systemMember begins the keys of member records in the system keyspace: "member/" and the node's id. The
// value is what wire.AppendMember wrote.
const systemMember = "member/"

// membersMax bounds the member records, removed ones included: they are kept for ever, so that no removed
// node comes back. It belongs to the behaviour level. A cluster of seven that replaces a node each week
// gets there in twenty years.
const membersMax = 1024

// member executes OpMember: it writes one member record, new or changed.
func (a *applier) member(op *wire.Op) wire.Result {
	var m wire.Member
	if err := wire.DecodeMember(op.Payload, &m); err != nil {
		return wire.Result{Status: wire.StatusBadRequest}
	}
	at, found := findMember(a.members, m.ID)
	if !found && len(a.members) >= membersMax {
		return wire.Result{Status: wire.StatusTooLarge}
	}
	rev := a.putSystem(systemMember+m.ID, op.Payload)
	members := slices.Clone(a.members) // readers hold the one that was published
	if found {
		members[at] = m
	} else {
		members = slices.Insert(members, at, m)
	}
	a.members = members
	return wire.Result{Status: wire.StatusOK, Rev: rev}
}

func findMember(members []wire.Member, id string) (at int, found bool) {
	return slices.BinarySearchFunc(members, id, func(m wire.Member, id string) int { return cmp.Compare(m.ID, id) })
}

// setMembers publishes the member records. REQUIRES: caller is the applier.
func (in *instance) setMembers(members []wire.Member) {
	if p := in.members.Load(); p != nil && len(*p) == len(members) && (len(members) == 0 || &(*p)[0] == &members[0]) {
		return // the same slice: nearly every entry leaves here, without an allocation
	}
	published := members // the parameter itself must not escape
	in.members.Store(&published)
}

// loadMembers reads the member records, sorted by id: the order of their keys.
func loadMembers(r *reader) (members []wire.Member, err error) {
	err = eachSystemRecord(r, systemMember, func(rec *storedRecord) error {
		var m wire.Member
		if err := wire.DecodeMember(rec.Value, &m); err != nil {
			return fmt.Errorf("%w: %w", ErrRecordDamaged, err)
		}
		members = append(members, m)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot load the member records: %w", err)
	}
	return members, nil
}

// Members gives the member records, sorted by id, those of removed nodes included. The slice is immutable:
// don't change it. It is that of the newest entry applied.
func (e *Engine) Members() []wire.Member { return *e.live.Load().members.Load() }

// Member gives the member record of a node; ok is false when there is none.
func (e *Engine) Member(id string) (m wire.Member, ok bool) {
	members := e.Members()
	at, found := findMember(members, id)
	if !found {
		return wire.Member{}, false
	}
	return members[at], true
}
