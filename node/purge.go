package node

import (
	"context"
	"time"

	"kvstore/internal/diskguard"
	"kvstore/wire"
)

const (
	// purgeInterval is how often the leader looks for a dropped namespace.
	purgeInterval = 100 * time.Millisecond
	// purgeRecordsMax is the most records that one entry removes: some milliseconds of the state machine's time, which
	// whatever else is written then waits for.
	purgeRecordsMax = 1000
	// purgeRest is how long the purge rests after an entry for each time that the entry took, from queue to answer: it
	// takes a fifth of the log at most, and less the more others write, since their load makes its entries slower.
	purgeRest = 4
	// purgeRestMax bounds one rest, so that a stall does not put the purge off for long.
	purgeRestMax = time.Second
)

// purge is the loop that has the records of dropped namespaces removed, piece by piece, while this node leads. Where it
// has come to is state, so that the next leader goes on from there.
type purge struct{ loop }

func (x *purge) start(s *Shard) {
	x.begin(func(ctx context.Context) {
		timer := time.NewTimer(purgeInterval)
		defer timer.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
			timer.Reset(x.step(ctx, s))
		}
	})
}

// step proposes the next piece, if there is one, and gives the rest to take before the next step.
func (x *purge) step(ctx context.Context, s *Shard) time.Duration {
	// At the last of the disk nothing is written, not even this.
	if !s.leading() || s.health.disks.writable() == diskguard.Critical {
		return purgeInterval
	}
	id, ok := s.engine.Purging()
	if !ok {
		return purgeInterval
	}
	begun := time.Now()
	change := wire.NamespaceChange{Action: wire.NamespacePurge, ID: id, Max: purgeRecordsMax}
	r := s.propose(ctx, &wire.Op{Op: wire.OpNamespace}, wire.AppendNamespaceChange(nil, &change))
	if r.Status != wire.StatusOK {
		// Whatever it was, a later step looks again: a purge that was done meanwhile is no harm.
		return purgeInterval
	}
	return min(max(purgeRest*time.Since(begun), time.Millisecond), purgeRestMax)
}
