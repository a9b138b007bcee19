package credentialbroker

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

func TestLifetimeIsCountedFromReceipt(t *testing.T) {
	server := time.Date(1999, 12, 31, 23, 59, 0, 0, time.UTC) // whatever the date is there
	answer := &pb.Authorization{
		ServerTime:  timestamppb.New(server),
		RefreshTime: timestamppb.New(server.Add(30 * time.Second)),
		ExpireTime:  timestamppb.New(server.Add(time.Minute)),
	}
	want := lifetime{due: 37 * time.Second, end: 67 * time.Second}
	if got := lifetimeOf(answer, 7*time.Second); got != want {
		t.Errorf("%v, want %v", got, want)
	}
	answer.RefreshTime = timestamppb.New(server.Add(time.Hour))
	if got := lifetimeOf(answer, 0); got.due != time.Minute {
		t.Errorf("due at %v, after its end", got.due)
	}
}

func TestWhenAUseAsks(t *testing.T) {
	l := lifetime{due: 30 * time.Second, end: 60 * time.Second}
	if got := l.asks(false); got != 30*time.Second {
		t.Errorf("without a stream at %v", got)
	}
	if got := l.asks(true); got != 45*time.Second {
		t.Errorf("with a stream at %v", got)
	}
}

func TestServes(t *testing.T) {
	l := lifetime{due: 30, end: 60}
	for _, test := range []struct {
		now, minValidity time.Duration
		want             bool
	}{{0, 0, true}, {59, 0, true}, {60, 0, false}, {61, 0, false}, {20, 40, true}, {21, 40, false}} {
		if got := l.serves(test.now, test.minValidity); got != test.want {
			t.Errorf("at %d for %d: %v", test.now, test.minValidity, got)
		}
	}
}

func TestBackoff(t *testing.T) {
	for random, part := range map[float64]float64{0: 0.5, 1: 1} {
		b := backoff{first: retryFirst, most: retryMost, random: func() float64 { return random }}
		for round := range 2 {
			for i, seconds := range []float64{0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10} {
				want := time.Duration(seconds * part * float64(time.Second))
				if got := b.next(0); got != want {
					t.Errorf("round %d: wait %d is %v, want %v", round, i, got, want)
				}
			}
			for range 100 {
				b.next(0)
			}
			if got := b.next(0); got > retryMost || got < retryMost/2 {
				t.Errorf("after many failures %v", got)
			}
			b.reset()
		}
		if got := b.next(time.Minute); got != time.Minute {
			t.Errorf("the broker asked for a minute, and got %v", got)
		}
	}
}

func TestWhatIsARefusal(t *testing.T) {
	refusals := map[codes.Code]bool{
		codes.PermissionDenied: true, codes.FailedPrecondition: true, codes.InvalidArgument: true, codes.NotFound: true,
	}
	for code := range codes.Unauthenticated + 1 {
		if refuses(code) != refusals[code] {
			t.Errorf("%v: %v", code, refuses(code))
		}
	}
}
