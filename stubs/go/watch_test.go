package credentialbroker

import (
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

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

func TestRefreshIsNotLeftToAStreamThatWasLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		client, end := broker.start(t)
		defer end()
		get(t, client, wanted)
		(<-broker.opened).end <- statusOf(t, codes.ResourceExhausted, &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Hour)})
		time.Sleep(30 * time.Second)
		get(t, client, wanted)
		synctest.Wait()
		if broker.getCount() != 2 {
			t.Errorf("%d calls once the value is due", broker.getCount())
		}
	})
}

func TestRefusalOnTheStreamDropsTheValue(t *testing.T) {
	for code, drops := range map[codes.Code]bool{
		codes.PermissionDenied: true, codes.FailedPrecondition: true, codes.NotFound: true,
		codes.Unavailable: false, codes.ResourceExhausted: false,
	} {
		t.Run(code.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broker := &fakeBroker{}
				client, end := broker.start(t)
				defer end()
				held := get(t, client, wanted)
				stream := <-broker.opened
				subscribe := (<-stream.messages).GetSubscribe()
				stream.event(t, &pb.WatchAuthorizationsResponse{
					SubscriptionId: subscribe.GetSubscriptionId(),
					Event: &pb.WatchAuthorizationsResponse_Error{Error: &pb.SubscriptionError{Status: &pb.ErrorStatus{
						Code: int32(code), Reason: pb.ErrorReason_ERROR_REASON_TASK_ENDED,
					}}},
				})
				problem, ok := errors.AsType[*Error](client.State().LastError)
				if !ok || problem.Code != code || problem.ReasonText != "TASK_ENDED" {
					t.Errorf("the last error is %v", client.State().LastError)
				}
				if got := get(t, client, wanted); (got != held) != drops {
					t.Errorf("then %v is given", got)
				}
			})
		})
	}
}

func TestMoreThanAStreamHoldsIsAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		client, end := broker.start(t, WithCacheSize(mostSubscribed+1))
		defer end()
		use := func(n int) { get(t, client, Request{Scope: "inference", Thread: strconv.Itoa(n)}) }
		for n := range mostSubscribed + 1 {
			use(n)
		}
		stream := <-broker.opened
		stream.keepAlive()
		subscribed := map[string]bool{}
		go func() {
			for message := range stream.messages {
				subscribed[message.GetSubscribe().GetThreadId()] = true
			}
		}()
		time.Sleep(30 * time.Second)
		for n := range mostSubscribed + 1 {
			use(n)
		}
		synctest.Wait()
		unwatched := strconv.Itoa(mostSubscribed)
		if asked := broker.gets[mostSubscribed+1:]; len(asked) != 1 || asked[0].GetThreadId() != unwatched {
			t.Fatalf("once due, %v are asked for", asked)
		}
		if subscribed[unwatched] {
			t.Error("more are subscribed than the broker allows")
		}

		client.cache.mu.Lock()
		client.cache.remove(client.cache.find(key{"", "inference", "0"})) // which makes room
		client.cache.mu.Unlock()
		time.Sleep(30 * time.Second)
		use(mostSubscribed)
		synctest.Wait()
		if !subscribed[unwatched] {
			t.Error("what was asked for is not watched though there is room")
		}
	})
}

func TestStreamThatTakesNothingIsToldOnlyWhatIsStillWanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{hears: make(chan struct{})}
		client, end := broker.start(t, WithCacheSize(2))
		defer end()
		long := strings.Repeat("x", 16<<10) // a few of which are all that fits
		for n := range 100 {
			get(t, client, Request{Scope: "inference", Thread: strconv.Itoa(n) + long})
			time.Sleep(time.Millisecond)
		}
		close(broker.hears)
		synctest.Wait()
		stream := <-broker.opened
		told, subscribed := 0, map[string]string{}
		for ; len(stream.messages) > 0; told++ {
			switch message := <-stream.messages; {
			case message.GetSubscribe() != nil:
				subscribed[message.GetSubscribe().GetSubscriptionId()] = strings.TrimRight(message.GetSubscribe().GetThreadId(), "x")
			default:
				delete(subscribed, message.GetUnsubscribe().GetSubscriptionId())
			}
		}
		if threads := slices.Sorted(maps.Values(subscribed)); !slices.Equal(threads, []string{"98", "99"}) || told > 50 {
			t.Errorf("told %d times, in the end subscribed to %v", told, threads)
		}
	})
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
		synctest.Wait() // until the client knows it as well
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

func TestValueThatTheNextStreamOvertook(t *testing.T) {
	broker := &fakeBroker{}
	client, end := broker.start(t)
	defer end()
	get(t, client, wanted)
	old := <-broker.opened
	subscribe := (<-old.messages).GetSubscribe()
	client.cache.mu.Lock()
	err := old.send(&pb.WatchAuthorizationsResponse{
		SubscriptionId: subscribe.GetSubscriptionId(),
		Event:          &pb.WatchAuthorizationsResponse_Authorization{Authorization: answer("old", time.Minute)},
	})
	time.Sleep(100 * time.Millisecond) // until it waits for the lock, as it may while another stream opens
	client.watcher.mu.Lock()
	client.watcher.current = &stream{subscriptions: newSubscriptions()}
	client.watcher.mu.Unlock()
	client.cache.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	if got := get(t, client, wanted); got.Revision != "r1" {
		t.Errorf("%s of the old stream", got.Revision)
	}
}

func TestSilenceIsCountedFromTheBeginningOfAStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		client, end := broker.start(t)
		defer end()
		get(t, client, wanted)
		<-broker.opened
		broker.lose(4 * time.Second) // for which the next stream waits
		stream := <-broker.opened
		began := time.Now()
		<-stream.gone
		if lived := time.Since(began); lived < 59*time.Second || lived > time.Minute {
			t.Errorf("a silent stream lived for %v", lived)
		}
	})
}

func TestStreamThatIsClosingAndDoesNotEndIsEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		client, end := broker.start(t)
		defer end()
		get(t, client, wanted)
		old := <-broker.opened
		old.keepAlive()
		for range 2 { // the second one says nothing new
			old.event(t, &pb.WatchAuthorizationsResponse{Event: &pb.WatchAuthorizationsResponse_Closing{Closing: &pb.Closing{}}})
		}
		(<-broker.opened).keepAlive()
		select {
		case <-old.gone:
		case <-time.After(time.Minute):
			t.Error("it lives on")
		}
		time.Sleep(time.Hour)
		if broker.streamCount() != 2 || !client.State().Watching {
			t.Errorf("%d streams, watching %v", broker.streamCount(), client.State().Watching)
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
