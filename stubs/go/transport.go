package credentialbroker

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
)

type threadKey struct{}

// WithThread names the thread of the calls that are made with the context, for [Transport] and
// [Client.PerRPCCredentials]. It wins over the one that they were made with.
func WithThread(ctx context.Context, thread string) context.Context {
	return context.WithValue(ctx, threadKey{}, thread)
}

// in fills in the thread of a context.
func (r Request) in(ctx context.Context) Request {
	if thread, ok := ctx.Value(threadKey{}).(string); ok {
		r.Thread = thread
	}
	return r
}

// Transport is an [http.RoundTripper] that attaches an authorization to each request for one origin. When the backend
// answers 401 it reports that, and sends the request once more with better headers, where it can send the body again.
//
// A request for another origin fails with [ErrOrigin] before anything is sent. A redirect that an [http.Client] follows
// is sent without the headers, wherever it leads.
type Transport struct {
	client  *Client
	origin  origin
	request Request
	base    http.RoundTripper
}

// Transport returns one for an origin such as "https://backend.example". The request says which headers; its TargetURL
// is the origin. A nil base means [http.DefaultTransport].
func (c *Client) Transport(origin string, request Request, base http.RoundTripper) (*Transport, error) {
	parsed, err := parseOrigin(origin)
	if err != nil {
		return nil, fmt.Errorf("origin: %w", err)
	}
	if base == nil {
		base = http.DefaultTransport
	}
	request.TargetURL = parsed.String()
	return &Transport{client: c, origin: parsed, request: request, base: base}, nil
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(request *http.Request) (*http.Response, error) {
	if request.Response != nil { // the request of a redirect that is followed
		return t.base.RoundTrip(request)
	}
	authorization, err := t.authorize(request)
	if err != nil {
		if request.Body != nil {
			_ = request.Body.Close() // as the interface demands of every error
		}
		return nil, err
	}
	response, err := t.base.RoundTrip(with(authorization, request, request.Body))
	if err != nil || response.StatusCode != http.StatusUnauthorized {
		return response, err
	}
	better, err := t.client.ReportRejected(request.Context(), authorization, "")
	if err != nil {
		return response, nil // what the backend said is the answer; the broker has no better one
	}
	body, ok := bodyAgain(request)
	if !ok {
		return response, nil
	}
	readAhead(response)
	again, err := t.base.RoundTrip(with(better, request, body))
	if err != nil {
		return response, nil
	}
	return again, nil
}

// authorize returns the headers for a request, if it is for the origin.
func (t *Transport) authorize(request *http.Request) (*Authorization, error) {
	to, err := originOf(request.URL)
	if err != nil || to != t.origin {
		return nil, fmt.Errorf("%w: %s://%s is not %s", ErrOrigin, request.URL.Scheme, request.URL.Host, t.origin)
	}
	wanted := t.request.in(request.Context())
	return t.client.authorization(request.Context(), ask{
		key: t.client.keyOf(wanted), target: wanted.TargetURL, minValidity: wanted.MinValidity,
	})
}

// with copies a request, with all headers of an authorization. The request itself belongs to the user, and an
// http.RoundTripper must not change it.
func with(authorization *Authorization, request *http.Request, body io.ReadCloser) *http.Request {
	clone := request.Clone(request.Context())
	clone.Body = body
	authorization.Apply(clone.Header)
	return clone
}

// bodyAgain returns the body for sending a request once more, if there is one that can be.
func bodyAgain(request *http.Request) (io.ReadCloser, bool) {
	if request.Body == nil || request.Body == http.NoBody {
		return request.Body, true
	}
	if request.GetBody == nil {
		return nil, false
	}
	body, err := request.GetBody()
	return body, err == nil
}

// mostAhead is how much of an answer is read before the request is sent again.
const mostAhead = 64 << 10

// readAhead frees the connection of an answer before the request is sent again, which may have to wait for just that one.
// What was read can still be, should the second attempt fail; what is longer then ends with [io.ErrUnexpectedEOF].
func readAhead(response *http.Response) {
	var read bytes.Buffer
	_, end := io.Copy(&read, io.LimitReader(response.Body, mostAhead))
	if end == nil {
		if n, err := io.ReadFull(response.Body, make([]byte, 1)); n > 0 {
			end = io.ErrUnexpectedEOF
		} else {
			end = err
		}
	}
	_ = response.Body.Close()
	response.Body = io.NopCloser(io.MultiReader(&read, ended{end}))
}

// ended is a reader that has come to its end, whichever that is.
type ended struct{ err error }

func (e ended) Read([]byte) (int, error) { return 0, e.err }

// CloseIdleConnections passes on to the transport below what [http.Client.CloseIdleConnections] asks for.
func (t *Transport) CloseIdleConnections() {
	if base, ok := t.base.(interface{ CloseIdleConnections() }); ok {
		base.CloseIdleConnections()
	}
}
