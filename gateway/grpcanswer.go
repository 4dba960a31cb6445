package gateway

import (
	"encoding/binary"
	"encoding/json"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"kvstore/api/kvstorev1"
	"kvstore/wire"
)

// recordOf gives a record from the elements of an answer. value is the record's to keep.
func recordOf(key string, ext, value []byte, withValue bool) *kvstorev1.Record {
	r := &kvstorev1.Record{Key: key}
	if withValue {
		r.Value = value
	} else {
		r.ValueLeftOut = true
	}
	for len(ext) > 0 {
		t, v, rest, err := wire.NextExt(ext)
		if err != nil {
			break
		}
		ext = rest
		switch t {
		case wire.ExtMeta:
			var m wire.Meta
			if wire.DecodeMeta(v, &m) != nil {
				continue
			}
			r.Version, r.Checksum = m.Version, m.Checksum
			r.CreatedAt, r.UpdatedAt = timestampOf(m.CreatedAt), timestampOf(m.UpdatedAt)
			if m.ExpiresAt != 0 {
				r.ExpiresAt = timestampOf(m.ExpiresAt)
			}
		case wire.ExtContentType:
			r.ContentType = string(v)
		case wire.ExtEncoding:
			r.ContentEncoding = string(v)
		case wire.ExtTag:
			if name, tag, err := wire.SplitTag(v); err == nil {
				if r.Tags == nil {
					r.Tags = make(map[string]string)
				}
				r.Tags[string(name)] = string(tag)
			}
		}
	}
	return r
}

// timestampOf gives Unix microseconds as a timestamp.
func timestampOf(us int64) *timestamppb.Timestamp { return timestamppb.New(time.UnixMicro(us)) }

// ageOf says how old a stale answer may be; nil where that is not known.
func ageOf(ext []byte) *durationpb.Duration {
	for len(ext) > 0 {
		t, v, rest, err := wire.NextExt(ext)
		if err != nil {
			break
		}
		if ext = rest; t != wire.ExtAge || len(v) != 8 {
			continue
		}
		// Ages beyond what a duration holds are as good as unknown.
		if us := binary.LittleEndian.Uint64(v); us < uint64(1<<63-1)/1000 {
			return durationpb.New(time.Duration(us) * time.Microsecond)
		}
	}
	return nil
}

// resultsOf gives what became of each operation of a group. REQUIRES: validResult.
func resultsOf(req *wire.Request, payload []byte) []*kvstorev1.OperationResult {
	all := make([]*kvstorev1.OperationResult, 0, req.Items)
	eachResult(req, payload, func(asked, got *wire.Item) {
		r := &kvstorev1.OperationResult{Key: string(asked.Key)}
		all = append(all, r)
		if got.Status != wire.StatusOK && got.Status != wire.StatusNotFound {
			p := problemOf(asked.Op.IsMutation(), &wire.Response{Status: got.Status, Payload: got.Value})
			r.Error = &kvstorev1.OperationError{Reason: p.Title, Code: p.Code, Message: p.Detail, Retryable: p.Retryable}
			return
		}
		r.Found = got.Status == wire.StatusOK
		switch asked.Op {
		case wire.OpGet:
			if r.Found {
				r.Record = recordOf(r.Key, got.Ext, got.Value, true)
			}
		case wire.OpIncrement:
			if v, n, ok := wire.DecodeCounter(got.Value); ok {
				r.Version, r.Value = v, n
			}
		default:
			r.Version, _ = wire.DecodeVersion(got.Value)
		}
	})
	return all
}

// listPage gives a page of a listing. REQUIRES: validPage.
func listPage(page *wire.ScanPage, values bool) *kvstorev1.ListResponse {
	out := &kvstorev1.ListResponse{NextCursor: page.Cursor, Revision: page.Revision, Count: uint64(page.Counted)}
	eachItem(page, func(it *wire.Item) {
		if it.Op == wire.OpScan {
			out.CommonPrefixes = append(out.CommonPrefixes, string(it.Key))
			return
		}
		out.Records = append(out.Records, recordOf(string(it.Key), it.Ext, it.Value, values))
	})
	return out
}

var eventTypes = map[wire.EventKind]kvstorev1.EventType{
	wire.EventPut: kvstorev1.EventType_EVENT_TYPE_PUT, wire.EventDelete: kvstorev1.EventType_EVENT_TYPE_DELETE, wire.EventExpire: kvstorev1.EventType_EVENT_TYPE_EXPIRE,
}

// eventOf gives one event of a watch.
func eventOf(e *wire.Event, values bool) *kvstorev1.Event {
	out := &kvstorev1.Event{
		Type: eventTypes[e.Kind], PreviousLost: e.Flags&wire.EventPreviousLost != 0, Last: e.Flags&wire.EventLast != 0,
	}
	if e.Kind == wire.EventPut {
		out.Record = recordOf(string(e.Key), e.Ext, e.Value, values)
	} else {
		out.Record = &kvstorev1.Record{Key: string(e.Key), Version: e.Revision}
	}
	if e.Flags&wire.EventHadPrevious != 0 && len(e.PreviousExt) != 0 {
		out.Previous = recordOf(string(e.Key), e.PreviousExt, e.Previous, values)
	}
	return out
}

// statusOf gives the status document, which is JSON.
func statusOf(doc []byte) (*kvstorev1.StatusResponse, error) {
	var d struct {
		ClusterID    string `json:"cluster_id"`
		NodeID       string `json:"node_id"`
		IsLeader     bool   `json:"is_leader"`
		LeaderID     string `json:"leader_id"`
		Term         uint64 `json:"term"`
		AppliedIndex uint64 `json:"applied_index"`
		Revision     uint64 `json:"revision,string"`
		StateDigest  string `json:"state_digest"`
		Lease        struct {
			Held bool `json:"held"`
		} `json:"lease"`
		Nodes []struct {
			ID           string  `json:"id"`
			Role         string  `json:"role"`
			State        string  `json:"state"`
			RaftAddress  string  `json:"raft_address"`
			Address      string  `json:"address"`
			AppliedIndex uint64  `json:"applied_index"`
			Lag          *uint64 `json:"lag"`
			Version      string  `json:"version"`
		} `json:"nodes"`
		Durability string `json:"durability"`
		ReadMode   string `json:"read_mode"`
	}
	if err := json.Unmarshal(doc, &d); err != nil {
		return nil, err
	}
	all := new(structpb.Struct)
	if err := all.UnmarshalJSON(doc); err != nil {
		return nil, err
	}
	out := &kvstorev1.StatusResponse{
		ClusterId: d.ClusterID, NodeId: d.NodeID, IsLeader: d.IsLeader, LeaderId: d.LeaderID, Term: d.Term, AppliedIndex: d.AppliedIndex,
		Revision: d.Revision, StateDigest: d.StateDigest, LeaseHeld: d.Lease.Held, Durability: d.Durability, ReadMode: d.ReadMode, Document: all,
	}
	for _, n := range d.Nodes {
		out.Nodes = append(out.Nodes, &kvstorev1.NodeStatus{
			Id: n.ID, Role: n.Role, State: n.State, RaftAddress: n.RaftAddress, Address: n.Address, AppliedIndex: n.AppliedIndex, Lag: n.Lag, Version: n.Version,
		})
	}
	return out, nil
}
