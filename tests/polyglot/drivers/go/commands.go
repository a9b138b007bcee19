package main

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"

	credentialbroker "credentialbroker.dev/stubs/go"
)

// driver holds what commands name.
type driver struct {
	mu          sync.Mutex
	clients     map[string]*credentialbroker.Client
	connections map[string]*credentialbroker.Connection
	traffics    map[string]*traffic
	held        map[int]held // by the id of the command that got it
}

// held is an authorization and what it was asked for with.
type held struct {
	*credentialbroker.Authorization
	request credentialbroker.Request
}

func newDriver() *driver {
	return &driver{
		clients:     map[string]*credentialbroker.Client{},
		connections: map[string]*credentialbroker.Connection{},
		traffics:    map[string]*traffic{},
		held:        map[int]held{},
	}
}

// named looks something up that an earlier command made.
func named[K comparable, V any](d *driver, things map[K]V, name K) (V, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	thing, ok := things[name]
	if !ok {
		return thing, fmt.Errorf("driver: nothing is called %v", name)
	}
	return thing, nil
}

func (d *driver) do(c command) (object, error) {
	switch c.Do {
	case "hello":
		return object{
			"language": "go", "runtime": runtime.Version(), "client": "credentialbroker-go/" + credentialbroker.Version,
			"adapters": object{"http": []string{"round_tripper"}, "grpc": []string{"per_rpc"}},
		}, nil
	case "threads":
		return object{"count": runtime.NumGoroutine()}, nil
	case "fork":
		return object{"unsupported": true}, nil
	case "open":
		return d.open(c)
	case "changed":
		return d.changed(c)
	case "disconnect":
		return d.disconnect(c)
	case "traffic_stop":
		traffic, err := named(d, d.traffics, c.Traffic)
		if err != nil {
			return nil, err
		}
		return traffic.finish(), nil
	}
	client, err := named(d, d.clients, c.Client)
	if err != nil {
		return nil, err
	}
	switch c.Do {
	case "close":
		return object{}, client.Close()
	case "authorization":
		return d.authorization(client, c)
	case "many":
		return many(c, func(n int) (*credentialbroker.Authorization, error) {
			ctx, cancel := c.context()
			defer cancel()
			return client.Authorization(ctx, c.request(n))
		})
	case "cancel_after":
		ctx, cancel := c.context()
		defer cancel()
		defer time.AfterFunc(c.Seconds.duration(), cancel).Stop()
		return described(client.Authorization(ctx, c.request(0)))
	case "report_rejected":
		return d.reportRejected(client, c)
	case "register_task", "end_task":
		return task(client, c)
	case "state":
		return state(client), nil
	case "http":
		return sendHTTP(client, c)
	case "grpc_echo":
		return callEcho(client, c)
	case "connect":
		return d.connect(client, c)
	case "traffic_start":
		d.mu.Lock()
		defer d.mu.Unlock()
		d.traffics[c.Traffic] = startTraffic(client, c)
		return object{}, nil
	case "burn":
		return burn(client, c)
	case "show":
		return d.show(client, c)
	}
	return nil, fmt.Errorf("driver: no such command as %q", c.Do)
}

// context is that of one call.
func (c command) context() (context.Context, context.CancelFunc) {
	if c.Timeout != nil {
		return context.WithTimeout(context.Background(), c.Timeout.duration())
	}
	return context.WithCancel(context.Background())
}

// request is that of call n of several.
func (c command) request(n int) credentialbroker.Request {
	thread := c.Thread
	if len(c.Threads) > 0 {
		thread = c.Threads[n%len(c.Threads)]
	}
	return credentialbroker.Request{
		Scope: c.Scope, Thread: thread, Identity: c.Identity, TargetURL: c.TargetURL, MinValidity: c.MinValidity.duration(),
	}
}

func (d *driver) open(c command) (object, error) {
	var options []credentialbroker.Option
	if !c.Env {
		options = c.options()
	}
	client, err := credentialbroker.New(options...)
	if err != nil {
		return nil, errArgument{err}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.clients[c.Client] = client
	return object{}, nil
}

func (c command) options() []credentialbroker.Option {
	options := []credentialbroker.Option{
		credentialbroker.WithAddress(c.Address),
		credentialbroker.WithIdentity(c.Identity),
		credentialbroker.WithCAFile(c.CAFile),
		credentialbroker.WithCertificateFiles(c.CertificateFile, c.PrivateKeyFile),
		credentialbroker.WithServerName(c.ServerName),
	}
	if c.Plaintext {
		options = append(options, credentialbroker.WithPlaintext())
	}
	if c.Watch != nil && !*c.Watch {
		options = append(options, credentialbroker.WithoutWatch())
	}
	if c.Timeout != nil {
		options = append(options, credentialbroker.WithTimeout(c.Timeout.duration()))
	}
	if c.CacheSize != nil {
		options = append(options, credentialbroker.WithCacheSize(*c.CacheSize))
	}
	if c.Idle != nil {
		options = append(options, credentialbroker.WithIdle(c.Idle.duration()))
	}
	if c.Silence != nil {
		options = append(options, credentialbroker.WithSilence(c.Silence.duration()))
	}
	return options
}

func (d *driver) closeAll() {
	d.mu.Lock()
	clients := d.clients
	d.mu.Unlock()
	for _, client := range clients {
		_ = client.Close()
	}
}

func described(a *credentialbroker.Authorization, err error) (object, error) {
	if err != nil {
		return nil, err
	}
	return describe(a), nil
}

func (d *driver) authorization(client *credentialbroker.Client, c command) (object, error) {
	ctx, cancel := c.context()
	defer cancel()
	authorization, err := client.Authorization(ctx, c.request(0))
	if err == nil {
		d.mu.Lock()
		d.held[c.ID] = held{authorization, c.request(0)}
		d.mu.Unlock()
	}
	return described(authorization, err)
}

// many begins all calls at once.
func many(c command, call func(n int) (*credentialbroker.Authorization, error)) (object, error) {
	results := make([]object, c.Count)
	began := time.Now()
	concurrently(c.Count, func(n int) {
		authorization, err := call(n)
		if err != nil {
			results[n] = object{"error": describeError(err)}
		} else {
			results[n] = describe(authorization)
		}
	})
	return object{"results": results, "seconds": time.Since(began).Seconds()}, nil
}

func concurrently(count int, call func(n int)) {
	var running sync.WaitGroup
	start := make(chan struct{})
	for n := range count {
		running.Go(func() {
			<-start
			call(n)
		})
	}
	close(start)
	running.Wait()
}

func (d *driver) reportRejected(client *credentialbroker.Client, c command) (object, error) {
	rejected, err := named(d, d.held, c.Held)
	if err != nil {
		return nil, err
	}
	report := func(int) (*credentialbroker.Authorization, error) {
		ctx, cancel := c.context()
		defer cancel()
		return client.ReportRejected(ctx, rejected.Authorization, c.Detail)
	}
	if c.Count > 1 {
		return many(c, report)
	}
	better, err := report(0)
	if err == nil {
		d.mu.Lock()
		d.held[c.ID] = held{better, rejected.request}
		d.mu.Unlock()
	}
	return described(better, err)
}

func task(client *credentialbroker.Client, c command) (object, error) {
	call := client.RegisterTask
	if c.Do == "end_task" {
		call = client.EndTask
	}
	ctx, cancel := c.context()
	defer cancel()
	task, err := call(ctx, c.Thread, c.Identity)
	if err != nil {
		return nil, err
	}
	return object{
		"state":     strings.TrimPrefix(task.GetState().String(), "TASK_STATE_"),
		"thread_id": task.GetThreadId(),
		"identity":  task.GetIdentity(),
	}, nil
}

func state(client *credentialbroker.Client) object {
	state := client.State()
	answer := object{"watching": state.Watching, "held": state.Held, "first_end_in": nil, "last_error": nil}
	if state.Held > 0 {
		answer["first_end_in"] = state.FirstEndIn.Seconds()
	}
	if state.LastError != nil {
		answer["last_error"] = describeError(state.LastError)
	}
	return answer
}

func (d *driver) connect(client *credentialbroker.Client, c command) (object, error) {
	ctx, cancel := c.context()
	defer cancel()
	connection, err := client.Connection(ctx, c.request(0))
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.connections[c.Connection] = connection
	d.mu.Unlock()
	authorization := connection.Authorization()
	return object{"headers": pairs(authorization), "connection_tag": authorization.ConnectionTag}, nil
}

func (d *driver) changed(c command) (object, error) {
	connection, err := named(d, d.connections, c.Connection)
	if err != nil {
		return nil, err
	}
	select {
	case <-connection.Changed():
	default:
		select {
		case <-connection.Changed():
		case <-time.After(c.Wait.duration()):
			return object{"changed": false}, nil
		}
	}
	if err := connection.Err(); err == credentialbroker.ErrClosed {
		return nil, err
	}
	return object{"changed": true}, nil
}

func (d *driver) disconnect(c command) (object, error) {
	connection, err := named(d, d.connections, c.Connection)
	if err != nil {
		return nil, err
	}
	return object{}, connection.Close()
}
