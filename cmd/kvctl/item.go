package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"kvstore/wire"
)

// item is a record in JSON: one line of import and export, one element of a listing. The value is "text"
// when it is valid UTF-8, else base64 in "value".
type item struct {
	Key string `json:"key"`
	// CommonPrefix: Key stands for all keys that begin with it. It is written, never read.
	CommonPrefix bool              `json:"common_prefix,omitempty"`
	Text         *string           `json:"text,omitempty"`
	Value        *[]byte           `json:"value,omitempty"`
	ContentType  string            `json:"content_type,omitempty"`
	Encoding     string            `json:"encoding,omitempty"`
	Tags         map[string]string `json:"tags,omitempty"`
	// TTLSeconds is read, never written: ExpiresAt says the same and stays true.
	TTLSeconds float64    `json:"ttl_seconds,omitempty"`
	ExpiresAt  *time.Time `json:"expires_at,omitempty"`
	// These are written with --meta, and ignored by import.
	Version   string     `json:"version,omitempty"`
	CreatedAt *time.Time `json:"created_at,omitempty"`
	UpdatedAt *time.Time `json:"updated_at,omitempty"`
}

// newItem shows r. meta adds what a new store would give anew: version and times.
func newItem(r *record, meta, keysOnly bool) item {
	if r.CommonPrefix {
		return item{Key: r.Key, CommonPrefix: true}
	}
	it := item{Key: r.Key, ContentType: r.ContentType, Encoding: r.Encoding, Tags: r.Tags, ExpiresAt: timePointer(r.ExpiresAt)}
	if !keysOnly {
		it.Text, it.Value = valueFields(r.Value)
	}
	if meta {
		it.CreatedAt, it.UpdatedAt = timePointer(r.CreatedAt), timePointer(r.UpdatedAt)
		if r.Version != 0 {
			it.Version = strconv.FormatUint(r.Version, 10)
		}
	}
	return it
}

func valueFields(v []byte) (text *string, value *[]byte) {
	if utf8.Valid(v) {
		s := string(v)
		return &s, nil
	}
	return nil, &v
}

func timePointer(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// errNoValue: an item says nothing of its value.
var errNoValue = errors.New(`neither "text" nor "value"`)

// bytes returns the value of an item.
func (it *item) bytes() ([]byte, error) {
	switch {
	case it.Text != nil && it.Value != nil:
		return nil, errors.New(`both "text" and "value"`)
	case it.Text != nil:
		return []byte(*it.Text), nil
	case it.Value != nil:
		return *it.Value, nil
	}
	return nil, errNoValue
}

// ttl returns the time that the item has left at now, and 0 when it never expires. gone means that its
// time has passed.
func (it *item) ttl(now time.Time) (left time.Duration, gone bool, err error) {
	switch {
	case it.TTLSeconds != 0 && it.ExpiresAt != nil:
		return 0, false, errors.New(`both "ttl_seconds" and "expires_at"`)
	case it.TTLSeconds < 0 || it.TTLSeconds > wire.TTLMsMax/1000:
		return 0, false, fmt.Errorf(`"ttl_seconds" is %v: it must be above 0 and at most %d`, it.TTLSeconds, wire.TTLMsMax/1000)
	case it.TTLSeconds > 0:
		return max(time.Duration(it.TTLSeconds*float64(time.Second)), time.Millisecond), false, nil
	case it.ExpiresAt == nil:
		return 0, false, nil
	}
	left = it.ExpiresAt.Sub(now)
	if left > wire.TTLMsMax*time.Millisecond {
		return 0, false, fmt.Errorf(`"expires_at" is %s: that is more than a hundred years ahead`, it.ExpiresAt.Format(time.RFC3339))
	}
	return left, left < time.Millisecond, nil
}

// parseItem reads one line strictly: what would not come back as it was written is refused.
func parseItem(line []byte) (*item, error) {
	it := new(item)
	if err := strictJSON(line, it); err != nil {
		return nil, err
	}
	if err := validKey(it.Key); err != nil {
		return nil, err
	}
	return it, nil
}

// strictJSON decodes one JSON value without unknown fields and without characters that would be replaced
// in silence: invalid UTF-8 and half surrogate pairs become U+FFFD in encoding/json.
func strictJSON(b []byte, v any) error {
	if !utf8.Valid(b) {
		return errors.New(`the text is not valid UTF-8: put binary values as base64 into "value"`)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		if errors.Is(err, io.EOF) {
			return errors.New("no JSON value")
		}
		return fmt.Errorf("not the JSON that is expected: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more text after the JSON value")
	}
	return checkSurrogates(b)
}

// checkSurrogates refuses \uD800 to \uDFFF escapes that are not a high one followed by a low one.
func checkSurrogates(b []byte) error {
	for i := 0; i < len(b); i++ {
		if b[i] != '\\' {
			continue
		}
		i++
		if i+4 >= len(b) || b[i] != 'u' {
			continue // an escape of one character, which is skipped with its backslash
		}
		u := hexUnit(b[i+1:])
		i += 4
		switch {
		case u >= 0xdc00 && u < 0xe000:
			return errors.New("half a surrogate pair in a \\u escape: no text has that character")
		case u >= 0xd800 && u < 0xdc00:
			if i+6 >= len(b) || b[i+1] != '\\' || b[i+2] != 'u' || hexUnit(b[i+3:])&0xfc00 != 0xdc00 {
				return errors.New("half a surrogate pair in a \\u escape: no text has that character")
			}
			i += 6
		}
	}
	return nil
}

// hexUnit reads four hexadecimal digits; the decoder has checked them.
func hexUnit(b []byte) uint64 {
	n, err := strconv.ParseUint(string(b[:4]), 16, 16)
	if err != nil {
		return 0
	}
	return n
}

// validKey says what is wrong with a key.
func validKey(key string) error {
	switch {
	case key == "":
		return errors.New("the key is empty: a key is 1 to 1024 bytes of UTF-8")
	case len(key) > wire.KeyBytesMax:
		return fmt.Errorf("the key has %d bytes: a key is 1 to %d bytes of UTF-8", len(key), wire.KeyBytesMax)
	case !utf8.ValidString(key):
		return errors.New("the key is not valid UTF-8: a key is 1 to 1024 bytes of UTF-8")
	}
	return nil
}

// parseTags reads NAME=VALUE flags.
func parseTags(flags []string) (map[string]string, error) {
	if len(flags) == 0 {
		return nil, nil
	}
	tags := make(map[string]string, len(flags))
	for _, f := range flags {
		name, value, ok := strings.Cut(f, "=")
		if !ok || name == "" {
			return nil, usagef("tag %q: write it as NAME=VALUE", f)
		}
		tags[name] = value
	}
	return tags, nil
}
