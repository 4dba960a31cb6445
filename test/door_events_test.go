package test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"kvstore/wire"
)

// watch implements door.
func (d *restDoorway) watch(ctx context.Context, a *asked, w *wire.WatchRequest, send func(ext, payload []byte) error) wire.Response {
	q, target := a.query(), "/api/v1/watch/"+url.PathEscape(string(w.Prefix))
	what := "watch " + target
	if w.Flags&wire.WatchKey != 0 {
		q.Set("key", string(w.Start))
	} else {
		for name, v := range map[string][]byte{"start": w.Start, "end": w.End} {
			if len(v) != 0 {
				q.Set(name, string(v))
			}
		}
	}
	if w.Flags&wire.WatchFromNow == 0 {
		q.Set("from_revision", strconv.FormatUint(w.After, 10))
	}
	for name, flag := range map[string]uint8{"keys_only": wire.WatchKeysOnly, "previous": wire.WatchPrevious} {
		if w.Flags&flag != 0 {
			q.Set(name, "true")
		}
	}
	var kinds []string
	for flag, kind := range map[uint8]wire.EventKind{wire.WatchNoPut: wire.EventPut, wire.WatchNoDelete: wire.EventDelete, wire.WatchNoExpire: wire.EventExpire} {
		if w.Flags&flag == 0 {
			kinds = append(kinds, kind.String())
		}
	}
	q.Set("events", strings.Join(kinds, ","))
	q.Set("progress_ms", strconv.FormatUint(uint64(w.ProgressMs), 10))
	if len(a.history) != 0 {
		q.Set("history", hex.EncodeToString(a.history))
	}
	if a.namespaceID != 0 {
		q.Set("namespace_id", strconv.FormatUint(uint64(a.namespaceID), 10))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.rest.node.HTTPAddr()+target+"?"+q.Encode(), nil)
	if err != nil {
		return d.broken(ctx, what, err)
	}
	resp, err := d.rest.http.Do(req)
	if err != nil {
		return d.broken(ctx, what, err)
	}
	defer func() { _ = resp.Body.Close() }() // it has been read, or nobody wants it any more
	if resp.StatusCode != http.StatusOK {
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			return d.broken(ctx, what, err)
		}
		return d.problem(ctx, what, false, &restReply{resp.StatusCode, resp.Header, b})
	}
	history, err := hex.DecodeString(resp.Header.Get("X-KV-History"))
	id, err2 := strconv.ParseUint(resp.Header.Get("X-KV-Namespace-Id"), 10, 32)
	if err := errors.Join(err, err2); err != nil {
		return d.broken(ctx, what, err)
	}
	ext := wire.AppendExt(nil, wire.ExtHistory, history)
	ext = wire.AppendExtU32(ext, wire.ExtNamespaceID, uint32(id))
	r := bufio.NewReaderSize(resp.Body, 64<<10)
	for {
		block, err := nextBlock(r)
		if err != nil {
			return d.broken(ctx, what, err)
		}
		payload, end, err := block.frame()
		switch {
		case err != nil:
			return d.broken(ctx, what, err)
		case end != nil:
			answer, err := end.answer(end.Status >= 500)
			if err != nil {
				return d.broken(ctx, what, err)
			}
			return answer
		case payload == nil:
			continue
		}
		if err := send(ext, payload); err != nil {
			return errorAnswer(wire.StatusCancelled, err.Error(), 0, nil)
		}
		ext = nil // the first frame has told it
	}
}

// block is what stands between two empty lines of a stream of server-sent events.
type block struct {
	id    string
	event string
	data  []byte
}

// nextBlock reads a block by the rules of the HTML standard, 9.2.6.
func nextBlock(r *bufio.Reader) (b block, err error) {
	for lines := 0; ; lines++ {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return b, err
		}
		line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		if len(line) == 0 {
			return b, nil
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "id":
			b.id = string(value)
		case "event":
			b.event = string(value)
		case "data":
			b.data = append(append(b.data, value...), '\n')
		}
	}
}

// frame gives the frame that a block stands for; nil: none, or end: why the watch has ended.
func (b *block) frame() (payload []byte, end *problem, err error) {
	if b.event == "error" {
		end = new(problem)
		return nil, end, json.Unmarshal(b.data, end)
	}
	if b.id == "" {
		if len(b.data) != 0 {
			return nil, nil, fmt.Errorf("an event without an id: %.200s", b.data)
		}
		return nil, nil, nil // "retry"
	}
	rev, err := strconv.ParseUint(b.id, 10, 64)
	if err != nil {
		return nil, nil, err
	}
	if len(b.data) == 0 {
		return eventFrame(rev), nil, nil
	}
	var told struct {
		Key string `json:"key"`
		restRecord
		Previous     *restRecord `json:"previous"`
		PreviousLost bool        `json:"previous_lost"`
		Last         *bool       `json:"last"`
	}
	d := json.NewDecoder(bytes.NewReader(b.data))
	d.DisallowUnknownFields()
	if err := d.Decode(&told); err != nil {
		return nil, nil, fmt.Errorf("%w in %.200s", err, b.data)
	}
	e := toldEvent{revision: rev, key: told.Key, previousLost: told.PreviousLost}
	for _, kind := range []wire.EventKind{wire.EventPut, wire.EventDelete, wire.EventExpire} {
		if kind.String() == b.event {
			e.kind = kind
		}
	}
	var errs []error
	if e.kind == wire.EventPut {
		e.record = told.told(&errs)
	}
	if told.Previous != nil {
		e.previous = told.Previous.told(&errs)
	}
	if e.last = told.Last != nil && *told.Last; e.kind == 0 || told.Last == nil || told.Version != rev {
		errs = append(errs, fmt.Errorf("an event %q with the id %d: %.200s", b.event, rev, b.data))
	}
	return eventFrame(rev, e), nil, errors.Join(errs...)
}
