//go:build failpoints

package failpoint

import (
	"testing"
	"time"
)

func TestSet_Terms_StrikeAsTheySay(t *testing.T) {
	if err := Set(ApplyBefore + "=error(no)@2; " + VoteBefore + "=sleep(5ms); " + VoteAfter + "=error%50"); err != nil {
		t.Fatal(err)
	}
	for hit := 1; hit <= 3; hit++ {
		if err := Err(ApplyBefore); (err != nil) != (hit == 2) {
			t.Errorf("hit %d: %v", hit, err)
		}
	}
	if at := time.Now(); Err(VoteBefore) != nil || time.Since(at) < 5*time.Millisecond {
		t.Error("it did not sleep")
	}
	n := 0
	for range 1000 {
		if Err(VoteAfter) != nil {
			n++
		}
	}
	if n < 300 || n > 700 {
		t.Errorf("%d of 1000 hits at 50 per cent", n)
	}
	if err := Set(ApplyBefore + "=off;" + VoteBefore + "=off;" + VoteAfter + "=off"); err != nil || Err(VoteAfter) != nil {
		t.Error(err)
	}
}

func TestSet_Malformed_ChangesNothing(t *testing.T) {
	for _, s := range []string{"nowhere=kill", "apply.before", "apply.before=fly", "apply.before=kill@0", "apply.before=kill%200", "apply.before=sleep(x)", "apply.before=sleep(1s"} {
		if Set(VoteBefore+"=error;"+s) == nil {
			t.Errorf("%q was taken", s)
		}
	}
	if Err(VoteBefore) != nil {
		t.Error("half of a faulty line was taken")
	}
}
