package credentialbroker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

var wanted = Request{Scope: "inference", Thread: "t1"}

func TestServiceConfigIsTheShippedOne(t *testing.T) {
	shipped, err := os.ReadFile("../../protos/service_config.json")
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("outside the repository")
	}
	if err != nil || string(shipped) != serviceConfig {
		t.Errorf("service_config.json is not protos/service_config.json: %v", err)
	}
}

func TestVersionIsThatOfTheBroker(t *testing.T) {
	project, err := os.ReadFile("../../pyproject.toml")
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("outside the repository")
	}
	if err != nil || !strings.Contains(string(project), "\nversion = \""+Version+"\"\n") {
		t.Errorf("%s is not the version of pyproject.toml: %v", Version, err)
	}
}

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

// keepAlive sends heartbeats until the stream ends.
func (s *fakeStream) keepAlive() {
	go func() {
		beat := time.NewTicker(20 * time.Second)
		defer beat.Stop()
		for {
			select {
			case <-beat.C:
				_ = s.send(&pb.WatchAuthorizationsResponse{Event: &pb.WatchAuthorizationsResponse_Heartbeat{Heartbeat: &pb.Heartbeat{}}})
			case <-s.gone:
				return
			}
		}
	}()
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

func TestTargetIsAskedOnceForAnOrigin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		client, end := broker.start(t, WithoutWatch())
		defer end()
		at := func(url string) Request { r := wanted; r.TargetURL = url; return r }
		get(t, client, wanted)
		get(t, client, at("https://One.example/a"))
		get(t, client, at("https://one.example:443/b?c"))
		if broker.getCount() != 2 || broker.gets[1].GetTargetUrl() != "https://one.example:443" {
			t.Errorf("%v", broker.gets)
		}
		for i := range 8 {
			get(t, client, at(fmt.Sprintf("https://%d.example", i)))
		}
		calls := broker.getCount()
		get(t, client, at("https://one.example"))
		if broker.getCount() != calls+1 {
			t.Error("more than 8 origins are remembered")
		}
	})
}

func TestOriginsAreThoseOfOneCredential(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, stream *fakeStream, to *pb.Subscribe){
		"withdrawn": func(t *testing.T, stream *fakeStream, to *pb.Subscribe) {
			stream.withdraw(t, to, pb.WithdrawalReason_WITHDRAWAL_REASON_IDENTITY_DELETED)
		},
		"withdrawn and replaced": func(t *testing.T, stream *fakeStream, to *pb.Subscribe) {
			stream.withdraw(t, to, pb.WithdrawalReason_WITHDRAWAL_REASON_IDENTITY_DELETED)
			stream.value(t, to, answer("pushed", time.Minute))
		},
		"replaced by one of another tag": func(t *testing.T, stream *fakeStream, to *pb.Subscribe) {
			another := answer("pushed", time.Minute)
			another.ConnectionTag = "another"
			stream.value(t, to, another)
		},
		"ended, and what is asked for next has another tag": func(*testing.T, *fakeStream, *pb.Subscribe) {
			time.Sleep(time.Minute)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broker := &fakeBroker{get: func(call int, request *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
					if call > 1 && request.GetTargetUrl() != "" {
						return nil, status.Error(codes.PermissionDenied, "not the backend's")
					}
					value := answer(fmt.Sprintf("r%d", call), time.Minute)
					if call > 1 {
						value.ConnectionTag = "of-another-identity"
					}
					return value, nil
				}}
				client, end := broker.start(t)
				defer end()
				there := wanted
				there.TargetURL = "https://backend.example"
				get(t, client, there)
				stream := <-broker.opened
				change(t, stream, (<-stream.messages).GetSubscribe())
				if got, err := client.Authorization(t.Context(), there); err == nil {
					t.Errorf("%v is given for an origin that it was not allowed for", got)
				}
			})
		})
	}
}

func TestTargetThatWasAllowedToWhatIsNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{get: func(call int, _ *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
			if call == 2 {
				time.Sleep(2 * time.Second)
			}
			return answer(fmt.Sprintf("r%d", call), time.Minute), nil
		}}
		client, end := broker.start(t)
		defer end()
		get(t, client, wanted)
		stream := <-broker.opened
		subscribe := (<-stream.messages).GetSubscribe()
		time.AfterFunc(time.Second, func() {
			another := answer("pushed", time.Minute)
			another.ConnectionTag = "another"
			stream.value(t, subscribe, another)
		})
		there := wanted
		there.TargetURL = "https://backend.example"
		if got := get(t, client, there); got.Revision != "r3" {
			t.Errorf("%s is given", got.Revision)
		}
	})
}

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

func TestStreamBringsValues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		client, end := broker.start(t)
		defer end()
		get(t, client, wanted)
		stream := <-broker.opened
		subscribe := (<-stream.messages).GetSubscribe()
		if subscribe.GetScope() != "inference" || subscribe.GetThreadId() != "t1" || subscribe.GetKnownRevision() != "r1" {
			t.Errorf("subscribed with %v", subscribe)
		}
		stream.value(t, subscribe, answer("pushed", time.Minute))
		if got := get(t, client, wanted); got.Revision != "pushed" {
			t.Errorf("%s after a push", got.Revision)
		}
		stream.withdraw(t, subscribe, pb.WithdrawalReason(99))
		if got := get(t, client, wanted); got.Revision != "r2" {
			t.Errorf("%s after a withdrawal", got.Revision)
		}
	})
}

func (s *fakeStream) value(t *testing.T, to *pb.Subscribe, value *pb.Authorization) {
	s.event(t, &pb.WatchAuthorizationsResponse{SubscriptionId: to.GetSubscriptionId(), Event: &pb.WatchAuthorizationsResponse_Authorization{Authorization: value}})
}

func (s *fakeStream) withdraw(t *testing.T, from *pb.Subscribe, why pb.WithdrawalReason) {
	s.event(t, &pb.WatchAuthorizationsResponse{SubscriptionId: from.GetSubscriptionId(), Event: &pb.WatchAuthorizationsResponse_Withdrawal{Withdrawal: &pb.Withdrawal{Reason: why}}})
}

// event sends something and waits until the client did what it says.
func (s *fakeStream) event(t *testing.T, event *pb.WatchAuthorizationsResponse) {
	t.Helper()
	if err := s.send(event); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

func TestAnswerThatWasOvertaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		broker.get = func(call int, _ *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
			if call == 2 {
				time.Sleep(5 * time.Second)
			}
			return answer(fmt.Sprintf("r%d", call), time.Minute), nil
		}
		client, end := broker.start(t)
		defer end()
		get(t, client, wanted)
		stream := <-broker.opened
		subscribe := (<-stream.messages).GetSubscribe()
		longer := wanted
		longer.MinValidity = 2 * time.Minute
		slow := make(chan *Authorization)
		go func() { slow <- get(t, client, longer) }()
		time.Sleep(time.Second)
		stream.withdraw(t, subscribe, pb.WithdrawalReason_WITHDRAWAL_REASON_IDENTITY_DISABLED)
		if got := <-slow; got.Revision != "r3" {
			t.Errorf("%s, which was made before the withdrawal, was given", got.Revision)
		}
		if got := get(t, client, wanted); got.Revision != "r3" {
			t.Errorf("%s, which was made before the withdrawal, was kept", got.Revision)
		}
	})
}

func TestAnswerThatOutlivedItsEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		broker.get = func(call int, _ *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
			switch call {
			case 2:
				time.Sleep(5 * time.Second)
			case 3:
				return nil, status.Error(codes.PermissionDenied, "no")
			}
			return answer(fmt.Sprintf("r%d", call), time.Minute), nil
		}
		client, end := broker.start(t)
		defer end()
		get(t, client, wanted)
		stream := <-broker.opened
		subscribe := (<-stream.messages).GetSubscribe()
		longer := wanted
		longer.MinValidity = 2 * time.Minute
		slow := make(chan *Authorization)
		go func() { slow <- get(t, client, longer) }()
		time.Sleep(time.Second)
		stream.withdraw(t, subscribe, pb.WithdrawalReason_WITHDRAWAL_REASON_IDENTITY_DISABLED)
		if _, err := client.Authorization(t.Context(), wanted); err == nil || client.cache.find(client.keyOf(wanted)) != nil {
			t.Fatalf("the entry is not gone: %v", err)
		}
		if got := <-slow; got.Revision != "r4" {
			t.Errorf("%s, which was made before the withdrawal, was given", got.Revision)
		}
		if got := get(t, client, wanted); got.Revision != "r4" {
			t.Errorf("%s, which was made before the withdrawal, was kept", got.Revision)
		}
	})
}

func TestAnswersThatAreOvertakenAgainAndAgain(t *testing.T) {
	for _, test := range []struct {
		takes time.Duration // each answer
		calls int
		ends  codes.Code
		after time.Duration
	}{
		{time.Second, 4, codes.Aborted, 4 * time.Second},
		{4 * time.Second, 3, codes.DeadlineExceeded, 10 * time.Second},
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

func TestStreamsAreNeverOpenedWithoutAWait(t *testing.T) {
	for name, ending := range map[string]error{"OK": nil, "UNAVAILABLE": errUnavailable} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broker := &fakeBroker{}
				client, end := broker.start(t)
				defer end()
				get(t, client, wanted)
				last := time.Now()
				for i, most := range []time.Duration{0, 200, 400, 800, 1600, 3200, 6400, 10000, 10000} {
					stream := <-broker.opened
					most *= time.Millisecond
					if wait := time.Since(last); wait < most/2 || wait > most {
						t.Errorf("wait %d was %v, not %v to %v", i, wait, most/2, most)
					}
					last = time.Now()
					stream.end <- ending
				}
				stream := <-broker.opened
				time.Sleep(6 * time.Second)
				last = time.Now()
				stream.end <- ending
				<-broker.opened
				if wait := time.Since(last); wait > 200*time.Millisecond {
					t.Errorf("after a stream that lived the wait was %v", wait)
				}
			})
		})
	}
}

func TestStreamWaitsAsTheBrokerAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		client, end := broker.start(t)
		defer end()
		get(t, client, wanted)
		old := <-broker.opened
		old.event(t, &pb.WatchAuthorizationsResponse{Event: &pb.WatchAuthorizationsResponse_Closing{Closing: &pb.Closing{RetryDelay: durationpb.New(7 * time.Second)}}})
		began := time.Now()
		next := <-broker.opened
		if wait := time.Since(began); wait != 7*time.Second {
			t.Errorf("opened after %v", wait)
		}
		if !client.State().Watching {
			t.Error("not watching while the old stream lives")
		}
		// What the old stream still brings is not newer than what the new one does.
		first := (<-old.messages).GetSubscribe()
		old.value(t, first, answer("old", time.Minute))
		if got := get(t, client, wanted); got.Revision != "r1" {
			t.Errorf("%s of the old stream", got.Revision)
		}
		next.value(t, (<-next.messages).GetSubscribe(), answer("new", time.Minute))
		old.end <- nil
		synctest.Wait()
		if got := get(t, client, wanted); got.Revision != "new" || !client.State().Watching {
			t.Errorf("%s, watching %v", got.Revision, client.State().Watching)
		}
	})
}

func TestStreamThatWasRefusedWaitsAsTheBrokerAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		client, end := broker.start(t)
		defer end()
		get(t, client, wanted)
		stream := <-broker.opened
		began := time.Now()
		stream.end <- statusOf(t, codes.ResourceExhausted, &errdetails.RetryInfo{RetryDelay: durationpb.New(25 * time.Second)})
		<-broker.opened
		if wait := time.Since(began); wait != 25*time.Second {
			t.Errorf("opened after %v", wait)
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

func TestEndedValueWithAKnownTargetIsAPlainQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		client, end := broker.start(t, WithoutWatch())
		defer end()
		there := wanted
		there.TargetURL = "https://backend.example"
		get(t, client, there)
		time.Sleep(time.Minute)
		get(t, client, there)
		if broker.gets[0].GetTargetUrl() == "" || broker.gets[1].GetTargetUrl() != "" {
			t.Errorf("the origin was asked for with %v", broker.gets)
		}
	})
}

func TestSilentStreamIsEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{get: func(int, *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
			return answer("r", time.Hour), nil
		}}
		client, end := broker.start(t)
		defer end()
		get(t, client, wanted)
		stream := <-broker.opened
		time.Sleep(59 * time.Second)
		stream.event(t, &pb.WatchAuthorizationsResponse{Event: &pb.WatchAuthorizationsResponse_Heartbeat{Heartbeat: &pb.Heartbeat{}}})
		time.Sleep(59 * time.Second)
		if !client.State().Watching || broker.streamCount() != 1 {
			t.Error("ended too early")
		}
		time.Sleep(2 * time.Second)
		if broker.streamCount() != 2 {
			t.Error("not ended")
		}
	})
}

// said is a log that a test may read while it is written to.
type said struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *said) Write(text []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(text)
}

func (s *said) count(what string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.text.String(), what)
}

func (s *said) logger() Option { return WithLogger(slog.New(slog.NewTextHandler(s, nil))) }

func TestBackOnlyWithAWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{mute: true, get: func(int, *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
			return answer("r", time.Hour), nil
		}}
		var log said
		client, end := broker.start(t, log.logger())
		defer end()
		get(t, client, wanted)
		time.Sleep(200 * time.Second) // of which no stream says anything
		if broker.streamCount() < 3 || log.count("is away") != 1 || log.count("is back") != 0 || client.State().Watching {
			t.Errorf("%d streams, watching %v: %s", broker.streamCount(), client.State().Watching, log.text.String())
		}
		for range broker.streamCount() - 1 {
			<-broker.opened
		}
		(<-broker.opened).event(t, &pb.WatchAuthorizationsResponse{Event: &pb.WatchAuthorizationsResponse_Heartbeat{Heartbeat: &pb.Heartbeat{}}})
		if log.count("is back") != 1 || !client.State().Watching {
			t.Errorf("watching %v: %s", client.State().Watching, log.text.String())
		}
	})
}

func TestAwayWithoutAWatch(t *testing.T) {
	for name, ctxEnds := range map[string]time.Duration{"the client's time": time.Minute, "a user's time": 3 * time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broker := &fakeBroker{}
				var log said
				refused := WithDialOptions(grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
					return nil, errors.New("connection refused")
				}))
				client, end := broker.start(t, WithoutWatch(), log.logger(), refused)
				defer end()
				for range 3 {
					ctx, cancel := context.WithTimeout(t.Context(), ctxEnds)
					if _, err := client.Authorization(ctx, wanted); !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("%v", err)
					}
					cancel()
					synctest.Wait()
				}
				if log.count("is away") != 1 {
					t.Errorf("said: %s", log.text.String())
				}
			})
		})
	}
}

func TestKnownRevisionsOfAnotherStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{get: func(_ int, request *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
			seconds, _ := strconv.Atoi(request.GetThreadId())
			return answer("of-"+request.GetThreadId(), time.Duration(seconds)*time.Second), nil
		}}
		client, end := broker.start(t)
		defer end()
		get(t, client, Request{Scope: "inference", Thread: "60"})
		get(t, client, Request{Scope: "inference", Thread: "20"})
		first := <-broker.opened
		time.Sleep(15 * time.Second) // the second one is due
		first.end <- nil
		next := <-broker.opened
		known := map[string]string{}
		for range 2 {
			subscribe := (<-next.messages).GetSubscribe()
			known[subscribe.GetThreadId()] = subscribe.GetKnownRevision()
		}
		if known["60"] != "of-60" || known["20"] != "" {
			t.Errorf("%v", known)
		}
	})
}

func TestReportRejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{report: func(int, *pb.ReportRejectedRequest) (*pb.Authorization, error) {
			time.Sleep(time.Second)
			return answer("better", time.Minute), nil
		}}
		client, end := broker.start(t)
		defer end()
		rejected := get(t, client, wanted)
		var running sync.WaitGroup
		for range 20 {
			running.Go(func() {
				if got, err := client.ReportRejected(t.Context(), rejected, strings.Repeat("w", 300)); err != nil || got.Revision != "better" {
					t.Errorf("%v, %v", got, err)
				}
			})
		}
		running.Wait()
		if got, err := client.ReportRejected(t.Context(), rejected, ""); err != nil || got != get(t, client, wanted) {
			t.Errorf("once it is replaced: %v, %v", got, err)
		}
		if len(broker.reports) != 1 || broker.getCount() != 1 {
			t.Fatalf("%d reports, %d calls", len(broker.reports), broker.getCount())
		}
		if one := broker.reports[0]; one.GetRevision() != "r1" || one.GetHttpStatus() != 401 || one.GetDetail() != strings.Repeat("w", 256) || one.GetScope() != "inference" || one.GetThreadId() != "t1" {
			t.Errorf("%v", one)
		}
	})
}

func TestReportBetweenWithdrawalAndValue(t *testing.T) {
	for reason, kept := range map[pb.WithdrawalReason]bool{
		pb.WithdrawalReason_WITHDRAWAL_REASON_CREDENTIAL_REJECTED: true,
		pb.WithdrawalReason_WITHDRAWAL_REASON_IDENTITY_DISABLED:   false,
	} {
		t.Run(reason.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broker := &fakeBroker{report: func(int, *pb.ReportRejectedRequest) (*pb.Authorization, error) {
					time.Sleep(2 * time.Second)
					return answer("better", time.Minute), nil
				}}
				client, end := broker.start(t)
				defer end()
				rejected := get(t, client, wanted)
				stream := <-broker.opened
				subscribe := (<-stream.messages).GetSubscribe()
				time.AfterFunc(time.Second, func() { stream.withdraw(t, subscribe, reason) })
				got, err := client.ReportRejected(t.Context(), rejected, "")
				if err != nil {
					t.Fatal(err)
				}
				if (got.Revision == "better") != kept {
					t.Errorf("%s is given", got.Revision)
				}
				if got := get(t, client, wanted); (got.Revision == "better") != kept {
					t.Errorf("then %s is given", got.Revision)
				}
			})
		})
	}
}

func TestReportThatIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{report: func(int, *pb.ReportRejectedRequest) (*pb.Authorization, error) {
			return nil, status.Error(codes.FailedPrecondition, "nothing is left to try")
		}}
		client, end := broker.start(t)
		defer end()
		_, err := client.ReportRejected(t.Context(), get(t, client, wanted), "")
		if problem, ok := errors.AsType[*Error](err); !ok || problem.Code != codes.FailedPrecondition {
			t.Errorf("%v", err)
		}
		if got := get(t, client, wanted); got.Revision != "r2" {
			t.Errorf("%s is still given", got.Revision)
		}
	})
}

func TestReportThatIsRefusedDropsWhatWasReportedAlone(t *testing.T) {
	for name, test := range map[string]struct {
		code   codes.Code
		before bool // it was replaced, by something that has ended
		pushed bool // it is replaced while it is reported
		drops  bool
	}{
		"refused": {codes.PermissionDenied, false, false, true},
		// Something is wrong with the report, which says nothing of what is held.
		"not understood":     {codes.InvalidArgument, false, false, false},
		"replaced meanwhile": {codes.PermissionDenied, false, true, false},
		"replaced long ago":  {codes.PermissionDenied, true, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broker := &fakeBroker{}
				client, end := broker.start(t)
				defer end()
				rejected := get(t, client, wanted)
				stream := <-broker.opened
				subscribe := (<-stream.messages).GetSubscribe()
				if test.before {
					stream.value(t, subscribe, answer("ended", time.Second))
					time.Sleep(time.Second)
				}
				broker.report = func(int, *pb.ReportRejectedRequest) (*pb.Authorization, error) {
					if test.pushed {
						stream.value(t, subscribe, answer("pushed", time.Minute))
					}
					return nil, status.Error(test.code, "no")
				}
				if _, err := client.ReportRejected(t.Context(), rejected, ""); err == nil {
					t.Error("no error")
				}
				if dropped := client.cache.find(client.keyOf(wanted)) == nil; dropped != test.drops {
					t.Errorf("dropped: %v", dropped)
				}
			})
		})
	}
}

func TestConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		client, end := broker.start(t)
		defer end()
		connect := func() *Connection {
			connection, err := client.Connection(t.Context(), wanted)
			if err != nil {
				t.Fatal(err)
			}
			return connection
		}
		connection := connect()
		stream := <-broker.opened
		subscribe := (<-stream.messages).GetSubscribe()
		stream.value(t, subscribe, answer("refreshed", time.Minute))
		if connection.Err() != nil {
			t.Error("another revision of the same tag is no reason to dial anew")
		}
		moved := answer("moved", time.Minute)
		moved.ConnectionTag = "another"
		stream.value(t, subscribe, moved)
		<-connection.Changed()
		if connection.Err() == nil {
			t.Error("no word of another tag")
		}

		withdrawn := connect()
		stream.withdraw(t, subscribe, pb.WithdrawalReason_WITHDRAWAL_REASON_TASK_ENDED)
		<-withdrawn.Changed()

		closed := connect()
		end()
		<-closed.Changed()
		if !errors.Is(closed.Err(), ErrClosed) || errors.Is(withdrawn.Err(), ErrClosed) {
			t.Errorf("%v, %v", closed.Err(), withdrawn.Err())
		}
		_ = closed.Close()
		_ = closed.Close()
	})
}

func TestConnectionIsRefreshedWithoutAWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{get: func(call int, _ *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
			value := answer(fmt.Sprintf("r%d", call), time.Minute)
			value.ConnectionTag = fmt.Sprintf("tag-%d", call/3)
			return value, nil
		}}
		client, end := broker.start(t, WithoutWatch())
		defer end()
		connection, err := client.Connection(t.Context(), wanted)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		<-connection.Changed()
		if got := time.Since(began); got < 59*time.Second || got > 62*time.Second {
			t.Errorf("learned of the third value after %v", got)
		}
	})
}

func TestWhatTheUserCancelsIsNoErrorOfTheBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{get: func(int, *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
			time.Sleep(5 * time.Second)
			return answer("late", time.Minute), nil
		}}
		client, end := broker.start(t)
		defer end()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, err := client.Authorization(ctx, wanted); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		synctest.Wait()
		if err := client.State().LastError; err != nil {
			t.Errorf("the last error is %v", err)
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
