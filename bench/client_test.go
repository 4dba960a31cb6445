package bench

import (
	"context"
	"errors"
	"testing"

	"kvstore/client"
)

// Each sentinel of the client has its kind; an unknown outcome is never anything else.
func TestClientTarget_Kind_EachSentinel(t *testing.T) {
	for err, want := range map[error]Kind{
		client.ErrMaybeApplied: KindUnknown,
		errors.Join(client.ErrMaybeApplied, context.DeadlineExceeded): KindUnknown,
		client.ErrTimeout:        KindTimeout,
		context.DeadlineExceeded: KindTimeout,
		client.ErrUnavailable:    KindUnavailable,
		client.ErrDiskFull:       KindUnavailable,
		client.ErrBusy:           KindBusy,
		client.ErrDenied:         KindDenied,
		client.ErrTooLarge:       KindRefused,
		client.ErrBadKey:         KindRefused,
		client.ErrProtocol:       KindOther,
		errors.New("odd"):        KindOther,
	} {
		if got := (&ClientTarget{}).Kind(err); got != want {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
}
