package node

import (
	"context"
	"fmt"

	"kvstore/wire"
)

// raiseLevel raises the behaviour level of the state by one, once every member is known to run a build that knows the
// next one: by its member record, which follows its card, and by the card that it has shown this node, if any. From then
// on a node with an older build is refused. REQUIRES: the token of changes is held, so that no member is added
// meanwhile; this node leads.
func (s *Shard) raiseLevel(ctx context.Context) error {
	level := s.engine.Level()
	if level == 0 || level >= s.level {
		return nil
	}
	next := level + 1
	for _, m := range s.group.Status().Configuration {
		if m.ID == s.roster.self.ID {
			continue // it knows s.level
		}
		record, recorded := s.engine.Member(m.ID)
		card, shown := s.roster.card(m.ID)
		if !recorded || record.Level < next || shown && card.Level < next {
			return nil
		}
	}
	r := s.propose(ctx, &wire.Op{Op: wire.OpLevel}, wire.AppendLevel(nil, next))
	if r.Status != wire.StatusOK {
		return fmt.Errorf("cannot raise the behaviour level to %d: %s", next, r.Status)
	}
	s.log.Info("every member knows the next behaviour level: the state has it now", "level", next)
	return nil
}
