package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// metricsPageBytesMax bounds what a metrics port answers.
const metricsPageBytesMax = 64 << 20

// fetch reads a page of a node's metrics port (HOST:PORT).
func fetch(ctx context.Context, endpoint, path string, timeout time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+endpoint+path, nil)
	if err != nil {
		return nil, fmt.Errorf("cannot ask %s: %w", endpoint, err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("cannot ask %s: %w", endpoint, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, metricsPageBytesMax))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("it answers %s", res.Status)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read %s of %s: %w", path, endpoint, err)
	}
	return body, nil
}

// series are the values of a node's metrics by name and labels, as they stand in its page.
type series map[string]float64

func readSeries(ctx context.Context, endpoint string) (series, error) {
	page, err := fetch(ctx, endpoint, "/metrics", 5*time.Second)
	if err != nil {
		return nil, err
	}
	return parseSeries(string(page)), nil
}

// parseSeries reads a page in the text format of Prometheus. Lines that it does not understand tell nothing.
func parseSeries(page string) series {
	s := series{}
	for sc := bufio.NewScanner(strings.NewReader(page)); sc.Scan(); {
		line := sc.Text()
		at := strings.LastIndexByte(line, ' ')
		if at <= 0 || line[0] == '#' {
			continue
		}
		if v, err := strconv.ParseFloat(line[at+1:], 64); err == nil {
			s[line[:at]] = v
		}
	}
	return s
}

// sum adds up what has grown since before, over all series of a name whose labels contain all words.
func (s series) sum(before series, name string, words ...string) (v float64) {
next:
	for full, to := range s {
		base, labels, _ := strings.Cut(full, "{")
		if base != name {
			continue
		}
		for _, w := range words {
			if !strings.Contains(labels, w) {
				continue next
			}
		}
		v += to - before[full]
	}
	return v
}

// mean gives the mean of what a histogram of seconds has observed since before, in microseconds, and how often.
func (s series) mean(before series, name string, words ...string) (us, count float64) {
	count = s.sum(before, name+"_count", words...)
	if count == 0 {
		return 0, 0
	}
	return s.sum(before, name+"_sum", words...) / count * 1e6, count
}
