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
