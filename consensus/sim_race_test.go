//go:build race

package consensus

// simSeedsDefault is smaller under the race detector, with which a simulation takes twenty times as long.
const simSeedsDefault = 10
