package wire

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

const protocolPage = "../docs/protocol.md"

func readPage(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(protocolPage)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// keepSection compares what stands in the page between the marks of a section to want, or with -update
// writes it there.
func keepSection(t *testing.T, name, want string) {
	t.Helper()
	page := readPage(t)
	begin, end := "<!-- "+name+":begin -->\n", "<!-- "+name+":end -->\n"
	before, rest, ok1 := strings.Cut(page, begin)
	got, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no section %q", protocolPage, name)
	}
	if got == want {
		return
	}
	if !*update {
		t.Errorf("section %q of %s is not what the code says; go test ./wire -update writes it anew. Want:\n%s", name, protocolPage, want)
		return
	}
	if err := os.WriteFile(protocolPage, []byte(before+begin+want+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestProtocolPage_StatusTable_MatchesTheCode(t *testing.T) {
	var s strings.Builder
	s.WriteString("| status | name | code | retryable | applied | meaning |\n|---|---|---|---|---|---|\n")
	for _, in := range Statuses() {
		retryable := "no"
		if in.Status.Retryable() {
			retryable = "yes"
		}
		fmt.Fprintf(&s, "| 0x%02x | %s | %s | %s | %s | %s |\n", uint8(in.Status), in.Name, in.Code, retryable, in.Status.Applied(), in.Message)
	}
	keepSection(t, "status", s.String())
}

func TestProtocolPage_Limits_MatchTheCode(t *testing.T) {
	var s strings.Builder
	s.WriteString("| limit | value | beyond it |\n|---|---|---|\n")
	for _, l := range []struct {
		what  string
		value int64
		then  string
	}{
		{"key, bytes", KeyBytesMax, "BAD_KEY"},
		{"value, bytes", ValueBytesMax, "TOO_LARGE"},
		{"extension block, bytes", ExtBytesMax, "cannot be written"},
		{"frame body, bytes, as sent and unpacked (HELLO tells the server's)", FrameBodyBytesMax, "TOO_LARGE, or the connection is closed"},
		{"HELLO and its answer, bytes of body", HelloBytesMax, "TOO_LARGE"},
		{"payload of PING, bytes", PingBytesMax, "TOO_LARGE"},
		{"document of ADMIN, bytes", AdminBytesMax, "TOO_LARGE"},
		{"items of a BATCH, TXN or MULTIGET", BatchOpsMax, "TOO_LARGE"},
		{"conditions of one operation", ConditionsMax, "TOO_LARGE"},
		{"value that a condition compares, bytes", ConditionValueBytesMax, "TOO_LARGE"},
		{"tags of a record", TagsMax, "TOO_LARGE"},
		{"name of a tag, bytes", TagNameBytesMax, "BAD_REQUEST"},
		{"value of a tag, bytes", TagValueBytesMax, "TOO_LARGE"},
		{"content type, bytes", ContentTypeBytesMax, "TOO_LARGE"},
		{"encoding, bytes", EncodingBytesMax, "TOO_LARGE"},
		{"name of a namespace, bytes", NamespaceBytesMax, "BAD_REQUEST"},
		{"time to live, milliseconds", TTLMsMax, "BAD_REQUEST"},
		{"namespaces of a group", NamespacesMax, "TOO_MANY"},
		{"items of a page", ScanLimitMax, "cut to it"},
		{"bytes of a page of more than one item", ScanBytesMax, "cut to it"},
		{"cursor, bytes", CursorBytesMax, "BAD_REQUEST"},
		{"delimiter, bytes", ScanDelimiterBytesMax, "TOO_LARGE"},
		{"credit that a stream begins with by default, bytes", StreamCreditDefault, ""},
		{"credit of a stream, bytes", StreamCreditMax, "cut to it"},
		{"payload of a frame of more than one event, bytes", EventBytesMax, "never sent"},
		{"time between two frames of a watch without events by default, milliseconds", ProgressMsDefault, ""},
		{"shortest such time, milliseconds", ProgressMsMin, "raised to it"},
		{"longest such time, milliseconds", ProgressMsMax, "cut to it"},
		{"text of an error, bytes", MessageBytesMax, "never sent"},
		{"sequence number above the floor", SessionWindow, "SESSION_STALE"},
		{"sessions of a group", SessionsMax, "SESSIONS_TOO_MANY"},
		{"payload kept for a replay, bytes", SessionReplayBytesMax, "replayed without payload"},
		{"answers kept for replays in all, bytes", SessionsBytesMax, "the sessions idle for longest are ended"},
		{"time to live of an idle session, milliseconds", SessionTTL.Milliseconds(), "SESSION_EXPIRED"},
		{"answer to a write with an idempotency key, bytes", IdempotencyAnswerBytesMax, "TOO_LARGE; REPLY_FULL for a value read"},
		{"time that such an answer is kept, milliseconds", IdempotencyTTL.Milliseconds(), "a repetition is a new write"},
		{"such answers in all, bytes, each with 256 more", IdempotencyBytesMax, "RETRY_LATER for a new key"},
		{"unanswered requests of a connection (HELLO tells)", ConnInflightMax, "BUSY"},
		{"bytes of their bodies (HELLO tells)", ConnInflightBytesMax, "BUSY"},
		{"default deadline, milliseconds", TimeoutDefault.Milliseconds(), ""},
		{"longest deadline, milliseconds", TimeoutMax.Milliseconds(), "cut to it"},
	} {
		fmt.Fprintf(&s, "| %s | %d | %s |\n", l.what, l.value, l.then)
	}
	keepSection(t, "limits", s.String())
}

func TestProtocolPage_Appendix_HoldsTheGoldenFrames(t *testing.T) {
	var s strings.Builder
	for _, g := range goldens() {
		dump := formatHex(g.what, readGolden(t, g.name))
		_, dump, _ = strings.Cut(dump, "\n")
		fmt.Fprintf(&s, "`%s`: %s\n\n```hex %s\n%s```\n\n", g.name, g.what, g.name, dump)
	}
	keepSection(t, "golden", s.String())
}

// Each dump in the page, annotated or not, is the golden frame that it names.
func TestProtocolPage_EveryDump_IsAGoldenFrame(t *testing.T) {
	seen := map[string]int{}
	for _, m := range regexp.MustCompile("(?s)```hex ([a-z0-9_]+)\n(.*?)```").FindAllStringSubmatch(readPage(t), -1) {
		seen[m[1]]++
		got, err := parseHex(m[2])
		if err != nil {
			t.Errorf("%s: %v", m[1], err)
			continue
		}
		if want := readGolden(t, m[1]); !bytes.Equal(got, want) {
			t.Errorf("%s in the page:\n%swant\n%s", m[1], formatHex("", got), formatHex("", want))
		}
	}
	for _, name := range []string{"preface_client", "preface_server", "hello", "hello_ack", "put_plain", "put_request", "put_answer", "get_request", "get_answer"} {
		if seen[name] != 2 {
			t.Errorf("%s stands %d times in the page: in the example and in the appendix", name, seen[name])
		}
	}
}

// Every opcode and every element that the code names has its row.
func TestProtocolPage_OpcodesAndElements_AreAllThere(t *testing.T) {
	page := readPage(t)
	rows := func(file, pattern string, row func(name, number string) string) {
		t.Helper()
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found := regexp.MustCompile(pattern).FindAllStringSubmatch(string(src), -1)
		if len(found) < 20 {
			t.Fatalf("%s: only %d constants found", file, len(found))
		}
		for _, m := range found {
			if want := row(m[1], m[2]); !strings.Contains(page, "\n"+want) {
				t.Errorf("%s has no row %q", protocolPage, want)
			}
		}
	}
	rows("opcode.go", `(?m)^\tOp(\w+)\s+Opcode = (0x[0-9a-f]{2})$`, func(name, number string) string {
		n, err := strconv.ParseUint(number[2:], 16, 8)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("| %s | %s |", number, strings.ToUpper(Opcode(n).String()))
	})
	rows("ext.go", `(?m)^\tExt(\w+)\s+ExtType = (\d+)\b`, func(name, number string) string {
		return fmt.Sprintf("| %s | %s |", number, name)
	})
}
