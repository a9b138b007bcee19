package credentialbroker

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

// rpc is a method of the broker's, with its request and its answer.
type rpc[Q, A any] func(context.Context, Q, ...grpc.CallOption) (A, error)

// authorization answers a question from memory, which may begin a refresh, else asks the broker.
func (c *Client) authorization(ctx context.Context, a ask) (*Authorization, error) {
	if c.closed.Load() {
		return nil, ErrClosed
	}
	if e := c.cache.find(a.key); e != nil {
		now := c.clock.now()
		if held := e.give(a, now); held != nil {
			if now >= held.lifetime.due && e.wants(held, now, c.watcher.watches(e)) {
				c.refresh(e)
			}
			return held, nil
		}
		if a.target != "" && e.allows(a.target) {
			plain := ask{key: a.key, minValidity: a.minValidity}
			answer, err := c.ask(ctx, plain)
			if err != nil || e.allowsWith(answer, a.target) {
				return answer, err
			} // else it is another credential, or was replaced: the broker says whether it may be sent there
		}
	}
	return c.ask(ctx, a)
}

// ask asks the broker, once for all who need the same.
func (c *Client) ask(ctx context.Context, a ask) (*Authorization, error) {
	held := func() *Authorization {
		if e := c.cache.find(a.key); e != nil {
			return e.give(a, c.clock.now())
		}
		return nil
	}
	return c.flights.do(ctx, a, held, func(ctx context.Context) (*Authorization, error) { return c.get(ctx, a) })
}

// refresh asks for a new value of an entry in the background.
func (c *Client) refresh(e *entry) {
	a := ask{key: e.key}
	needed := func() bool { return e.claim(c.clock.now(), c.watcher.watches(e)) }
	c.flights.start(a, needed, func(ctx context.Context) (*Authorization, error) { return c.get(ctx, a) })
}

// get calls GetAuthorization and keeps the answer.
func (c *Client) get(ctx context.Context, a ask) (*Authorization, error) {
	request := &pb.GetAuthorizationRequest{
		Scope: a.key.scope, ThreadId: a.key.thread, Identity: a.key.identity, TargetUrl: a.target,
	}
	if a.minValidity > 0 {
		request.MinValidity = durationpb.New(a.minValidity)
	}
	return fetch(ctx, c, a, c.broker.GetAuthorization, request)
}

// mostAgain is how often a question is asked again because a withdrawal overtook its answer.
const mostAgain = 3

// fetch asks the broker, within the client's own time, and notes what comes of it.
func fetch[Q any, A interface{ GetAuthorization() *pb.Authorization }](
	ctx context.Context, c *Client, a ask, method rpc[Q, A], request Q,
) (*Authorization, error) {
	ctx, cancel := context.WithTimeout(ctx, c.settings.timeout)
	defer cancel()
	for again := 0; ; again++ {
		since := c.cache.changeCount()
		answer, err := call(ctx, c, method, request)
		if err != nil {
			c.cache.failed(a, err, since)
			return nil, err
		}
		authorization := newAuthorization(a.key, answer.GetAuthorization(), c.clock, c.clock.now())
		if given := c.cache.keep(authorization, a, since); given != nil {
			return given, nil
		}
		if a.rejected != "" {
			return c.get(ctx, ask{key: a.key}) // what was reported is no more: there is nothing to be better than
		}
		if again == mostAgain {
			return nil, errorOf(status.Error(codes.Aborted, "each answer was withdrawn before it came"))
		}
	}
}

// callAlone makes a call that one user alone waits for, within the client's own time.
func callAlone[Q, A any](ctx context.Context, c *Client, method rpc[Q, A], request Q) (A, error) {
	var none A
	if c.closed.Load() {
		return none, ErrClosed
	}
	bounded, cancel := context.WithTimeout(ctx, c.settings.timeout)
	defer cancel()
	defer context.AfterFunc(c.flights.ctx, cancel)() // as those who wait for a flight, who learn of the end at once
	answer, err := call(bounded, c, method, request)
	switch {
	case err == nil:
		return answer, nil
	case c.closed.Load():
		return none, ErrClosed
	case ctx.Err() != nil:
		return none, errorOfContext(ctx)
	default:
		return none, err
	}
}

// call makes one call, and notes what it says of the broker.
func call[Q, A any](ctx context.Context, c *Client, method rpc[Q, A], request Q) (A, *Error) {
	answer, err := method(ctx, request)
	if err == nil {
		c.presence.answered()
		return answer, nil
	}
	typed := errorOf(err)
	// What was not needed any longer says nothing of the broker, but that it waited for a connection in vain.
	if typed.Code != codes.Canceled || c.presence.failing() && !c.closed.Load() {
		c.presence.failed(typed)
	}
	return answer, typed
}
