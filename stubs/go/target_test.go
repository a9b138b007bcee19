package credentialbroker

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

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
