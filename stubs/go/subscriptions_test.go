package credentialbroker

import (
	"strconv"
	"testing"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

// told takes all that the broker is to be told.
func (s *subscriptions) told() (joined, left int) {
	for message := s.next(); message != nil; message = s.next() {
		if message.GetSubscribe() != nil {
			joined++
		} else {
			left++
		}
	}
	return joined, left
}

func TestSubscriptionsAreToldOnceAndAtMostSoMany(t *testing.T) {
	s := newSubscriptions()
	for id := range mostSubscribed + 10 {
		s.add(&pb.Subscribe{SubscriptionId: strconv.Itoa(id)})
		s.add(&pb.Subscribe{SubscriptionId: strconv.Itoa(id)})
	}
	if joined, left := s.told(); joined != mostSubscribed || left != 0 {
		t.Errorf("%d joined, %d left", joined, left)
	}
	s.add(&pb.Subscribe{SubscriptionId: "0"})
	s.add(&pb.Subscribe{SubscriptionId: "one too many"})
	s.remove("one too many") // of which the broker knows nothing
	if joined, left := s.told(); joined != 0 || left != 0 {
		t.Errorf("then %d joined, %d left", joined, left)
	}
}

func TestSubscriptionsLeaveBeforeOthersJoin(t *testing.T) {
	s := newSubscriptions()
	for id := range mostSubscribed {
		s.add(&pb.Subscribe{SubscriptionId: strconv.Itoa(id)})
	}
	s.told()
	s.remove("7")
	s.add(&pb.Subscribe{SubscriptionId: "another"})
	if first, second := s.next(), s.next(); first.GetUnsubscribe().GetSubscriptionId() != "7" || second.GetSubscribe().GetSubscriptionId() != "another" {
		t.Errorf("%v before %v", first, second)
	}
}

func TestSubscriptionsThatComeAndGoUntoldAreForgotten(t *testing.T) {
	s := newSubscriptions()
	for id := range 10 * mostSubscribed {
		s.add(&pb.Subscribe{SubscriptionId: strconv.Itoa(id)})
		s.remove(strconv.Itoa(id))
	}
	if kept := len(s.joining) + len(s.joined) + len(s.leaving); kept != 0 || s.next() != nil {
		t.Errorf("%d are kept", kept)
	}
}
