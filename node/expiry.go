package node

import (
	"context"
	"time"

	"kvstore/internal/diskguard"
	"kvstore/wire"
)

const (
	// expiryInterval is how often the leader looks for records whose time has come: with the commit it
	// bounds how long after its deadline a record may still be read while nothing else is written.
	expiryInterval = 100 * time.Millisecond
	// expiryRecordsMax is the most records that one entry removes, so that a mass expiry takes its turn
	// with other writes.
	expiryRecordsMax = 1000
)

// expiry is the loop that proposes the removal of expired records. Whether a record is expired is
// decided in the state machine, by the entry's time; this loop only wakes it.
type expiry struct{ loop }

func (x *expiry) start(s *Shard) {
	x.begin(func(ctx context.Context) {
		tick := time.NewTicker(expiryInterval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			// At the last of the disk nothing is written, not even this: what is due goes when space returns.
			for ctx.Err() == nil && s.leading() && s.health.disks.writable() != diskguard.Critical {
				deadline, ok := s.engine.DueExpiry()
				if !ok || deadline > s.logTime() {
					break
				}
				if r := s.propose(ctx, &wire.Op{Op: wire.OpExpire}, wire.AppendExpire(nil, expiryRecordsMax)); r.Status != wire.StatusOK {
					break // whatever it was, the next tick tries again: expiring twice is harmless
				}
			}
		}
	})
}
