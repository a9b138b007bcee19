// Benchmark measures what an authorization costs from memory and by a call, in one run beside a broker that
// CREDENTIAL_BROKER_ADDRESS names:
//
//	go run ./internal/benchmark
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	credentialbroker "credentialbroker.dev/stubs/go"
	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

func main() {
	client, err := credentialbroker.New()
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()
	request := credentialbroker.Request{Scope: "inference", Thread: "benchmark"}
	if _, err := client.Authorization(ctx, request); err != nil {
		log.Fatal(err)
	}
	cached := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := client.Authorization(ctx, request); err != nil {
				log.Fatal(err)
			}
		}
	})
	parallel := testing.Benchmark(func(b *testing.B) {
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				if _, err := client.Authorization(ctx, request); err != nil {
					log.Fatal(err)
				}
			}
		})
	})

	// The same by the stub alone.
	channel, err := grpc.NewClient(os.Getenv("CREDENTIAL_BROKER_ADDRESS"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer channel.Close()
	stub := pb.NewCredentialBrokerClient(channel)
	guarded := metadata.AppendToOutgoingContext(ctx, "x-credential-broker", "1")
	rpc := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			if _, err := stub.GetAuthorization(guarded, &pb.GetAuthorizationRequest{Scope: request.Scope, ThreadId: request.Thread}); err != nil {
				log.Fatal(err)
			}
		}
	})

	fmt.Println("from memory           ", cached, cached.MemString())
	fmt.Println("from memory, all cores", parallel)
	fmt.Println("by a call            ", rpc)
	line, err := json.Marshal(map[string]float64{
		"cached_ns": nanoseconds(cached), "rpc_ns": nanoseconds(rpc), "ratio": nanoseconds(rpc) / nanoseconds(cached),
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(line))
}

func nanoseconds(result testing.BenchmarkResult) float64 {
	return float64(result.T.Nanoseconds()) / float64(result.N)
}
