package peer

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// Every goroutine has an owner and an end: none may be left when all tests have closed what they opened. The
// same program is the other process of tests that need one.
func TestMain(m *testing.M) {
	if fields := os.Getenv(childEnv); fields != "" {
		fmt.Fprintln(os.Stderr, runChild(fields))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}
