package failpoint

import "testing"

func TestNames_AreUnique(t *testing.T) {
	seen := make(map[string]bool)
	for _, n := range Names() {
		if seen[n] {
			t.Errorf("%s stands twice", n)
		}
		seen[n] = true
		if !Enabled && Err(n) != nil {
			t.Errorf("%s strikes in an ordinary build", n)
		}
	}
}
