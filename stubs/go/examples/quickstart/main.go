// Quickstart calls a protected resource with headers from the credential broker.
//
//	go run ./examples/quickstart http://127.0.0.1:8089/backend-api/codex/models
package main

import (
	"fmt"
	"log"
	"net/http"
	"net/url"
	"os"
	"strings"

	credentialbroker "credentialbroker.dev/stubs/go"
)

func main() {
	address := "http://127.0.0.1:8089/backend-api/codex/models" // of the emulated backend beside `make dev`
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	resource, err := url.Parse(address)
	if err != nil {
		log.Fatal(err)
	}

	broker, err := credentialbroker.New() // finds it by CREDENTIAL_BROKER_ADDRESS, else at 127.0.0.1:50051
	if err != nil {
		log.Fatal(err)
	}
	defer broker.Close()

	wanted := credentialbroker.Request{Scope: "inference", Thread: "quickstart"}
	transport, err := broker.Transport(resource.Scheme+"://"+resource.Host, wanted, nil)
	if err != nil {
		log.Fatal(err)
	}
	request, err := http.NewRequest(http.MethodGet, address, nil)
	if err != nil {
		log.Fatal(err)
	}
	backend := http.Client{Transport: transport}
	response, err := backend.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()

	authorization, err := broker.Authorization(request.Context(), wanted) // from memory
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(strings.TrimPrefix(authorization.Kind.String(), "CREDENTIAL_KIND_"), response.StatusCode)
}
