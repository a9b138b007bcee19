package credentialbroker

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

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

func TestAwayIsSaidOnce(t *testing.T) {
	var log bytes.Buffer
	p := presence{
		logger:  slog.New(slog.NewTextHandler(&log, nil)),
		holds:   func() (int, time.Duration) { return 3, 20 * time.Second },
		failing: func() bool { return false },
	}
	refusal := errorOf(statusOf(t, codes.PermissionDenied, &errdetails.ErrorInfo{Reason: "NOT_ALLOWED", Domain: "credentialbroker.v1"}))
	away := errorOf(errUnavailable)
	for range 2 {
		log.Reset()
		p.answered()
		p.failed(refusal)
		if log.Len() > 0 {
			t.Errorf("a broker that refuses is not away: %s", log.String())
		}
		p.failed(away)
		p.failed(errorOf(context.DeadlineExceeded)) // which nobody answered
		p.failed(away)
		if text := log.String(); strings.Count(text, "the broker is away") != 1 || !strings.Contains(text, "level=WARN") ||
			!strings.Contains(text, "held=3") || !strings.Contains(text, "first_ends_in=20s") {
			t.Error(text)
		}
		if p.lastError() != error(away) {
			t.Errorf("%v", p.lastError())
		}
		p.failed(refusal) // which comes from a broker that is there
		if text := log.String(); !strings.Contains(text, "level=INFO") || !strings.Contains(text, "the broker is back") {
			t.Errorf("a broker that refuses is back: %s", text)
		}
		p.answered()
		if strings.Count(log.String(), "the broker is back") != 1 {
			t.Error(log.String())
		}
	}
	log.Reset()
	p.failing = func() bool { return true }
	p.failed(refusal)
	if log.Len() > 0 {
		t.Errorf("a broker that refuses is not away, whatever its connection is by now: %s", log.String())
	}
	if (&presence{}).lastError() != nil {
		t.Error("an error without one")
	}
}

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

func TestBackWithTheNextWordOfAStreamThatLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		var log said
		client, end := broker.start(t, log.logger())
		defer end()
		get(t, client, wanted)
		stream := <-broker.opened
		broker.get = func(int, *pb.GetAuthorizationRequest) (*pb.Authorization, error) { return nil, errUnavailable }
		if _, err := client.Authorization(t.Context(), Request{Scope: "another"}); err == nil || log.count("is away") != 1 || log.count("is back") != 0 {
			t.Errorf("%v: %s", err, log.text.String())
		}
		stream.event(t, &pb.WatchAuthorizationsResponse{Event: &pb.WatchAuthorizationsResponse_Heartbeat{Heartbeat: &pb.Heartbeat{}}})
		if log.count("is back") != 1 {
			t.Errorf("said: %s", log.text.String())
		}
	})
}

func TestAwayWhenTheStreamFails(t *testing.T) {
	refusal := statusOf(t, codes.ResourceExhausted, &errdetails.ErrorInfo{Reason: "WATCH_LIMIT", Domain: "credentialbroker.v1"})
	for name, test := range map[string]struct {
		ending error
		away   int
	}{
		"on its way":                {status.Error(codes.Internal, "the stream was cut"), 1},
		"where there is no broker":  {status.Error(codes.Unimplemented, "unexpected HTTP status code 404"), 1},
		"with a word of the broker": {refusal, 0},
		"with OK":                   {nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broker := &fakeBroker{}
				var log said
				client, end := broker.start(t, log.logger())
				defer end()
				get(t, client, wanted)
				(<-broker.opened).end <- test.ending
				synctest.Wait()
				if log.count("is away") != test.away || log.count("is back") != 0 {
					t.Errorf("said: %s", log.text.String())
				}
				<-broker.opened
				synctest.Wait()
				if log.count("is away") != test.away || log.count("is back") != test.away {
					t.Errorf("with the next one, said: %s", log.text.String())
				}
			})
		})
	}
}

func TestTheEndIsNoErrorOfTheBroker(t *testing.T) {
	refused := WithDialOptions(grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
		return nil, errors.New("connection refused")
	}))
	for name, option := range map[string]Option{"while the broker is there": WithIdentity("i"), "while it cannot be reached": refused} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broker := &fakeBroker{}
				var log said
				client, end := broker.start(t, log.logger(), option)
				defer end()
				go func() { _, _ = client.Authorization(t.Context(), wanted) }()
				time.Sleep(time.Second)
				_ = client.Close()
				if log.count("is away") != 0 || client.State().LastError != nil {
					t.Errorf("%v, said: %s", client.State().LastError, log.text.String())
				}
			})
		})
	}
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
