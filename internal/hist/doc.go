// Package hist counts latencies and sizes on hot paths and writes them as Prometheus histograms.
//
// What it does: Histogram (durations) and Sizes (plain numbers such as operations per batch) share one
// bucket layout. Observe is two uncontended atomic additions and allocates nothing. A Snapshot is a
// plain copy that can be merged, asked for quantiles and written as text.
//
// What it assumes: values are spread over orders of magnitude, so a relative error is what matters. The
// internal buckets are at most 12.5 % wide; anything above the last bound (16.8 s, or 134,217,728 for
// Sizes) lands in +Inf.
//
// Who owns what: a Histogram may be shared by any number of goroutines, but cores that share one fight
// over its cache lines. Hot paths keep one per event loop (HistogramSet, SizesSet), and the scrape merges.
//
// What it never does: read a clock, start a goroutine, take a lock, or keep a registry.
package hist
