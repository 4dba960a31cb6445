package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kvstore/wire"
)

// txnBytesMax bounds the text of a transaction: its values bind it to less on the wire.
const txnBytesMax = 6 * wire.FrameBodyBytesMax

func (a *app) txnCmd() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "txn", Short: "Do several operations, or none", Args: exactArgs(),
		Long: `Do all operations if all conditions hold, else none (exit code 4). stdin or --file holds JSON as for REST:

  {"operations":[{"type":"PUT|DELETE|GET|CHECK|TOUCH|INCREMENT","key":"…","value":"base64","text":"…","ttl_seconds":60,
    "delta":1,"conditions":[{"if_version_match":"5"},{"if_exists":true},{"if_not_exists":true},{"if_value_match":"base64"},
    {"if_tag_match":{"name":"…","value":"…"}},{"if_tag_present":"…"},{"if_tag_absent":"…"}]}]}

or lines; a key or value with spaces stands in double quotes, and conditions bind to the operation above them:

  put KEY VALUE
  delete KEY
  get KEY
  check KEY
  touch KEY [TTL]       such as 30m; without one it never expires
  incr KEY [DELTA]
  if version=N | if exists | if absent | if value=TEXT | if tag:NAME=VALUE | if tag:NAME | if no-tag:NAME`,
		Example: `  kvctl txn --file transfer.json
  printf 'put account:1 90\nif version=44040192\nput account:2 110\n' | kvctl txn`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := a.txnText(file)
			if err != nil {
				return err
			}
			ops, err := parseTxn(text)
			if err != nil {
				return usagef("cannot read the transaction: %w", err)
			}
			return a.op(cmd.Context(), func(ctx context.Context, s store, since func() string) error {
				res, err := s.Txn(ctx, ops)
				if err != nil {
					return err
				}
				return a.showTxn(ops, &res, since())
			})
		},
	}
	c.Flags().StringVar(&file, "file", "", "read the transaction from this file, not from stdin")
	return c
}

func (a *app) txnText(file string) (_ []byte, err error) {
	if file == "" || file == "-" {
		return readBounded(a.in, txnBytesMax)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("cannot read the transaction: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return readBounded(f, txnBytesMax)
}

// parseTxn reads either form.
func parseTxn(text []byte) (ops []txnOp, err error) {
	if t := bytes.TrimSpace(text); len(t) > 0 && t[0] == '{' {
		ops, err = parseTxnJSON(t)
	} else {
		ops, err = parseTxnLines(string(text))
	}
	switch {
	case err != nil:
		return nil, err
	case len(ops) == 0:
		return nil, errors.New("it has no operations")
	case len(ops) > wire.BatchOpsMax:
		return nil, fmt.Errorf("it has %d operations: at most %d", len(ops), wire.BatchOpsMax)
	}
	for i := range ops {
		if err := validKey(ops[i].Key); err != nil {
			return nil, fmt.Errorf("operation %d: %w", i, err)
		}
		if ops[i].Type == txnCheck && len(ops[i].Options.Conditions) == 0 {
			return nil, fmt.Errorf("operation %d: a CHECK needs a condition", i)
		}
	}
	return ops, nil
}

// jsonTxn is the body of POST /api/v1/transaction.
type jsonTxn struct {
	Operations []jsonTxnOp `json:"operations"`
}

type jsonTxnOp struct {
	Type string `json:"type"`
	item
	Delta      *int64          `json:"delta"`
	Conditions []jsonCondition `json:"conditions"`
}

type jsonCondition struct {
	Version   *jsonVersion `json:"if_version_match"`
	Exists    bool         `json:"if_exists"`
	NotExists bool         `json:"if_not_exists"`
	Value     *[]byte      `json:"if_value_match"`
	Tag       *struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"if_tag_match"`
	TagPresent *string `json:"if_tag_present"`
	TagAbsent  *string `json:"if_tag_absent"`
}

// jsonVersion takes "5" and 5.
type jsonVersion uint64

func (v *jsonVersion) UnmarshalJSON(b []byte) error {
	n, err := strconv.ParseUint(strings.Trim(string(b), `"`), 10, 64)
	if err != nil {
		return fmt.Errorf("%s is no version", b)
	}
	*v = jsonVersion(n)
	return nil
}

func parseTxnJSON(text []byte) ([]txnOp, error) {
	var t jsonTxn
	if err := strictJSON(text, &t); err != nil {
		return nil, err
	}
	ops := make([]txnOp, len(t.Operations))
	for i := range t.Operations {
		op, err := t.Operations[i].op()
		if err != nil {
			return nil, fmt.Errorf("operation %d: %w", i, err)
		}
		ops[i] = op
	}
	return ops, nil
}

func (j *jsonTxnOp) op() (op txnOp, err error) {
	op = txnOp{Type: strings.ToUpper(j.Type), Key: j.Key}
	switch op.Type {
	case txnPut:
		if op.Value, err = j.bytes(); err != nil {
			return op, err
		}
		ttl, gone, err := j.ttl(time.Now())
		if err != nil {
			return op, err
		}
		if gone {
			return op, errors.New(`"expires_at" has passed`)
		}
		op.Options = putOptions{TTL: ttl, ContentType: j.ContentType, Encoding: j.Encoding, Tags: j.Tags}
	case txnTouch, txnIncrement:
		if _, err := j.bytes(); !errors.Is(err, errNoValue) {
			return op, fmt.Errorf("a %s takes no value", op.Type)
		}
		ttl, gone, err := j.ttl(time.Now())
		if err != nil {
			return op, err
		}
		if gone {
			return op, errors.New(`"expires_at" has passed`)
		}
		op.Options.TTL, op.Delta = ttl, 1
		if j.Delta != nil {
			op.Delta = *j.Delta
		}
	case txnDelete, txnGet, txnCheck:
		if _, err := j.bytes(); !errors.Is(err, errNoValue) {
			return op, fmt.Errorf("a %s takes no value", op.Type)
		}
	default:
		return op, fmt.Errorf("unknown type %q: use PUT, DELETE, GET, CHECK, TOUCH or INCREMENT", j.Type)
	}
	if j.Delta != nil && op.Type != txnIncrement {
		return op, fmt.Errorf("a %s takes no delta", op.Type)
	}
	for _, c := range j.Conditions {
		n := len(op.Options.Conditions)
		add := func(c condition) { op.Options.Conditions = append(op.Options.Conditions, c) }
		if c.Version != nil {
			add(condition{Kind: ifVersion, Version: uint64(*c.Version)})
		}
		if c.Exists {
			add(condition{Kind: ifExists})
		}
		if c.NotExists {
			add(condition{Kind: ifAbsent})
		}
		if c.Value != nil {
			add(condition{Kind: ifValue, Value: *c.Value})
		}
		if c.Tag != nil {
			add(condition{Kind: ifTag, Tag: c.Tag.Name, Value: []byte(c.Tag.Value)})
		}
		if c.TagPresent != nil {
			add(condition{Kind: ifTagPresent, Tag: *c.TagPresent})
		}
		if c.TagAbsent != nil {
			add(condition{Kind: ifTagAbsent, Tag: *c.TagAbsent})
		}
		if len(op.Options.Conditions) != n+1 {
			return op, errors.New("a condition holds exactly one of if_version_match, if_exists, if_not_exists, if_value_match, if_tag_match, if_tag_present and if_tag_absent")
		}
	}
	return op, nil
}

func parseTxnLines(text string) ([]txnOp, error) {
	var ops []txnOp
	n := 0
	for line := range strings.Lines(text) {
		n++
		words, err := splitWords(line)
		if err == nil && len(words) > 0 && !strings.HasPrefix(words[0], "#") {
			ops, err = addTxnLine(ops, words)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	return ops, nil
}

func addTxnLine(ops []txnOp, words []string) ([]txnOp, error) {
	verb, rest := strings.ToUpper(words[0]), words[1:]
	switch verb {
	case "IF":
		if len(ops) == 0 {
			return nil, errors.New("a condition binds to the operation above it, and there is none")
		}
		if len(rest) != 1 {
			return nil, errors.New("if takes one condition: " + conditionForms)
		}
		c, err := parseCondition(rest[0])
		last := &ops[len(ops)-1].Options
		last.Conditions = append(last.Conditions, c)
		return ops, err
	case txnPut:
		if len(rest) != 2 {
			return nil, errors.New("put takes a key and a value")
		}
		return append(ops, txnOp{Type: txnPut, Key: rest[0], Value: []byte(rest[1])}), nil
	case "DEL":
		verb = txnDelete
	case "INCR", txnIncrement, txnTouch:
		return addTxnChange(ops, verb, rest)
	case txnDelete, txnGet, txnCheck:
	default:
		return nil, fmt.Errorf("unknown operation %q: use put, delete, get, check, touch, incr or if", words[0])
	}
	if len(rest) != 1 {
		return nil, fmt.Errorf("%s takes a key", strings.ToLower(verb))
	}
	return append(ops, txnOp{Type: verb, Key: rest[0]}), nil
}

// addTxnChange adds a touch or an increment.
func addTxnChange(ops []txnOp, verb string, rest []string) (_ []txnOp, err error) {
	op := txnOp{Type: verb, Delta: 1}
	if len(rest) < 1 || len(rest) > 2 {
		return nil, fmt.Errorf("%s takes a key, and perhaps a number or a time", strings.ToLower(verb))
	}
	op.Key = rest[0]
	if verb == txnTouch {
		op.Delta = 0
		if len(rest) == 2 {
			op.Options.TTL, err = parseTTL(rest[1])
		}
		return append(ops, op), err
	}
	op.Type = txnIncrement
	if len(rest) == 2 {
		if op.Delta, err = strconv.ParseInt(rest[1], 10, 64); err != nil {
			err = fmt.Errorf("%q is no whole number of 64 bits", rest[1])
		}
	}
	return append(ops, op), err
}

// parseTTL reads a time to live.
func parseTTL(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < time.Millisecond {
		return 0, fmt.Errorf("%q is no time to live: it is 1ms or more, such as 30m", s)
	}
	return d, nil
}

// conditionForms are what parseCondition reads.
const conditionForms = "version=N, exists, absent, value=TEXT, tag:NAME=VALUE, tag:NAME or no-tag:NAME"

func parseCondition(s string) (condition, error) {
	if tag, ok := strings.CutPrefix(s, "tag:"); ok {
		return tagCondition(tag), nil
	}
	if tag, ok := strings.CutPrefix(s, "no-tag:"); ok {
		return condition{Kind: ifTagAbsent, Tag: tag}, nil
	}
	name, value, _ := strings.Cut(s, "=")
	switch name {
	case "exists":
		return condition{Kind: ifExists}, nil
	case "absent":
		return condition{Kind: ifAbsent}, nil
	case "value":
		return condition{Kind: ifValue, Value: []byte(value)}, nil
	case "version":
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return condition{}, fmt.Errorf("%q is no version", value)
		}
		return condition{Kind: ifVersion, Version: n}, nil
	}
	return condition{}, fmt.Errorf("unknown condition %q: use %s", s, conditionForms)
}

// splitWords splits a line at spaces; a word in double quotes is read as a Go string.
func splitWords(line string) ([]string, error) {
	var words []string
	for rest := strings.TrimSpace(line); rest != ""; rest = strings.TrimLeft(rest, " \t") {
		if rest[0] == '"' {
			q, err := strconv.QuotedPrefix(rest)
			if err != nil {
				return nil, errors.New("a quoted word does not end, or holds an unknown escape")
			}
			w, err := strconv.Unquote(q)
			if err != nil {
				return nil, fmt.Errorf("cannot read %s: %w", q, err)
			}
			words, rest = append(words, w), rest[len(q):]
			continue
		}
		i := strings.IndexAny(rest, " \t")
		if i < 0 {
			i = len(rest)
		}
		words, rest = append(words, rest[:i]), rest[i:]
	}
	return words, nil
}

// jsonTxnResult is the outcome in the form of REST.
type jsonTxnResult struct {
	Committed bool              `json:"committed"`
	Version   string            `json:"version,omitempty"`
	Results   []json.RawMessage `json:"results,omitempty"`
	Failed    []failedCondition `json:"failed,omitempty"`
}

// showTxn prints the outcome; one that was not committed exits 4.
func (a *app) showTxn(ops []txnOp, res *txnResult, took string) error {
	if a.output == "json" || a.output == "jsonl" {
		if err := a.writeTxnJSON(ops, res); err != nil {
			return err
		}
	} else if err := a.writeTxnTable(ops, res, took); err != nil {
		return err
	}
	if res.Committed {
		return nil
	}
	for _, f := range res.Failed {
		if f.Operation >= 0 && f.Operation < len(ops) {
			a.talk("operation %d (%s %s): condition %d does not hold\n", f.Operation, ops[f.Operation].Type, cell(ops[f.Operation].Key), f.Condition)
		}
	}
	a.talk("not committed: a condition does not hold, nothing was changed\n")
	return quietError{exitNotFound}
}

func (a *app) writeTxnJSON(ops []txnOp, res *txnResult) error {
	out := jsonTxnResult{Committed: res.Committed, Failed: res.Failed}
	if res.Committed {
		out.Version = strconv.FormatUint(res.Version, 10)
		for i := range res.Results {
			r := map[string]any{"type": ops[i].Type, "key": ops[i].Key}
			switch ops[i].Type {
			case txnGet:
				r["found"] = res.Results[i].Found
				if res.Results[i].Found {
					it := newItem(&res.Results[i].Record, true, false)
					it.Key = ops[i].Key
					r["record"] = it
				}
			case txnDelete:
				r["deleted"] = res.Results[i].Found
			case txnTouch:
				r["found"] = res.Results[i].Found
			case txnIncrement:
				r["counter"] = res.Results[i].Counter
			}
			var b bytes.Buffer
			enc := json.NewEncoder(&b)
			enc.SetEscapeHTML(false)
			if err := enc.Encode(r); err != nil {
				return fmt.Errorf("cannot write result %d: %w", i, err)
			}
			out.Results = append(out.Results, b.Bytes())
		}
	}
	return a.writeJSON(out)
}

func (a *app) writeTxnTable(ops []txnOp, res *txnResult, took string) error {
	if !res.Committed {
		return nil
	}
	for i := range res.Results {
		r := &res.Results[i]
		var err error
		switch {
		case a.output == "raw" && ops[i].Type != txnGet:
		case a.output == "raw":
			err = a.printf("%s\n", r.Record.Value)
		case ops[i].Type == txnGet && r.Found:
			err = a.printf("GET %s → %s\n", cell(ops[i].Key), valueCell(r.Record.Value))
		case ops[i].Type == txnGet:
			err = a.printf("GET %s → (nil)\n", cell(ops[i].Key))
		case ops[i].Type == txnIncrement:
			err = a.printf("INCREMENT %s → %d\n", cell(ops[i].Key), r.Counter)
		case (ops[i].Type == txnDelete || ops[i].Type == txnTouch) && !r.Found:
			err = a.printf("%s %s → (nil)\n", ops[i].Type, cell(ops[i].Key))
		default:
			err = a.printf("%s %s → OK\n", ops[i].Type, cell(ops[i].Key))
		}
		if err != nil {
			return err
		}
	}
	if a.output == "raw" {
		return nil
	}
	return a.printf("OK (version %d, %s)\n", res.Version, took)
}
