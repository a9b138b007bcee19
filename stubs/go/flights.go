package credentialbroker

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

// ask is one question to the broker. Those who have the same one wait for the same answer.
type ask struct {
	key         key
	target      string        // where the headers will be sent, to be allowed by the broker
	minValidity time.Duration // how long they must last
	rejected    string        // the revision that the backend did not take; empty where none was
}

// plain says whether it asks for nothing but the current value, which is what a refresh asks for too.
func (a ask) plain() bool { return a == ask{key: a.key} }

// flights are the calls under way, one for each question.
type flights struct {
	ctx    context.Context // ends all of them
	each   time.Duration   // how long a call may take, and so how long somebody waits
	work   sync.WaitGroup
	mu     sync.Mutex
	flying map[ask]*flight
	closed bool
}

// flight is one call and who waits for it.
type flight struct {
	done    chan struct{} // closed after answer and err were set
	answer  *Authorization
	err     error
	waiting int // guarded by flights.mu
	cancel  context.CancelFunc
}

func newFlights(ctx context.Context, each time.Duration) *flights {
	return &flights{ctx: ctx, each: each, flying: map[ask]*flight{}}
}

// do waits for the answer to a question, asking it unless that is under way.
//
// An answer may just have come: held looks at what is kept once more when nothing is under way, and call keeps an answer
// before it returns it. A waiter whose context ends leaves alone; when the last one leaves the call is cancelled. Who
// joins a call has the whole of the own time, also when the call's ends before: then it is asked again.
func (f *flights) do(ctx context.Context, a ask, held func() *Authorization, call func(context.Context) (*Authorization, error)) (*Authorization, error) {
	for {
		f.mu.Lock()
		flight := f.flying[a]
		joins := flight != nil
		if !joins {
			if answer := held(); answer != nil {
				f.mu.Unlock()
				return answer, nil
			}
			if flight = f.launch(a, call); flight == nil {
				f.mu.Unlock()
				return nil, ErrClosed
			}
		}
		flight.waiting++
		f.mu.Unlock()
		if joins { // the first time says when this ends: a later one ends no earlier
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, f.each)
			defer cancel()
		}

		select {
		case <-flight.done:
			switch {
			case flight.err != nil && f.ctx.Err() != nil:
				return nil, ErrClosed
			case joins && outOfTime(flight.err) && ctx.Err() == nil:
				continue
			}
			return flight.answer, flight.err
		case <-f.ctx.Done():
			return nil, ErrClosed
		case <-ctx.Done():
			f.leave(a, flight)
			return nil, errorOfContext(ctx)
		}
	}
}

// outOfTime says whether a call ended because its own time did, or left too little of it for the broker to answer.
func outOfTime(err error) bool {
	problem, ok := errors.AsType[*Error](err)
	return ok && problem.Code == codes.DeadlineExceeded &&
		(problem.ReasonText == "" || problem.Reason == pb.ErrorReason_ERROR_REASON_DEADLINE_TOO_SHORT)
}

// start asks in the background, unless the same is under way or, looked at once more, needed no longer.
func (f *flights) start(a ask, needed func() bool, call func(context.Context) (*Authorization, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.flying[a] == nil && needed() {
		if flight := f.launch(a, call); flight != nil {
			flight.waiting++ // nobody, who never leaves
		}
	}
}

// launch begins a call. The lock is held. It returns nil once closed.
func (f *flights) launch(a ask, call func(context.Context) (*Authorization, error)) *flight {
	if f.closed {
		return nil
	}
	ctx, cancel := context.WithCancel(f.ctx)
	flight := &flight{done: make(chan struct{}), cancel: cancel}
	f.flying[a] = flight
	f.work.Go(func() {
		defer cancel()
		flight.answer, flight.err = call(ctx)
		f.forget(a, flight)
		close(flight.done)
	})
	return flight
}

// leave takes one waiter away.
func (f *flights) leave(a ask, flight *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if flight.waiting--; flight.waiting > 0 {
		return
	}
	flight.cancel()
	if f.flying[a] == flight {
		delete(f.flying, a) // whoever comes now must not wait for a call that was cancelled
	}
}

func (f *flights) forget(a ask, flight *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.flying[a] == flight {
		delete(f.flying, a)
	}
}

// close lets nothing begin any more and waits until what is under way has ended, which the end of ctx brings about.
func (f *flights) close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.work.Wait()
}
