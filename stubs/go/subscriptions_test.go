package credentialbroker

import (
	"strconv"
	"testing"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

// told takes all that the broker is to be told.
func (s *subscriptions) told() (messages []*pb.WatchAuthorizationsRequest) {
	for message := s.next(); message != nil; message = s.next() {
		messages = append(messages, message)
	}
	return messages
}

func TestSubscriptionsAreToldOnceAndAtMostSoMany(t *testing.T) {
	s := newSubscriptions()
	for n := range mostSubscribed + 10 {
		id := strconv.Itoa(n)
		first := s.add(&pb.Subscribe{SubscriptionId: id})
		again := s.add(&pb.Subscribe{SubscriptionId: id, KnownRevision: "newer"})
		if there := n < mostSubscribed; first != there || again != there {
			t.Errorf("%d: %v, %v", n, first, again)
		}
	}
	told := s.told()
	for _, message := range told {
		if message.GetSubscribe().GetKnownRevision() != "newer" {
			t.Errorf("told %v", message)
		}
	}
	if len(told) != mostSubscribed {
		t.Errorf("told of %d", len(told))
	}
	if !s.add(&pb.Subscribe{SubscriptionId: "0"}) || s.add(&pb.Subscribe{SubscriptionId: "one too many"}) {
		t.Error("then one that is there is not, or one is that has no room")
	}
	s.remove("one too many") // of which the broker knows nothing
	if told := s.told(); told != nil {
		t.Errorf("then told %v", told)
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
