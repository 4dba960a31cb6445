package node

import (
	"fmt"

	"kvstore/engine"
	"kvstore/wire"
)

// levelNamespaces is the behaviour level that brings namespaces, touch, increment, conditions on tags and compression
// by the store.
const levelNamespaces = 2

// levelIdempotency is the behaviour level that brings writes with an idempotency key.
const levelIdempotency = 3

// namespace is one namespace of the state.
type namespace = engine.Namespace

// namespaces lists the namespaces of the applied state.
func (s *Shard) namespaces() []namespace { return s.engine.Namespaces() }

// namespace gives the id that a name has in the applied state, wire.NamespaceNone when it has none; an empty name means
// the default namespace. It takes no lock.
func (s *Shard) namespace(name []byte) (ns uint32, ok bool) {
	if len(name) == 0 {
		return wire.NamespaceDefault, true
	}
	return s.engine.Namespace(name)
}

// noNamespace is the refusal for a name that stands for nothing: surely nothing was changed.
func (s *Service) noNamespace(name []byte) *wire.Refusal {
	text := fmt.Sprintf("the namespace %q does not exist; nothing was changed: create it first, with kvctl namespace create", name)
	switch {
	case !wire.ValidNamespaceName(string(name)):
		text = fmt.Sprintf("no namespace can have the name %q; nothing was changed: 1 to %d characters of a-z A-Z 0-9 . _ : / -, the first a letter or a digit", name, wire.NamespaceBytesMax)
	case s.shard.engine.Level() < levelNamespaces:
		text = fmt.Sprintf("the namespace %q does not exist; nothing was changed: the cluster is being upgraded, and has the default namespace alone until all its nodes are", name)
	}
	return &wire.Refusal{Status: wire.StatusNoNamespace, Text: text}
}

// resolve gives the namespace that it reads in, by its name, in the state that has to answer it; or a refusal. See
// "Names of namespaces" in DESIGN.md.
func (it *readItem) resolve(s *Service) (ns uint32, refusal *wire.Refusal) {
	ns, ok := s.shard.namespace(it.name)
	switch {
	case it.pin != 0 && !ok:
		if s.shard.engine.Applied().Revision != it.pin {
			return 0, lagging // it may have been there in the state that has to answer
		}
	case it.pin != 0:
		if there, err := s.shard.engine.NamespaceAt(ns, it.pin); !there || err != nil {
			return 0, lagging // another may have had its name
		}
	}
	if !ok && (!s.o.AutoCreateNamespaces || it.token.Op == wire.OpWatch) { // a watch of nothing would never see what comes to be
		return 0, s.noNamespace(it.name)
	}
	if ns != it.ns && !s.o.Authorizer.Open() {
		return 0, &wire.Refusal{Status: wire.StatusRetryLater, Text: "the namespace was created, or made anew, while the read waited: try again"}
	}
	return ns, nil
}

// tooNew refuses what a state of an earlier behaviour level can't do, as long as it has that; nil: it may go on.
func (s *Service) tooNew(r *wire.Request) *wire.Refusal {
	level := s.shard.engine.Level()
	what := ""
	switch {
	case level < levelIdempotency && len(r.Idempotency) != 0:
		what = "idempotency keys"
	case level < levelNamespaces && needsNewer(r):
		what = "touch, increment, conditions on tags and compression by the store"
	default:
		return nil
	}
	return &wire.Refusal{Status: wire.StatusUnsupported, Text: "the cluster is being upgraded: " + what + " work once all its nodes are; nothing was changed"}
}

// needsNewer reports whether a validated write needs behaviour level 2 for what it does.
func needsNewer(r *wire.Request) bool {
	newer := func(op wire.Opcode, ext []byte) bool {
		var m wire.Mutation
		return wire.DecodeMutation(op, ext, &m) == nil && m.Level >= levelNamespaces
	}
	switch r.Op {
	case wire.OpBatch, wire.OpTxn:
		for it := range items(r.Payload) {
			if newer(it.Op, it.Ext) {
				return true
			}
		}
		return false
	case wire.OpSessionOpen, wire.OpSessionClose:
		return false
	}
	return newer(r.Op, r.Ext)
}
