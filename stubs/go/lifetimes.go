package credentialbroker

import (
	"context"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

// clock counts the time since the client was made, on the monotonic clock. All moments in this package are such
// durations: the machine's date may jump, and the broker's is another.
type clock struct{ start time.Time }

func (c clock) now() time.Duration { return time.Since(c.start) }

// lifetime is when an authorization is due for a refresh and when it ends.
type lifetime struct{ due, end time.Duration }

// lifetimeOf counts an answer's times from the moment that it came. Only differences of the broker's own times are used.
func lifetimeOf(answer *pb.Authorization, now time.Duration) lifetime {
	after := func(moment *timestamppb.Timestamp) time.Duration {
		return now + moment.AsTime().Sub(answer.GetServerTime().AsTime())
	}
	end := after(answer.GetExpireTime())
	return lifetime{due: min(after(answer.GetRefreshTime()), end), end: end}
}

// asks is from when on a use asks the broker in the background. Watching, the next value should have come before it was
// due, so that half of what then remains is left for it to come late.
func (l lifetime) asks(watching bool) time.Duration {
	if watching {
		return l.due + (l.end-l.due)/2
	}
	return l.due
}

// serves says whether what is held may be given to somebody who needs it for at least so long.
func (l lifetime) serves(now, minValidity time.Duration) bool {
	return now < l.end && l.end-now >= minValidity
}

// backoff says how long to wait between attempts: `first`, doubling to `most`, each times a random 0.5 to 1.
type backoff struct {
	first, most time.Duration
	random      func() float64 // from 0 to 1; nil: math/rand
	failures    int
}

// next returns the wait after one more failure, no less than what the broker asked for.
func (b *backoff) next(asked time.Duration) time.Duration {
	random := b.random
	if random == nil {
		random = rand.Float64
	}
	wait := b.most
	if b.failures < 16 { // beyond that the shift is far over any `most`
		wait = min(b.most, b.first<<b.failures)
	}
	b.failures++
	return max(asked, time.Duration((0.5+random()/2)*float64(wait)))
}

// reset begins again with the first wait.
func (b *backoff) reset() { b.failures = 0 }

// refuses says whether a code is a decision of the broker, which repeating does not change. After any other failure what
// is held stays in use.
func refuses(code codes.Code) bool {
	switch code {
	case codes.PermissionDenied, codes.FailedPrecondition, codes.InvalidArgument, codes.NotFound:
		return true
	default:
		return false
	}
}

// sleep waits, and says whether it did so to the end.
func sleep(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
