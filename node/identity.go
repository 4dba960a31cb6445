package node

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"kvstore/consensus"
	"kvstore/internal/record"
)

// identity is who a data directory belongs to. The incarnation is drawn once, when the directory is
// first used: a node that lost its disk comes back with another one and can't be taken for its old self.
type identity struct {
	Format      int       `json:"format"`
	NodeID      string    `json:"node_id"`
	Incarnation string    `json:"incarnation"` // 128 random bits, hex
	CreatedAt   time.Time `json:"created_at"`
	// Starts counts the processes that have opened the directory to take part in the cluster, the present one
	// included. By it the other nodes notice a copy of the directory: of two the count is the same, of an older
	// one it is lower.
	Starts uint64 `json:"starts,omitempty"`
	// Nonces are the numbers that the last of these processes drew, the present one's at the end: lineageMax at
	// most, 16 hex digits each. By them the other nodes notice an older copy that has been started more often since.
	Nonces string `json:"nonces,omitempty"`
	// Served is set as soon as the directory belongs to a cluster and before the node first takes part in it:
	// from then on it may have acknowledged writes, and a directory without any state of its group has lost
	// them. How a cluster is founded or joined is of no interest any more.
	Served bool `json:"served"`
	// ClusterID and HistoryID are set by a recovery: those of the cluster that goes on with this directory. They
	// hold also where the state does not say so yet, or is lost: a node that showed the history that has ended, or
	// none, would be let in by the nodes that were given up, and follow them.
	ClusterID string `json:"cluster_id,omitempty"`
	HistoryID string `json:"history_id,omitempty"`
	// Refused is why a majority of the others refused this directory as a copy, or one that lost what it had
	// acknowledged. It holds for ever: each further start would count one more, until the count is above that of
	// the newest copy and the others can't tell that this is not it.
	Refused string `json:"refused,omitempty"`
	// Joined is what the cluster told when it took this node in, kept until the log knows better.
	Joined *joinedFacts `json:"joined,omitempty"`
}

// bits gives the incarnation as bytes.
func (id *identity) bits() (b [16]byte, err error) { return parseBits(id.Incarnation) }

// parseBits reads 128 bits in hex; all zeros stand for none and are refused.
func parseBits(s string) (b [16]byte, err error) {
	n, err := hex.DecodeString(s)
	if err != nil || len(n) != len(b) || [16]byte(n) == b {
		return b, fmt.Errorf("%q is not 32 hex digits that are not all zero", s)
	}
	return [16]byte(n), nil
}

const (
	identityFormat = 1
	// identityBytesMax is room for the facts of the largest cluster: nine members of at most 500 bytes.
	// The text of a refusal can take six times its size, and the nonces take one KiB.
	identityBytesMax = 32 << 10
)

const (
	// lockWait is how long a start waits for the lock of a process that is just ending: a supervisor restarts
	// a killed node at once, while the kernel still takes the old process apart. lockPause is how often it looks.
	lockWait  = 3 * time.Second
	lockPause = 20 * time.Millisecond
)

// lockDir takes the data directory for this process, creating it if need be. The lock is advisory and
// ends with the process, however it ends.
func lockDir(ctx context.Context, dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot create data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "LOCK"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open lock of data directory: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	try := func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }
	for err = try(); errors.Is(err, unix.EWOULDBLOCK) && ctx.Err() == nil; {
		time.Sleep(lockPause) // flock cannot be waited for with a bound
		if err = try(); err == nil {
			time.Sleep(lockPause) // the kernel closes the old process's listeners only after this
		}
	}
	if err != nil {
		closeErr := f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("data directory %s is in use by another process: stop that one, or choose another with --data-dir", dir)
		}
		return nil, errors.Join(fmt.Errorf("cannot lock data directory %s: %w", dir, err), closeErr)
	}
	return f, nil
}

// identityFile is where the identity lies in a data directory.
const identityFile = "identity"

// readIdentity reads the directory's identity; the error matches fs.ErrNotExist if there is none.
func readIdentity(dir string) (id identity, err error) {
	b, err := record.ReadFile(filepath.Join(dir, identityFile), identityBytesMax)
	if err == nil {
		err = json.Unmarshal(b, &id)
	}
	switch system := new(fs.PathError); {
	case errors.As(err, &system):
		return identity{}, fmt.Errorf("cannot read identity of data directory %s: %w", dir, err)
	case err != nil:
		return identity{}, fmt.Errorf("cannot read identity of data directory %s: the file is damaged (%w): %s", dir, err, identityWayBack(dir))
	}
	return id, nil
}

// identityWayBack is what can be done about an identity that is lost. A copy of an earlier time won't do: the others
// refuse it for its count of starts.
func identityWayBack(dir string) string {
	return fmt.Sprintf("restore the file %s from a copy of this directory as it was when the node ended last. In a cluster: remove this member (kvctl member remove), "+
		"then let it join again with --join and an empty --data-dir; the others have what it is missing. On a lone node: restore from a backup into a new data directory", filepath.Join(dir, identityFile))
}

// loadIdentity reads the directory's identity, or gives it one when it is new. It refuses a directory
// that belongs to another node, and one that holds data but no identity.
func loadIdentity(dir, nodeID string) (id identity, fresh bool, err error) {
	switch id, err = readIdentity(dir); {
	case err == nil:
		if id.Format != identityFormat {
			return id, false, fmt.Errorf("data directory %s has format %d; this build reads format %d", dir, id.Format, identityFormat)
		}
		if id.NodeID != nodeID {
			return id, false, fmt.Errorf("data directory %s belongs to node %q, not to %q: start with --node-id %s, or choose another --data-dir", dir, id.NodeID, nodeID, id.NodeID)
		}
		if _, err := id.bits(); err != nil {
			return id, false, fmt.Errorf("cannot read identity of data directory %s: incarnation %w", dir, err)
		}
		return id, false, nil
	case !errors.Is(err, fs.ErrNotExist):
		return id, false, err
	}
	if _, err := os.Stat(filepath.Join(dir, "groups")); !errors.Is(err, fs.ErrNotExist) {
		return id, false, fmt.Errorf("data directory %s holds data but no identity file: %s", dir, identityWayBack(dir))
	}
	var bits [16]byte
	rand.Read(bits[:]) // never fails: it ends the process if the system has no randomness
	id = identity{Format: identityFormat, NodeID: nodeID, Incarnation: hex.EncodeToString(bits[:]), CreatedAt: time.Now().UTC().Truncate(time.Second)}
	return id, true, id.write(dir)
}

// claims gives the cluster and the history that the directory belongs to, whatever its state says; zeros: those of the
// state. A recovery came later than a joining.
func (id *identity) claims() (cluster, history [16]byte, err error) {
	clusterID, historyID := id.ClusterID, id.HistoryID
	if j := id.Joined; j != nil && historyID == "" {
		clusterID, historyID = j.ClusterID, j.HistoryID
	}
	if historyID == "" {
		return cluster, history, nil
	}
	cluster, errCluster := parseBits(clusterID)
	history, errHistory := parseBits(historyID)
	return cluster, history, errors.Join(errCluster, errHistory)
}

// lineageMax is how many starts the directory remembers: what a handshake tells of them.
const lineageMax = consensus.LineageMax

// countStart counts this start in id.Starts, draws the number of this process, and returns the numbers of the last
// starts with it at the end, once they are durable. No other node may hear of this process before.
func (id *identity) countStart(dir string) ([]uint64, error) {
	b, err := hex.DecodeString(id.Nonces)
	if err != nil || len(b)%8 != 0 {
		return nil, fmt.Errorf("cannot read identity of data directory %s: its numbers of starts are malformed", dir)
	}
	var lineage []uint64
	for ; len(b) > 0; b = b[8:] {
		lineage = append(lineage, binary.BigEndian.Uint64(b))
	}
	var nonce [8]byte
	for nonce == [8]byte{} { // zero stands for none
		rand.Read(nonce[:]) // never fails: it ends the process if the system has no randomness
	}
	lineage = append(lineage, binary.BigEndian.Uint64(nonce[:]))
	lineage = lineage[max(0, len(lineage)-lineageMax):]
	var text []byte
	for _, n := range lineage {
		text = hex.AppendEncode(text, binary.BigEndian.AppendUint64(nil, n))
	}
	id.Starts, id.Nonces = id.Starts+1, string(text)
	return lineage, id.write(dir)
}

// refusedMax bounds the text that is kept of a refusal, in bytes.
const refusedMax = 2 << 10

// setRefused notes that the others refused the directory for ever.
func (id *identity) setRefused(dir, why string) error {
	if id.Refused != "" {
		return nil
	}
	id.Refused = strings.ToValidUTF8(why[:min(len(why), refusedMax)], "")
	return id.write(dir)
}

// checkNotRefused refuses a directory that the others refused for ever in an earlier start.
func (id *identity) checkNotRefused(dir string) error {
	if id.Refused == "" {
		return nil
	}
	return fmt.Errorf("data directory %s was refused for ever when the node was last started with it: %s", dir, id.Refused)
}

// setServed notes that the node is about to take part in its cluster.
func (id *identity) setServed(dir string) error {
	if id.Served {
		return nil
	}
	id.Served = true
	return id.write(dir)
}

// write replaces the identity file of dir.
func (id *identity) write(dir string) error {
	b, err := json.Marshal(id)
	if err != nil {
		return fmt.Errorf("cannot encode identity: %w", err)
	}
	if err := record.WriteFileAtomic(filepath.Join(dir, identityFile), b, 0o600); err != nil {
		return fmt.Errorf("cannot write identity of data directory %s: %w", dir, err)
	}
	return nil
}

// HasCluster reports whether the data directory belongs to a cluster already, so that neither an initial
// cluster nor members to join mean anything to it. A directory that is not there, or holds no identity, does
// not.
func HasCluster(dir string) (bool, error) {
	id, err := readIdentity(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && id.Served, err
}

// checkNotEmptied refuses a directory that served before and whose group has neither a checkpoint nor a vote
// now (known peers prove nothing: they are written before the node takes part in anything). Engine and log would each find themselves new, agree, and start an empty store.
// (Where only some of their files are missing, they find the contradiction themselves.)
func (id *identity) checkNotEmptied(dir string) error {
	if !id.Served {
		return nil
	}
	group := filepath.Join(dir, "groups", "1")
	for _, name := range []string{"CHECKPOINT", filepath.Join("log", "vote")} {
		if _, err := os.Stat(filepath.Join(group, name)); !errors.Is(err, fs.ErrNotExist) {
			return nil // there, or an error that its owner will meet and name
		}
	}
	return fmt.Errorf("data directory %s served before, but the state in %s is gone: everything that was acknowledged would be missing. "+
		"Put the missing files back, or restore from a backup into a new data directory. Where other nodes of the cluster still have the data, take this node out there "+
		"(kvctl member remove %s) and start it again with --join and an empty --data-dir; it fetches everything from them", dir, group, id.NodeID)
}
