package gateway

import (
	"bytes"
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"kvstore/wire"
)

// jsonReader reads one JSON document out of memory, strictly and without copies: encoding/json would match names
// whatever their case, let the last of equal names win, put U+FFFD where there is half a surrogate pair, and hold a
// value of 16 MiB three times. Its callers say what they want to find; nothing is skipped, so that nothing is nested
// deeper than they ask for.
type jsonReader struct {
	b  []byte
	at int
}

// fault is why a document is refused, and where.
type fault struct {
	status wire.Status
	path   string
	text   string
}

func faultf(format string, a ...any) *fault {
	return &fault{status: wire.StatusBadRequest, text: fmt.Sprintf(format, a...)}
}

// in puts a part in front of the path.
func (f *fault) in(part string) *fault {
	f.path = part + f.path
	return f
}

// refusal gives the fault as what the door answers.
func (f *fault) refusal() *wire.Refusal {
	text := f.text
	if path := f.path; path != "" {
		if path[0] == '.' {
			path = path[1:]
		}
		text = fmt.Sprintf("%.200s: %s", path, text)
	}
	return &wire.Refusal{Status: f.status, Text: text + "; nothing was changed"}
}

// readJSON reads body, which must be one object of the members that field takes and nothing else.
func readJSON(body []byte, field func(r *jsonReader, name []byte) *fault) *wire.Refusal {
	r := &jsonReader{b: body}
	f := faultf("the document is not valid UTF-8")
	if utf8.Valid(body) {
		if f = r.object(func(name []byte) *fault { return field(r, name) }); f == nil {
			if r.space(); r.at == len(r.b) {
				return nil
			}
			f = r.faultf("there is more behind the document")
		}
	}
	return f.refusal()
}

func (r *jsonReader) faultf(format string, a ...any) *fault {
	return faultf(format+" (byte %d)", append(a, r.at)...)
}

func (r *jsonReader) space() {
	for r.at < len(r.b) && (r.b[r.at] == ' ' || r.b[r.at] == '\t' || r.b[r.at] == '\n' || r.b[r.at] == '\r') {
		r.at++
	}
}

// peek gives the first byte of what comes next, 0 at the end.
func (r *jsonReader) peek() byte {
	if r.space(); r.at == len(r.b) {
		return 0
	}
	return r.b[r.at]
}

// take goes past c if that is next.
func (r *jsonReader) take(c byte) bool {
	if r.peek() != c {
		return false
	}
	r.at++
	return true
}

// object reads an object; field reads the value of each member. No name may stand twice.
func (r *jsonReader) object(field func(name []byte) *fault) *fault {
	if !r.take('{') {
		return r.faultf("an object is expected")
	}
	if r.take('}') {
		return nil
	}
	seen := make([][]byte, 0, 16)
	for {
		if r.peek() != '"' {
			return r.faultf("the name of a member is expected")
		}
		name, f := r.string()
		if f != nil {
			return f
		}
		for _, s := range seen {
			if bytes.Equal(s, name) {
				return r.faultf("%.100q is given twice", name)
			}
		}
		seen = append(seen, name)
		if !r.take(':') {
			return r.faultf("a colon is expected behind %.100q", name)
		}
		if f := field(name); f != nil {
			return f.in("." + string(name))
		}
		switch {
		case r.take(','):
		case r.take('}'):
			return nil
		default:
			return r.faultf("a comma or the end of the object is expected")
		}
	}
}

// array reads an array; each reads one element.
func (r *jsonReader) array(each func(i int) *fault) *fault {
	if !r.take('[') {
		return r.faultf("an array is expected")
	}
	if r.take(']') {
		return nil
	}
	for i := 0; ; i++ {
		if f := each(i); f != nil {
			return f.in("[" + strconv.Itoa(i) + "]")
		}
		switch {
		case r.take(','):
		case r.take(']'):
			return nil
		default:
			return r.faultf("a comma or the end of the array is expected").in("[" + strconv.Itoa(i) + "]")
		}
	}
}

// string reads a string. The result is a view unless the string has escapes.
func (r *jsonReader) string() ([]byte, *fault) {
	if !r.take('"') {
		return nil, r.faultf("a string is expected")
	}
	start := r.at
	for ; r.at < len(r.b); r.at++ {
		switch c := r.b[r.at]; {
		case c == '"':
			r.at++
			return r.b[start : r.at-1 : r.at-1], nil
		case c == '\\':
			return r.escaped(start)
		case c < ' ':
			return nil, r.faultf("a control character stands in a string")
		}
	}
	return nil, r.faultf("the document ends within a string")
}

// escaped goes on with a string at its first escape.
func (r *jsonReader) escaped(start int) ([]byte, *fault) {
	out := bytes.Clone(r.b[start:r.at])
	for r.at < len(r.b) {
		c := r.b[r.at]
		switch {
		case c == '"':
			r.at++
			return out, nil
		case c < ' ':
			return nil, r.faultf("a control character stands in a string")
		case c != '\\':
			out = append(out, c)
			r.at++
			continue
		}
		if r.at+1 >= len(r.b) {
			break
		}
		r.at += 2
		switch c = r.b[r.at-1]; c {
		case '"', '\\', '/':
			out = append(out, c)
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			c, ok := r.hex4()
			if ok && utf16.IsSurrogate(c) {
				if ok = r.at+1 < len(r.b) && r.b[r.at] == '\\' && r.b[r.at+1] == 'u'; ok {
					r.at += 2
					var low rune
					if low, ok = r.hex4(); ok {
						c = utf16.DecodeRune(c, low)
						ok = c != utf8.RuneError
					}
				}
			}
			if !ok {
				return nil, r.faultf("an escape in a string is malformed, or half a surrogate pair")
			}
			out = utf8.AppendRune(out, c)
		default:
			return nil, r.faultf("a string has an escape that JSON doesn't know")
		}
	}
	return nil, r.faultf("the document ends within a string")
}

// hex4 reads four hex digits.
func (r *jsonReader) hex4() (rune, bool) {
	if r.at+4 > len(r.b) {
		return 0, false
	}
	var c rune
	for _, d := range r.b[r.at : r.at+4] {
		switch {
		case d >= '0' && d <= '9':
			d -= '0'
		case d >= 'a' && d <= 'f':
			d -= 'a' - 10
		case d >= 'A' && d <= 'F':
			d -= 'A' - 10
		default:
			return 0, false
		}
		c = c<<4 | rune(d)
	}
	r.at += 4
	return c, true
}

// digits reads a whole number: its digits, with a sign where it is negative. A string that holds one will do too,
// since that is how 64 bits travel unharmed. No leading zeros, no fraction, no exponent.
func (r *jsonReader) digits() (string, *fault) {
	var text []byte
	if r.peek() == '"' {
		var f *fault
		if text, f = r.string(); f != nil {
			return "", f
		}
	} else {
		start := r.at
		for r.at < len(r.b) && bytes.IndexByte([]byte("+-.0123456789eE"), r.b[r.at]) >= 0 {
			r.at++
		}
		text = r.b[start:r.at]
	}
	d := bytes.TrimPrefix(text, []byte("-"))
	ok := len(d) != 0 && (d[0] != '0' || len(text) == 1)
	for _, c := range d {
		ok = ok && c >= '0' && c <= '9'
	}
	if !ok {
		return "", r.faultf("a whole number is expected")
	}
	return string(text), nil
}

// uint reads a whole number from 0 to most.
func (r *jsonReader) uint(most uint64) (uint64, *fault) {
	d, f := r.digits()
	if f != nil {
		return 0, f
	}
	n, err := strconv.ParseUint(d, 10, 64)
	if err != nil || n > most {
		return 0, r.faultf("%.30s is not a whole number from 0 to %d", d, most)
	}
	return n, nil
}

// int reads a whole number of 64 bits.
func (r *jsonReader) int() (int64, *fault) {
	d, f := r.digits()
	if f != nil {
		return 0, f
	}
	n, err := strconv.ParseInt(d, 10, 64)
	if err != nil {
		return 0, r.faultf("%.30s takes more than 64 bits", d)
	}
	return n, nil
}

// yes reads true, the only value that a flag of ours may have.
func (r *jsonReader) yes() *fault {
	if r.peek(); bytes.HasPrefix(r.b[r.at:], []byte("true")) {
		r.at += len("true")
		return nil
	}
	return r.faultf("true is expected: leave the condition out instead of denying it")
}
