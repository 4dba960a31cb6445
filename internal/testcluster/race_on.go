//go:build race

package testcluster

// Race tells whether the test, and with it the binaries that it builds, run under the race detector.
const Race = true
