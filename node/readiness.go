package node

import (
	"errors"
)

// readiness tells why the node should get no requests yet, or none any more; nil when it should.
func (s *Service) readiness() error {
	leader, _, _ := s.shard.group.Leader()
	switch {
	case s.draining.Load():
		return errors.New("the node is stopping")
	case s.shard.quarantined.Load():
		return errors.New("the state of this node may not be served: it is built anew from the other nodes")
	case leader == "":
		return errors.New("no leader is known")
	case leader == s.info.NodeID && !s.shard.leading():
		return errors.New("this node was elected and has not applied everything of earlier terms yet")
	case !s.shard.keeper.isSettled():
		return errors.New("the node has not caught up with its leader yet")
	}
	return nil
}
