package node

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"time"

	"kvstore/consensus"
	"kvstore/internal/diskguard"
)

const (
	// priorityAfterDefault is how long a voter must have been well before it is handed the leadership for its
	// priority alone: one that comes and goes would take it along each time.
	priorityAfterDefault = time.Minute
	// clockSkewMax is how far a leader's wall clock may be off those of the voters: something is wrong with its machine.
	clockSkewMax = time.Second
	// balancePauseMin and balancePauseMax bound the pause after handing the leadership over, or trying to. It
	// doubles each time, and begins anew after twice the longest without another attempt: a leadership that
	// comes back each time is not sent away for ever.
	balancePauseMin = 10 * time.Second
	balancePauseMax = 10 * time.Minute
	// successorContactMax is how old a voter's last sign of life may be to count for it, and successorLagMax how
	// many entries it may be behind.
	successorContactMax = time.Second
	successorLagMax     = promoteLagMax
)

// diskOK reports whether a member's disk has space to take writes, as it said last. Where nothing is known, it has.
func (s *Shard) diskOK(id string) bool {
	st, ok := s.health.disk(id)
	return !ok || st == diskguard.OK
}

// balance decides when a leader that is well enough to lead hands the leadership over all the same: because its wall
// clock or its disk is in trouble while another voter's is not, or because another voter has a higher priority. Owned
// by keeper.run.
type balance struct {
	term      uint64               // of well
	well      map[string]time.Time // since when each other voter has been fit to lead
	attempts  int                  // in a row
	tried     time.Time            // the last attempt
	notBefore time.Time            // no further attempt before
	alarmed   string               // the trouble that was logged last
}

// candidate is a voter that is fit to lead.
type candidate struct {
	id       string
	priority uint8
	match    uint64
	since    time.Time
}

// look hands the leadership over if it should. REQUIRES: the caller is keeper.run, and this node leads.
func (b *balance) look(ctx context.Context, s *Shard) {
	now := time.Now()
	st := s.group.Status()
	fit := b.fit(s, &st, now)
	trouble := s.trouble()
	b.alarm(s.log, trouble, len(fit) != 0)
	if len(fit) == 0 || now.Before(b.notBefore) {
		return
	}
	best := fit[0]
	if trouble == "" {
		own, _ := s.engine.Member(s.roster.self.ID)
		i := slices.IndexFunc(fit, func(c candidate) bool {
			return c.priority > own.Priority && now.Sub(c.since) >= s.priorityAfter
		})
		if i < 0 || st.Pending != nil || s.copying() {
			return
		}
		best = fit[i]
	}
	if !s.tryChange() {
		return // an administrator's change is under way
	}
	defer s.endChange()
	b.attempt(now)
	s.log.Info("handing the leadership over", "to", best.id, "its_priority", best.priority, "reason", cmp.Or(trouble, "priority"))
	if err := s.group.Transfer(ctx, best.id); err != nil {
		s.log.Warn("cannot hand the leadership over", "to", best.id, "error", err, "pause", b.notBefore.Sub(now))
	}
}

// fit lists the voters that could lead, the one that should first, and keeps note of since when.
func (b *balance) fit(s *Shard, st *consensus.Status, now time.Time) []candidate {
	before := b.well
	if st.Term != b.term {
		b.term, before = st.Term, nil // what was seen in another term is long ago
	}
	b.well = make(map[string]time.Time)
	var out []candidate
	for _, p := range s.group.Peers() {
		if !p.Voter || !p.Acked || p.LastAck > successorContactMax || p.Match+successorLagMax < st.LastIndex || !s.diskOK(p.ID) {
			continue
		}
		record, _ := s.engine.Member(p.ID)
		if record.Removed || record.NoPromote {
			continue // it is on its way out
		}
		since, ok := before[p.ID]
		if !ok {
			since = now
		}
		b.well[p.ID] = since
		out = append(out, candidate{p.ID, record.Priority, p.Match, since})
	}
	slices.SortFunc(out, func(x, y candidate) int {
		return cmp.Or(cmp.Compare(y.priority, x.priority), cmp.Compare(y.match, x.match), cmp.Compare(x.id, y.id))
	})
	return out
}

// attempt notes that the leadership is about to be handed over, and sets the pause.
func (b *balance) attempt(now time.Time) {
	if now.Sub(b.tried) > 2*balancePauseMax {
		b.attempts = 0
	}
	b.tried, b.notBefore = now, now.Add(min(balancePauseMin<<b.attempts, balancePauseMax))
	b.attempts = min(b.attempts+1, 6) // 10 s shifted by 6 is more than the longest pause
}

// alarm logs a trouble when it begins and when it ends.
func (b *balance) alarm(log *slog.Logger, trouble string, another bool) {
	switch {
	case trouble == b.alarmed:
	case trouble == "":
		log.Info("the leader is well again", "was", b.alarmed)
	default:
		log.Error("the leader is in trouble", "trouble", trouble, "another_could_lead", another)
	}
	b.alarmed = trouble
}

// Troubles for which a leader gives its place to another.
const (
	troubleClock = "its wall clock is more than a second off those of the other voters: check the time service of its machine"
	troubleTime  = "its boot clock does not run as those of the other voters: its cluster clock was more than a second off theirs"
	troubleDisk  = "its disk has too little space"
)

// trouble tells why this node should not lead while another could, "" if nothing speaks against it.
func (s *Shard) trouble() string {
	if s.time.Off() {
		return troubleTime
	}
	if ms, ok := s.wallSkew(); ok && time.Duration(abs(ms))*time.Millisecond > clockSkewMax {
		return troubleClock
	}
	if !s.diskOK(s.roster.self.ID) {
		return troubleDisk
	}
	return ""
}

// copying reports whether a copy of the state is under way to or from this node.
func (s *Shard) copying() bool { return len(s.group.Transfers()) != 0 }

func abs(n int64) int64 { return max(n, -n) }
