package peer

import (
	"testing"

	"go.uber.org/goleak"
)

// Every goroutine has an owner and an end: none may be left when all tests have closed what they opened.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
