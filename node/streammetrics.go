package node

import (
	"fmt"
	"io"

	"kvstore/wire"
)

// writeMetrics writes what streams count.
func (t *streams) writeMetrics(w io.Writer) error {
	c := &t.counts
	if err := writeSamples(w, []sample{
		{"kvstore_watches", "gauge", "Watches that are open.", float64(c.watches.Load())},
		{"kvstore_streamed_listings", "gauge", "Streamed listings that are open.", float64(c.listings.Load())},
		{"kvstore_watch_events_total", "counter", "Events sent to watchers.", float64(c.events.Load())},
		{"kvstore_watch_bytes_total", "counter", "Bytes of the frames that held them.", float64(c.eventBytes.Load())},
		{"kvstore_watch_progress_total", "counter", "Frames without events that told watchers how far they have come.", float64(c.progress.Load())},
		{"kvstore_watch_previous_lost_total", "counter", "Events sent without what was there before, though it was asked for: it is not kept, or has no room.", float64(c.previousLost.Load())},
		{"kvstore_streamed_pages_total", "counter", "Pages made for streamed listings.", float64(c.pages.Load())},
	}); err != nil {
		return err
	}
	const name = "kvstore_streams_ended_total"
	if _, err := fmt.Fprintf(w, "# HELP %s Watches and streamed listings that ended, by the status of their last frame.\n# TYPE %s counter\n", name, name); err != nil {
		return err
	}
	for i := range c.ended {
		if n := c.ended[i].Load(); n != 0 {
			if _, err := fmt.Fprintf(w, "%s{status=%q} %d\n", name, wire.Status(i), n); err != nil {
				return err
			}
		}
	}
	return nil
}
