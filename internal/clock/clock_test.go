package clock

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	_ Clock = System{}
	_ Clock = (*Manual)(nil)
)

func TestSystem_Boot_AgreesWithTheKernelsUptimeAndNeverGoesBack(t *testing.T) {
	// /proc/uptime is CLOCK_BOOTTIME in hundredths of a second (in a time namespace as well).
	uptime := func() time.Duration {
		b, err := os.ReadFile("/proc/uptime")
		if err != nil {
			t.Fatal(err)
		}
		seconds, err := strconv.ParseFloat(strings.Fields(string(b))[0], 64)
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(seconds * float64(time.Second))
	}
	const rounding = 20 * time.Millisecond
	before := uptime()
	boot := System{}.Boot()
	if after := uptime(); boot < before-rounding || boot > after+rounding {
		t.Fatalf("boot time %v lies outside the kernel's uptime %v to %v", boot, before, after)
	}
	for last, i := boot, 0; i < 1000; i++ {
		now := System{}.Boot()
		if now < last {
			t.Fatalf("boot time went back from %v to %v", last, now)
		}
		last = now
	}
}

func TestManual_Advance_MovesBothAndSetNowOnlyTheWall(t *testing.T) {
	start := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	m := NewManual(start)
	if !m.Now().Equal(start) || m.Boot() != 0 {
		t.Fatalf("starts at %v, %v", m.Now(), m.Boot())
	}
	m.Advance(time.Minute)
	if !m.Now().Equal(start.Add(time.Minute)) || m.Boot() != time.Minute {
		t.Fatalf("after Advance: %v, %v", m.Now(), m.Boot())
	}
	m.SetNow(start.Add(-time.Hour))
	if !m.Now().Equal(start.Add(-time.Hour)) || m.Boot() != time.Minute {
		t.Fatalf("after SetNow: %v, %v", m.Now(), m.Boot())
	}
}

func TestManual_AdvanceBackwards_Panics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Fatal("no panic")
		}
	}()
	new(Manual).Advance(-1)
}

func TestManual_ConcurrentUse_LosesNoAdvance(t *testing.T) {
	var m Manual
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				m.Advance(1)
				m.Now()
			}
		})
	}
	wg.Wait()
	if m.Boot() != 4000 {
		t.Fatalf("boot time %d, want 4000", m.Boot())
	}
}

func BenchmarkSystem(b *testing.B) {
	b.Run("Now", func(b *testing.B) {
		for b.Loop() {
			System{}.Now()
		}
	})
	b.Run("Boot", func(b *testing.B) {
		for b.Loop() {
			System{}.Boot()
		}
	})
}
