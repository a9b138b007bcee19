package credentialbroker

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

func TestHeldIsAnsweredFromMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		client, end := broker.start(t, WithoutWatch())
		defer end()
		first := get(t, client, wanted)
		if got := get(t, client, wanted); got != first || broker.getCount() != 1 {
			t.Errorf("%v after %d calls", got, broker.getCount())
		}
		if first.ExpiresIn() != time.Minute || first.RefreshIn() != 30*time.Second {
			t.Errorf("expires in %v, refresh in %v", first.ExpiresIn(), first.RefreshIn())
		}
		if held := testing.AllocsPerRun(100, func() { _, _ = client.Authorization(context.Background(), wanted) }); held != 0 {
			t.Errorf("%v allocations for an answer from memory", held)
		}
	})
}

func TestFiftyFirstUsesAreOneCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		client, end := broker.start(t)
		defer end()
		var running sync.WaitGroup
		for range 50 {
			running.Go(func() { get(t, client, wanted) })
		}
		running.Wait()
		if broker.getCount() != 1 {
			t.Errorf("%d calls", broker.getCount())
		}
	})
}

func TestRefreshInTheBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		client, end := broker.start(t, WithoutWatch())
		defer end()
		get(t, client, wanted)
		time.Sleep(31 * time.Second)
		if got := get(t, client, wanted); got.Revision != "r1" {
			t.Errorf("a use that is due waited for %s", got.Revision)
		}
		synctest.Wait()
		if got := get(t, client, wanted); got.Revision != "r2" || broker.getCount() != 2 {
			t.Errorf("%s after %d calls", got.Revision, broker.getCount())
		}
	})
}

func TestRefreshIsLeftToTheStreamUntilHalfWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		client, end := broker.start(t)
		defer end()
		get(t, client, wanted)
		(<-broker.opened).keepAlive()
		time.Sleep(44 * time.Second)
		get(t, client, wanted)
		synctest.Wait()
		if broker.getCount() != 1 {
			t.Error("asked before half-way between refresh_time and expire_time")
		}
		time.Sleep(2 * time.Second)
		get(t, client, wanted)
		synctest.Wait()
		if broker.getCount() != 2 {
			t.Error("did not ask after half-way")
		}
	})
}

func TestNothingIsGivenPastItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		client, end := broker.start(t, WithoutWatch())
		defer end()
		get(t, client, wanted)
		time.Sleep(time.Minute)
		if got := get(t, client, wanted); got.Revision != "r2" {
			t.Errorf("%s was given at its end", got.Revision)
		}
	})
}

func TestRefreshThatFails(t *testing.T) {
	for code, drops := range map[codes.Code]bool{
		codes.Unauthenticated: false, codes.ResourceExhausted: false, codes.Internal: false,
		codes.PermissionDenied: true, codes.FailedPrecondition: true, codes.InvalidArgument: true, codes.NotFound: true,
	} {
		t.Run(code.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broker := &fakeBroker{get: func(call int, _ *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
					if call == 1 {
						return answer("r1", time.Minute), nil
					}
					return nil, status.Error(code, "no")
				}}
				client, end := broker.start(t, WithoutWatch())
				defer end()
				get(t, client, wanted)
				time.Sleep(30 * time.Second)
				get(t, client, wanted)
				synctest.Wait()
				_, err := client.Authorization(t.Context(), wanted)
				if problem, ok := errors.AsType[*Error](err); drops != (ok && problem.Code == code) {
					t.Errorf("the next use got %v", err)
				}
			})
		})
	}
}

func TestRefreshWaitsAfterAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{get: func(call int, _ *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
			if call == 1 {
				return answer("r1", time.Minute), nil
			}
			return nil, status.Error(codes.Internal, "no")
		}}
		client, end := broker.start(t, WithoutWatch())
		defer end()
		get(t, client, wanted)
		time.Sleep(30 * time.Second)
		var at []time.Duration
		for began := time.Now(); time.Since(began) < 29*time.Second; time.Sleep(10 * time.Millisecond) {
			before := broker.getCount()
			get(t, client, wanted)
			synctest.Wait()
			if broker.getCount() > before {
				at = append(at, time.Since(began))
			}
		}
		for i, most := range []time.Duration{200, 400, 800, 1600, 3200, 6400} {
			most *= time.Millisecond
			if wait := at[i+1] - at[i]; wait < most/2 || wait > most+20*time.Millisecond {
				t.Errorf("wait %d is %v, not %v to %v", i, wait, most/2, most)
			}
		}
	})
}

func TestMinValidity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		client, end := broker.start(t, WithoutWatch())
		defer end()
		get(t, client, wanted)
		time.Sleep(20 * time.Second)
		longer := wanted
		longer.MinValidity = 40 * time.Second
		get(t, client, longer)
		longer.MinValidity = 41 * time.Second
		if broker.getCount() != 1 {
			t.Error("asked for what was held")
		}
		get(t, client, longer)
		if broker.getCount() != 2 || broker.gets[1].GetMinValidity().AsDuration() != 41*time.Second {
			t.Errorf("%d calls, the last %v", broker.getCount(), broker.gets)
		}
		if got := get(t, client, wanted); got.Revision != "r2" {
			t.Errorf("the longer one was not kept: %s", got.Revision)
		}
	})
}

func TestCloseFailsWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{get: func(int, *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
			time.Sleep(5 * time.Second)
			return answer("late", time.Minute), nil
		}}
		client, end := broker.start(t)
		defer end()
		time.AfterFunc(time.Second, func() { _ = client.Close() })
		if _, err := client.Authorization(t.Context(), wanted); !errors.Is(err, ErrClosed) {
			t.Errorf("%v", err)
		}
		synctest.Wait()
		if err := client.Close(); err != nil {
			t.Errorf("closing twice: %v", err)
		}
		_, reported := client.ReportRejected(t.Context(), &Authorization{}, "")
		_, registered := client.RegisterTask(t.Context(), "", "")
		for _, err := range []error{reported, registered} {
			if !errors.Is(err, ErrClosed) {
				t.Errorf("after the end: %v", err)
			}
		}
	})
}

// goroutines waits until there are at most so many.
func goroutines(t *testing.T, most int) {
	t.Helper()
	for range 500 {
		if runtime.NumGoroutine() <= most {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	stacks := make([]byte, 1<<20)
	t.Errorf("%d goroutines, at most %d should be left:\n%s", runtime.NumGoroutine(), most, stacks[:runtime.Stack(stacks, true)])
}

func TestNothingIsLeftOfHundredClients(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 100 {
		client, end := (&fakeBroker{}).start(t)
		get(t, client, wanted)
		end()
	}
	goroutines(t, before)
}

func TestNothingIsLeftOfHundredLostStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		client, end := broker.start(t)
		defer end()
		get(t, client, wanted)
		first := <-broker.opened
		synctest.Wait()
		before := runtime.NumGoroutine()
		for range 100 {
			first.end <- errUnavailable
			first = <-broker.opened
		}
		synctest.Wait()
		// A leak is one for each stream; the runtime's own come and go.
		if after := runtime.NumGoroutine(); after > before+10 {
			t.Errorf("%d goroutines before, %d after", before, after)
		}
	})
}
