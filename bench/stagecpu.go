package bench

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/google/pprof/profile"
)

// stageRules say to which stage a sample of a server's CPU profile belongs: to that of the first rule one of whose prefixes begins
// the name of any function on its stack. So what is called by several stages, such as the layer of the newest state, counts for its
// caller, and what a rule further down would take for itself stands before it.
var stageRules = []struct {
	stage    string
	prefixes []string
}{
	{"collecting garbage", []string{"runtime.gcBgMarkWorker", "runtime.bgsweep", "runtime.bgscavenge", "runtime.gcStart"}},
	{"change feed", []string{"kvstore/feed."}},
	{"apply", []string{"kvstore/consensus.(*fsm)"}},
	{"checkpoint", []string{"kvstore/engine.(*store).checkpoint", "github.com/dgraph-io/badger/v4.(*DB).doWrites", "github.com/dgraph-io/badger/v4.(*DB).flushMemtable", "github.com/dgraph-io/badger/v4.(*levelsController)", "github.com/dgraph-io/badger/v4.(*DB).handleMemTableFlush"}},
	{"reply", []string{"kvstore/batcher.(*Batcher).done", "kvstore/netloop.(*Session).Complete", "kvstore/netloop.(*Session).answer", "kvstore/netloop.(*conn).flush"}},
	{"look-up", []string{"kvstore/engine.(*Engine).Get", "kvstore/engine.(*CachedGets)", "kvstore/node.(*cachedReads)"}},
	{"batch", []string{"kvstore/batcher."}},
	{"log", []string{"kvstore/consensus.(*logStore)", "kvstore/consensus.(*logQueue)", "github.com/hashicorp/raft-wal"}},
	{"replicate", []string{"kvstore/consensus", "github.com/hashicorp/raft."}},
	{"parse", []string{"kvstore/netloop.", "kvstore/node.(*Service)"}},
	{"network", []string{"github.com/panjf2000/gnet"}},
	{"scheduling", []string{"runtime.mcall", "runtime.mstart", "runtime.park_m", "runtime.schedule", "runtime.sysmon", "runtime.goexit0", "runtime.morestack"}},
}

// stageOther is what no rule names.
const stageOther = "other"

// stageOf tells the stage of one sample.
func stageOf(s *profile.Sample) string {
	for _, rule := range stageRules {
		for _, l := range s.Location {
			for _, line := range l.Line {
				if line.Function == nil {
					continue
				}
				for _, p := range rule.prefixes {
					if strings.HasPrefix(line.Function.Name, p) {
						return rule.stage
					}
				}
			}
		}
	}
	return stageOther
}

// stageShares splits a CPU profile: the share of each stage, which add up to 1. What little a node has used whose profile is
// empty is told as other.
func stageShares(raw []byte) (map[string]float64, error) {
	p, err := profile.Parse(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("cannot read a CPU profile: %w", err)
	}
	if len(p.SampleType) == 0 {
		return nil, fmt.Errorf("cannot read a CPU profile: it has no kind of value")
	}
	if len(p.Sample) == 0 {
		return map[string]float64{stageOther: 1}, nil
	}
	shares, all := map[string]float64{}, 0.0
	for _, s := range p.Sample {
		v := float64(s.Value[len(s.Value)-1])
		shares[stageOf(s)] += v
		all += v
	}
	for stage := range shares {
		shares[stage] /= all
	}
	return shares, nil
}
