//go:build !race

package consensus

// simSeedsDefault is how many simulations TestSimulation runs: 25 s of one processor.
const simSeedsDefault = 150
