package credentialbroker

import pb "credentialbroker.dev/stubs/go/credentialbroker/v1"

// mostSubscribed is how many subscriptions the broker allows on a stream. Other entries are asked for.
const mostSubscribed = 1000

// subscriptions are those of one stream: what the broker was told, and what it is still to be told. They are what is
// wanted rather than a queue of messages, so that a stream which takes none costs no more than what is subscribed.
type subscriptions struct {
	joining map[string]*pb.Subscribe // to be told, by id
	joined  map[string]struct{}      // told
	leaving map[string]struct{}      // told, and to be taken back
	wanting chan struct{}            // has one element when there is something to tell
}

func newSubscriptions() subscriptions {
	return subscriptions{
		joining: map[string]*pb.Subscribe{},
		joined:  map[string]struct{}{},
		leaving: map[string]struct{}{},
		wanting: make(chan struct{}, 1),
	}
}

// add wants a subscription, and says whether there is one: there may be no room. What was not told yet is told as it was
// last wanted.
func (s *subscriptions) add(subscribe *pb.Subscribe) bool {
	id := subscribe.GetSubscriptionId()
	if _, joined := s.joined[id]; joined {
		return true
	}
	if _, joining := s.joining[id]; !joining && len(s.joined)+len(s.joining) >= mostSubscribed {
		return false
	}
	s.joining[id] = subscribe
	s.wake()
	return true
}

// remove wants a subscription no longer. One that the broker does not know of it need not be told of either.
func (s *subscriptions) remove(id string) {
	delete(s.joining, id)
	if _, joined := s.joined[id]; joined {
		delete(s.joined, id)
		s.leaving[id] = struct{}{}
		s.wake()
	}
}

func (s *subscriptions) wake() {
	select {
	case s.wanting <- struct{}{}:
	default:
	}
}

// next returns what to tell the broker next, or nil. What leaves comes first: it makes room for what joins.
func (s *subscriptions) next() *pb.WatchAuthorizationsRequest {
	for id := range s.leaving {
		delete(s.leaving, id)
		return &pb.WatchAuthorizationsRequest{Action: &pb.WatchAuthorizationsRequest_Unsubscribe{
			Unsubscribe: &pb.Unsubscribe{SubscriptionId: id},
		}}
	}
	for id, subscribe := range s.joining {
		delete(s.joining, id)
		s.joined[id] = struct{}{}
		return &pb.WatchAuthorizationsRequest{Action: &pb.WatchAuthorizationsRequest_Subscribe{Subscribe: subscribe}}
	}
	return nil
}
