package credentialbroker

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// perRPC attaches an authorization to gRPC calls.
type perRPC struct {
	client  *Client
	request Request
}

// PerRPCCredentials returns credentials for [google.golang.org/grpc.WithPerRPCCredentials]: each call carries the headers
// as metadata, on connections with TLS only. The request says which; [WithThread] names the thread of a call.
func (c *Client) PerRPCCredentials(request Request) credentials.PerRPCCredentials {
	return perRPC{client: c, request: request}
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (p perRPC) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	authorization, err := p.client.Authorization(ctx, p.request.in(ctx))
	if err != nil && ctx.Err() != nil {
		return nil, status.FromContextError(ctx.Err()).Err() // the call's own time, which gRPC would take for the credentials'
	}
	if problem, ok := errors.AsType[*Error](err); ok && !refuses(problem.Code) {
		return nil, status.Error(codes.Unavailable, problem.Error()) // it may pass, and the call may be tried again
	}
	if err != nil {
		return nil, err
	}
	metadata := map[string]string{}
	for name, value := range authorization.Headers() {
		metadata[name] = value
	}
	return metadata, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (p perRPC) RequireTransportSecurity() bool { return true }
