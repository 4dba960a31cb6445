package engine

import (
	"errors"
	"testing"
)

func TestCheckIdentity_NotThereThoughTheDigestCountsIt_IsDamage(t *testing.T) {
	s := mustOpenStore(t, storeOptions(t, t.TempDir()))
	in := &instance{store: s}
	in.setIdentity(identity{})
	if err := in.checkIdentity(); err != nil {
		t.Fatalf("an empty state: %v", err)
	}
	m := marker{index: 1, term: 1, ts: 1, digest: digest{1, 2}, records: systemRecords}
	stored := appendMarker(nil, &m)
	if err := s.begin(m.ts).commit(stored); err != nil {
		t.Fatal(err)
	}
	s.publish(m.point(), stored)
	in.newest = m
	if err := in.checkIdentity(); !errors.Is(err, ErrDigestMismatch) {
		t.Fatalf("error %v, want ErrDigestMismatch", err)
	}
}
