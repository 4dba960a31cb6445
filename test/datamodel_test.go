package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/internal/testcluster"
	"kvstore/wire"
)

// The data model, operation by operation: what a user may ask, what lies on the edge, and what must be refused, asked
// of the leader and of a follower of three real nodes, through the binary protocol, REST and gRPC (door_test.go). All must
// give the same answers.

// dataRun is one way to address the cluster.
type dataRun struct {
	t    *testing.T
	ctx  context.Context
	c    *client.Client     // knows one node at first
	addr string             // which it is, by which door
	read []client.GetOption // of reads: that node answers them itself
	name string             // of the run; part of every key, so that runs don't meet
}

// dataCase is one use of one operation.
type dataCase struct {
	op, name string
	// do works under keys that begin with key, and gives the error of the call in question.
	do func(d *dataRun, key string) error
	// want is what that error must match; nil: none.
	want error
}

// same fails unless got and want are equal.
func same[T comparable](d *dataRun, what string, got, want T) {
	d.t.Helper()
	if got != want {
		d.t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// put stores a record that a case begins with.
func (d *dataRun) put(key, value string, opts ...client.PutOption) client.Version {
	d.t.Helper()
	v, err := d.c.Put(d.ctx, key, []byte(value), opts...)
	if err != nil {
		d.t.Fatalf("put %.40q: %v", key, err)
	}
	return v
}

// get reads a record that must be there.
func (d *dataRun) get(key string, opts ...client.GetOption) client.Value {
	d.t.Helper()
	v, err := d.c.Get(d.ctx, key, append(slices.Clone(d.read), opts...)...)
	if err != nil {
		d.t.Fatalf("get %.40q: %v", key, err)
	}
	return v
}

// tagsOf reads the tags of a record that must be there.
func (d *dataRun) tagsOf(key string) map[string]string {
	d.t.Helper()
	v := d.get(key)
	return v.Tags()
}

// absent fails if the key is there.
func (d *dataRun) absent(key string) {
	d.t.Helper()
	if _, err := d.c.Get(d.ctx, key, d.read...); !errors.Is(err, client.ErrNotFound) {
		d.t.Errorf("get %.40q: %v, want not found", key, err)
	}
}

// failed checks which conditions an error says did not hold, as [{operation condition} …].
func (d *dataRun) failed(err error, want string) {
	d.t.Helper()
	var e *client.Error
	if !errors.As(err, &e) {
		d.t.Errorf("no error of a condition: %v", err)
		return
	}
	same(d, "failed conditions", fmt.Sprint(e.Failed), want)
}

// list gives the keys of a listing in order; common prefixes carry a '*'.
func (d *dataRun) list(o client.ListOptions) (keys []string, err error) {
	o.Read = append(slices.Clone(d.read), o.Read...)
	for e, err := range d.c.List(d.ctx, o) {
		if err != nil {
			return keys, err
		}
		if e.CommonPrefix {
			e.Key += "*"
		}
		keys = append(keys, e.Key)
	}
	return keys, nil
}

// lists checks a listing; want is below key.
func (d *dataRun) lists(key string, o client.ListOptions, want ...string) error {
	d.t.Helper()
	got, err := d.list(o)
	for i := range want {
		want[i] = key + want[i]
	}
	if err == nil && !slices.Equal(got, want) {
		d.t.Errorf("listed %q, want %q", got, want)
	}
	return err
}

// putAll stores records below key.
func (d *dataRun) putAll(key string, names ...string) {
	d.t.Helper()
	for _, n := range names {
		d.put(key+n, "value of "+n)
	}
}

// entrySharedTries is how often a case is tried anew that reads the past within an entry which others had a part in.
const entrySharedTries = 20

func TestDataModel_EachOperation_AtTheLeaderAndAtAFollowerByEachDoor(t *testing.T) {
	t.Parallel()
	cl := testcluster.StartCluster(t, testcluster.ClusterOptions{})
	leader := cl.MustLead()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cases := slices.Concat(putCases, getCases, deleteCases, batchCases, listCases, txnCases, touchCases, incrementCases, tagCases, compressCases, watchCases, namespaceCases)
	var names []string
	var doors []func(t *testing.T)
	for _, at := range []struct {
		name string
		node int
		read []client.GetOption
	}{
		{"leader", leader, nil},
		{"follower", (leader + 1) % 3, []client.GetOption{client.AnyNode()}},
	} {
		node := cl.Node(at.node)
		rest := openRESTDoorway(t, node)
		for _, door := range []struct{ name, addr string }{
			{"binary", node.Addr()}, {"rest", translate(t, rest)}, {"grpc", translate(t, openGRPCDoorway(t, node, rest))},
		} {
			name := door.name + "-" + at.name
			c := openAt(t, []string{door.addr}, client.WithTimeout(patience))
			doors = append(doors, func(t *testing.T) {
				for i, dc := range cases {
					t.Run(dc.op+"/"+dc.name, func(t *testing.T) {
						d := &dataRun{t: t, ctx: ctx, c: c, addr: door.addr, read: at.read, name: name}
						err := dc.do(d, fmt.Sprintf("%s/%03d/", name, i))
						// The other doors write into the same entries, and of an entry only its last revision is kept.
						for try := 1; try <= entrySharedTries && dc.want == nil && errors.Is(err, client.ErrCompacted); try++ {
							err = dc.do(d, fmt.Sprintf("%s/%03d/%d/", name, i, try))
						}
						if dc.want == nil && err != nil || !errors.Is(err, dc.want) {
							t.Errorf("error %v, want %v", err, dc.want)
						}
						var write *client.Error
						if errors.As(err, &write) && errors.Is(err, client.ErrMaybeApplied) {
							t.Errorf("nothing failed, and yet the outcome is unknown: %v", err)
						}
					})
				}
			})
			names = append(names, door.name+"/"+at.name)
		}
	}
	t.Run("through", func(t *testing.T) {
		for i, cases := range doors {
			t.Run(names[i], func(t *testing.T) {
				t.Parallel() // each has keys and namespaces of its own
				cases(t)
			})
		}
	})
	cl.MustConverge()
}

var longestKey = strings.Repeat("k", wire.KeyBytesMax)

var putCases = []dataCase{
	{"put", "with everything that a record keeps", func(d *dataRun, key string) error {
		before := time.Now().Add(-time.Minute)
		v, err := d.c.Put(d.ctx, key, []byte("value"), client.WithTTL(time.Hour), client.WithTag("owner", "ada"), client.WithTag("team", "math"),
			client.WithContentType("text/plain"), client.WithEncoding("identity"), client.WithChecksum())
		if err != nil {
			return err
		}
		got := d.get(key)
		same(d, "value", string(got.Data), "value")
		same(d, "version", got.Version, v)
		same(d, "content type", got.ContentType, "text/plain")
		same(d, "encoding", got.Encoding, "identity")
		same(d, "checksum", got.Checksum, wire.Checksum([]byte("value")))
		same(d, "tags", fmt.Sprint(got.Tags()), "map[owner:ada team:math]")
		same(d, "created is updated", got.CreatedAt, got.UpdatedAt)
		same(d, "created lately", got.CreatedAt.After(before), true)
		same(d, "expires", got.ExpiresAt, got.UpdatedAt.Add(time.Hour))
		return nil
	}, nil},
	{"put", "over a record keeps when it was created and nothing else", func(d *dataRun, key string) error {
		first := d.put(key, "one", client.WithTag("a", "b"), client.WithTTL(time.Hour), client.WithContentType("text/plain"))
		created := d.get(key).CreatedAt
		second := d.put(key, "two")
		got := d.get(key)
		same(d, "grown", second > first, true)
		same(d, "created", got.CreatedAt, created)
		same(d, "tags", len(got.Tags()), 0)
		same(d, "content type", got.ContentType, "")
		same(d, "expires", got.ExpiresAt.IsZero(), true)
		return nil
	}, nil},
	{"put", "an empty value", func(d *dataRun, key string) error {
		d.put(key, "")
		same(d, "length", len(d.get(key).Data), 0)
		return nil
	}, nil},
	{"put", "the longest key", func(d *dataRun, key string) error {
		long := (key + longestKey)[:wire.KeyBytesMax]
		d.put(long, "v")
		same(d, "value", string(d.get(long).Data), "v")
		return nil
	}, nil},
	{"put", "the largest value", func(d *dataRun, key string) error {
		value := bytes.Repeat([]byte("0123456789abcdef"), wire.ValueBytesMax/16)
		if _, err := d.c.Put(d.ctx, key, value); err != nil {
			return err
		}
		same(d, "equal", bytes.Equal(d.get(key).Data, value), true)
		_, err := d.c.Put(d.ctx, key, []byte("small")) // the pieces go
		return err
	}, nil},
	{"put", "keys that only bytes tell apart", func(d *dataRun, key string) error {
		names := []string{"ä", "a\u0308", "A", "a", "a//b", "a/./b", "a/../b", " ", "\x00", "\u2028"}
		for _, n := range names {
			d.put(key+n, n)
		}
		for _, n := range names {
			same(d, "value of "+n, string(d.get(key+n).Data), n)
		}
		return nil
	}, nil},
	{"put", "as many tags as may be", func(d *dataRun, key string) error {
		var opts []client.PutOption
		for i := range wire.TagsMax {
			opts = append(opts, client.WithTag(fmt.Sprintf("t%02d", i), strings.Repeat("x", wire.TagValueBytesMax)))
		}
		d.put(key, "v", opts...)
		same(d, "tags", len(d.tagsOf(key)), wire.TagsMax)
		return nil
	}, nil},
	{"put", "the longest and the shortest time to live", func(d *dataRun, key string) error {
		d.put(key+"long", "v", client.WithTTL(wire.TTLMsMax*time.Millisecond))
		d.get(key + "long")
		d.put(key+"short", "v", client.WithTTL(time.Millisecond))
		eventually(d.t, "the record has expired", func() (bool, error) {
			_, err := d.c.Get(d.ctx, key+"short", d.read...)
			return errors.Is(err, client.ErrNotFound), err
		})
		return nil
	}, nil},
	{"put", "a key that is too long", func(d *dataRun, key string) error {
		_, err := d.c.Put(d.ctx, longestKey+"k", nil)
		return err
	}, client.ErrBadKey},
	{"put", "an empty key", func(d *dataRun, _ string) error {
		_, err := d.c.Put(d.ctx, "", nil)
		return err
	}, client.ErrBadKey},
	{"put", "a key that is not UTF-8", func(d *dataRun, key string) error {
		_, err := d.c.Put(d.ctx, key+"\xff", nil)
		return err
	}, client.ErrBadKey},
	{"put", "a value that is too large", func(d *dataRun, key string) error {
		_, err := d.c.Put(d.ctx, key, make([]byte, wire.ValueBytesMax+1))
		return err
	}, client.ErrTooLarge},
	{"put", "a checksum of another value", func(d *dataRun, key string) error {
		_, err := d.c.Put(d.ctx, key, []byte("v"), client.WithChecksumOf(1))
		d.absent(key)
		return err
	}, client.ErrChecksum},
	{"put", "a tag with a bad name", func(d *dataRun, key string) error {
		_, err := d.c.Put(d.ctx, key, nil, client.WithTag("Upper", "v"))
		return err
	}, client.ErrBadRequest},
	{"put", "one tag twice", func(d *dataRun, key string) error {
		_, err := d.c.Put(d.ctx, key, nil, client.WithTag("a", "1"), client.WithTag("a", "2"))
		return err
	}, client.ErrBadRequest},
	{"put", "a time to live of nothing", func(d *dataRun, key string) error {
		_, err := d.c.Put(d.ctx, key, nil, client.WithTTL(0))
		return err
	}, client.ErrBadRequest},
	{"put", "if absent, where there is a record", func(d *dataRun, key string) error {
		d.put(key, "old")
		_, err := d.c.Put(d.ctx, key, []byte("new"), client.IfAbsent())
		same(d, "value", string(d.get(key).Data), "old")
		return err
	}, client.ErrConditionFailed},
	{"put", "if a version, of another one", func(d *dataRun, key string) error {
		v := d.put(key, "old")
		d.put(key, "newer", client.IfVersion(v))
		_, err := d.c.Put(d.ctx, key, []byte("newest"), client.IfVersion(v))
		return err
	}, client.ErrConditionFailed},
	{"put", "if one of several versions", func(d *dataRun, key string) error {
		v := d.put(key, "old")
		if _, err := d.c.Put(d.ctx, key, []byte("new"), client.IfVersion(v-1, v, v+1)); err != nil {
			return err
		}
		_, err := d.c.Put(d.ctx, key, []byte("newest"), client.IfVersion(v-1, v, v+1))
		same(d, "value", string(d.get(key).Data), "new")
		d.failed(err, "[{0 0}]")
		return err
	}, client.ErrConditionFailed},
	{"put", "several conditions on several kinds of things, of which some fail", func(d *dataRun, key string) error {
		v := d.put(key, "old", client.WithTag("a", "b"))
		_, err := d.c.Put(d.ctx, key, []byte("new"), client.IfVersion(7, v), client.IfValue([]byte("new")), client.IfExists(), client.IfAbsent(), client.IfTag("a", "b"))
		d.failed(err, "[{0 1} {0 3}]")
		return err
	}, client.ErrConditionFailed},
	{"put", "if a value", func(d *dataRun, key string) error {
		d.put(key, "old")
		_, err := d.c.Put(d.ctx, key, []byte("new"), client.IfExists(), client.IfValue([]byte("old")))
		return err
	}, nil},
	{"put", "if another value", func(d *dataRun, key string) error {
		d.put(key, "old")
		_, err := d.c.Put(d.ctx, key, []byte("new"), client.IfValue([]byte("olD")))
		return err
	}, client.ErrConditionFailed},
}

var getCases = []dataCase{
	{"get", "an absent key", func(d *dataRun, key string) error {
		_, err := d.c.Get(d.ctx, key, d.read...)
		return err
	}, client.ErrNotFound},
	{"get", "exists or not", func(d *dataRun, key string) error {
		v := d.put(key, "v")
		m, ok, err := d.c.Exists(d.ctx, key, d.read...)
		same(d, "there", ok, true)
		same(d, "version", m.Version, v)
		if _, ok, err := d.c.Exists(d.ctx, key+"x", d.read...); ok || err != nil {
			d.t.Errorf("absent: %v, %v", ok, err)
		}
		return err
	}, nil},
	{"get", "the past, while it is kept", func(d *dataRun, key string) error {
		first := d.put(key, "one")
		second := d.put(key, "two")
		if _, _, err := d.c.Delete(d.ctx, key); err != nil {
			return err
		}
		third := d.put(key, "three")
		for rev, want := range map[client.Version]string{first: "one", second: "two", third: "three"} {
			same(d, "value", string(d.get(key, client.AtRevision(rev)).Data), want)
		}
		_, err := d.c.Get(d.ctx, key, append(slices.Clone(d.read), client.AtRevision(first-1<<wire.PositionBits))...)
		if errors.Is(err, client.ErrNotFound) {
			return nil
		}
		return fmt.Errorf("before the first write: %w", err)
	}, nil},
	{"get", "the future", func(d *dataRun, key string) error {
		v := d.put(key, "one")
		_, err := d.c.Get(d.ctx, key, client.AtRevision(v+1<<40))
		return err
	}, client.ErrFutureRevision},
	{"get", "what the node has, and how old that is", func(d *dataRun, key string) error {
		d.put(key, "one")
		eventually(d.t, "a stale read shows the record", func() (bool, error) {
			v, err := d.c.Get(d.ctx, key, client.MaxAge(time.Minute))
			if errors.Is(err, client.ErrNotFound) {
				return false, err
			}
			same(d, "age is known and bounded", v.Age() <= time.Minute, true)
			return err == nil && string(v.Data) == "one", err
		})
		eventually(d.t, "a stale look finds it", func() (bool, error) {
			_, there, err := d.c.Exists(d.ctx, key, client.Stale())
			return there, err
		})
		return nil
	}, nil},
	{"get", "whether it was there in the past", func(d *dataRun, key string) error {
		v := d.put(key, "one")
		deleted, _, err := d.c.Delete(d.ctx, key)
		if !deleted || err != nil {
			return fmt.Errorf("deleted: %v, %w", deleted, err)
		}
		m, there, err := d.c.Exists(d.ctx, key, append(slices.Clone(d.read), client.AtRevision(v))...)
		same(d, "there", there, true)
		same(d, "version", m.Version, v)
		return err
	}, nil},
	{"get", "at least a revision", func(d *dataRun, key string) error {
		v := d.put(key, "one")
		same(d, "value", string(d.get(key, client.AtLeast(v)).Data), "one")
		return nil
	}, nil},
}

var deleteCases = []dataCase{
	{"delete", "a record, then nothing", func(d *dataRun, key string) error {
		v := d.put(key, "v")
		deleted, rev, err := d.c.Delete(d.ctx, key)
		same(d, "deleted", deleted && rev > v, true)
		d.absent(key)
		again, rev, err2 := d.c.Delete(d.ctx, key)
		same(d, "deleted again", again || rev != 0, false)
		return errors.Join(err, err2)
	}, nil},
	{"delete", "if another version", func(d *dataRun, key string) error {
		v := d.put(key, "v")
		_, _, err := d.c.Delete(d.ctx, key, client.IfVersion(v+1))
		d.get(key)
		return err
	}, client.ErrConditionFailed},
	{"delete", "if one of several versions, and a tag", func(d *dataRun, key string) error {
		v := d.put(key, "v", client.WithTag("state", "open"))
		_, _, err := d.c.Delete(d.ctx, key, client.IfVersion(v, v+1), client.IfTag("state", "shut"))
		d.failed(err, "[{0 1}]")
		d.get(key)
		deleted, rev, err := d.c.Delete(d.ctx, key, client.IfVersion(v, v+1), client.IfTag("state", "open"))
		same(d, "deleted", deleted && rev > v, true)
		return err
	}, nil},
	{"delete", "a bad key", func(d *dataRun, _ string) error {
		_, _, err := d.c.Delete(d.ctx, "\xff")
		return err
	}, client.ErrBadKey},
}

var batchCases = []dataCase{
	{"batch", "put, get and delete of thousands", func(d *dataRun, key string) error {
		const n = 5000
		items, keys := make([]client.KV, n), make([]string, n)
		for i := range items {
			keys[i] = fmt.Sprintf("%s%05d", key, i)
			items[i] = client.KV{Key: keys[i], Value: []byte(keys[i])}
		}
		if _, err := d.c.BatchPut(d.ctx, items, true); err != nil {
			return err
		}
		got, err := d.c.BatchGet(d.ctx, append(keys, key+"absent"), d.read...)
		if err != nil {
			return err
		}
		for i := range n {
			if v := got.Items[i].Value; v == nil || string(v.Data) != keys[i] {
				return fmt.Errorf("item %d: %+v", i, got.Items[i])
			}
		}
		same(d, "absent", errors.Is(got.Items[n].Err, client.ErrNotFound), true)
		gone, err := d.c.BatchDelete(d.ctx, append(keys, key+"absent"))
		if err != nil {
			return err
		}
		for i := range n {
			if !gone.Items[i].Deleted {
				return fmt.Errorf("item %d is not deleted: %+v", i, gone.Items[i])
			}
		}
		same(d, "absent deleted", gone.Items[n].Deleted, false)
		return d.lists(key, client.ListOptions{Prefix: key})
	}, nil},
	{"batch", "bounded in bytes, not in counts", func(d *dataRun, key string) error {
		items := make([]client.KV, 12)
		for i := range items {
			items[i] = client.KV{Key: fmt.Sprintf("%s%02d", key, i), Value: bytes.Repeat([]byte{'v'}, 1<<20)}
		}
		_, err := d.c.BatchPut(d.ctx, items, true)
		return err
	}, nil},
	{"batch", "atomic, beyond a frame", func(d *dataRun, key string) error {
		items := make([]client.KV, 3)
		for i := range items {
			items[i] = client.KV{Key: fmt.Sprintf("%s%02d", key, i), Value: make([]byte, 6<<20)}
		}
		_, err := d.c.BatchPut(d.ctx, items, true)
		return err
	}, client.ErrTooLarge},
	{"batch", "atomic, one condition fails", func(d *dataRun, key string) error {
		d.put(key+"b", "there")
		_, err := d.c.BatchPut(d.ctx, []client.KV{{Key: key + "a"}, {Key: key + "b", Options: []client.PutOption{client.IfAbsent()}}}, true)
		d.absent(key + "a")
		d.failed(err, "[{1 0}]")
		return err
	}, client.ErrConditionFailed},
	{"batch", "of the past", func(d *dataRun, key string) error {
		d.put(key+"a", "one", client.WithTag("t", "v"), client.WithTTL(time.Hour), client.WithContentType("text/plain"), client.WithEncoding("gzip"))
		rev := d.put(key+"b", "two")
		if _, err := d.c.BatchDelete(d.ctx, []string{key + "a", key + "b"}); err != nil {
			return err
		}
		got, err := d.c.BatchGet(d.ctx, []string{key + "b", key + "a", key + "c"}, append(slices.Clone(d.read), client.AtRevision(rev))...)
		if err != nil {
			return err
		}
		b, a := got.Items[0].Value, got.Items[1].Value
		if a == nil || b == nil {
			return fmt.Errorf("not found: %+v", got.Items)
		}
		same(d, "values", string(a.Data)+string(b.Data), "onetwo")
		same(d, "version", b.Version, rev)
		same(d, "tags", fmt.Sprint(a.Tags(), b.Tags()), "map[t:v] map[]")
		same(d, "kept", a.ContentType+a.Encoding+b.ContentType+b.Encoding, "text/plaingzip")
		same(d, "expires", a.ExpiresAt.Equal(a.CreatedAt.Add(time.Hour)) && b.ExpiresAt.IsZero(), true)
		same(d, "checksum", a.Checksum, wire.Checksum(a.Data))
		same(d, "absent", errors.Is(got.Items[2].Err, client.ErrNotFound), true)
		return nil
	}, nil},
	{"batch", "each for itself, one condition fails", func(d *dataRun, key string) error {
		d.put(key+"b", "there")
		r, err := d.c.BatchPut(d.ctx, []client.KV{{Key: key + "a"}, {Key: key + "b", Options: []client.PutOption{client.IfAbsent()}}}, false)
		if err != nil {
			return err
		}
		d.get(key + "a")
		return r.Items[1].Err
	}, client.ErrConditionFailed},
	{"batch", "the same key twice: the last one counts", func(d *dataRun, key string) error {
		_, err := d.c.BatchPut(d.ctx, []client.KV{{Key: key, Value: []byte("1")}, {Key: key, Value: []byte("2")}}, true)
		same(d, "value", string(d.get(key).Data), "2")
		return err
	}, nil},
	{"batch", "one bad key", func(d *dataRun, key string) error {
		_, err := d.c.BatchPut(d.ctx, []client.KV{{Key: key + "a"}, {Key: "\xff"}}, false)
		d.absent(key + "a")
		return err
	}, client.ErrBadKey},
}

var listCases = []dataCase{
	{"list", "by prefix, range, forward and reverse", func(d *dataRun, key string) error {
		d.putAll(key, "a", "b", "b/1", "b/2", "c")
		return errors.Join(
			d.lists(key, client.ListOptions{Prefix: key}, "a", "b", "b/1", "b/2", "c"),
			d.lists(key, client.ListOptions{Prefix: key, Reverse: true}, "c", "b/2", "b/1", "b", "a"),
			d.lists(key, client.ListOptions{Prefix: key + "b"}, "b", "b/1", "b/2"),
			d.lists(key, client.ListOptions{Start: key + "b", End: key + "b/2"}, "b", "b/1"),
			d.lists(key, client.ListOptions{Start: key + "b", End: key + "b/2", Reverse: true}, "b/1", "b"),
			d.lists(key, client.ListOptions{Prefix: key, Start: key + "b/1", Limit: 2}, "b/1", "b/2"),
			d.lists(key, client.ListOptions{Prefix: key, Limit: 2, Reverse: true}, "c", "b/2"),
			d.lists(key, client.ListOptions{Prefix: key + "x"}),
			d.lists(key, client.ListOptions{Start: key + "c", End: key + "a"}),
		)
	}, nil},
	{"list", "keys only, in pages of one", func(d *dataRun, key string) error {
		d.putAll(key, "a", "b", "c")
		for e, err := range d.c.List(d.ctx, client.ListOptions{Prefix: key, KeysOnly: true, PageSize: 1, Read: d.read}) {
			if err != nil {
				return err
			}
			same(d, "bytes of "+e.Key, len(e.Data), 0)
			same(d, "has a version", e.Version != 0, true)
		}
		return d.lists(key, client.ListOptions{Prefix: key, KeysOnly: true, PageSize: 1}, "a", "b", "c")
	}, nil},
	{"list", "all pages of one revision, while the keys change", func(d *dataRun, key string) error {
		d.putAll(key, "a", "b", "c", "d")
		o := client.ListOptions{Prefix: key, PageSize: 1, Read: d.read}
		page, err := d.c.ListPage(d.ctx, o, nil)
		if err != nil {
			return err
		}
		var got []string
		rev := page.Revision
		for {
			for _, e := range page.Entries {
				got = append(got, e.Key+"="+string(e.Data))
			}
			same(d, "revision", page.Revision, rev)
			if len(page.Cursor) == 0 {
				break
			}
			for _, n := range []string{"a", "b", "c", "c1", "d", "e"} {
				d.put(key+n, "new")
			}
			if _, _, err := d.c.Delete(d.ctx, key+"d"); err != nil {
				return err
			}
			if page, err = d.c.ListPage(d.ctx, o, page.Cursor); err != nil {
				return err
			}
		}
		var want []string
		for _, n := range []string{"a", "b", "c", "d"} {
			want = append(want, key+n+"=value of "+n)
		}
		same(d, "pages", fmt.Sprint(got), fmt.Sprint(want))
		return nil
	}, nil},
	{"list", "of the past", func(d *dataRun, key string) error {
		d.putAll(key, "a", "b")
		rev := d.put(key+"c", "v")
		if _, err := d.c.BatchDelete(d.ctx, []string{key + "a", key + "b", key + "c"}); err != nil {
			return err
		}
		return errors.Join(
			d.lists(key, client.ListOptions{Prefix: key}),
			d.lists(key, client.ListOptions{Prefix: key, Read: []client.GetOption{client.AtRevision(rev)}}, "a", "b", "c"),
		)
	}, nil},
	{"list", "one level of a hierarchy", func(d *dataRun, key string) error {
		d.putAll(key, "a", "dir/1", "dir/2", "dir/sub/3", "dirx", "e/", "z/1/2/3")
		o := client.ListOptions{Prefix: key, Delimiter: "/"}
		pages, reverse, below, wide := o, o, o, o
		pages.PageSize, reverse.Reverse, below.Prefix, wide.Delimiter = 1, true, key+"dir/", "dir"
		return errors.Join(
			d.lists(key, o, "a", "dir/*", "dirx", "e/*", "z/*"),
			d.lists(key, pages, "a", "dir/*", "dirx", "e/*", "z/*"),
			d.lists(key, reverse, "z/*", "e/*", "dirx", "dir/*", "a"),
			d.lists(key, below, "dir/1", "dir/2", "dir/sub/*"),
			d.lists(key, wide, "a", "dir*", "e/", "z/1/2/3"),
		)
	}, nil},
	{"list", "counts", func(d *dataRun, key string) error {
		d.putAll(key, "a", "b", "c")
		d.put(key+"gone", "v", client.WithTTL(time.Millisecond))
		eventually(d.t, "the record has expired", func() (bool, error) {
			n, rev, err := d.c.Count(d.ctx, client.ListOptions{Prefix: key, Read: d.read})
			return n == 3 && rev != 0, err
		})
		n, _, err := d.c.Count(d.ctx, client.ListOptions{Prefix: key, Start: key + "b", Read: d.read})
		same(d, "from b", n, 2)
		return err
	}, nil},
	{"list", "a bound that is too long", func(d *dataRun, key string) error {
		return d.lists(key, client.ListOptions{Prefix: longestKey + "k"})
	}, client.ErrTooLarge},
	{"list", "with a cursor of another listing", func(d *dataRun, key string) error {
		d.putAll(key, "a", "b", "c")
		p, err := d.c.ListPage(d.ctx, client.ListOptions{Prefix: key, PageSize: 1, Read: d.read}, nil)
		if err != nil {
			return err
		}
		_, err = d.c.ListPage(d.ctx, client.ListOptions{Prefix: key, PageSize: 1, Read: d.read, Reverse: true}, p.Cursor)
		return err
	}, client.ErrBadRequest},
	{"list", "with bytes that are no cursor", func(d *dataRun, key string) error {
		_, err := d.c.ListPage(d.ctx, client.ListOptions{Prefix: key, Read: d.read}, []byte("no cursor"))
		return err
	}, client.ErrBadRequest},
}

var txnCases = []dataCase{
	{"txn", "several thousand operations, with reads inside", func(d *dataRun, key string) error {
		const n = 4000
		tx := d.c.Txn().If(key+"guard", client.IfAbsent())
		for i := range n {
			tx.Put(fmt.Sprintf("%s%05d", key, i), []byte("v"))
		}
		r, err := tx.Get(key + "00000").Delete(key + "00001").Get(key + "00001").Commit(d.ctx)
		if err != nil {
			return err
		}
		same(d, "results", len(r.Results), n+4)
		same(d, "reads its own write", r.Results[n+1].Value != nil && string(r.Results[n+1].Value.Data) == "v", true)
		same(d, "reads its own deletion", errors.Is(r.Results[n+3].Err, client.ErrNotFound), true)
		count, _, err := d.c.Count(d.ctx, client.ListOptions{Prefix: key, Read: d.read})
		same(d, "keys", count, n-1)
		return err
	}, nil},
	{"txn", "one condition of many fails: nothing happens", func(d *dataRun, key string) error {
		v := d.put(key+"a", "one", client.WithTag("state", "open"))
		_, err := d.c.Txn().
			If(key+"a", client.IfVersion(v), client.IfValue([]byte("one")), client.IfTag("state", "open")).
			If(key+"b", client.IfExists()).
			Put(key+"a", []byte("two")).Put(key+"c", nil).Commit(d.ctx)
		same(d, "value", string(d.get(key+"a").Data), "one")
		d.absent(key + "c")
		return err
	}, client.ErrConditionFailed},
	{"txn", "which of many conditions fail", func(d *dataRun, key string) error {
		v := d.put(key+"a", "one", client.WithTag("state", "open"))
		_, err := d.c.Txn().
			Put(key+"a", []byte("two"), client.IfVersion(v+1, v+2), client.IfExists()).
			Get(key+"a", client.IfTagPresent("state")).
			Delete(key+"b", client.IfAbsent(), client.IfExists()).
			Touch(key+"a", time.Hour, client.IfTagAbsent("state")).
			Increment(key+"n", 1, client.IfExists()).Commit(d.ctx)
		d.failed(err, "[{0 0} {2 1} {3 0} {4 0}]")
		return err
	}, client.ErrConditionFailed},
	{"txn", "conditions see the state before it", func(d *dataRun, key string) error {
		_, err := d.c.Txn().Put(key, []byte("one")).Put(key, []byte("two"), client.IfAbsent()).Commit(d.ctx)
		same(d, "value", string(d.get(key).Data), "two")
		return err
	}, nil},
	{"txn", "of the design's example", func(d *dataRun, key string) error {
		v := d.put(key+"user:123:profile", "{}")
		d.put(key+"user:123:temp_data", "x")
		r, err := d.c.Txn().
			Put(key+"user:123:profile", []byte(`{"name":"John Doe"}`), client.IfVersion(v)).
			Delete(key+"user:123:temp_data").
			Put(key+"user:123:last_login", []byte("2024-01-15T10:30:00Z"), client.WithTTL(86400*time.Second)).
			Commit(d.ctx)
		same(d, "committed", r.Committed, true)
		d.absent(key + "user:123:temp_data")
		same(d, "expires", d.get(key+"user:123:last_login").ExpiresAt.IsZero(), false)
		return err
	}, nil},
	{"txn", "touch and increment inside", func(d *dataRun, key string) error {
		d.put(key+"a", "v", client.WithTTL(time.Hour))
		r, err := d.c.Txn().Touch(key+"a", 0).Touch(key+"absent", time.Hour).Increment(key+"n", 5).Increment(key+"n", -7).Commit(d.ctx)
		if err != nil {
			return err
		}
		same(d, "expires", d.get(key+"a").ExpiresAt.IsZero(), true)
		same(d, "counter", string(d.get(key+"n").Data), "-2")
		same(d, "told", r.Results[3].Counter, -2)
		same(d, "absent", errors.Is(r.Results[1].Err, client.ErrNotFound), true)
		d.absent(key + "absent")
		return nil
	}, nil},
	{"txn", "increments what is no number: nothing happens", func(d *dataRun, key string) error {
		d.put(key+"n", "seven")
		_, err := d.c.Txn().Put(key+"a", nil).Increment(key+"n", 1).Commit(d.ctx)
		d.absent(key + "a")
		same(d, "value", string(d.get(key+"n").Data), "seven")
		return err
	}, client.ErrNotANumber},
	{"txn", "beyond what a transaction may hold", func(d *dataRun, key string) error {
		tx := d.c.Txn()
		for range wire.BatchOpsMax + 1 {
			tx.Delete(key)
		}
		_, err := tx.Commit(d.ctx)
		return err
	}, client.ErrTooLarge},
}

var touchCases = []dataCase{
	{"touch", "gives, changes and takes a deadline, and keeps all else", func(d *dataRun, key string) error {
		first := d.put(key, "v", client.WithTag("a", "b"), client.WithContentType("text/plain"))
		created := d.get(key).CreatedAt
		for _, ttl := range []time.Duration{time.Hour, time.Minute, 0} {
			v, err := d.c.Touch(d.ctx, key, ttl)
			if err != nil {
				return err
			}
			got := d.get(key)
			same(d, "version", got.Version, v)
			same(d, "grown", v > first, true)
			same(d, "value", string(got.Data), "v")
			same(d, "tags", fmt.Sprint(got.Tags()), "map[a:b]")
			same(d, "content type", got.ContentType, "text/plain")
			same(d, "created", got.CreatedAt, created)
			want := time.Time{}
			if ttl > 0 {
				want = got.UpdatedAt.Add(ttl)
			}
			same(d, "expires", got.ExpiresAt, want)
		}
		return nil
	}, nil},
	{"touch", "a large record", func(d *dataRun, key string) error {
		value := bytes.Repeat([]byte("large "), 1<<20)
		if _, err := d.c.Put(d.ctx, key, value); err != nil {
			return err
		}
		_, err := d.c.Touch(d.ctx, key, time.Hour)
		same(d, "equal", bytes.Equal(d.get(key).Data, value), true)
		return err
	}, nil},
	{"touch", "an absent record", func(d *dataRun, key string) error {
		_, err := d.c.Touch(d.ctx, key, time.Hour)
		d.absent(key)
		return err
	}, client.ErrNotFound},
	{"touch", "on conditions, for a time of milliseconds", func(d *dataRun, key string) error {
		v := d.put(key, "v", client.WithTag("a", "b"))
		if _, err := d.c.Touch(d.ctx, key, 3_600_001*time.Millisecond, client.IfVersion(v), client.IfTag("a", "b")); err != nil {
			return err
		}
		got := d.get(key)
		same(d, "expires", got.ExpiresAt, got.UpdatedAt.Add(3_600_001*time.Millisecond))
		_, err := d.c.Touch(d.ctx, key+"absent", time.Hour, client.IfTagAbsent("a"), client.IfExists())
		d.failed(err, "[{0 0} {0 1}]")
		return nil
	}, nil},
	{"touch", "if a condition fails", func(d *dataRun, key string) error {
		v := d.put(key, "v")
		_, err := d.c.Touch(d.ctx, key, time.Hour, client.IfVersion(v+1))
		same(d, "version", d.get(key).Version, v)
		return err
	}, client.ErrConditionFailed},
	{"touch", "with a time to live below nothing", func(d *dataRun, key string) error {
		d.put(key, "v")
		_, err := d.c.Touch(d.ctx, key, -time.Second)
		return err
	}, client.ErrBadRequest},
}

var incrementCases = []dataCase{
	{"increment", "an absent record, up and down", func(d *dataRun, key string) error {
		for i, c := range []struct{ delta, want int64 }{{5, 5}, {-7, -2}, {0, -2}, {math.MaxInt64, math.MaxInt64 - 2}} {
			n, v, err := d.c.Increment(d.ctx, key, c.delta)
			if err != nil {
				return err
			}
			same(d, fmt.Sprint("step ", i), n, c.want)
			got := d.get(key)
			same(d, "version", got.Version, v)
			same(d, "value", string(got.Data), fmt.Sprint(c.want))
			same(d, "checksum", got.Checksum, wire.Checksum(got.Data))
		}
		return nil
	}, nil},
	{"increment", "keeps tags and deadline", func(d *dataRun, key string) error {
		d.put(key, "41", client.WithTag("a", "b"), client.WithTTL(time.Hour))
		before := d.get(key).ExpiresAt
		n, _, err := d.c.Increment(d.ctx, key, 1)
		got := d.get(key)
		same(d, "value", n, 42)
		same(d, "tags", fmt.Sprint(got.Tags()), "map[a:b]")
		same(d, "expires", got.ExpiresAt, before)
		return err
	}, nil},
	{"increment", "on conditions, with a time to live", func(d *dataRun, key string) error {
		n, v, err := d.c.Increment(d.ctx, key, 3, client.IfAbsent(), client.WithTTL(1500*time.Millisecond+time.Hour))
		if err != nil {
			return err
		}
		got := d.get(key)
		same(d, "sum", n, 3)
		same(d, "expires", got.ExpiresAt, got.UpdatedAt.Add(time.Hour+1500*time.Millisecond))
		_, _, err = d.c.Increment(d.ctx, key, 1, client.IfVersion(v), client.IfValue([]byte("4")))
		d.failed(err, "[{0 1}]")
		same(d, "value", string(d.get(key).Data), "3")
		return err
	}, client.ErrConditionFailed},
	{"increment", "beyond 64 bits", func(d *dataRun, key string) error {
		d.put(key, fmt.Sprint(math.MaxInt64))
		_, _, err := d.c.Increment(d.ctx, key, 1)
		same(d, "value", string(d.get(key).Data), fmt.Sprint(math.MaxInt64))
		return err
	}, client.ErrNotANumber},
	{"increment", "what is no number", func(d *dataRun, key string) error {
		for i, v := range []string{"", " 1", "1 ", "+1", "0x1", "1.0", "99999999999999999999", strings.Repeat("0", 4096), "-"} {
			d.put(key, v)
			if _, _, err := d.c.Increment(d.ctx, key, 1); !errors.Is(err, client.ErrNotANumber) || !errors.Is(err, client.ErrNotApplied) {
				return fmt.Errorf("case %d, %.20q: %v", i, v, err)
			}
		}
		return nil
	}, nil},
}

var tagCases = []dataCase{
	{"tags", "conditions that hold", func(d *dataRun, key string) error {
		d.put(key, "v", client.WithTag("state", "open"), client.WithTag("empty", ""))
		_, err := d.c.Put(d.ctx, key, nil, client.IfTag("state", "open"), client.IfTag("empty", ""), client.IfTagPresent("state"), client.IfTagAbsent("other"))
		return err
	}, nil},
	{"tags", "conditions that don't", func(d *dataRun, key string) error {
		d.put(key, "v", client.WithTag("state", "open"))
		for i, c := range []client.Condition{client.IfTag("state", "ope"), client.IfTag("state", "openn"), client.IfTag("stat", "open"), client.IfTagPresent("stat"), client.IfTagAbsent("state")} {
			if _, _, err := d.c.Delete(d.ctx, key, c); !errors.Is(err, client.ErrConditionFailed) {
				return fmt.Errorf("condition %d: %v", i, err)
			}
			if _, _, err := d.c.Delete(d.ctx, key+"absent", c); !errors.Is(err, client.ErrConditionFailed) {
				return fmt.Errorf("condition %d on an absent record: %v", i, err)
			}
		}
		return nil
	}, nil},
	{"tags", "a condition on a tag that can't be", func(d *dataRun, key string) error {
		_, err := d.c.Put(d.ctx, key, nil, client.IfTagAbsent("Upper"))
		return err
	}, client.ErrBadRequest},
}
