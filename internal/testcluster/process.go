package testcluster

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

// process is one run of a command.
type process struct {
	// Immutable after startProcess.
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended and its output is complete

	// Written before done is closed.
	state *os.ProcessState
}

// startProcess starts a command with its output going to out.
func startProcess(path string, args, env []string, out *tail) (*process, error) {
	return startProcessIn(nil, path, args, env, out)
}

// startProcessIn is startProcess in a network namespace; nil: in that of the test.
func startProcessIn(where *space, path string, args, env []string, out *tail) (*process, error) {
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = out, out
	// If the test is killed, the kernel kills the process.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return startCommand(where, cmd, out)
}

// startCommand starts cmd, whose output goes to out, in a network namespace; nil: in that of the test.
func startCommand(where *space, cmd *exec.Cmd, out *tail) (*process, error) {
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() { // owned by p; ends with the process
		// The death signal is tied to the thread that forked, not to the process: keep it until the end.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := where.do(cmd.Start); err != nil {
			started <- err
			return
		}
		started <- nil
		// An error says how the process ended, which state says better, or that its output was cut.
		if err := cmd.Wait(); err != nil && cmd.ProcessState == nil {
			fmt.Fprintf(out, "\ncannot wait for the process: %v\n", err)
		}
		p.state = cmd.ProcessState
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", cmd.Path, err)
	}
	return p, nil
}

// pid is the process id.
func (p *process) pid() int { return p.cmd.Process.Pid }

// ended reports whether the process is gone.
func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// describe says how the process ended. REQUIRES: done is closed.
func (p *process) describe() string {
	if p.state == nil {
		return "it ended in an unknown way"
	}
	return p.state.String()
}

// tail keeps the end of an output: as much as anyone reads of a failure.
type tail struct {
	mu sync.Mutex
	// Guarded by mu.
	b       []byte
	dropped int
}

// tailBytesMax bounds what is kept. A stack dump of a server with a few hundred goroutines is below it.
const tailBytesMax = 1 << 20

// Write keeps p.
func (w *tail) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.b = append(w.b, p...)
	if over := len(w.b) - tailBytesMax; over > tailBytesMax/4 {
		w.b = append([]byte(nil), w.b[over:]...)
		w.dropped += over
	}
	return len(p), nil
}

// String gives what is kept.
func (w *tail) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dropped > 0 {
		return fmt.Sprintf("[%d bytes left out]\n%s", w.dropped, w.b)
	}
	return string(w.b)
}
