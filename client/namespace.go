package client

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"kvstore/wire"
)

// NamespaceSettings are the limits of a namespace; 0 is none.
type NamespaceSettings struct {
	// BytesMax bounds the bytes of its keys, tags and values, KeysMax its keys: writes beyond fail with ErrQuota.
	BytesMax uint64
	KeysMax  uint64
	// OpsPerSecond bounds the operations at each node (ErrLimited), WatchesMax the watches at each node (ErrTooMany).
	OpsPerSecond uint64
	WatchesMax   uint64
	// Compress is how values are kept whose put doesn't say.
	Compress Compression
}

// Namespace is what a namespace is and holds.
type Namespace struct {
	Name string
	// Dropping: its name is free again, and its keys are being removed.
	Dropping  bool
	CreatedAt time.Time
	Keys      uint64
	// Bytes are those of keys, tags and values, as they were sent.
	Bytes    uint64
	Settings NamespaceSettings
}

// namespaceDocument is a namespace in the documents of Admin.
type namespaceDocument struct {
	Name      string           `json:"name"`
	State     string           `json:"state"`
	CreatedAt time.Time        `json:"created_at"`
	Keys      uint64           `json:"keys"`
	Bytes     uint64           `json:"bytes"`
	Settings  settingsDocument `json:"settings"`
}

type settingsDocument struct {
	BytesMax     uint64 `json:"bytes_max"`
	KeysMax      uint64 `json:"keys_max"`
	OpsPerSecond uint64 `json:"ops_per_second"`
	WatchesMax   uint64 `json:"watches_max"`
	Compress     string `json:"compress"`
}

// CreateNamespace creates a namespace. ErrNamespaceExists: there is one of that name. Like all changes by Admin it is
// sent once: ErrMaybeApplied means to look.
func (c *Client) CreateNamespace(ctx context.Context, name string, s NamespaceSettings) (Namespace, error) {
	return c.oneNamespace(ctx, "namespace_create", name, &s)
}

// SetNamespace replaces the settings of a namespace. ErrNoNamespace.
func (c *Client) SetNamespace(ctx context.Context, name string, s NamespaceSettings) (Namespace, error) {
	return c.oneNamespace(ctx, "namespace_set", name, &s)
}

// DescribeNamespace tells what a namespace holds and may. ErrNoNamespace.
func (c *Client) DescribeNamespace(ctx context.Context, name string) (Namespace, error) {
	return c.oneNamespace(ctx, "namespace_describe", name, nil)
}

// DropNamespace removes a namespace with all its keys: the name at once, the keys in the background. ErrNoNamespace.
func (c *Client) DropNamespace(ctx context.Context, name string) error {
	_, err := c.namespaces(ctx, "namespace_drop", name, nil)
	return err
}

// Namespaces lists all namespaces, those that are being removed included.
func (c *Client) Namespaces(ctx context.Context) ([]Namespace, error) {
	return c.namespaces(ctx, "namespace_list", "", nil)
}

func (c *Client) oneNamespace(ctx context.Context, action, name string, s *NamespaceSettings) (Namespace, error) {
	all, err := c.namespaces(ctx, action, name, s)
	if err != nil {
		return Namespace{}, err
	}
	for _, n := range all {
		if n.Name == name && !n.Dropping {
			return n, nil
		}
	}
	if s != nil {
		return Namespace{Name: name, Settings: *s}, nil // done, and dropped by somebody before the answer was made
	}
	return Namespace{}, &Error{Op: wire.OpAdmin.String(), Message: fmt.Sprintf("the answer doesn't tell of the namespace %q", name), kind: ErrProtocol}
}

func (c *Client) namespaces(ctx context.Context, action, name string, s *NamespaceSettings) ([]Namespace, error) {
	request := struct {
		Action    string            `json:"action"`
		Namespace string            `json:"namespace,omitempty"`
		Settings  *settingsDocument `json:"settings,omitempty"`
	}{Action: action, Namespace: name}
	if s != nil {
		request.Settings = &settingsDocument{s.BytesMax, s.KeysMax, s.OpsPerSecond, s.WatchesMax, s.Compress.String()}
	}
	b, err := json.Marshal(request)
	if err != nil {
		return nil, local(wire.OpAdmin, "", ErrBadRequest, 0, "cannot encode the request: %v", err)
	}
	answer, err := c.Admin(ctx, b)
	if err != nil {
		return nil, err
	}
	var doc struct {
		Namespaces []namespaceDocument `json:"namespaces"`
	}
	if err := json.Unmarshal(answer, &doc); err != nil {
		return nil, &Error{Op: wire.OpAdmin.String(), Message: "the answer is no list of namespaces: " + err.Error(), kind: ErrProtocol}
	}
	all := make([]Namespace, len(doc.Namespaces))
	for i, d := range doc.Namespaces {
		all[i] = Namespace{
			Name: d.Name, Dropping: d.State == "dropping", CreatedAt: d.CreatedAt, Keys: d.Keys, Bytes: d.Bytes,
			Settings: NamespaceSettings{d.Settings.BytesMax, d.Settings.KeysMax, d.Settings.OpsPerSecond, d.Settings.WatchesMax, compressionOf(d.Settings.Compress)},
		}
	}
	return all, nil
}

// compressionOf reads what Compression.String gave; a name of a later version reads as CompressNever.
func compressionOf(name string) Compression {
	for c := CompressNever; c <= CompressLZ4; c++ {
		if c.String() == name {
			return c
		}
	}
	return CompressNever
}
