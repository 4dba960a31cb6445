package peer

import (
	"maps"
	"slices"
)

// Known lists the other nodes that the file in dir knows, founders and those met, while no Transport has it open.
// An absent file knows none.
func Known(dir, nodeID string, incarnation [16]byte, group uint32) ([]string, error) {
	b, err := openBook(dir, nodeID, incarnation, group)
	if err != nil {
		return nil, err
	}
	p := b.read()
	ids := slices.Collect(maps.Keys(p.entries))
	for _, f := range p.founders {
		if f.ID != nodeID {
			ids = append(ids, f.ID)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}
