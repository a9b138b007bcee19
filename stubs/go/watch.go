package credentialbroker

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

const (
	// Streams that end, and refreshes that fail, are tried again after 0.2 s, doubling to 10 s.
	retryFirst = 200 * time.Millisecond
	retryMost  = 10 * time.Second
	// longLived is how long a stream must have lived for the waits to begin anew.
	longLived = 5 * time.Second
)

var errSilent = status.Error(codes.Unavailable, "the stream was silent for too long")

// watcher keeps the entries of the cache current through one stream at a time.
type watcher struct {
	broker   pb.CredentialBrokerClient
	clock    clock
	silence  time.Duration
	cache    *cache
	presence *presence

	work    sync.WaitGroup
	up      atomic.Bool // whether the current stream is
	mu      sync.Mutex  // taken after the cache's
	current *stream     // the one that subscriptions go to; nil: none is open
}

// stream is one call of WatchAuthorizations.
type stream struct {
	call          pb.CredentialBroker_WatchAuthorizationsClient
	began         time.Duration
	closing       chan struct{} // closed after asked was set
	asked         time.Duration // the wait that the broker asked for before the next stream
	ended         chan struct{} // closed after err was set
	err           error         // nil: ended with OK
	subscriptions subscriptions // guarded by watcher.mu
}

// run keeps one stream open until ctx ends. There is a wait before each but the first.
func (w *watcher) run(ctx context.Context) {
	defer w.work.Wait()
	retry := backoff{first: retryFirst, most: retryMost}
	for {
		s := w.open(ctx)
		select {
		case <-s.closing: // it lives on meanwhile
		case <-s.ended:
			if s.err != nil && ctx.Err() == nil {
				err := errorOf(s.err)
				s.asked = max(s.asked, err.RetryDelay)
				w.presence.lost(err)
			}
		}
		if s.call != nil && w.clock.now()-s.began >= longLived {
			retry.reset()
		}
		if !sleep(ctx, retry.next(s.asked)) {
			return
		}
	}
}

// open begins a stream and subscribes it to all entries.
func (w *watcher) open(ctx context.Context) *stream {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &stream{
		closing:       make(chan struct{}),
		ended:         make(chan struct{}),
		subscriptions: newSubscriptions(),
	}
	silence := time.AfterFunc(w.silence, func() { cancel(errSilent) })
	call, err := w.broker.WatchAuthorizations(ctx)
	if err != nil {
		silence.Stop()
		cancel(nil)
		s.err = causeOf(ctx, err)
		close(s.ended)
		return s
	}
	silence.Reset(w.silence) // that it waited for a connection is none of the stream's
	s.call, s.began = call, w.clock.now()
	w.mu.Lock()
	w.current = s
	w.mu.Unlock()
	w.cache.each(w.subscribe)
	w.work.Go(func() { w.send(ctx, s) })
	w.work.Go(func() {
		s.err = causeOf(ctx, w.receive(s, silence))
		silence.Stop()
		cancel(nil)
		w.mu.Lock()
		if w.current == s {
			w.current = nil
			w.up.Store(false)
		}
		w.mu.Unlock()
		close(s.ended)
	})
	return s
}

// causeOf names silence where it was what ended a stream.
func causeOf(ctx context.Context, err error) error {
	if context.Cause(ctx) == errSilent {
		return errSilent
	}
	return err
}

// receive does what the broker says until the stream ends. It returns nil where that was with OK.
func (w *watcher) receive(s *stream, silence *time.Timer) error {
	// A stream can be opened on a connection that leads nowhere any more. It is up with the broker's first word, which is
	// its headers where it has nothing to send.
	if headers, err := s.call.Header(); err == nil && headers != nil {
		w.presence.answered()
		w.up.Store(true)
	}
	for closing := false; ; {
		message, err := s.call.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !closing { // then it must end, whatever it still says
			silence.Reset(w.silence)
		}
		w.presence.answered()
		id := message.GetSubscriptionId()
		switch event := message.GetEvent().(type) {
		case *pb.WatchAuthorizationsResponse_Authorization:
			w.cache.push(id, event.Authorization, func() bool { return w.isCurrent(s) })
		case *pb.WatchAuthorizationsResponse_Withdrawal:
			w.cache.withdraw(id, event.Withdrawal.GetReason())
		case *pb.WatchAuthorizationsResponse_Error:
			problem := errorOfSubscription(event.Error.GetStatus())
			w.presence.failed(problem)
			if refuses(problem.Code) { // which takes the value back, as a withdrawal does
				w.cache.withdraw(id, pb.WithdrawalReason_WITHDRAWAL_REASON_UNSPECIFIED)
			}
		case *pb.WatchAuthorizationsResponse_Closing:
			if !closing {
				closing = true
				s.asked = event.Closing.GetRetryDelay().AsDuration()
				close(s.closing)
			}
		}
	}
}

func (w *watcher) isCurrent(s *stream) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.current == s
}

// watches says whether the next values of an entry come by themselves.
func (w *watcher) watches(e *entry) bool { return w.up.Load() && e.watched.Load() }

// subscribe asks the stream, if one is open, for the values of an entry. A revision that is named is not sent again. The
// cache's lock is held.
func (w *watcher) subscribe(e *entry, revision string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.current != nil {
		e.watched.Store(w.current.subscriptions.add(&pb.Subscribe{
			SubscriptionId: e.id,
			Scope:          e.key.scope,
			ThreadId:       e.key.thread,
			Identity:       e.key.identity,
			KnownRevision:  revision,
		}))
	}
}

// unsubscribe ends the subscription of an entry that was dropped. The cache's lock is held.
func (w *watcher) unsubscribe(e *entry) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.current != nil {
		w.current.subscriptions.remove(e.id)
	}
}

// send tells the broker what is wanted until ctx ends, which it does with the stream. Sending may wait for the broker,
// which nobody who holds a lock may do.
func (w *watcher) send(ctx context.Context, s *stream) {
	for {
		w.mu.Lock()
		message := s.subscriptions.next()
		w.mu.Unlock()
		if message != nil {
			if s.call.Send(message) != nil {
				return // receive learns why
			}
			continue
		}
		select {
		case <-s.subscriptions.wanting:
		case <-ctx.Done():
			return
		}
	}
}
