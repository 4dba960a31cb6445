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

  {"operations":[{"type":"PUT|DELETE|GET|CHECK","key":"…","value":"base64","text":"…","ttl_seconds":60,
    "conditions":[{"if_version_match":"5"},{"if_exists":true},{"if_not_exists":true},{"if_value_match":"base64"}]}]}

or lines; a key or value with spaces stands in double quotes, and conditions bind to the operation above them:

  put KEY VALUE
  delete KEY
  get KEY
  check KEY
  if version=N | if exists | if absent | if value=TEXT`,
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
	Conditions []jsonCondition `json:"conditions"`
}

type jsonCondition struct {
	Version   *jsonVersion `json:"if_version_match"`
	Exists    bool         `json:"if_exists"`
	NotExists bool         `json:"if_not_exists"`
	Value     *[]byte      `json:"if_value_match"`
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
	case txnDelete, txnGet, txnCheck:
		if _, err := j.bytes(); !errors.Is(err, errNoValue) {
			return op, fmt.Errorf("a %s takes no value", op.Type)
		}
	default:
		return op, fmt.Errorf("unknown type %q: use PUT, DELETE, GET or CHECK", j.Type)
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
		if len(op.Options.Conditions) != n+1 {
			return op, errors.New("a condition holds exactly one of if_version_match, if_exists, if_not_exists and if_value_match")
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
			return nil, errors.New("if takes one condition: version=N, exists, absent or value=TEXT")
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
	case txnDelete, txnGet, txnCheck:
	default:
		return nil, fmt.Errorf("unknown operation %q: use put, delete, get, check or if", words[0])
	}
	if len(rest) != 1 {
		return nil, fmt.Errorf("%s takes a key", strings.ToLower(verb))
	}
	return append(ops, txnOp{Type: verb, Key: rest[0]}), nil
}

func parseCondition(s string) (condition, error) {
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
	return condition{}, fmt.Errorf("unknown condition %q: use version=N, exists, absent or value=TEXT", s)
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
		case ops[i].Type == txnDelete && !r.Found:
			err = a.printf("DELETE %s → (nil)\n", cell(ops[i].Key))
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
