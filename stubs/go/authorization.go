package credentialbroker

import (
	"fmt"
	"iter"
	"net/http"
	"strings"
	"time"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

// Request says what an authorization is for.
type Request struct {
	// Scope is what the call is for, such as "inference". Required.
	Scope string
	// Thread is the caller's own id of the conversation or run, for scopes that work on one.
	Thread string
	// Identity is the name of the identity; empty means that of [WithIdentity], else the caller's default at the broker.
	Identity string
	// TargetURL is where the headers will be sent. The broker refuses what is not its backend's; it is asked once for
	// each origin, of which 8 are remembered with what is kept.
	TargetURL string
	// MinValidity is how long the headers must at least last.
	MinValidity time.Duration
}

// key is what an authorization is kept under.
type key struct{ identity, scope, thread string }

// Authorization is a complete set of headers, why it is of its kind, and how long it lasts. It is shared by all who ask
// for the same and must not be changed. Its headers are secrets; printing it shows none of them.
type Authorization struct {
	// Kind is what the headers authenticate with, Reason why.
	Kind   pb.CredentialKind
	Reason pb.DecisionReason
	// FallbackFrom is the kind that the scope asks for and that was not given; unspecified when nothing was downgraded.
	FallbackFrom pb.CredentialKind
	// Revision names what the headers were made from; opaque.
	Revision string
	// Identity is the name of the identity that the headers belong to.
	Identity string
	// ConnectionTag is equal as long as connections that were authenticated with the headers may be shared.
	ConnectionTag string
	// Stale says that the answer may lag behind: the broker could not confirm it just now. The headers are usable.
	Stale bool

	// In a closure the values are out of reach of whatever prints the fields of a struct, also of one that holds this.
	headers  func() []*pb.Header
	key      key
	clock    clock
	lifetime lifetime
}

// newAuthorization keeps what the broker answered at `now`.
func newAuthorization(k key, answer *pb.Authorization, clock clock, now time.Duration) *Authorization {
	headers := answer.GetHeaders()
	return &Authorization{
		Kind:          answer.GetKind(),
		Reason:        answer.GetReason(),
		FallbackFrom:  answer.GetFallbackFrom(),
		Revision:      answer.GetRevision(),
		Identity:      answer.GetIdentity(),
		ConnectionTag: answer.GetConnectionTag(),
		Stale:         answer.GetStale(),
		headers:       func() []*pb.Header { return headers },
		key:           k,
		clock:         clock,
		lifetime:      lifetimeOf(answer, now),
	}
}

// Headers yields the name, in lower case, and the value of each header. Attach all of them or none, each in the place of
// any of that name.
func (a *Authorization) Headers() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for _, header := range a.headers() {
			if !yield(header.GetName(), header.GetValue()) {
				return
			}
		}
	}
}

// Apply sets all headers, each in the place of any of that name.
func (a *Authorization) Apply(to http.Header) {
	for name, value := range a.Headers() {
		for there := range to { // names that were not set with [http.Header.Set] may be written in any way
			if strings.EqualFold(there, name) {
				delete(to, there)
			}
		}
		to.Set(name, value)
	}
}

// ExpiresIn is how long the headers may still be used; not positive once they have ended.
func (a *Authorization) ExpiresIn() time.Duration { return a.lifetime.end - a.clock.now() }

// RefreshIn is how long it is until the next ones are due.
func (a *Authorization) RefreshIn() time.Duration { return a.lifetime.due - a.clock.now() }

// String shows everything but the headers.
func (a *Authorization) String() string {
	return fmt.Sprintf("authorization of %s: %v for %v, revision %s, expires in %v",
		a.Identity, a.Kind, a.Reason, a.Revision, a.ExpiresIn().Round(time.Millisecond))
}
