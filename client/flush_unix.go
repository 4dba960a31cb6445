//go:build unix

package client

import "syscall"

// canTryWrite: the platform has a write that does not wait.
const canTryWrite = true

// writeOnce is one write(2) of wb on a non-blocking socket. It always reports true: never wait.
func (c *conn) writeOnce(fd uintptr) bool {
	for {
		n, err := syscall.Write(int(fd), c.wb)
		switch err {
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			n, err = 0, nil
		}
		c.wn, c.werr = max(n, 0), err
		return true
	}
}
