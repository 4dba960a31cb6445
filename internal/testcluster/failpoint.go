package testcluster

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// SetFailpoints tells the running node, which must be built with the tag failpoints, what to do at its named places:
// terms are those of KVSTORE_FAILPOINTS. Hits are counted from here on. They end with the process.
func (n *Node) SetFailpoints(terms string) error {
	req, err := http.NewRequest(http.MethodPut, n.failpointsURL(), strings.NewReader(terms))
	if err != nil {
		return fmt.Errorf("cannot set failpoints: %w", err)
	}
	if _, err := n.failpoints(req); err != nil {
		return fmt.Errorf("cannot set failpoints: %w", err)
	}
	return nil
}

// FailpointHits tells how often the running node came by a place since its term was set, and how often it was struck
// there.
func (n *Node) FailpointHits(place string) (hits, struck uint64, err error) {
	req, err := http.NewRequest(http.MethodGet, n.failpointsURL(), nil)
	if err != nil {
		return 0, 0, fmt.Errorf("cannot read failpoints: %w", err)
	}
	text, err := n.failpoints(req)
	if err != nil {
		return 0, 0, fmt.Errorf("cannot read failpoints: %w", err)
	}
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, place+" "); ok {
			if _, err := fmt.Sscanf(rest, "%d %d", &hits, &struck); err != nil {
				return 0, 0, fmt.Errorf("cannot read failpoints: %q: %w", line, err)
			}
			return hits, struck, nil
		}
	}
	return 0, 0, fmt.Errorf("the node knows no failpoint %s", place)
}

func (n *Node) failpointsURL() string { return "http://" + n.MetricsAddr() + "/debug/failpoints" }

func (n *Node) failpoints(req *http.Request) (string, error) {
	resp, err := n.client.Do(req)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), nil
}
