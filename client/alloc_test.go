package client

import (
	"bytes"
	"context"
	"errors"
	"testing"
)

// The fake server allocates nothing on these paths, so that what is counted over a real connection is the
// client's.
func TestAllocations_HotPaths(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	_, c := fake(t)
	ctx := context.Background()
	cancelable, cancel := context.WithCancel(ctx)
	defer cancel()
	value := bytes.Repeat([]byte("v"), 100)
	dst := make([]byte, 0, 1024)
	key := "some/key"
	if _, err := c.Put(ctx, key, value); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		max  float64
		f    func() error
	}{
		{"GetAppend", 0, func() error { _, _, err := c.GetAppend(ctx, dst, key); return err }},
		{"GetAppend with options", 0, func() error { _, _, err := c.GetAppend(ctx, dst, key, AtLeast(1), Stale()); return err }},
		{"GetAppend, cancelable context", 0, func() error { _, _, err := c.GetAppend(cancelable, dst, key); return err }},
		{"GetAppend of an absent key", 0, func() error {
			if _, _, err := c.GetAppend(ctx, dst, "absent"); !errors.Is(err, ErrNotFound) {
				return errors.New("found")
			}
			return nil
		}},
		{"Put", 0, func() error { _, err := c.Put(ctx, key, value); return err }},
		{"Put, cancelable context", 0, func() error { _, err := c.Put(cancelable, key, value); return err }},
		{"Exists", 0, func() error { _, _, err := c.Exists(ctx, key); return err }},
		{"Delete of an absent key", 0, func() error { _, _, err := c.Delete(ctx, "absent"); return err }},
		{"Get", 1, func() error { _, err := c.Get(ctx, key); return err }}, // the value's copy
	} {
		for range 100 {
			if err := test.f(); err != nil {
				t.Fatal(test.name, err)
			}
		}
		var failed error
		n := testing.AllocsPerRun(2000, func() {
			if err := test.f(); err != nil {
				failed = err
			}
		})
		if failed != nil {
			t.Fatal(test.name, failed)
		}
		if n > test.max {
			t.Errorf("%s: %v allocations, at most %v", test.name, n, test.max)
		}
	}
}
