package credentialbroker

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

// endsTasks is a broker that refuses what is asked for a thread after it was ended.
func endsTasks() *fakeBroker {
	ended := map[string]bool{}
	broker := &fakeBroker{}
	broker.get = func(call int, request *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
		broker.mu.Lock()
		defer broker.mu.Unlock()
		if ended[request.GetThreadId()] {
			return nil, status.Error(codes.FailedPrecondition, "the task ended")
		}
		return answer(fmt.Sprintf("r%d", call), time.Minute), nil
	}
	broker.endOf = func(request *pb.EndTaskRequest) error {
		broker.mu.Lock()
		defer broker.mu.Unlock()
		ended[request.GetThreadId()] = true
		return nil
	}
	return broker
}

func refused(err error) bool {
	problem, ok := errors.AsType[*Error](err)
	return ok && problem.Code == codes.FailedPrecondition
}

func TestEndOfATaskDropsWhatIsHeldOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, end := endsTasks().start(t, WithoutWatch(), WithIdentity("i"))
		defer end()
		of := []Request{wanted, {Scope: "models", Thread: "t1"}}
		others := []Request{{Scope: "inference", Thread: "t2"}, {Scope: "inference", Thread: "t1", Identity: "j"}, {Scope: "inference"}}
		held := map[Request]*Authorization{}
		for _, request := range append(others, of...) {
			held[request] = get(t, client, request)
		}
		connection, err := client.Connection(t.Context(), wanted)
		if err != nil {
			t.Fatal(err)
		}
		if task, err := client.EndTask(t.Context(), "t1", ""); err != nil || task.GetThreadId() != "t1" {
			t.Fatalf("%v, %v", task, err)
		}
		<-connection.Changed()
		for _, request := range of {
			if got, err := client.Authorization(t.Context(), request); !refused(err) {
				t.Errorf("%v: %v, %v", request, got, err)
			}
		}
		for _, request := range others {
			if got := get(t, client, request); got != held[request] {
				t.Errorf("%v: %v was dropped", request, held[request])
			}
		}
	})
}

func TestCallOfOneUserAlone(t *testing.T) {
	for name, test := range map[string]struct {
		meanwhile func(client *Client, cancel context.CancelFunc)
		want      error
		after     time.Duration
	}{
		"is bounded":   {func(*Client, context.CancelFunc) {}, context.DeadlineExceeded, 5 * time.Second},
		"is cancelled": {func(_ *Client, cancel context.CancelFunc) { cancel() }, context.Canceled, time.Second},
		"is closed":    {func(client *Client, _ context.CancelFunc) { _ = client.Close() }, ErrClosed, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broker := &fakeBroker{endOf: func(*pb.EndTaskRequest) error {
					time.Sleep(20 * time.Second)
					return nil
				}}
				client, end := broker.start(t, WithTimeout(5*time.Second))
				defer end()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				time.AfterFunc(time.Second, func() { test.meanwhile(client, cancel) })
				began := time.Now()
				if _, err := client.EndTask(ctx, "t1", ""); !errors.Is(err, test.want) || time.Since(began) != test.after {
					t.Errorf("%v after %v", err, time.Since(began))
				}
			})
		})
	}
}

func TestMetadataOfAUsersContextIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, end := endsTasks().start(t)
		defer end()
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-credential-broker", "of the user's own calls")
		if _, err := client.EndTask(ctx, "t1", ""); err != nil {
			t.Error(err)
		}
	})
}

func TestEndOfATaskThatFailsDropsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := endsTasks()
		broker.endOf = func(*pb.EndTaskRequest) error { return status.Error(codes.PermissionDenied, "no") }
		client, end := broker.start(t)
		defer end()
		held := get(t, client, wanted)
		if task, err := client.EndTask(t.Context(), "t1", ""); task != nil || err == nil {
			t.Errorf("%v, %v", task, err)
		}
		if got := get(t, client, wanted); got != held {
			t.Errorf("%v was dropped", held)
		}
	})
}

func TestAnswersThatTheEndOfATaskOvertook(t *testing.T) {
	for name, before := range map[string][]Request{
		"a first use":              nil,
		"another of the entry":     {wanted},
		"a first use of its scope": {{Scope: "models", Thread: "t1"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broker := endsTasks()
				client, end := broker.start(t)
				defer end()
				for _, request := range before {
					get(t, client, request)
				}
				quick := broker.get
				broker.get = func(call int, request *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
					made, err := quick(call, request)
					time.Sleep(2 * time.Second)
					return made, err
				}
				slow := make(chan error)
				longer := wanted
				longer.MinValidity = 61 * time.Second
				go func() {
					_, err := client.Authorization(t.Context(), longer)
					slow <- err
				}()
				time.Sleep(time.Second)
				if _, err := client.EndTask(t.Context(), "t1", ""); err != nil {
					t.Fatal(err)
				}
				if err := <-slow; !refused(err) {
					t.Errorf("what was asked for before the end was given: %v", err)
				}
				if got, err := client.Authorization(t.Context(), wanted); !refused(err) {
					t.Errorf("what was asked for before the end was kept: %v", got)
				}
			})
		})
	}
}

func TestValueThatTheEndOfATaskOvertook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := endsTasks()
		client, end := broker.start(t)
		defer end()
		get(t, client, wanted)
		stream := <-broker.opened
		subscribe := (<-stream.messages).GetSubscribe()
		if _, err := client.EndTask(t.Context(), "t1", ""); err != nil {
			t.Fatal(err)
		}
		stream.value(t, subscribe, answer("pushed", time.Minute))
		if got, err := client.Authorization(t.Context(), wanted); !refused(err) {
			t.Errorf("what was sent before the end was kept: %v", got)
		}
	})
}

func TestATaskThatBeganAnewIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{endOf: func(*pb.EndTaskRequest) error { return nil }}
		client, end := broker.start(t)
		defer end()
		get(t, client, wanted)
		stream := <-broker.opened
		subscribe := (<-stream.messages).GetSubscribe()
		if _, err := client.EndTask(t.Context(), "t1", ""); err != nil {
			t.Fatal(err)
		}
		stream.withdraw(t, subscribe, pb.WithdrawalReason_WITHDRAWAL_REASON_TASK_ENDED)
		if got := get(t, client, wanted); got.Revision != "r2" || got != get(t, client, wanted) || broker.getCount() != 2 {
			t.Errorf("%v after %d calls", got, broker.getCount())
		}
		stream.value(t, subscribe, answer("pushed", time.Minute))
		if got := get(t, client, wanted); got.Revision != "pushed" {
			t.Errorf("%v after the stream brought another", got)
		}
	})
}
