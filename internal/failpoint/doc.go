// Package failpoint lets tests strike at named places of the program: between an append and its fsync, say.
//
// What it does. In an ordinary build Hit and Err are empty and cost nothing. A build with the tag "failpoints"
// (make build-failpoints) reads what to do from the environment variable KVSTORE_FAILPOINTS and from Handler, which
// such a build serves under /debug/failpoints on the metrics port.
//
//	KVSTORE_FAILPOINTS='log.fsync.before=kill@3; apply.after=sleep(20ms)%10; vote.before=error(no vote)'
//
// A term is NAME=ACTION, optionally with @N (only the N-th hit), or with %P (P per cent of the hits, by the seed in
// KVSTORE_FAILPOINTS_SEED). Actions: kill (SIGKILL to itself), panic, sleep(DURATION), error(TEXT), off. An
// error at a place that can't fail (Hit) panics, so that no test believes in a fault that never was.
//
// What it assumes. Names are those of names.go: an unknown one is an error.
//
// Who owns what. The table of terms is the process's: a fault strikes a process, not one of its parts.
//
// What it never does. It has no place in a hot loop per operation: places are per entry, file or message.
package failpoint
