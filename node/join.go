package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"kvstore/consensus"
	"kvstore/wire"
)

const (
	// joinAttemptTimeout bounds one request to a member: adding a learner is one change of the
	// configuration, and the member may have to find its leader first.
	joinAttemptTimeout = 15 * time.Second
	// joinPauseMin and joinPauseMax bound the pause after each round over all addresses; it doubles.
	joinPauseMin = 100 * time.Millisecond
	joinPauseMax = 5 * time.Second
	// joinAnswerBytesMax bounds the answer: nine members of a kilobyte would be a tenth of it.
	joinAnswerBytesMax = 128 << 10
	membersPath        = "/api/v1/admin/members"
)

// joinedFacts is what the cluster told when it took this node in. The identity file holds it before the log
// is started, so that a crash in between changes nothing.
type joinedFacts struct {
	ClusterID string         `json:"cluster_id"`
	HistoryID string         `json:"history_id"`
	Members   []joinedMember `json:"members"`
}

// joinedMember is another member of the cluster.
type joinedMember struct {
	ID          string `json:"id"`
	RaftAddress string `json:"raft_address"`
	Incarnation string `json:"incarnation"`
}

// forLog gives the facts as the log takes them.
func (f *joinedFacts) forLog() (*consensus.Joined, error) {
	var j consensus.Joined
	var err error
	if j.Cluster, err = parseBits(f.ClusterID); err != nil {
		return nil, fmt.Errorf("cannot read the cluster's id: %w", err)
	}
	if j.History, err = parseBits(f.HistoryID); err != nil {
		return nil, fmt.Errorf("cannot read the history's id: %w", err)
	}
	for _, m := range f.Members {
		p := consensus.Peer{ID: m.ID, Address: m.RaftAddress}
		if p.Incarnation, err = parseBits(m.Incarnation); err != nil {
			return nil, fmt.Errorf("cannot read the incarnation of member %s: %w", m.ID, err)
		}
		j.Peers = append(j.Peers, p)
	}
	return &j, nil
}

// errRefused marks a refusal that another attempt would meet too.
var errRefused = errors.New("refused")

// join asks the members at addresses, one after the other and again, to take self in, until one has done so,
// one refuses for good, or ctx ends. Asking again after an unknown outcome is harmless: the same directory
// under the same id is taken in once.
func join(ctx context.Context, addresses []string, self *wire.Member, progress func(string)) (*joinedFacts, error) {
	body, err := json.Marshal(map[string]string{
		"id": self.ID, "raft_address": self.RaftAddress, "address": self.Address, "http_address": self.HTTPAddress,
		"grpc_address": self.GRPCAddress, "incarnation": fmt.Sprintf("%x", self.Incarnation), "version": self.Version,
	})
	if err != nil {
		return nil, fmt.Errorf("cannot encode the request to join: %w", err)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	// A member answers itself; whoever redirects is something else.
	c := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for pause := joinPauseMin; ; pause = min(2*pause, joinPauseMax) {
		var last []error
		for _, addr := range addresses {
			facts, err := askToJoin(ctx, c, addr, body, self)
			if err == nil {
				return facts, nil
			}
			if errors.Is(err, errRefused) {
				return nil, fmt.Errorf("cannot join the cluster: %s: %w", addr, err)
			}
			if ctx.Err() != nil {
				return nil, fmt.Errorf("cannot join the cluster: %w", errors.Join(ctx.Err(), errors.Join(last...)))
			}
			last = append(last, fmt.Errorf("%s: %w", addr, err))
			progress(fmt.Sprintf("waiting for a member that takes this node in: %s: %v", addr, err))
		}
		t := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, fmt.Errorf("cannot join the cluster: %w", errors.Join(ctx.Err(), errors.Join(last...)))
		}
	}
}

// askToJoin asks one member once.
func askToJoin(ctx context.Context, c *http.Client, addr string, body []byte, self *wire.Member) (_ *joinedFacts, err error) {
	ctx, cancel := context.WithTimeout(ctx, joinAttemptTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+membersPath, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, joinAnswerBytesMax))
	if err != nil {
		return nil, err
	}
	switch {
	case resp.StatusCode == http.StatusOK:
		return readJoined(answer, self)
	case resp.StatusCode >= 400 && resp.StatusCode < 500 && resp.StatusCode != http.StatusRequestTimeout && resp.StatusCode != http.StatusTooManyRequests:
		return nil, fmt.Errorf("%w: %s", errRefused, problemText(resp.Status, answer))
	}
	return nil, errors.New(problemText(resp.Status, answer))
}

// problemText gives the detail of a problem document, or the status line where there is none.
func problemText(status string, answer []byte) string {
	var p struct {
		Detail string `json:"detail"`
	}
	if json.Unmarshal(answer, &p) != nil || p.Detail == "" {
		return status
	}
	return strings.TrimSpace(p.Detail)
}

// readJoined takes from a member's answer what this node must know, and checks that it is what was asked for.
func readJoined(answer []byte, self *wire.Member) (*joinedFacts, error) {
	var d clusterDocument
	if err := json.Unmarshal(answer, &d); err != nil {
		return nil, fmt.Errorf("cannot read the answer: %w", err)
	}
	f := &joinedFacts{ClusterID: d.ClusterID, HistoryID: d.HistoryID}
	found := false
	for _, m := range d.Members {
		if m.ID == self.ID {
			found = m.Incarnation == fmt.Sprintf("%x", self.Incarnation)
			continue
		}
		if bits, err := parseBits(m.Incarnation); err != nil || bits == self.Incarnation {
			continue // not known to the cluster yet: the first connection binds it
		}
		f.Members = append(f.Members, joinedMember{ID: m.ID, RaftAddress: m.RaftAddress, Incarnation: m.Incarnation})
	}
	if len(f.Members) > clusterNodesMax {
		return nil, fmt.Errorf("the answer names %d members; at most %d", len(f.Members), clusterNodesMax)
	}
	for _, m := range f.Members {
		if err := errors.Join(checkNodeID(m.ID), checkAddress(m.RaftAddress)); err != nil {
			return nil, fmt.Errorf("the answer names a member that can't be: %w", err)
		}
	}
	if !found {
		return nil, errors.New("the answer does not name this node as a member")
	}
	if _, err := f.forLog(); err != nil {
		return nil, err
	}
	return f, nil
}
