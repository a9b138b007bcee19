package credentialbroker

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func nothing() *Authorization { return nil }

func TestOneCallForAllWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlights(t.Context(), 10*time.Second)
		var calls atomic.Int32
		want := &Authorization{Revision: "one"}
		var running sync.WaitGroup
		for range 50 {
			running.Go(func() {
				got, err := f.do(t.Context(), ask{}, nothing, func(context.Context) (*Authorization, error) {
					calls.Add(1)
					time.Sleep(time.Second)
					return want, nil
				})
				if got != want || err != nil {
					t.Errorf("%v, %v", got, err)
				}
			})
		}
		running.Wait()
		if calls.Load() != 1 {
			t.Errorf("%d calls", calls.Load())
		}
		f.close()
	})
}

func TestDifferentQuestionsAreDifferentCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlights(t.Context(), 10*time.Second)
		k := key{"i", "s", "t"}
		asks := []ask{
			{key: k}, {key: key{"j", "s", "t"}}, {key: key{"i", "x", "t"}}, {key: key{"i", "s", "x"}}, {key: key{"", "is", "t"}},
			{key: k, target: "https://a:443"}, {key: k, minValidity: 1}, {key: k, rejected: "r"},
		}
		var calls atomic.Int32
		for _, a := range asks {
			go func() {
				_, _ = f.do(t.Context(), a, nothing, func(context.Context) (*Authorization, error) {
					calls.Add(1)
					time.Sleep(time.Second)
					return nil, nil
				})
			}()
		}
		time.Sleep(2 * time.Second)
		if int(calls.Load()) != len(asks) {
			t.Errorf("%d calls for %d questions", calls.Load(), len(asks))
		}
		f.close()
	})
}

func TestWhoLeavesLeavesAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlights(t.Context(), 10*time.Second)
		cancelled := make(chan struct{})
		call := func(ctx context.Context) (*Authorization, error) {
			select {
			case <-ctx.Done():
				close(cancelled)
				return nil, ctx.Err()
			case <-time.After(5 * time.Second):
				return &Authorization{}, nil
			}
		}
		stays := make(chan error, 1)
		go func() {
			_, err := f.do(t.Context(), ask{}, nothing, call)
			stays <- err
		}()
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, err := f.do(ctx, ask{}, nothing, call); !errors.Is(err, context.Canceled) {
			t.Errorf("who cancels gets %v", err)
		}
		if err := <-stays; err != nil {
			t.Errorf("who stays gets %v", err)
		}

		// The last one takes the call away, and whoever comes then begins another.
		late, cancelLate := context.WithTimeout(t.Context(), time.Second)
		defer cancelLate()
		_, err := f.do(late, ask{}, nothing, call)
		if problem, ok := errors.AsType[*Error](err); !ok || !errors.Is(problem, context.DeadlineExceeded) {
			t.Errorf("who is late gets %v", err)
		}
		if _, err := f.do(t.Context(), ask{}, nothing, func(context.Context) (*Authorization, error) { return nil, nil }); err != nil {
			t.Errorf("the next one gets %v", err)
		}
		<-cancelled
		f.close()
	})
}

func TestWhoJoinsHasTheWholeOfTheOwnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlights(t.Context(), 10*time.Second)
		late := errorOf(status.Error(codes.DeadlineExceeded, "late"))
		var calls atomic.Int32
		call := func(context.Context) (*Authorization, error) {
			if calls.Add(1) == 2 {
				time.Sleep(3 * time.Second)
				return &Authorization{}, nil
			}
			time.Sleep(10 * time.Second)
			return nil, late
		}
		join := func(wait time.Duration, fails bool, ends time.Duration) *sync.WaitGroup {
			var running sync.WaitGroup
			began := time.Now()
			running.Go(func() {
				time.Sleep(wait)
				_, err := f.do(t.Context(), ask{}, nothing, call)
				if errors.Is(err, context.DeadlineExceeded) != fails || time.Since(began) != ends {
					t.Errorf("who comes after %v gets %v after %v", wait, err, time.Since(began))
				}
			})
			return &running
		}
		first, second := join(0, true, 10*time.Second), join(9*time.Second, false, 13*time.Second)
		first.Wait()
		second.Wait()
		first, second = join(0, true, 10*time.Second), join(9*time.Second, true, 19*time.Second)
		first.Wait()
		second.Wait()
		if calls.Load() != 4 {
			t.Errorf("%d calls", calls.Load())
		}
		f.close()
	})
}

func TestWhoJoinsACallThatIsTooLateForTheBroker(t *testing.T) {
	for reason, again := range map[string]bool{"DEADLINE_TOO_SHORT": true, "OF_ANOTHER_BROKER": false} {
		t.Run(reason, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFlights(t.Context(), 10*time.Second)
				refusal := errorOf(statusOf(t, codes.DeadlineExceeded, &errdetails.ErrorInfo{Reason: reason, Domain: reasonDomain}))
				first := true
				call := func(context.Context) (*Authorization, error) {
					if !first {
						return &Authorization{}, nil
					}
					first = false
					time.Sleep(10*time.Second - time.Millisecond) // for which it waited for a connection
					return nil, refusal
				}
				var running sync.WaitGroup
				running.Go(func() {
					if _, err := f.do(t.Context(), ask{}, nothing, call); err != error(refusal) {
						t.Errorf("who asked gets %v", err)
					}
				})
				time.Sleep(5 * time.Second)
				if _, err := f.do(t.Context(), ask{}, nothing, call); (err == nil) != again {
					t.Errorf("who joined, and has 5 s left, gets %v", err)
				}
				running.Wait()
				f.close()
			})
		})
	}
}

func TestAnAnswerThatJustCameIsUsed(t *testing.T) {
	f := newFlights(t.Context(), 10*time.Second)
	just := &Authorization{}
	got, err := f.do(t.Context(), ask{}, func() *Authorization { return just }, func(context.Context) (*Authorization, error) {
		t.Error("asked again")
		return nil, nil
	})
	if got != just || err != nil {
		t.Errorf("%v, %v", got, err)
	}
}

func TestClosingFailsWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		f := newFlights(ctx, 10*time.Second)
		time.AfterFunc(time.Second, func() { cancel(); f.close() })
		call := func(ctx context.Context) (*Authorization, error) { <-ctx.Done(); return nil, ctx.Err() }
		if _, err := f.do(t.Context(), ask{}, nothing, call); !errors.Is(err, ErrClosed) {
			t.Errorf("who waits gets %v", err)
		}
		synctest.Wait()
		if _, err := f.do(t.Context(), ask{}, nothing, call); !errors.Is(err, ErrClosed) {
			t.Errorf("who comes later gets %v", err)
		}
	})
}
