//go:build !failpoints

package failpoint

import "net/http"

// Enabled tells whether this build can strike.
const Enabled = false

// Hit marks a place that can't fail. Here it does nothing.
func Hit(string) {}

// Err marks a place that may fail. Here it never does.
func Err(string) error { return nil }

// Handler shows and sets the terms over HTTP; here there is none.
func Handler() http.Handler { return nil }
