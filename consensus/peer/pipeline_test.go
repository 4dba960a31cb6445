package peer

import (
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// Goal: one answer without success amid a burst of appends never stops replication to a follower for good. The
// library's pipeline stops to read answers then, while its sender waits for room to send, for ever, and
// heartbeats go on (hashicorp/raft #612).
func TestRaft_FollowerFailsToStoreAmidABurst_ReplicationGoesOn(t *testing.T) {
	members := cluster(t, 3, nil)
	write(t, members, "first")
	for round := range 8 {
		leader := leaderOf(t, members)
		follower := others(members, leader)[round%2]
		var futures []raft.ApplyFuture
		for i := range 60 {
			if i == 20 {
				follower.log.fail.Store(1)
			}
			futures = append(futures, leader.raft.Apply(fmt.Appendf(nil, "%d-%d", round, i), time.Second))
			if i%5 == 0 {
				time.Sleep(200 * time.Microsecond) // so that the burst goes out in many messages
			}
		}
		for _, f := range futures {
			_ = f.Error() // a lost leadership is no failure here: what counts is what comes next
		}
		last := fmt.Sprintf("after %d", round)
		write(t, members, last)
		agreeOn(t, members, last)
	}
}
