// Package clustertime gives the nodes of a cluster one time that no step of a wall clock reaches: what the leader stamps
// into the log, and what times to live are counted by.
//
// What it does: each node keeps the difference between its boot time and the cluster's time. A node that follows learns
// it from what its leader tells with each pulse; one that comes to lead goes on from what it has learned. The leader
// alone brings the cluster's time nearer to the median of the voters' wall clocks, slowly. Each node compares what the
// voters tell of their cluster clocks with its own, and believes a majority more than itself. DESIGN.md says what is
// promised, under which faults.
//
// What it assumes: the boot clocks of a majority of the voters run right, to 500 parts in a million. Wall clocks may be
// anything.
//
// Who owns what: a Clock has a lock of its own, held for microseconds and never while another one is taken. It starts no
// goroutine and reads no clock: whoever calls passes what it has read.
//
// What it never does: decide what has expired, which the state machine does by the time of each entry (T, which never
// goes back whatever this package says), or who may lead.
package clustertime
