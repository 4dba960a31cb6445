//go:build !unix

package client

// canTryWrite: elsewhere the writer goroutine makes every write.
const canTryWrite = false

func (c *conn) writeOnce(uintptr) bool { panic("BUG: this platform has no write that does not wait") }
