package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	credentialbroker "credentialbroker.dev/stubs/go"
	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

// sendHTTP sends requests through the client's transport, as a program that uses net/http does.
func sendHTTP(client *credentialbroker.Client, c command) (object, error) {
	if c.Adapter != "round_tripper" {
		return nil, fmt.Errorf("driver: no HTTP adapter is called %q", c.Adapter)
	}
	base := http.DefaultTransport.(*http.Transport).Clone()
	base.Proxy = nil
	defer base.CloseIdleConnections()
	transport, err := client.Transport(c.Origin, credentialbroker.Request{Scope: c.Scope, Identity: c.Identity}, base)
	if err != nil {
		return nil, errArgument{err}
	}
	user := &http.Client{Transport: transport}
	if !c.FollowRedirects {
		user.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	}
	if c.Count <= 1 {
		return send(user, c)
	}
	results := make([]object, c.Count)
	concurrently(c.Count, func(n int) {
		answer, err := send(user, c)
		if err != nil {
			answer = object{"error": describeError(err)}
		}
		results[n] = answer
	})
	return object{"results": results}, nil
}

func send(user *http.Client, c command) (object, error) {
	var body io.Reader
	if c.Body != nil {
		body = strings.NewReader(*c.Body)
		if c.StreamBody {
			body = io.NopCloser(body) // net/http knows no way to read it again
		}
	}
	ctx, cancel := c.context()
	defer cancel()
	request, err := http.NewRequestWithContext(credentialbroker.WithThread(ctx, c.Thread), c.Method, c.URL, body)
	if err != nil {
		return nil, err
	}
	for name, value := range c.Headers {
		request.Header.Set(name, value)
	}
	response, err := user.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	return object{"status": response.StatusCode, "body": string(text), "location": response.Header.Get("Location")}, nil
}

// callEcho calls the echo on a connection with the client's credentials.
func callEcho(client *credentialbroker.Client, c command) (object, error) {
	if c.Adapter != "per_rpc" {
		return nil, fmt.Errorf("driver: no gRPC adapter is called %q", c.Adapter)
	}
	tls, err := credentials.NewClientTLSFromFile(c.CAFile, c.ServerName)
	if err != nil {
		return nil, errArgument{err}
	}
	channel, err := grpc.NewClient(c.Target,
		grpc.WithTransportCredentials(tls),
		grpc.WithPerRPCCredentials(client.PerRPCCredentials(credentialbroker.Request{Scope: c.Scope, Identity: c.Identity})),
		grpc.WithNoProxy(),
	)
	if err != nil {
		return nil, errArgument{err}
	}
	defer channel.Close()
	echo := pb.NewCredentialBrokerClient(channel)
	ctx, cancel := c.context()
	defer cancel()
	results := make([]object, max(1, c.Count))
	for n := range results {
		answer, err := echo.ListScopes(credentialbroker.WithThread(ctx, c.Thread), &pb.ListScopesRequest{})
		if err != nil {
			return nil, err
		}
		got := make([][2]string, 0, len(answer.GetScopes()))
		for _, entry := range answer.GetScopes() {
			got = append(got, [2]string{entry.GetScope(), entry.GetDescription()})
		}
		results[n] = object{"metadata": got}
	}
	return object{"results": results}, nil
}
