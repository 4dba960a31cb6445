//go:build race

package engine

// raceEnabled: sync.Pool drops objects at random under the race detector, so allocations can't be counted.
const raceEnabled = true
