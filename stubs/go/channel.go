package credentialbroker

import (
	"context"
	_ "embed"
	"time"

	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
)

// Version is that of this package, and of the broker that it was released with.
const Version = "0.1.0"

// serviceConfig is protos/service_config.json, the same in all languages: round robin, retries, waiting for a connection.
//
//go:embed service_config.json
var serviceConfig string

// openChannel makes the channel to the broker. It connects on first use.
func openChannel(s settings) (*grpc.ClientConn, error) {
	place, err := parseAddress(s.address)
	if err != nil {
		return nil, err
	}
	var transport credentials.TransportCredentials = insecure.NewCredentials()
	if s.tls.authorities != "" {
		if transport, err = newFileCredentials(s.tls); err != nil {
			return nil, err
		}
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithResolvers(dnsResolver{}),
		grpc.WithNoProxy(), // headers are secrets, and the broker is near
		grpc.WithUserAgent("credentialbroker-go/" + Version),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           grpcbackoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		// The broker allows a ping each 30 s.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: time.Minute, Timeout: 20 * time.Second, PermitWithoutStream: true}),
		grpc.WithChainUnaryInterceptor(guardCall),
		grpc.WithChainStreamInterceptor(guardStream),
	}
	if s.serverName != "" {
		options = append(options, grpc.WithAuthority(s.serverName))
	}
	return grpc.NewClient(place.target(), append(options, s.dialOptions...)...)
}

// guarded adds the metadata that the broker demands of every call. Metadata that the user's context holds is for calls
// of the user's own, and is not sent.
func guarded(ctx context.Context) context.Context {
	return metadata.NewOutgoingContext(ctx, metadata.Pairs("x-credential-broker", "1"))
}

func guardCall(ctx context.Context, method string, request, reply any, channel *grpc.ClientConn, call grpc.UnaryInvoker, options ...grpc.CallOption) error {
	return call(guarded(ctx), method, request, reply, channel, options...)
}

func guardStream(ctx context.Context, desc *grpc.StreamDesc, channel *grpc.ClientConn, method string, open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
	return open(guarded(ctx), desc, channel, method, options...)
}
