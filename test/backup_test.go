package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"kvstore/api/kvstorev1"
	"kvstore/client"
	"kvstore/internal/testcluster"
)

// TestBackup_OfAFollower_RestoresIntoAnotherCluster copies a cluster of three processes at a follower, with kvctl, by REST
// and by gRPC, and restores each copy into a fresh one: listings are equal, metadata included. Of the second cluster the leader is
// killed once the restore is done: it is as durable as any write.
func TestBackup_OfAFollower_RestoresIntoAnotherCluster(t *testing.T) {
	rnd := random(seed(t), 0)
	from := testcluster.StartCluster(t, testcluster.ClusterOptions{})
	leader := from.MustLead()
	follower := from.Node((leader + 1) % 3)
	admin := open(t, from.Node(leader))
	if _, err := admin.CreateNamespace(t.Context(), "app", client.NamespaceSettings{Compress: client.CompressS2}); err != nil {
		t.Fatal(err)
	}
	spaces := []string{"default", "app"}
	for _, ns := range spaces {
		c := open(t, from.Node(leader), client.WithNamespace(ns))
		var items []client.KV
		for i := range 2000 {
			value := make([]byte, rnd.IntN(1500))
			for j := range value {
				value[j] = byte(rnd.Uint32())
			}
			items = append(items, client.KV{Key: fmt.Sprintf("%s/%04d/ü", ns, i), Value: value, Options: []client.PutOption{client.WithTag("n", fmt.Sprint(i%7)), client.WithContentType("x/y")}})
		}
		if _, err := c.BatchPut(t.Context(), items, false); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Put(t.Context(), "large", bytes.Repeat([]byte(ns), 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "all.kvbackup")
	kvctl(t, follower, "backup", "create", file)
	byREST := postBackup(t, follower.HTTPAddr(), "/api/v1/admin/backup", nil)

	to := testcluster.StartCluster(t, testcluster.ClusterOptions{})
	toLeader := to.MustLead()
	var done struct {
		Records int `json:"records"`
	}
	answer := postBackup(t, to.Node((toLeader+1)%3).HTTPAddr(), "/api/v1/admin/restore", bytes.NewReader(byREST))
	if err := json.Unmarshal(answer, &done); err != nil || done.Records != 4002 {
		t.Fatalf("%s, %v", answer, err)
	}
	to.Kill(toLeader)
	compareListings(t, follower, to.Node((toLeader+1)%3), spaces)

	byGRPC := filepath.Join(t.TempDir(), "grpc.kvbackup")
	if err := os.WriteFile(byGRPC, grpcBackup(t, follower), 0o600); err != nil {
		t.Fatal(err)
	}
	third := testcluster.Start(t, testcluster.Options{})
	kvctl(t, third, "backup", "verify", byGRPC)
	if n := grpcRestore(t, third, byREST); n != 4002 {
		t.Fatalf("%d records are restored by gRPC", n)
	}
	compareListings(t, follower, third, spaces)

	alone := testcluster.Start(t, testcluster.Options{})
	kvctl(t, alone, "backup", "verify", file)
	kvctl(t, alone, "backup", "restore", file)
	compareListings(t, follower, alone, spaces)
	if entries, err := os.ReadDir(filepath.Dir(file)); err != nil || len(entries) != 1 {
		t.Errorf("beside the backup lies more: %v, %v", entries, err)
	}
}

// grpcBackup copies the cluster by gRPC.
func grpcBackup(t *testing.T, n *testcluster.Node) (all []byte) {
	t.Helper()
	stream, err := openGRPC(t, n).Backup(t.Context(), &kvstorev1.BackupRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, m.GetData()...)
	}
}

// grpcRestore restores a copy by gRPC and gives the number of records.
func grpcRestore(t *testing.T, n *testcluster.Node, all []byte) uint64 {
	t.Helper()
	stream, err := openGRPC(t, n).Restore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for piece := range slices.Chunk(all, 100_000) {
		if err := stream.Send(&kvstorev1.RestoreRequest{Data: piece}); err != nil {
			t.Fatal(err)
		}
	}
	done, err := stream.CloseAndRecv()
	if err != nil {
		t.Fatal(err)
	}
	return done.GetRecords()
}

// compareListings compares what two clusters show of the namespaces.
func compareListings(t *testing.T, want, got *testcluster.Node, spaces []string) {
	t.Helper()
	for _, ns := range spaces {
		if a, b := kvctl(t, want, "export", "--namespace", ns), kvctl(t, got, "export", "--namespace", ns); !bytes.Equal(a, b) {
			t.Errorf("%s: %d bytes are listed, want %d", ns, len(b), len(a))
		}
	}
}

// postBackup posts a body and gives what a success answered.
func postBackup(t *testing.T, address, target string, body io.Reader) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+target, body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %.500q, %v", target, resp.Status, b, err)
	}
	return b
}
