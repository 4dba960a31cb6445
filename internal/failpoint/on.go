//go:build failpoints

package failpoint

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Enabled tells whether this build can strike.
const Enabled = true

// action is what a term does.
type action struct {
	kind    string // kill, panic, sleep, error, off
	text    string
	sleep   time.Duration
	at      uint64  // 0: each hit
	percent float64 // 0: each hit
}

// place is what is known of one name.
type place struct {
	act          *action
	hits, struck uint64
}

var (
	mu sync.Mutex
	// Guarded by mu.
	places = make(map[string]*place)
	random *rand.Rand
)

func init() {
	for _, n := range Names() {
		places[n] = &place{}
	}
	seed, err := strconv.ParseUint(os.Getenv("KVSTORE_FAILPOINTS_SEED"), 10, 64)
	if err != nil {
		seed = uint64(time.Now().UnixNano())
	}
	random = rand.New(rand.NewPCG(seed, seed))
	if err := Set(os.Getenv("KVSTORE_FAILPOINTS")); err != nil {
		fmt.Fprintln(os.Stderr, "KVSTORE_FAILPOINTS:", err)
		os.Exit(2)
	}
}

// Set changes the terms of the names in s, which are separated by semicolons, and leaves the others. On an
// error nothing is changed.
func Set(s string) error {
	acts := make(map[string]*action)
	for term := range strings.SplitSeq(s, ";") {
		if term = strings.TrimSpace(term); term == "" {
			continue
		}
		name, text, ok := strings.Cut(term, "=")
		if !ok {
			return fmt.Errorf("%q is not NAME=ACTION", term)
		}
		if !slices.Contains(Names(), name) {
			return fmt.Errorf("there is no failpoint %q", name)
		}
		a, err := parse(text)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		acts[name] = a
	}
	mu.Lock()
	defer mu.Unlock()
	for name, a := range acts {
		places[name].act = a
		places[name].hits, places[name].struck = 0, 0
	}
	return nil
}

func parse(s string) (*action, error) {
	var a action
	var err error
	if body, n, ok := strings.Cut(s, "@"); ok {
		if a.at, err = strconv.ParseUint(n, 10, 64); err != nil || a.at == 0 {
			return nil, fmt.Errorf("%q: behind @ stands the number of a hit, from 1", s)
		}
		s = body
	} else if body, p, ok := strings.Cut(s, "%"); ok {
		if a.percent, err = strconv.ParseFloat(p, 64); err != nil || !(a.percent > 0 && a.percent <= 100) { // NaN is neither
			return nil, fmt.Errorf("%q: behind %% stands a share above 0 and up to 100", s)
		}
		s = body
	}
	kind, arg, has := strings.Cut(s, "(")
	if has {
		if arg, has = strings.CutSuffix(arg, ")"); !has {
			return nil, fmt.Errorf("%q: a bracket is not closed", s)
		}
	}
	a.kind = kind
	switch kind {
	case "kill", "panic":
	case "off":
		return nil, nil
	case "sleep":
		if a.sleep, err = time.ParseDuration(arg); err != nil {
			return nil, err
		}
	case "error":
		if a.text = arg; arg == "" {
			a.text = "failpoint"
		}
	default:
		return nil, fmt.Errorf("unknown action %q: kill, panic, sleep(DURATION), error(TEXT) or off", kind)
	}
	return &a, nil
}

// Hit marks a place that can't fail.
func Hit(name string) {
	if err := Err(name); err != nil {
		panic("failpoint " + name + " can't return an error")
	}
}

// Err marks a place that may fail, and returns the error that is to happen there.
func Err(name string) error {
	mu.Lock()
	p := places[name]
	if p == nil {
		mu.Unlock()
		panic("BUG: failpoint " + name + " is not in the list of names")
	}
	p.hits++
	a := p.act
	strikes := a != nil && (a.at == 0 || a.at == p.hits) && (a.percent == 0 || random.Float64()*100 < a.percent)
	if strikes {
		p.struck++
	}
	mu.Unlock()
	if !strikes {
		return nil
	}
	switch a.kind {
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // it can't fail for oneself
		select {}
	case "panic":
		panic("failpoint " + name)
	case "sleep":
		time.Sleep(a.sleep)
	case "error":
		return errors.New(a.text)
	}
	return nil
}

// Handler shows the counts of all places (GET: one line each: name, hits, strikes) and sets terms (PUT: the
// terms as the body).
func Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			body, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
			if err == nil {
				err = Set(string(body))
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
		}
		mu.Lock()
		defer mu.Unlock()
		for _, n := range Names() {
			fmt.Fprintf(w, "%s %d %d\n", n, places[n].hits, places[n].struck)
		}
	})
}
