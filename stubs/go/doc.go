// Package credentialbroker asks the credential broker which headers to attach to a call, and keeps what it answers.
//
// A [Client] is made once for a process and shared by everything in it. [Client.Authorization] answers from memory while
// it can; values are kept current by one stream to the broker and are never handed out past their end.
// [Client.Transport] attaches them to HTTP requests, [Client.PerRPCCredentials] to gRPC calls, and [Client.Connection]
// serves websockets and pools, which must know when to dial anew.
//
// What it does in detail is the same in all languages and stands in docs/clients.md of the broker's repository. The
// generated API, which needs nothing of this package, is credentialbroker.dev/stubs/go/credentialbroker/v1.
package credentialbroker
