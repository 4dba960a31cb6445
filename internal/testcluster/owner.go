package testcluster

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// socketOwner tells which of the processes has the connected TCP socket with the given ends, as the kernel
// lists it: whatever the processes say to each other, in clear or encrypted, need not be understood for
// that. It gives 0 when none has it, such as when the process has ended meanwhile.
func socketOwner(local, remote netip.AddrPort, pids []int) (int, error) {
	inode, err := socketInode(local, remote)
	if err != nil || inode == "" {
		return 0, err
	}
	want := "socket:[" + inode + "]"
	for _, pid := range pids {
		dir := "/proc/" + strconv.Itoa(pid) + "/fd"
		names, err := readNames(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue // the process has ended
		}
		if err != nil {
			return 0, fmt.Errorf("cannot list the files of process %d: %w", pid, err)
		}
		for _, name := range names {
			// A descriptor that is closed meanwhile is none of interest.
			if target, err := os.Readlink(dir + "/" + name); err == nil && target == want {
				return pid, nil
			}
		}
	}
	return 0, nil
}

func readNames(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	names, err := d.Readdirnames(-1)
	return names, errors.Join(err, d.Close())
}

// socketInode finds the socket in the kernel's table; empty: it is not there.
func socketInode(local, remote netip.AddrPort) (string, error) {
	wantLocal, wantRemote := kernelAddr(local), kernelAddr(remote)
	f, err := os.Open("/proc/self/net/tcp")
	if err != nil {
		return "", fmt.Errorf("cannot read the table of sockets: %w", err)
	}
	inode := ""
	lines := bufio.NewScanner(f)
	for inode == "" && lines.Scan() {
		// sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode …
		if c := strings.Fields(lines.Text()); len(c) > 9 && c[1] == wantLocal && c[2] == wantRemote && c[9] != "0" {
			inode = c[9]
		}
	}
	return inode, errors.Join(lines.Err(), f.Close())
}

// kernelAddr writes an IPv4 address as /proc/net/tcp does: the address as a little-endian number.
func kernelAddr(a netip.AddrPort) string {
	b := a.Addr().Unmap().As4()
	return fmt.Sprintf("%02X%02X%02X%02X:%04X", b[3], b[2], b[1], b[0], a.Port())
}
