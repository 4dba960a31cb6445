package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"sync"
	"time"

	"kvstore/client"
)

func Example() {
	ctx := context.Background()
	c, err := client.Open(ctx, []string{"127.0.0.1:7001"})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	version, err := c.Put(ctx, "greeting", []byte("hello"), client.WithTTL(time.Hour), client.WithTag("lang", "en"))
	switch {
	case errors.Is(err, client.ErrMaybeApplied):
		// Read before deciding anew.
	case err != nil:
		// Surely not applied.
		log.Fatal(err)
	}
	value, err := c.Get(ctx, "greeting", client.AtLeast(version))
	if errors.Is(err, client.ErrNotFound) {
		return
	}
	fmt.Println(string(value.Data), value.Version, value.Tags()["lang"])
}

// Compare and swap: change a value only if nobody else did.
func ExampleIfVersion() {
	var c *client.Client
	ctx := context.Background()
	for {
		v, err := c.Get(ctx, "counter")
		if err != nil {
			log.Fatal(err)
		}
		_, err = c.Put(ctx, "counter", append(v.Data, '+'), client.IfVersion(v.Version))
		if errors.Is(err, client.ErrConditionFailed) {
			continue
		}
		if err != nil {
			log.Fatal(err)
		}
		return
	}
}

func ExampleClient_Txn() {
	var c *client.Client
	_, err := c.Txn().
		If("account/a", client.IfValue([]byte("10"))).
		Put("account/a", []byte("0")).
		Put("account/b", []byte("10"), client.IfExists()).
		Commit(context.Background())
	var e *client.Error
	if errors.Is(err, client.ErrConditionFailed) && errors.As(err, &e) {
		for _, f := range e.Failed {
			fmt.Printf("condition %d of operation %d does not hold\n", f.Condition, f.Operation)
		}
	}
}

func ExampleClient_List() {
	var c *client.Client
	for entry, err := range c.List(context.Background(), client.ListOptions{Prefix: "user:", KeysOnly: true}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(entry.Key, entry.UpdatedAt)
	}
}

// Pipelining from one goroutine.
func ExampleClient_PutAsync() {
	var c *client.Client
	var wg sync.WaitGroup
	for i := range 100_000 {
		wg.Add(1)
		c.PutAsync(fmt.Sprintf("key/%d", i), []byte("value"), func(_ client.Version, err error) {
			if err != nil {
				log.Print(err)
			}
			wg.Done()
		})
	}
	wg.Wait()
}

// Reading many keys from one goroutine, 128 at a time, without allocating.
func ExamplePipeline() {
	var c *client.Client
	var keys []string
	p := c.NewPipeline()
	ops := make([]client.Op, min(128, len(keys)))
	next := 0
	start := func(op *client.Op) {
		op.Tag = &keys[next]
		p.Get(op, keys[next])
		next++
	}
	for i := range ops {
		start(&ops[i])
	}
	for p.Len() > 0 {
		done, err := p.Wait(context.Background())
		if err != nil {
			log.Fatal(err)
		}
		for _, op := range done {
			switch err := op.Err(); {
			case err == nil:
				fmt.Printf("%s has %d bytes\n", *op.Tag.(*string), len(op.Data())) // good until op is started again
			case !errors.Is(err, client.ErrNotFound):
				log.Print(err)
			}
			if next < len(keys) {
				start(op)
			}
		}
	}
}

// Reading without allocating.
func ExampleClient_GetAppend() {
	var c *client.Client
	var buf []byte
	for _, key := range []string{"a", "b", "c"} {
		var err error
		buf, _, err = c.GetAppend(context.Background(), buf[:0], key)
		if errors.Is(err, client.ErrNotFound) {
			continue
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s\n", buf)
	}
}

// Follow the changes of a prefix, beginning with what is there: list first, then watch behind the listing's revision.
func ExampleClient_Watch() {
	var c *client.Client
	ctx := context.Background()
	page, err := c.ListPage(ctx, client.ListOptions{Prefix: "user/"}, nil)
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range page.Entries {
		fmt.Println("there is", e.Key)
	}
	w, err := c.Watch(ctx, client.WatchOptions{Prefix: "user/", After: page.Revision})
	if err != nil {
		log.Fatal(err)
	}
	defer w.Close()
	for {
		e, err := w.Next(ctx)
		if errors.Is(err, client.ErrCompacted) {
			return // too slow, or away for too long: list again
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(e.Kind, e.Key, string(e.Value.Data))
	}
}

// Count exactly once, whatever connections and leaders do meanwhile.
func ExampleClient_Increment() {
	var c *client.Client
	n, _, err := c.Increment(context.Background(), "visits", 1)
	if errors.Is(err, client.ErrNotANumber) {
		log.Fatal("somebody put something else there")
	}
	fmt.Println(n, err)
}

func ExampleClient_CreateNamespace() {
	var c *client.Client
	ctx := context.Background()
	_, err := c.CreateNamespace(ctx, "app", client.NamespaceSettings{KeysMax: 1_000_000, BytesMax: 1 << 30, Compress: client.CompressZstd})
	if err != nil && !errors.Is(err, client.ErrNamespaceExists) {
		log.Fatal(err)
	}
	app, err := client.Open(ctx, []string{"127.0.0.1:7001"}, client.WithNamespace("app"))
	if err != nil {
		log.Fatal(err)
	}
	defer app.Close()
	if _, err := app.Put(ctx, "k", []byte("v")); errors.Is(err, client.ErrQuota) {
		fmt.Println("full:", err)
	}
}
