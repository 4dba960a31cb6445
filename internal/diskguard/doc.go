// Package diskguard keeps a disk from ever becoming full.
//
// Why: Badger writes its memtables and tables through shared memory maps of sparse files. On a full disk
// such a write is not an error but SIGBUS, which ends the process and cannot be caught. So writes have to
// be refused while there is still room, and refused before they reach the log: surely not applied.
//
// What it does: Guard asks the file system every half second how much is free and keeps one of three
// states, which any goroutine reads with one atomic load:
//
//	OK        everything is taken
//	Low       free < floor: new data is refused; reads, deletes and compaction go on
//	Critical  free < critical, and the ballast is gone: deletes are refused too
//
// Deletes need room themselves (a log entry, a tombstone, the output of the compaction that frees the
// old values, an hour or more later). The ballast, a preallocated file, is that room: it is removed when
// free space first falls below the critical level, and made again once there is room for it.
//
//	        free < floor              free < critical: release ballast;
//	                                  free < critical again
//	OK ----------------------> Low ----------------------------------> Critical
//	   <----------------------     <----------------------------------
//	    free >= 1.25 floor            free >= 1.25 critical
//
// What it assumes: Linux; between two polls the disk loses less than floor - critical. With the defaults
// that is 768 MiB in 500 ms, 1.5 GB/s. The space may be taken by anybody, not only by this process.
//
// Who owns what: Guard owns the file "ballast" in its directory and one goroutine, from Open to Close.
//
// What it never does: refuse anything itself; the caller asks State before it takes a write.
package diskguard
