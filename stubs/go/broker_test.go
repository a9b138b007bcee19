package credentialbroker

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

// fakeBroker answers as a test says. It is reached through memory alone, so that a test may run in virtual time.
type fakeBroker struct {
	pb.UnimplementedCredentialBrokerServer

	mute   bool          // streams begin without a word
	hears  chan struct{} // what comes on streams is not read before it is closed; nil: at once
	get    func(call int, request *pb.GetAuthorizationRequest) (*pb.Authorization, error)
	report func(call int, request *pb.ReportRejectedRequest) (*pb.Authorization, error)
	endOf  func(request *pb.EndTaskRequest) error

	mu      sync.Mutex
	gets    []*pb.GetAuthorizationRequest
	reports []*pb.ReportRejectedRequest
	streams []*fakeStream
	opened  chan *fakeStream

	listener    *bufconn.Listener
	connections []net.Conn
	lostUntil   time.Time
}

// fakeStream is one watch, as the broker sees it.
type fakeStream struct {
	messages chan *pb.WatchAuthorizationsRequest
	send     func(*pb.WatchAuthorizationsResponse) error
	end      chan error
	gone     <-chan struct{} // closed when the client has left
}

func (b *fakeBroker) GetAuthorization(ctx context.Context, request *pb.GetAuthorizationRequest) (*pb.GetAuthorizationResponse, error) {
	b.mu.Lock()
	b.gets = append(b.gets, request)
	call := len(b.gets)
	b.mu.Unlock()
	answer, err := b.get(call, request)
	return &pb.GetAuthorizationResponse{Authorization: answer}, err
}

func (b *fakeBroker) ReportRejected(_ context.Context, request *pb.ReportRejectedRequest) (*pb.ReportRejectedResponse, error) {
	b.mu.Lock()
	b.reports = append(b.reports, request)
	call := len(b.reports)
	b.mu.Unlock()
	answer, err := b.report(call, request)
	return &pb.ReportRejectedResponse{Authorization: answer}, err
}

func (b *fakeBroker) EndTask(_ context.Context, request *pb.EndTaskRequest) (*pb.EndTaskResponse, error) {
	return &pb.EndTaskResponse{Task: &pb.Task{ThreadId: request.GetThreadId()}}, b.endOf(request)
}

func (b *fakeBroker) WatchAuthorizations(call grpc.BidiStreamingServer[pb.WatchAuthorizationsRequest, pb.WatchAuthorizationsResponse]) error {
	stream := &fakeStream{
		messages: make(chan *pb.WatchAuthorizationsRequest, 100),
		send:     call.Send,
		end:      make(chan error, 1),
		gone:     call.Context().Done(),
	}
	go func() {
		defer close(stream.messages)
		if b.hears != nil {
			select {
			case <-b.hears:
			case <-call.Context().Done():
				return
			}
		}
		for {
			message, err := call.Recv()
			if err != nil {
				return
			}
			stream.messages <- message
		}
	}()
	b.mu.Lock()
	b.streams = append(b.streams, stream)
	b.mu.Unlock()
	if !b.mute {
		if err := call.SendHeader(nil); err != nil { // as the broker does
			return err
		}
	}
	b.opened <- stream
	select {
	case err := <-stream.end:
		return err
	case <-call.Context().Done():
		return status.FromContextError(call.Context().Err()).Err()
	}
}

func (b *fakeBroker) getCount() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.gets)
}

func (b *fakeBroker) streamCount() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.streams)
}

// answer is an authorization that lasts so long and is due half-way, of a broker whose clock is years behind.
func answer(revision string, lasts time.Duration) *pb.Authorization {
	now := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	return &pb.Authorization{
		Headers:       []*pb.Header{{Name: "authorization", Value: "Bearer secret-of-" + revision, Sensitive: true}, {Name: "x-account", Value: "secret-account"}},
		Kind:          pb.CredentialKind_CREDENTIAL_KIND_BEARER,
		Reason:        pb.DecisionReason_DECISION_REASON_IDENTITY_IS_BEARER,
		Revision:      revision,
		Identity:      "fake",
		ConnectionTag: "tag",
		ServerTime:    timestamppb.New(now),
		RefreshTime:   timestamppb.New(now.Add(lasts / 2)),
		ExpireTime:    timestamppb.New(now.Add(lasts)),
	}
}

// start serves the fake broker in memory and makes a client of it. The function ends both.
func (b *fakeBroker) start(t *testing.T, options ...Option) (*Client, func()) {
	t.Helper()
	if b.get == nil {
		b.get = func(call int, _ *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
			return answer(fmt.Sprintf("r%d", call), time.Minute), nil
		}
	}
	b.opened = make(chan *fakeStream, 100)
	b.listener = bufconn.Listen(1 << 20)
	server := grpc.NewServer(
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 30 * time.Second, PermitWithoutStream: true}), // as the broker's
		grpc.WaitForHandlers(true),
		grpc.UnaryInterceptor(func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := demandGuard(ctx); err != nil {
				return nil, err
			}
			return next(ctx, request)
		}),
		grpc.StreamInterceptor(func(service any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := demandGuard(stream.Context()); err != nil {
				return err
			}
			return next(service, stream)
		}),
	)
	pb.RegisterCredentialBrokerServer(server, b)
	go func() { _ = server.Serve(b.listener) }()
	client, err := New(append([]Option{
		WithAddress("unix:///in/memory"),
		WithLogger(slog.New(slog.DiscardHandler)),
		WithDialOptions(grpc.WithContextDialer(b.dial)),
	}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	return client, func() {
		_ = client.Close()
		server.Stop()
	}
}

// dial makes a connection, which takes as long as the broker is lost.
func (b *fakeBroker) dial(ctx context.Context, _ string) (net.Conn, error) {
	b.mu.Lock()
	lost := time.Until(b.lostUntil)
	b.mu.Unlock()
	if !sleep(ctx, max(0, lost)) {
		return nil, ctx.Err()
	}
	connection, err := b.listener.DialContext(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.connections = append(b.connections, connection)
	return connection, err
}

// lose cuts all connections, and lets none be made for so long.
func (b *fakeBroker) lose(lasts time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lostUntil = time.Now().Add(lasts)
	for _, connection := range b.connections {
		_ = connection.Close()
	}
	b.connections = nil
}

// demandGuard refuses calls as the broker does.
func demandGuard(ctx context.Context) error {
	if guard := metadata.ValueFromIncomingContext(ctx, "x-credential-broker"); len(guard) != 1 || guard[0] != "1" {
		return status.Error(codes.InvalidArgument, "the guard metadata is missing")
	}
	return nil
}

var wanted = Request{Scope: "inference", Thread: "t1"}

// get asks for an authorization, which must be given.
func get(t *testing.T, client *Client, request Request) *Authorization {
	t.Helper()
	authorization, err := client.Authorization(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	return authorization
}

var errUnavailable = status.Error(codes.Unavailable, "away")

// keepAlive sends heartbeats until the stream ends.
func (s *fakeStream) keepAlive() {
	go func() {
		beat := time.NewTicker(20 * time.Second)
		defer beat.Stop()
		for {
			select {
			case <-beat.C:
				_ = s.send(&pb.WatchAuthorizationsResponse{Event: &pb.WatchAuthorizationsResponse_Heartbeat{Heartbeat: &pb.Heartbeat{}}})
			case <-s.gone:
				return
			}
		}
	}()
}

func (s *fakeStream) value(t *testing.T, to *pb.Subscribe, value *pb.Authorization) {
	s.event(t, &pb.WatchAuthorizationsResponse{SubscriptionId: to.GetSubscriptionId(), Event: &pb.WatchAuthorizationsResponse_Authorization{Authorization: value}})
}

func (s *fakeStream) withdraw(t *testing.T, from *pb.Subscribe, why pb.WithdrawalReason) {
	s.event(t, &pb.WatchAuthorizationsResponse{SubscriptionId: from.GetSubscriptionId(), Event: &pb.WatchAuthorizationsResponse_Withdrawal{Withdrawal: &pb.Withdrawal{Reason: why}}})
}

// event sends something and waits until the client did what it says.
func (s *fakeStream) event(t *testing.T, event *pb.WatchAuthorizationsResponse) {
	t.Helper()
	if err := s.send(event); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}
