package engine

import (
	"fmt"
	"testing"

	"kvstore/wire"
)

// BenchmarkListing reads all of 100,000 records in pages. ns/op is per listing.
func BenchmarkListing(b *testing.B) {
	for _, valueBytes := range []int{128, 4096} {
		d := benchmarkEngine(b, -1)
		value := make([]byte, valueBytes)
		for i := 0; i < benchmarkKeys; i += 1000 {
			ops := make([]testOp, 1000)
			for j := range ops {
				ops[j] = putOp(fmt.Sprintf("user/%04d/%010d", (i+j)/100, i+j), value, nil)
			}
			d.apply(ops...)
		}
		for _, c := range []struct {
			name string
			req  wire.ScanRequest
		}{
			{"pages", wire.ScanRequest{Limit: 1000, BytesMax: 16 << 20}},
			{"pages in reverse", wire.ScanRequest{Flags: wire.ScanReverse, Limit: 1000, BytesMax: 16 << 20}},
			{"keys", wire.ScanRequest{Flags: wire.ScanKeysOnly, Limit: 1000, BytesMax: 16 << 20}},
			{"count", wire.ScanRequest{Flags: wire.ScanCount, Limit: 1000, BytesMax: 16 << 20}},
			{"one level of 1,000", wire.ScanRequest{Limit: 1000, BytesMax: 16 << 20, Prefix: []byte("user/"), Delimiter: []byte("/")}},
			{"one level of 1,000 in reverse", wire.ScanRequest{Flags: wire.ScanReverse, Limit: 1000, BytesMax: 16 << 20, Prefix: []byte("user/"), Delimiter: []byte("/")}},
		} {
			b.Run(fmt.Sprintf("%s/value=%d", c.name, valueBytes), func(b *testing.B) {
				var dst []byte
				b.ReportAllocs()
				for b.Loop() {
					req := c.req
					for more := true; more; {
						payload, st, err := d.e.Scan(ReadOptions{Namespace: 1}, &req, dst[:0])
						if st != wire.StatusOK || err != nil {
							b.Fatal(st, err)
						}
						var p wire.ScanPage
						if err := wire.DecodeScanPage(payload, &p); err != nil {
							b.Fatal(err)
						}
						dst = payload
						req.Cursor = append([]byte(nil), p.Cursor...)
						more = len(p.Cursor) > 0
					}
				}
			})
		}
		if err := d.e.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
