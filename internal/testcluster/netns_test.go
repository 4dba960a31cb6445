package testcluster

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// inNamespaces runs a test of the network with the nodes a and b in namespaces of their own.
func inNamespaces(t *testing.T, test func(t *testing.T, w *wired)) {
	if IsolateNetwork(t) {
		return
	}
	if os.Getenv(ownNetworkEnv) == "" {
		t.Skipf("SKIPPED, NOT TESTED: %s", *noNamespaces.Load())
	}
	f, err := newFabric()
	if err != nil {
		t.Skipf("SKIPPED, NOT TESTED: %v", err)
	}
	w := &wired{net: newNetwork(t, f)}
	if _, err := w.net.Add("a"); err != nil {
		t.Fatal(err)
	}
	if w.addr, err = w.net.Add("b"); err != nil {
		t.Fatal(err)
	}
	w.listen(t, w.addr)
	test(t, w)
}

func TestNamespaces_OneDirectionCut_IsSilentWhileTheOtherCarriesAndHealsLate(t *testing.T) {
	inNamespaces(t, oneDirectionCut)
}

func TestNamespaces_AnswersCut_RequestsArriveAndTheEndIsNotTold(t *testing.T) {
	inNamespaces(t, answersCut)
}

func TestNamespaces_HealLosing_ResetsWhatWasHeldAndNothingElse(t *testing.T) {
	inNamespaces(t, healLosing)
}

func TestNamespaces_OnlyOneWayOpened_TheOtherStaysCut(t *testing.T) {
	inNamespaces(t, onlyOneWayOpened)
}

func TestNamespaces_Loss_StrikesTheWayThatLosesAndNoOther(t *testing.T) {
	inNamespaces(t, lossStrikes)
}

func TestNamespaces_ConnectionMadeDuringACut_ComesAboutAfterIt(t *testing.T) {
	inNamespaces(t, func(t *testing.T, w *wired) {
		for _, d := range []direction{{"a", "b"}, {"b", "a"}} {
			w.net.Cut(d.from, d.to)
			before := w.net.Held(d.from, d.to)
			made := make(chan *side)
			go func() { made <- w.dial(t) }() // ends with the connection
			w.waitHeld(t, d.from, d.to, before+1)
			select {
			case <-made:
				t.Fatalf("a connection came about although %v is cut", d)
			default:
			}
			w.net.Heal()
			a := <-made
			c, err := w.b.Accept()
			if err != nil {
				t.Fatal(err)
			}
			a.say("hello")
			newSide(t, c).hear("hello")
		}
	})
}

// TestNamespaces_Cluster_TheTestReachesANodeThatIsCutOff has another node elected while the old leader, cut off, still
// answers the test.
func TestNamespaces_Cluster_TheTestReachesANodeThatIsCutOff(t *testing.T) {
	if IsolateNetwork(t) {
		return
	}
	c := StartCluster(t, ClusterOptions{Namespaces: true})
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	for range 3 {
		old := c.MustLead()
		held := c.Net().HeldAround(c.ID(old))
		c.Net().Isolate(c.ID(old))
		now, err := c.LeaderOtherThan(ctx, old)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := c.Node(old).Status(); err != nil {
			t.Fatalf("%s, cut off, does not answer the test: %v", c.ID(old), err)
		} else if s.NodeID != c.ID(old) || now == old {
			t.Fatalf("%s answers in the place of %s; %s leads", s.NodeID, c.ID(old), c.ID(now))
		}
		if c.Net().HeldAround(c.ID(old)) == held {
			t.Error("the cut has held nothing")
		}
		c.Net().HealLosing()
		c.MustConverge()
	}
	c.KillAll()
	c.Launch()
	c.MustBeReady()
	joining := c.AddJoining()
	joining.Start()
	c.MustConverge()
}

// TestIsolateNetwork_ProcessKilled_LeavesNothing kills a process that has made namespaces with a process in one, and
// looks for what may be left.
func TestIsolateNetwork_ProcessKilled_LeavesNothing(t *testing.T) {
	if os.Getenv(helperEnv) != "" {
		if IsolateNetwork(t) {
			t.Fatal("this is not the inner process")
		}
		f, err := newFabric()
		if err != nil {
			fmt.Printf("pid=0 %v\n", err)
			return
		}
		s, err := f.add("a")
		if err != nil {
			t.Fatal(err)
		}
		p, err := startProcessIn(s, "/bin/sleep", []string{"600"}, nil, new(tail))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("pid=%d\n", p.pid())
		<-p.done
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, NOT TESTED: a network namespace needs root")
	}
	links := func() (names []string) {
		all, err := netlink.LinkList()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range all {
			names = append(names, l.Attrs().Name)
		}
		return names
	}
	before := links()
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), helperEnv+"=1", isolatedEnv+"=1", ownNetworkEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("SKIPPED, NOT TESTED: cannot make a network namespace: %v", err)
	}
	pid := ""
	for lines := bufio.NewScanner(stdout); pid == "" && lines.Scan(); {
		pid, _ = strings.CutPrefix(lines.Text(), "pid=")
	}
	if strings.HasPrefix(pid, "0 ") {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		t.Skipf("SKIPPED, NOT TESTED: %s", pid[2:])
	}
	// The process in the namespace is in another one than the test and than its parent.
	seen := make(map[string]bool)
	for _, id := range []string{"self", pid, strconv.Itoa(cmd.Process.Pid)} {
		ns, err := os.Readlink("/proc/" + id + "/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("process %s is in %s", id, ns)
		seen[ns] = true
	}
	if len(seen) != 3 {
		t.Errorf("the test, the inner process and the node share namespaces: %v", seen)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the inner process was not killed")
	}
	for deadline := time.Now().Add(exitTimeout); ; time.Sleep(pollInterval) {
		// What has ended and was not waited for yet has no namespace any more.
		if _, err := os.Readlink("/proc/" + pid + "/ns/net"); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %s lives on in its namespace", pid)
		}
	}
	if after := links(); !slices.Equal(before, after) {
		t.Errorf("links before: %v; after: %v", before, after)
	}
}
