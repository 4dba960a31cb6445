package wire

import (
	"regexp"
	"testing"
)

// The table by hand, apart from the one that the package holds: a changed number breaks clients.
var statusWant = []struct {
	status    Status
	name      string
	code      string
	retryable bool
	applied   string
}{
	{0x00, "OK", "KV-1000", false, "yes"},
	{0x01, "NOT_FOUND", "KV-1001", false, "no"},
	{0x02, "CONDITION_FAILED", "KV-1002", false, "no"},
	{0x10, "NOT_LEADER", "KV-2000", true, "no"},
	{0x11, "BUSY", "KV-2001", true, "no"},
	{0x12, "TOO_LATE", "KV-2002", true, "no"},
	{0x13, "DRAINING", "KV-2003", true, "no"},
	{0x14, "NO_LEADER", "KV-2004", true, "no"},
	{0x15, "LIMITED", "KV-2005", true, "no"},
	{0x16, "DISK_FULL", "KV-2006", true, "no"},
	{0x17, "NOT_READY", "KV-2007", true, "no"},
	{0x18, "REPLY_FULL", "KV-2008", true, "no"},
	{0x19, "RETRY_LATER", "KV-2009", true, "no"},
	{0x20, "BAD_REQUEST", "KV-3000", false, "no"},
	{0x21, "TOO_LARGE", "KV-3001", false, "no"},
	{0x22, "UNKNOWN_OP", "KV-3002", false, "no"},
	{0x23, "UNSUPPORTED", "KV-3003", false, "no"},
	{0x24, "UNAUTHENTICATED", "KV-3004", false, "no"},
	{0x25, "DENIED", "KV-3005", false, "no"},
	{0x26, "COMPACTED", "KV-3006", false, "no"},
	{0x27, "SESSION_EXPIRED", "KV-3007", false, "no"},
	{0x28, "SESSION_STALE", "KV-3008", false, "no"},
	{0x29, "BAD_KEY", "KV-3009", false, "no"},
	{0x2a, "CHECKSUM_MISMATCH", "KV-3010", false, "no"},
	{0x2b, "NO_NAMESPACE", "KV-3011", false, "no"},
	{0x2c, "CANCELLED", "KV-3012", false, "no"},
	{0x2d, "FUTURE_REVISION", "KV-3013", false, "no"},
	{0x2e, "DAMAGED", "KV-3014", false, "no"},
	{0x2f, "SESSIONS_TOO_MANY", "KV-3015", false, "no"},
	{0x30, "LEADERSHIP_LOST", "KV-4000", false, "unknown"},
	{0x31, "TIMEOUT", "KV-4001", false, "unknown"},
	{0x32, "SHUTDOWN", "KV-4002", false, "unknown"},
	{0x33, "INTERNAL", "KV-4003", false, "unknown"},
	{0x40, "QUOTA_EXCEEDED", "KV-3016", false, "no"},
	{0x41, "NAMESPACE_EXISTS", "KV-3017", false, "no"},
	{0x42, "TOO_MANY", "KV-3018", false, "no"},
	{0x43, "NOT_A_NUMBER", "KV-3019", false, "no"},
	{0x44, "IDEMPOTENCY_KEY_REUSED", "KV-3020", false, "no"},
}

func TestStatuses_TableIsAsFrozenHere(t *testing.T) {
	rows := Statuses()
	if len(rows) != len(statusWant) {
		t.Fatalf("%d rows, want %d", len(rows), len(statusWant))
	}
	code := regexp.MustCompile(`^KV-\d{4}$`)
	codes, names := map[string]Status{}, map[string]Status{}
	for i, w := range statusWant {
		in := rows[i]
		if in.Status != w.status || in.Name != w.name || in.Code != w.code {
			t.Errorf("row %d: %#x %s %s, want %#x %s %s", i, uint8(in.Status), in.Name, in.Code, uint8(w.status), w.name, w.code)
		}
		if in.Status.Retryable() != w.retryable || in.Status.Applied() != w.applied {
			t.Errorf("%s: retryable %v applied %q, want %v %q", w.name, in.Status.Retryable(), in.Status.Applied(), w.retryable, w.applied)
		}
		if in.Message == "" || in.Status.Info() != in || in.Status.String() != in.Name {
			t.Errorf("%s: row %+v is incomplete", w.name, in)
		}
		if !code.MatchString(in.Code) {
			t.Errorf("%s: code %q", w.name, in.Code)
		}
		if other, ok := codes[in.Code]; ok {
			t.Errorf("%s and %s share the code %s", other, in.Name, in.Code)
		}
		if other, ok := names[in.Name]; ok {
			t.Errorf("%#x and %#x share the name %s", uint8(other), uint8(in.Status), in.Name)
		}
		codes[in.Code], names[in.Name] = in.Status, in.Status
	}
}

// A code from a newer server must still lead its receiver to the right deed, and never to a false "no".
func TestStatus_UnknownCodes_KeepTheirClass(t *testing.T) {
	known := map[string]bool{}
	for _, in := range Statuses() {
		known[in.Code] = true
	}
	for i := range 256 {
		s := Status(i)
		want := []Class{ClassResult, ClassRetry, ClassRefused, ClassUnknown, ClassRefused}
		if c := s.Class(); i < 0x50 && c != want[i>>4] || i >= 0x50 && c != ClassUnknown {
			t.Errorf("status %#x has class %d", i, c)
		}
		if s.Class() == ClassUnknown && (s.Applied() != "unknown" || s.Retryable()) {
			t.Errorf("status %#x: applied %s, retryable %v", i, s.Applied(), s.Retryable())
		}
		in := s.Info()
		if in.Status != s || in.Name == "" || in.Code == "" || in.Message == "" {
			t.Errorf("status %#x: row %+v is incomplete", i, in)
		}
		if statusTable[i].Name == "" && known[in.Code] {
			t.Errorf("unknown status %#x has the code %s of a known one", i, in.Code)
		}
	}
	if got := Status(0x1c).Info().Code; got != "KV-2912" {
		t.Errorf("code of 0x1c: %s", got)
	}
	h := Header{StatusOrGroup: 0x101}
	if s := h.Status(); s != StatusInternal {
		t.Errorf("status 0x101 reads as %s", s)
	}
}
