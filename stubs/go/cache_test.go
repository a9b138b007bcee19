package credentialbroker

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

func TestLeastRecentlyUsedGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		client, end := broker.start(t, WithCacheSize(2))
		defer end()
		use := func(thread string) {
			time.Sleep(time.Millisecond)
			get(t, client, Request{Scope: "inference", Thread: thread})
		}
		use("a")
		use("b")
		use("a")
		use("c") // in the place of b
		use("a")
		if broker.getCount() != 3 {
			t.Errorf("%d calls", broker.getCount())
		}
		use("b")
		if broker.getCount() != 4 || client.State().Held != 2 {
			t.Errorf("%d calls, %d held", broker.getCount(), client.State().Held)
		}
		stream := <-broker.opened
		synctest.Wait()
		unsubscribed := 0
		for len(stream.messages) > 0 {
			if (<-stream.messages).GetUnsubscribe() != nil {
				unsubscribed++
			}
		}
		if unsubscribed != 2 {
			t.Errorf("%d were unsubscribed", unsubscribed)
		}
	})
}

func TestIdleEntriesGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{get: func(int, *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
			return answer("r", time.Hour), nil
		}}
		client, end := broker.start(t, WithoutWatch(), WithIdle(time.Minute))
		defer end()
		get(t, client, wanted)
		connection, err := client.Connection(t.Context(), Request{Scope: "inference", Thread: "connected"})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(29 * time.Minute)
		if client.State().Held != 2 {
			t.Error("gone before the next value was due")
		}
		time.Sleep(2 * time.Minute)
		if client.State().Held != 1 {
			t.Error("an idle entry was kept, or a connected one was not")
		}
		_ = connection.Close()
		time.Sleep(time.Hour)
		if client.cache.find(key{"", "inference", "connected"}) != nil {
			t.Error("its entry is kept after the connection")
		}
	})
}

func TestPushToAnIdleEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{get: func(int, *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
			return answer("r", time.Hour), nil
		}}
		client, end := broker.start(t, WithIdle(20*time.Second))
		defer end()
		get(t, client, wanted)
		stream := <-broker.opened
		subscribe := (<-stream.messages).GetSubscribe()
		time.Sleep(21 * time.Second)
		stream.value(t, subscribe, answer("pushed", time.Hour))
		if client.State().Held != 0 || (<-stream.messages).GetUnsubscribe().GetSubscriptionId() != subscribe.GetSubscriptionId() {
			t.Error("a value that nobody used was kept current")
		}
	})
}

func TestWhatIsGivenForAnAnswerThatWasOvertaken(t *testing.T) {
	longer, there := wanted, wanted
	longer.MinValidity = 2 * time.Minute
	there.TargetURL = "https://backend.example"
	withdrawal := func(t *testing.T, stream *fakeStream, to *pb.Subscribe) {
		stream.withdraw(t, to, pb.WithdrawalReason_WITHDRAWAL_REASON_IDENTITY_DISABLED)
	}
	value := func(lasts time.Duration) func(*testing.T, *fakeStream, *pb.Subscribe) {
		return func(t *testing.T, stream *fakeStream, to *pb.Subscribe) { stream.value(t, to, answer("pushed", lasts)) }
	}
	for name, test := range map[string]struct {
		asked       Request
		by          []func(*testing.T, *fakeStream, *pb.Subscribe)
		given, kept string
	}{
		"by a withdrawal":                          {longer, []func(*testing.T, *fakeStream, *pb.Subscribe){withdrawal}, "r3", "r3"},
		"by a value":                               {longer, []func(*testing.T, *fakeStream, *pb.Subscribe){value(time.Hour)}, "pushed", "pushed"},
		"by a value that is not enough":            {longer, []func(*testing.T, *fakeStream, *pb.Subscribe){value(time.Minute)}, "r2", "pushed"},
		"by a withdrawal and a value":              {longer, []func(*testing.T, *fakeStream, *pb.Subscribe){withdrawal, value(time.Hour)}, "pushed", "pushed"},
		"by a withdrawal and one that is not":      {longer, []func(*testing.T, *fakeStream, *pb.Subscribe){withdrawal, value(time.Minute)}, "r3", "r3"},
		"by a value, asking for an origin as well": {there, []func(*testing.T, *fakeStream, *pb.Subscribe){value(time.Minute)}, "pushed", "pushed"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broker := &fakeBroker{get: func(call int, _ *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
					if call == 2 {
						time.Sleep(5 * time.Second)
					}
					return answer(fmt.Sprintf("r%d", call), time.Minute), nil
				}}
				client, end := broker.start(t)
				defer end()
				get(t, client, wanted)
				stream := <-broker.opened
				subscribe := (<-stream.messages).GetSubscribe()
				time.AfterFunc(time.Second, func() {
					for _, change := range test.by {
						change(t, stream, subscribe)
					}
				})
				if got := get(t, client, test.asked); got.Revision != test.given {
					t.Errorf("%s is given", got.Revision)
				}
				if got := get(t, client, wanted); got.Revision != test.kept {
					t.Errorf("%s is kept", got.Revision)
				}
			})
		})
	}
}

func TestAnswerThatOutlivedItsEntry(t *testing.T) {
	withdrawal := pb.WithdrawalReason_WITHDRAWAL_REASON_IDENTITY_DISABLED
	for name, test := range map[string]struct {
		withdrawn bool // before it was refused
		anew      bool // there is another entry by then
		given     string
	}{
		"refused":                        {false, false, "r4"},
		"withdrawn and refused":          {true, false, "r4"},
		"refused, and then answered":     {false, true, "r5"},
		"and after a withdrawal as well": {true, true, "r5"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broker := &fakeBroker{get: func(call int, _ *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
					switch call {
					case 2:
						time.Sleep(5 * time.Second)
					case 3:
						return nil, status.Error(codes.PermissionDenied, "no")
					}
					return answer(fmt.Sprintf("r%d", call), time.Minute), nil
				}}
				client, end := broker.start(t)
				defer end()
				get(t, client, wanted)
				stream := <-broker.opened
				subscribe := (<-stream.messages).GetSubscribe()
				time.Sleep(44 * time.Second) // half-way between due and end is a second away
				longer := wanted
				longer.MinValidity = 2 * time.Minute
				slow := make(chan *Authorization)
				go func() { slow <- get(t, client, longer) }()
				time.Sleep(2 * time.Second)
				if test.withdrawn {
					stream.withdraw(t, subscribe, withdrawal)
				}
				_, _ = client.Authorization(t.Context(), wanted)
				synctest.Wait()
				if client.cache.find(client.keyOf(wanted)) != nil {
					t.Fatal("the entry is not gone")
				}
				if test.anew {
					get(t, client, wanted)
				}
				if got := <-slow; got.Revision != test.given {
					t.Errorf("%s, which was made before, was given", got.Revision)
				}
				if got := get(t, client, wanted); got.Revision != test.given {
					t.Errorf("%s, which was made before, was kept", got.Revision)
				}
			})
		})
	}
}

func TestRefusalsThatLeaveWhatIsHeld(t *testing.T) {
	for name, asked := range map[string]Request{
		"of a refresh, once the stream brought something newer": wanted,
		"of an origin": {Scope: wanted.Scope, Thread: wanted.Thread, TargetURL: "https://another.example"},
		"of a length":  {Scope: wanted.Scope, Thread: wanted.Thread, MinValidity: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broker := &fakeBroker{}
				client, end := broker.start(t)
				defer end()
				get(t, client, wanted)
				stream := <-broker.opened
				subscribe := (<-stream.messages).GetSubscribe()
				broker.get = func(int, *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
					time.Sleep(2 * time.Second)
					return nil, status.Error(codes.PermissionDenied, "no")
				}
				time.Sleep(46 * time.Second) // after which a use begins a refresh
				_, _ = client.Authorization(t.Context(), asked)
				if asked == wanted {
					time.Sleep(time.Second)
					stream.value(t, subscribe, answer("pushed", time.Minute))
				}
				time.Sleep(2 * time.Second)
				if client.cache.find(client.keyOf(wanted)) == nil {
					t.Error("what was held is gone")
				}
			})
		})
	}
}

func TestAnswersThatAreOvertakenAgainAndAgain(t *testing.T) {
	for _, test := range []struct {
		takes time.Duration // each answer
		calls int
		ends  codes.Code
		after time.Duration
	}{
		{time.Second, 4, codes.Aborted, 4 * time.Second},
		{3800 * time.Millisecond, 3, codes.DeadlineExceeded, 10 * time.Second},
	} {
		t.Run(test.takes.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broker := &fakeBroker{}
				client, end := broker.start(t)
				defer end()
				get(t, client, wanted)
				stream := <-broker.opened
				subscribe := (<-stream.messages).GetSubscribe()
				broker.get = func(call int, _ *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
					time.Sleep(test.takes / 2)
					stream.withdraw(t, subscribe, pb.WithdrawalReason_WITHDRAWAL_REASON_IDENTITY_DISABLED)
					time.Sleep(test.takes / 2)
					return answer(fmt.Sprintf("r%d", call), time.Minute), nil
				}
				longer := wanted
				longer.MinValidity = 2 * time.Minute
				began := time.Now()
				_, err := client.Authorization(t.Context(), longer)
				if problem, ok := errors.AsType[*Error](err); !ok || problem.Code != test.ends || time.Since(began) != test.after {
					t.Errorf("%v after %v", err, time.Since(began))
				}
				if calls := broker.getCount() - 1; calls != test.calls {
					t.Errorf("%d calls", calls)
				}
			})
		})
	}
}
