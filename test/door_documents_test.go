package test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"kvstore/wire"
)

// restRecord is a record in JSON.
type restRecord struct {
	Value       *[]byte           `json:"value"`
	Version     uint64            `json:"version,string"`
	CreatedAt   string            `json:"created_at"`
	UpdatedAt   string            `json:"updated_at"`
	ExpiresAt   string            `json:"expires_at"`
	Checksum    string            `json:"checksum"`
	ContentType string            `json:"content_type"`
	Encoding    string            `json:"encoding"`
	Tags        map[string]string `json:"tags"`
}

func (r *restRecord) told(errs *[]error) *toldRecord {
	out := &toldRecord{contentType: r.ContentType, encoding: r.Encoding, tags: r.Tags}
	if r.Value != nil {
		out.value = *r.Value
	}
	out.meta = wire.Meta{Version: r.Version, CreatedAt: micros(r.CreatedAt, errs), UpdatedAt: micros(r.UpdatedAt, errs), Checksum: checksumOf(r.Checksum, errs)}
	if r.ExpiresAt != "" {
		out.meta.ExpiresAt = micros(r.ExpiresAt, errs)
	}
	return out
}

// operation gives an operation as JSON.
func (a *asked) operation(withType bool) map[string]any {
	o := map[string]any{"key": a.key}
	if withType {
		o["type"] = strings.ToUpper(a.op.String())
	}
	if a.ttlMs != 0 || a.op == wire.OpTouch {
		o["ttl_ms"] = a.ttlMs
	}
	switch a.op {
	case wire.OpPut:
		o["value"] = append([]byte{}, a.value...)
	case wire.OpIncrement:
		delta, _ := wire.DecodeIncrement(a.value)
		o["delta"] = strconv.FormatInt(delta, 10)
	}
	if len(a.tags) != 0 {
		tags := make(map[string]string)
		for _, t := range a.tags {
			tags[t.name] = t.value
		}
		o["tags"] = tags
	}
	if a.contentType != "" {
		o["content_type"] = a.contentType
	}
	if a.encoding != "" {
		o["encoding"] = a.encoding
	}
	if a.checksum != nil {
		o["checksum"] = fmt.Sprintf("xxh64=%016x", *a.checksum)
	}
	if a.compress != nil {
		o["compress"] = a.compress.String()
	}
	if len(a.conditions) == 0 {
		return o
	}
	var all []map[string]any
	for _, c := range a.conditions {
		switch c.Kind {
		case wire.ConditionVersion:
			var list []string
			for _, v := range versions(c) {
				list = append(list, strconv.FormatUint(v, 10))
			}
			if len(list) == 1 {
				all = append(all, map[string]any{"if_version_match": list[0]})
			} else {
				all = append(all, map[string]any{"if_version_match": list})
			}
		case wire.ConditionExists:
			all = append(all, map[string]any{"if_exists": true})
		case wire.ConditionAbsent:
			all = append(all, map[string]any{"if_not_exists": true})
		case wire.ConditionValue:
			all = append(all, map[string]any{"if_value_match": append([]byte{}, c.Operand...)})
		case wire.ConditionTag:
			name, value, _ := wire.SplitTag(c.Operand)
			all = append(all, map[string]any{"if_tag_match": map[string]string{"name": string(name), "value": string(value)}})
		case wire.ConditionTagPresent:
			all = append(all, map[string]any{"if_tag_present": string(c.Operand)})
		case wire.ConditionTagAbsent:
			all = append(all, map[string]any{"if_tag_absent": string(c.Operand)})
		}
	}
	o["conditions"] = all
	return o
}

// restResult is what became of one operation.
type restResult struct {
	Key     string          `json:"key"`
	Found   *bool           `json:"found"`
	Deleted *bool           `json:"deleted"`
	Value   json.RawMessage `json:"value"` // of a read in base64, of an increment the sum
	Error   *problem        `json:"error"`
	restRecord
}

// item gives the result as the binary protocol has it.
func (r *restResult) item(a *asked, errs *[]error) wire.Item {
	it := wire.Item{Op: a.op}
	if r.Key != a.key {
		*errs = append(*errs, fmt.Errorf("the result for key %.40q is told as that for %.40q", a.key, r.Key))
	}
	if r.Error != nil {
		answer, err := r.Error.answer(a.op.IsMutation())
		*errs = append(*errs, err)
		it.Status, it.Value = answer.Status, answer.Payload
		return it
	}
	there := r.Found
	if a.op == wire.OpDelete {
		there = r.Deleted
	}
	switch a.op {
	case wire.OpGet, wire.OpTouch, wire.OpDelete:
		if there == nil {
			*errs = append(*errs, fmt.Errorf("a result of %s doesn't say whether there is a record", a.op))
		} else if !*there {
			it.Status = wire.StatusNotFound
		}
	}
	switch {
	case a.op == wire.OpCheck, a.op == wire.OpGet && it.Status != wire.StatusOK:
	case a.op == wire.OpGet:
		var value []byte
		*errs = append(*errs, json.Unmarshal(r.Value, &value))
		it.Ext, it.Value = r.told(errs).ext(), value
	case a.op == wire.OpIncrement:
		var text string
		*errs = append(*errs, json.Unmarshal(r.Value, &text))
		n, err := strconv.ParseInt(text, 10, 64)
		*errs = append(*errs, err)
		it.Value = wire.AppendCounter(nil, r.Version, n)
	default:
		it.Value = wire.AppendVersion(nil, r.Version)
	}
	return it
}

// group implements door.
func (d *restDoorway) group(ctx context.Context, a *asked, items []asked) wire.Response {
	puts := a.op == wire.OpBatch && only(items, wire.OpPut, false)
	var keys []string
	var operations []map[string]any
	for i := range items {
		keys = append(keys, items[i].key)
		operations = append(operations, items[i].operation(!puts))
	}
	target, in := "/api/v1/transaction", map[string]any{"operations": operations}
	switch {
	case a.op == wire.OpMultiGet:
		target, in = "/api/v1/batch/get", map[string]any{"keys": keys}
	case puts:
		target, in = "/api/v1/batch/put", map[string]any{"items": operations}
	case a.op == wire.OpBatch && only(items, wire.OpDelete, true):
		target, in = "/api/v1/batch/delete", map[string]any{"keys": keys}
	}
	var out struct {
		Committed *bool        `json:"committed"`
		Results   []restResult `json:"results"`
		Items     []restResult `json:"items"`
		Version   uint64       `json:"version,string"`
		Revision  uint64       `json:"revision,string"`
	}
	answer, ok := d.json(ctx, a.op.IsWrite(), http.MethodPost, target, a.query(), in, &out)
	if !ok {
		return answer
	}
	results := append(out.Results, out.Items...)
	if len(results) != len(items) || strings.HasSuffix(target, "transaction") && (out.Committed == nil || !*out.Committed) {
		return d.broken(ctx, target, fmt.Errorf("%d results for %d operations, committed %v", len(results), len(items), out.Committed))
	}
	var errs []error
	told := make([]wire.Item, len(items))
	for i := range results {
		told[i] = results[i].item(&items[i], &errs)
	}
	if err := errors.Join(errs...); err != nil {
		return d.broken(ctx, target, err)
	}
	answer.Payload = groupResult(out.Version+out.Revision, told).Payload // one of the two is told
	return answer
}

// list implements door.
func (d *restDoorway) list(ctx context.Context, a *asked, s *wire.ScanRequest) wire.Response {
	q := a.query()
	for name, v := range map[string][]byte{"prefix": s.Prefix, "start": s.Start, "end": s.End, "delimiter": s.Delimiter} {
		if len(v) != 0 {
			q.Set(name, string(v))
		}
	}
	if len(s.Cursor) != 0 {
		q.Set("cursor", base64.RawURLEncoding.EncodeToString(s.Cursor))
	}
	q.Set("limit", strconv.FormatUint(uint64(s.Limit), 10))
	for name, flag := range map[string]uint8{"keys_only": wire.ScanKeysOnly, "reverse": wire.ScanReverse, "count": wire.ScanCount} {
		if s.Flags&flag != 0 {
			q.Set(name, "true")
		}
	}
	var out struct {
		Items []struct {
			Key string `json:"key"`
			restRecord
		} `json:"items"`
		CommonPrefixes []string `json:"common_prefixes"`
		NextCursor     string   `json:"next_cursor"`
		Revision       uint64   `json:"revision,string"`
		Count          *uint64  `json:"count"`
	}
	answer, ok := d.json(ctx, false, http.MethodGet, "/api/v1/keys", q, nil, &out)
	if !ok {
		return answer
	}
	cursor, err := base64.RawURLEncoding.DecodeString(out.NextCursor)
	errs := []error{err}
	var items, prefixes []wire.Item
	for i := range out.Items {
		it := &out.Items[i]
		if (it.Value == nil) != (s.Flags&wire.ScanKeysOnly != 0) {
			errs = append(errs, fmt.Errorf("%.40q: the value is told or left out, and should not be", it.Key))
		}
		rec := it.told(&errs)
		items = append(items, wire.Item{Op: wire.OpGet, Key: []byte(it.Key), Ext: rec.ext(), Value: rec.value})
	}
	for _, p := range out.CommonPrefixes {
		prefixes = append(prefixes, wire.Item{Op: wire.OpScan, Key: []byte(p)})
	}
	items, err = mergeItems(items, prefixes, s.Flags&wire.ScanReverse != 0)
	errs = append(errs, err)
	if (out.Count == nil) == (s.Flags&wire.ScanCount != 0) {
		errs = append(errs, errors.New("a count where none was asked for, or none"))
	}
	if err := errors.Join(errs...); err != nil {
		return d.broken(ctx, "listing", err)
	}
	answer.Payload = scanPage(out.Revision, items, cursor)
	if out.Count != nil {
		answer.Payload = countPage(out.Revision, *out.Count, cursor)
	}
	return answer
}
