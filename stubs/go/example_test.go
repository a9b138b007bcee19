package credentialbroker_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	credentialbroker "credentialbroker.dev/stubs/go"
	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

// What stands here and in the README is the same, which TestReadme sees to.

func ExampleWithThread() {
	url := "https://backend.example/"
	ctx := credentialbroker.WithThread(context.Background(), "conversation-7")
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader("{}"))
	_, _ = request, err
}

func ExampleClient_Authorization() {
	_ = func(ctx context.Context, broker *credentialbroker.Client, request *http.Request) error {
		authorization, err := broker.Authorization(ctx, credentialbroker.Request{Scope: "inference", Thread: "conversation-7"})
		if err != nil {
			return err
		}
		authorization.Apply(request.Header)
		return nil
	}
}

func ExampleError() {
	var err error
	if problem, ok := errors.AsType[*credentialbroker.Error](err); ok {
		switch problem.Reason {
		case pb.ErrorReason_ERROR_REASON_TASK_ENDED:
			// stop using the thread
		case pb.ErrorReason_ERROR_REASON_UNSPECIFIED:
			// gRPC made it: problem.Code says what happened
		}
	}
}

func ExampleNew() {
	broker, err := credentialbroker.New(
		credentialbroker.WithAddress("dns:///broker.example:50051"),
		credentialbroker.WithCAFile("/etc/broker/ca.pem"),
		credentialbroker.WithCertificateFiles("/etc/broker/certificate.pem", "/etc/broker/key.pem"),
	)
	_, _ = broker, err
}

func ExampleClient_Connection() {
	_ = func(ctx context.Context, broker *credentialbroker.Client) error {
		connection, err := broker.Connection(ctx, credentialbroker.Request{Scope: "inference", Thread: "conversation-7"})
		if err != nil {
			return err
		}
		defer connection.Close()
		header := http.Header{}
		connection.Authorization().Apply(header) // dial with it
		<-connection.Changed()                   // then close the websocket, and begin again
		return nil
	}
}

func ExampleClient_PerRPCCredentials() {
	_ = func(broker *credentialbroker.Client) error {
		channel, err := grpc.NewClient("backend.example:443",
			grpc.WithTransportCredentials(credentials.NewTLS(nil)),
			grpc.WithPerRPCCredentials(broker.PerRPCCredentials(credentialbroker.Request{Scope: "inference"})),
		)
		_ = channel
		return err
	}
}

func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	compiled := strings.Join(strings.Fields(string(source)), " ")
	_, rest, _ := strings.Cut(string(readme), "## How to") // the program above it is built where its package is installed
	snippets := strings.Split(rest, "```go\n")[1:]
	for _, snippet := range snippets {
		code, _, _ := strings.Cut(snippet, "```")
		if !strings.Contains(compiled, strings.Join(strings.Fields(code), " ")) {
			t.Errorf("no example has this snippet:\n%s", code)
		}
	}
	if len(snippets) != 6 {
		t.Errorf("%d snippets", len(snippets))
	}
}
