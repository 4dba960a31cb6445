package test

import (
	"encoding/json"
	"testing"
)

// members is what GET /api/v1/admin/members answers.
type members struct {
	ClusterID string `json:"cluster_id"`
	LeaderID  string `json:"leader_id"`
	Members   []struct {
		ID          string `json:"id"`
		Role        string `json:"role"`
		Leader      bool   `json:"leader"`
		Address     string `json:"address"`
		HTTPAddress string `json:"http_address"`
		Incarnation string `json:"incarnation"`
		State       string `json:"state"`
	} `json:"members"`
}

func (m *members) read(t *testing.T, r *restReply) {
	t.Helper()
	if r.status != 200 {
		t.Fatalf("cannot list the members: %v", r)
	}
	if err := json.Unmarshal(r.body, m); err != nil {
		t.Fatalf("cannot list the members: %v: %s", err, r.body)
	}
}

// role gives a member's role, empty if it is none.
func (m *members) role(id string) string {
	for _, x := range m.Members {
		if x.ID == id {
			return x.Role
		}
	}
	return ""
}

func deletedIn(t *testing.T, r *restReply) bool {
	t.Helper()
	var body struct {
		Deleted bool `json:"deleted"`
	}
	if err := json.Unmarshal(r.body, &body); err != nil {
		t.Errorf("the answer to a DELETE is no JSON: %v: %s", err, r.body)
	}
	return body.Deleted
}
