package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"kvstore/wire"
)

// dial connects to addr and says HELLO. An error that is an *Error with a status is the server's refusal.
func (c *Client) dial(ctx context.Context, l *link) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.o.dialTimeout)
	defer cancel()
	addr := l.node.addr
	nc, err := c.o.dial(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to %s: %w", addr, err)
	}
	// Close interrupts the handshake when the client is closed meanwhile.
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	ack, err := c.hello(nc)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		// The connection is given up; what closing it says adds nothing.
		_ = nc.Close()
		var e *Error
		if errors.As(err, &e) {
			return nil, err
		}
		return nil, fmt.Errorf("cannot open a connection to %s: %w", addr, err)
	}
	return newConn(c, l, nc, ack), nil
}

// hello exchanges prefaces and HELLO over a new connection.
func (c *Client) hello(nc io.ReadWriter) (*wire.HelloAck, error) {
	h := wire.Hello{
		Features:   wire.FeatureCRC | wire.FeatureSessions | wire.FeatureWatch,
		MaxFrame:   wire.FrameBodyBytesMax,
		ClientName: c.o.name,
		ClusterID:  c.route.clusterID(),
	}
	if c.o.codec != wire.CodecNone {
		h.Features |= wire.FeatureCompression
		h.Codecs = []wire.Codec{c.o.codec}
	}
	b := wire.AppendPreface(nil, wire.Version, wire.Version)
	b = wire.AppendHello(b, &h)
	if _, err := nc.Write(b); err != nil {
		return nil, err
	}
	var in [wire.PrefaceBytes]byte
	if _, err := io.ReadFull(nc, in[:]); err != nil {
		return nil, fmt.Errorf("no preface: %w", err)
	}
	version, _, err := wire.DecodePreface(in[:])
	if err != nil {
		return nil, fmt.Errorf("is this the binary port of a KVStore node? %w", err)
	}
	if version != wire.Version {
		return nil, &Error{Op: "hello", Status: wire.StatusUnsupported, kind: ErrUnsupported,
			Message: fmt.Sprintf("the server does not speak version %d of the protocol", wire.Version)}
	}
	frame := make([]byte, wire.HeaderBytes)
	if _, err := io.ReadFull(nc, frame); err != nil {
		return nil, fmt.Errorf("no answer to HELLO: %w", err)
	}
	var head wire.Header
	if err := wire.DecodeHeader(frame, &head); err != nil {
		return nil, err
	}
	if head.BodyLen > wire.HelloBytesMax {
		return nil, fmt.Errorf("%w: answer to HELLO of %d bytes", wire.ErrFrameTooLarge, head.BodyLen)
	}
	body := make([]byte, head.BodyLen)
	if _, err := io.ReadFull(nc, body); err != nil {
		return nil, fmt.Errorf("answer to HELLO breaks off: %w", err)
	}
	if err := wire.VerifyParts(frame, body); err != nil {
		return nil, err
	}
	ext, _, payload, err := wire.SplitBody(&head, body)
	if err != nil {
		return nil, err
	}
	if head.Op != wire.OpHello && head.Op != wire.OpGoAway {
		return nil, fmt.Errorf("%w: %s answers HELLO", ErrProtocol, head.Op)
	}
	if s := head.Status(); s != wire.StatusOK || head.Op == wire.OpGoAway {
		f := decodeFailure(ext, payload)
		if s == wire.StatusOK {
			return nil, errGoAway
		}
		return nil, &Error{Op: "hello", Status: s, kind: kindOf(s), Message: f.message, RetryAfter: f.retryAfter, Leader: f.leader, Limit: f.limit}
	}
	var ack wire.HelloAck
	if err := wire.DecodeHelloAck(ext, &ack); err != nil {
		return nil, err
	}
	return &ack, nil
}

// connect is dial with its telling: hooks, log, and what the route learns from the answer.
func (c *Client) connect(ctx context.Context, l *link) (*conn, error) {
	start := time.Now()
	cn, err := c.dial(ctx, l)
	if f := c.o.hooks.OnConnect; f != nil {
		f(l.node.addr, time.Since(start), err)
	}
	if err != nil {
		c.o.logger.Debug("cannot connect", "addr", l.node.addr, "err", err)
		return nil, err
	}
	c.o.logger.Debug("connected", "addr", l.node.addr, "node", cn.ack.NodeID, "server", cn.ack.Version, "codec", cn.ack.Codec)
	return cn, nil
}
