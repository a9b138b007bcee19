package credentialbroker

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

// Client asks the broker and keeps what it answers. It is made once for a process, with [New], and may be used from any
// number of goroutines.
type Client struct {
	settings settings
	clock    clock
	channel  *grpc.ClientConn
	broker   pb.CredentialBrokerClient
	cache    cache
	flights  *flights
	watcher  watcher
	presence presence

	cancel   context.CancelFunc
	watching sync.Once // begins with the first entry
	closed   atomic.Bool
	finished chan struct{} // closed when nothing is left
}

// New makes a client of the broker that the options name, or else the environment. It does no I/O but reading the TLS
// files. An error says which option, variable or file is wrong.
func New(options ...Option) (*Client, error) {
	settings, err := readSettings(options, os.Getenv)
	if err != nil {
		return nil, err
	}
	channel, err := openChannel(settings)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &Client{
		settings: settings,
		clock:    clock{time.Now()},
		channel:  channel,
		broker:   pb.NewCredentialBrokerClient(channel),
		flights:  newFlights(ctx, settings.timeout),
		cancel:   cancel,
		finished: make(chan struct{}),
	}
	c.presence = presence{
		logger:  settings.logger,
		holds:   c.cache.holds,
		failing: func() bool { return channel.GetState() == connectivity.TransientFailure },
	}
	c.watcher = watcher{broker: c.broker, clock: c.clock, silence: settings.silence, cache: &c.cache, presence: &c.presence}
	c.cache = cache{
		clock:   c.clock,
		size:    settings.cacheSize,
		idle:    settings.idle,
		watches: c.watcher.watches,
		kept:    func(e *entry) { c.watch(ctx, e) },
		dropped: c.watcher.unsubscribe,
		refresh: c.refresh,
		byID:    map[string]*entry{},
	}
	return c, nil
}

// Authorization returns the headers for a call, from memory where it holds them. Else it asks the broker, once for all
// who need the same, until ctx ends and no longer than [WithTimeout] says.
//
// The error is an [*Error] where the broker refused or could not be reached in time, the context's where it was
// cancelled, or [ErrClosed].
func (c *Client) Authorization(ctx context.Context, request Request) (*Authorization, error) {
	a := ask{key: c.keyOf(request), minValidity: max(0, request.MinValidity)}
	if request.TargetURL != "" {
		a.target = request.TargetURL
		if origin, err := parseOrigin(request.TargetURL); err == nil {
			a.target = origin.String()
		} // else the broker says what is wrong with it
	}
	return c.authorization(ctx, a)
}

// keyOf is what the answer to a request is kept under.
func (c *Client) keyOf(request Request) key {
	if request.Identity == "" {
		request.Identity = c.settings.identity
	}
	return key{request.Identity, request.Scope, request.Thread}
}

// ReportRejected tells the broker that the backend answered 401 to an authorization, and returns a better one, which
// takes its place for everybody. Where the client holds another revision already, that is returned without a call.
//
// Detail is what the backend said, for the broker's audit record; at most 256 bytes of it are sent. It must hold no
// header's value.
func (c *Client) ReportRejected(ctx context.Context, rejected *Authorization, detail string) (*Authorization, error) {
	if c.closed.Load() {
		return nil, ErrClosed
	}
	a := ask{key: rejected.key, rejected: rejected.Revision}
	better := func() *Authorization {
		if e := c.cache.find(a.key); e != nil {
			held := e.give(ask{key: a.key}, c.clock.now())
			if held != nil && held.Revision != a.rejected {
				return held
			}
		}
		return nil
	}
	request := &pb.ReportRejectedRequest{
		Scope: a.key.scope, ThreadId: a.key.thread, Revision: a.rejected,
		HttpStatus: http.StatusUnauthorized, Detail: strings.ToValidUTF8(detail[:min(len(detail), 256)], ""),
	}
	return c.flights.do(ctx, a, better, func(ctx context.Context) (*Authorization, error) {
		return fetch(ctx, c, a, c.broker.ReportRejected, request)
	})
}

// RegisterTask makes sure that a thread has a live task, so that later calls need not wait for one. An empty thread means
// the background work of the identity, an empty identity that of [WithIdentity]. Nobody has to call it.
func (c *Client) RegisterTask(ctx context.Context, thread, identity string) (*pb.Task, error) {
	request := &pb.RegisterTaskRequest{
		Identity: c.keyOf(Request{Identity: identity}).identity,
		Target:   &pb.RegisterTaskRequest_ThreadId{ThreadId: thread},
	}
	if thread == "" {
		request.Target = &pb.RegisterTaskRequest_Kind{Kind: pb.TaskKind_TASK_KIND_BACKGROUND}
	}
	answer, err := callAlone(ctx, c, c.broker.RegisterTask, request)
	return answer.GetTask(), err
}

// EndTask ends the task of a thread; the broker refuses authorizations for it from then on, and nothing that the client
// holds of it, in any scope, is given any more. An empty identity means that of [WithIdentity].
func (c *Client) EndTask(ctx context.Context, thread, identity string) (*pb.Task, error) {
	identity = c.keyOf(Request{Identity: identity}).identity
	request := &pb.EndTaskRequest{ThreadId: thread, Identity: identity}
	answer, err := callAlone(ctx, c, c.broker.EndTask, request)
	if err != nil {
		return nil, err
	}
	c.cache.endTask(identity, thread)
	return answer.GetTask(), nil
}

// watch sees to an entry whose value was just kept: the stream, which the first one opens, brings the next ones.
func (c *Client) watch(ctx context.Context, e *entry) {
	if !c.settings.watch {
		return
	}
	c.watching.Do(func() { c.flights.work.Go(func() { c.watcher.run(ctx) }) })
	c.watcher.subscribe(e, e.held.Load().Revision)
}

// State is how a client is doing.
type State struct {
	// Watching says whether the stream to the broker is up.
	Watching bool
	// Held counts the authorizations that may be given from memory now; FirstEndIn is how long the first of them lasts.
	Held       int
	FirstEndIn time.Duration
	// LastError is the last failure of a call or of the stream, also when all is well again; nil when there was none.
	LastError error
}

// State says how the client is doing. It asks nobody.
func (c *Client) State() State {
	held, firstEnd := c.cache.holds()
	return State{Watching: c.watcher.up.Load(), Held: held, FirstEndIn: firstEnd, LastError: c.presence.lastError()}
}

// Format says which broker the client asks, and nothing of what it holds, whatever the verb.
func (c *Client) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "credential broker client of %s", c.settings.address)
}

// Close ends the stream, the connections and what is under way; whoever waits gets [ErrClosed]. Nothing of the client is
// left when it returns. Closing twice is fine.
func (c *Client) Close() error {
	if c.closed.Swap(true) {
		<-c.finished
		return nil
	}
	c.cancel()
	c.cache.close()
	err := c.channel.Close()
	c.flights.close()
	close(c.finished)
	return err
}
