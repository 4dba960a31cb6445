// Command clockprobe says what its clocks show, and how long a sleep of the runtime lasts. It is for the test of the
// clocks of processes alone.
//
// For each line "now" it writes what the four clocks show, in nanoseconds: Go's monotonic one, CLOCK_BOOTTIME,
// CLOCK_MONOTONIC_RAW, the time of day. For "sleep D", "timer D" and "wait D" it waits for that long, by time.Sleep, by
// a timer beside a network listener that nobody calls, and by a deadline on that listener, and writes "done".
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"kvstore/internal/clock"
)

func main() {
	began := time.Now()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		what, text, _ := strings.Cut(in.Text(), " ")
		d, err := time.ParseDuration(text)
		if what == "now" {
			fmt.Println(int64(time.Since(began)), int64(clock.System{}.Boot()), int64(clock.System{}.Raw()), time.Now().UnixNano())
			continue
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		switch what {
		case "sleep":
			time.Sleep(d)
		case "timer":
			<-time.NewTimer(d).C
		case "wait":
			if err := l.SetDeadline(time.Now().Add(d)); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			if _, err := l.Accept(); err == nil {
				fmt.Fprintln(os.Stderr, "somebody called")
				os.Exit(1)
			}
		}
		fmt.Println("done")
	}
}
