package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	credentialbroker "credentialbroker.dev/stubs/go"
)

// traffic is calls that go on until they are stopped.
type traffic struct {
	stop    chan struct{}
	workers sync.WaitGroup

	mu        sync.Mutex
	calls     int
	failed    int
	errors    map[string]int
	slowest   time.Duration
	expired   time.Duration
	revisions map[string]struct{}
}

func startTraffic(client *credentialbroker.Client, c command) *traffic {
	t := &traffic{stop: make(chan struct{}), errors: map[string]int{}, revisions: map[string]struct{}{}}
	workers := max(1, c.Workers)
	apart := time.Duration(float64(workers) / c.Rate * float64(time.Second))
	for worker := range workers {
		t.workers.Go(func() {
			tick := time.NewTicker(apart)
			defer tick.Stop()
			for n := worker; ; n += workers {
				t.call(client, c.request(n))
				select {
				case <-tick.C:
				case <-t.stop:
					return
				}
			}
		})
	}
	return t
}

func (t *traffic) call(client *credentialbroker.Client, request credentialbroker.Request) {
	began := time.Now()
	authorization, err := client.Authorization(context.Background(), request)
	took := time.Since(began)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.calls++
	t.slowest = max(t.slowest, took)
	if err != nil {
		t.failed++
		t.errors[err.Error()]++
		return
	}
	t.expired = max(t.expired, -authorization.ExpiresIn())
	t.revisions[authorization.Revision] = struct{}{}
}

func (t *traffic) finish() object {
	close(t.stop)
	t.workers.Wait()
	return object{
		"calls": t.calls, "failed": t.failed, "errors": t.errors, "slowest_seconds": t.slowest.Seconds(),
		"longest_expired_seconds": t.expired.Seconds(), "revisions": len(t.revisions),
	}
}

// burn calls in one loop.
func burn(client *credentialbroker.Client, c command) (object, error) {
	ctx, request := context.Background(), c.request(0)
	began := time.Now()
	for range c.Count {
		if _, err := client.Authorization(ctx, request); err != nil {
			return nil, err
		}
	}
	took := time.Since(began)
	return object{"seconds": took.Seconds(), "nanoseconds_each": float64(took.Nanoseconds()) / float64(max(1, c.Count))}, nil
}

// show prints what users hold in every way that Go has.
func (d *driver) show(client *credentialbroker.Client, c command) (object, error) {
	shown, err := named(d, d.held, c.Held)
	if err != nil {
		return nil, err
	}
	held := shown.Authorization
	connection, err := client.Connection(context.Background(), shown.request)
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	type holder struct {
		Open   any
		hidden *credentialbroker.Authorization
		value  credentialbroker.Authorization
	}
	var texts []string
	for _, thing := range []any{held, *held, client, connection, holder{held, held, *held}, []any{held}, client.State()} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
			texts = append(texts, fmt.Sprintf(verb, thing))
		}
		if text, err := json.Marshal(thing); err == nil {
			texts = append(texts, string(text))
		}
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("shown", "thing", thing)
		slog.New(slog.NewJSONHandler(&log, nil)).Info("shown", "thing", thing)
		texts = append(texts, log.String())
	}
	return object{"texts": texts}, nil
}
