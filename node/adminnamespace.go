package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"kvstore/internal/diskguard"
	"kvstore/wire"
)

// namespaceRequest is what OpAdmin asks of namespaces.
type namespaceRequest struct {
	// Action is one of namespaceActions.
	Action string `json:"action"`
	// Namespace is the name; empty for a list.
	Namespace string `json:"namespace"`
	// Settings belong to create, where they may be missing, and to set, where they take the place of all that were there.
	Settings *settingsDocument `json:"settings"`
}

// settingsDocument is wire.NamespaceSettings; 0 is no limit.
type settingsDocument struct {
	BytesMax     uint64 `json:"bytes_max"`
	KeysMax      uint64 `json:"keys_max"`
	OpsPerSecond uint64 `json:"ops_per_second"`
	WatchesMax   uint64 `json:"watches_max"`
	// Compress is none, s2, zstd or lz4; empty means none.
	Compress string `json:"compress"`
}

// namespacesDocument answers every action: with all namespaces, or with the one that it was about, as it is after it.
type namespacesDocument struct {
	Namespaces []namespaceDocument `json:"namespaces"`
}

// namespaceDocument describes a namespace.
type namespaceDocument struct {
	Name string `json:"name"`
	ID   uint32 `json:"id"`
	// State is active or dropping: its name may have been given to another since, and its records are being removed.
	State     string           `json:"state"`
	CreatedAt time.Time        `json:"created_at"`
	Keys      uint64           `json:"keys"`
	Bytes     uint64           `json:"bytes"`
	Settings  settingsDocument `json:"settings"`
}

// namespaceActions are what can be asked of namespaces, with what each puts into the log; 0: it only reads.
var namespaceActions = map[string]wire.NamespaceAction{
	"namespace_list": 0, "namespace_describe": 0,
	"namespace_create": wire.NamespaceCreate, "namespace_set": wire.NamespaceSet, "namespace_drop": wire.NamespaceDrop,
}

// asksForNamespaces reports whether an admin request is about namespaces.
func asksForNamespaces(payload []byte) bool {
	var q struct {
		Action string `json:"action"`
	}
	return json.Unmarshal(payload, &q) == nil && strings.HasPrefix(q.Action, "namespace_")
}

// namespaces executes one request about namespaces. It doesn't wait for changes of the membership.
func (a *admin) namespaces(ctx context.Context, payload []byte) wire.Response {
	d, refusal := a.changeNamespaces(ctx, payload)
	if refusal != nil {
		return wire.ErrorResponse(refusal, nil)
	}
	b, err := json.Marshal(d)
	if err != nil {
		panic("BUG: cannot encode the namespaces: " + err.Error())
	}
	return wire.Response{Payload: b}
}

func (a *admin) changeNamespaces(ctx context.Context, payload []byte) (*namespacesDocument, *wire.Refusal) {
	q, action, refusal := parseNamespaceRequest(payload)
	if refusal != nil {
		return nil, refusal
	}
	shard := a.s.shard
	if action == 0 {
		if refusal = shard.confirm(ctx); refusal != nil {
			return nil, refusal
		}
		return a.describeNamespaces(q)
	}
	if shard.engine.Level() < levelNamespaces {
		return nil, &wire.Refusal{Status: wire.StatusUnsupported, Text: "the cluster is being upgraded: there are namespaces once all its nodes are; nothing was changed"}
	}
	if disks := shard.health.disks; disks.writable() == diskguard.Critical {
		return nil, &wire.Refusal{Status: wire.StatusDiskFull, RetryAfterMs: 1000, Text: disks.fullText()}
	}
	change := wire.NamespaceChange{Action: action, Name: q.Namespace}
	if q.Settings != nil {
		s := q.Settings
		change.Settings = wire.NamespaceSettings{BytesMax: s.BytesMax, KeysMax: s.KeysMax, OpsPerSecond: s.OpsPerSecond, WatchesMax: s.WatchesMax}
		change.Settings.Compress, _ = storeCodec(s.Compress) // parseNamespaceRequest has read it
	}
	r := shard.propose(ctx, &wire.Op{Op: wire.OpNamespace}, wire.AppendNamespaceChange(nil, &change))
	if r.Status != wire.StatusOK {
		return nil, a.namespaceRefusal(q, r.Status)
	}
	if action == wire.NamespaceDrop {
		return &namespacesDocument{Namespaces: []namespaceDocument{}}, nil
	}
	d, refusal := a.describeNamespaces(q)
	if refusal != nil && refusal.Status == wire.StatusNoNamespace {
		return &namespacesDocument{Namespaces: []namespaceDocument{}}, nil // it took effect, and was dropped since
	}
	return d, refusal
}

// namespaceRefusal tells why a change did not take effect, or that nobody knows whether it did.
func (a *admin) namespaceRefusal(q *namespaceRequest, st wire.Status) *wire.Refusal {
	switch {
	case st == wire.StatusNoNamespace:
		return a.s.noNamespace([]byte(q.Namespace))
	case st == wire.StatusNamespaceExists:
		return &wire.Refusal{Status: st, Text: fmt.Sprintf("there is a namespace %q already; nothing was changed: namespace_set changes its settings", q.Namespace)}
	case st == wire.StatusTooMany:
		return &wire.Refusal{Status: st, Limit: wire.NamespacesMax, Text: fmt.Sprintf("there are %d namespaces, those that are being removed included, as many as there may be; nothing was changed: drop one that is not needed, or wait until its records are gone", wire.NamespacesMax)}
	case homeless(st) && !a.s.shard.leading():
		return a.s.shard.notLeading()
	case st.Class() == wire.ClassUnknown:
		return &wire.Refusal{Status: st, Text: fmt.Sprintf("it is not known whether the change of the namespace %q took effect: ask for its description", q.Namespace)}
	}
	return &wire.Refusal{Status: st, RetryAfterMs: retryAfterMs}
}

// describeNamespaces describes the namespace that q names, or all.
func (a *admin) describeNamespaces(q *namespaceRequest) (*namespacesDocument, *wire.Refusal) {
	shard := a.s.shard
	d := &namespacesDocument{Namespaces: []namespaceDocument{}}
	if q.Namespace != "" {
		if id, ok := shard.namespace([]byte(q.Namespace)); ok {
			if n, ok := shard.engine.NamespaceByID(id); ok && !n.Dropping {
				d.Namespaces = append(d.Namespaces, documentOf(&n))
				return d, nil
			}
		}
		return nil, a.s.noNamespace([]byte(q.Namespace))
	}
	all := shard.namespaces()
	for i := range all {
		d.Namespaces = append(d.Namespaces, documentOf(&all[i]))
	}
	return d, nil
}

// documentOf describes a namespace.
func documentOf(n *namespace) namespaceDocument {
	state := "active"
	if n.Dropping {
		state = "dropping"
	}
	s := &n.Settings
	return namespaceDocument{
		Name: n.Name, ID: n.ID, State: state, CreatedAt: time.UnixMicro(n.CreatedAt).UTC(), Keys: n.Records, Bytes: n.Bytes,
		Settings: settingsDocument{BytesMax: s.BytesMax, KeysMax: s.KeysMax, OpsPerSecond: s.OpsPerSecond, WatchesMax: s.WatchesMax, Compress: s.Compress.String()},
	}
}

// parseNamespaceRequest reads and checks a request.
func parseNamespaceRequest(payload []byte) (*namespaceRequest, wire.NamespaceAction, *wire.Refusal) {
	bad := func(format string, args ...any) (*namespaceRequest, wire.NamespaceAction, *wire.Refusal) {
		return nil, 0, &wire.Refusal{Status: wire.StatusBadRequest, Text: fmt.Sprintf(format, args...)}
	}
	q := new(namespaceRequest)
	d := json.NewDecoder(bytes.NewReader(payload))
	d.DisallowUnknownFields()
	if err := d.Decode(q); err != nil {
		return bad("the admin request is not the JSON that it should be: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return bad("the admin request has something behind its document")
	}
	action, ok := namespaceActions[q.Action]
	switch {
	case !ok:
		return bad("unknown action %q: namespace_list, namespace_describe, namespace_create, namespace_set, namespace_drop", q.Action)
	case q.Action == "namespace_list" && q.Namespace != "":
		return bad("namespace_list takes no name: namespace_describe does")
	case q.Action != "namespace_list" && !wire.ValidNamespaceName(q.Namespace):
		return bad("a namespace's name has 1 to %d characters of a-z A-Z 0-9 . _ : / - and begins with a letter or a digit", wire.NamespaceBytesMax)
	case q.Settings != nil && action != wire.NamespaceCreate && action != wire.NamespaceSet:
		return bad("%s takes no settings", q.Action)
	case q.Settings == nil && action == wire.NamespaceSet:
		return bad("namespace_set takes settings, all of them: what is missing there is no limit")
	case action == wire.NamespaceDrop && q.Namespace == wire.NamespaceDefaultName:
		return bad("the namespace %q stays: operations that name none work in it; nothing was changed", q.Namespace)
	}
	if q.Settings != nil {
		if _, ok := storeCodec(q.Settings.Compress); !ok {
			return bad("compress is none, s2, zstd or lz4, not %q", q.Settings.Compress)
		}
	}
	return q, action, nil
}

// storeCodec reads the name of a codec for values.
func storeCodec(name string) (c wire.Codec, ok bool) {
	if name == "" {
		return wire.CodecNone, true
	}
	for _, c := range [...]wire.Codec{wire.CodecNone, wire.CodecS2, wire.CodecZstd, wire.CodecLZ4} {
		if c.String() == name {
			return c, true
		}
	}
	return 0, false
}

// confirm waits until it is certain that this node led at some moment after the call, so that its state holds all that
// was acknowledged before.
func (s *Shard) confirm(ctx context.Context) *wire.Refusal {
	switch s.howToRead() {
	case readNow:
		return nil
	case readConfirmed:
		confirmed := make(chan error, 1)
		s.group.ReadIndex(func(err error) { confirmed <- err })
		select {
		case err := <-confirmed:
			if err != nil {
				return s.unconfirmed(err)
			}
			return nil
		case <-ctx.Done():
			return &wire.Refusal{Status: wire.StatusRetryLater, RetryAfterMs: leaderRetryMs}
		}
	}
	return s.notLeading()
}
