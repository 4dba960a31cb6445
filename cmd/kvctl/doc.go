// Command kvctl reads and writes a KVStore cluster from the shell.
//
// What it does. One file per verb: put, get, delete, list, txn, touch (with incr), watch, import, export, backup, status,
// namespace, member (with move-leader). Data goes to stdout, talk to stderr; the exit code says what happened (exit.go).
//
// What it assumes. A cluster answers on one of --endpoints, any of its nodes; status asks them one by one, so
// that a node that hangs or is cut off from the others does not speak for the cluster. Values are bytes: on a pipe they
// pass unchanged, in JSON they stand as "text" when they are valid UTF-8, else as base64 in "value".
//
// Who owns what. app holds the streams and the global flags; each verb opens one store (store.go), which
// client.go implements with the Go client.
//
// What it never does. It reports no write and no change of members as failed whose outcome is unknown, mixes
// no two moments in a listing or an export, prints no change of a watch twice and leaves none out, and prints no value
// into a message.
package main
