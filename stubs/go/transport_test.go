package credentialbroker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

// backend records what it is sent, and answers as a test says.
type backend struct {
	*httptest.Server
	mu       sync.Mutex
	requests []*http.Request
	bodies   []string
}

func newBackend(t *testing.T, handle func(call int, w http.ResponseWriter, r *http.Request)) *backend {
	b := &backend{}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		b.mu.Lock()
		b.requests = append(b.requests, r)
		b.bodies = append(b.bodies, string(body))
		call := len(b.requests)
		b.mu.Unlock()
		handle(call, w, r)
	}))
	t.Cleanup(b.Close)
	return b
}

func accept(_ int, w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "fine") }

func reject(_ int, w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusUnauthorized)
	_, _ = io.WriteString(w, "rejected")
}

func rejectOnce(call int, w http.ResponseWriter, r *http.Request) {
	if call == 1 {
		reject(call, w, r)
	} else {
		accept(call, w, r)
	}
}

// user is an http.Client whose transport is for the origin, beside a broker that has one better value to give.
func user(t *testing.T, broker *fakeBroker, origin string) *http.Client {
	t.Helper()
	if broker.report == nil {
		broker.report = func(int, *pb.ReportRejectedRequest) (*pb.Authorization, error) {
			return answer("better", time.Minute), nil
		}
	}
	client, end := broker.start(t)
	t.Cleanup(end)
	base := &http.Transport{}
	t.Cleanup(base.CloseIdleConnections)
	transport, err := client.Transport(origin, wanted, base)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Transport: transport}
}

func send(t *testing.T, user *http.Client, request *http.Request) (int, string) {
	t.Helper()
	response, err := user.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func post(t *testing.T, url string, body io.Reader) *http.Request {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return request
}

func TestTransportAttachesAllHeaders(t *testing.T) {
	origin := newBackend(t, accept)
	broker := &fakeBroker{}
	request := post(t, origin.URL+"/a", strings.NewReader("body"))
	request.Header.Set("Authorization", "the user's own")
	request.Header.Add("X-Account", "one")
	request.Header.Add("X-Account", "two")
	request = request.WithContext(WithThread(request.Context(), "of-the-context"))
	if code, body := send(t, user(t, broker, origin.URL), request); code != 200 || body != "fine" {
		t.Errorf("%d %s", code, body)
	}
	got := origin.requests[0].Header
	if fmt.Sprint(got["Authorization"], got["X-Account"]) != "[Bearer secret-of-r1] [secret-account]" || origin.bodies[0] != "body" {
		t.Errorf("%v %s", got, origin.bodies[0])
	}
	if request.Header.Get("Authorization") != "the user's own" {
		t.Error("the user's request was changed")
	}
	if one := broker.gets[0]; one.GetTargetUrl() != origin.URL || one.GetThreadId() != "of-the-context" {
		t.Errorf("the broker was asked for %v", one)
	}
}

func TestTransportRefusesOtherOrigins(t *testing.T) {
	origin, trap := newBackend(t, accept), newBackend(t, accept)
	broker := &fakeBroker{}
	client := user(t, broker, origin.URL)
	for _, url := range []string{trap.URL, strings.Replace(origin.URL, "http:", "https:", 1), strings.Replace(origin.URL, "127.0.0.1", "localhost", 1)} {
		body := &closing{Reader: strings.NewReader("x")}
		_, err := client.Do(post(t, url, body))
		if !errors.Is(err, ErrOrigin) || !body.closed {
			t.Errorf("%s: %v, body closed: %v", url, err, body.closed)
		}
	}
	if len(origin.requests)+len(trap.requests)+broker.getCount() != 0 {
		t.Error("something was sent")
	}
}

type closing struct {
	io.Reader
	closed bool
}

func (c *closing) Close() error { c.closed = true; return nil }

func TestTransportSendsOnceMoreAfterARejection(t *testing.T) {
	for name, test := range map[string]struct {
		handle   func(int, http.ResponseWriter, *http.Request)
		refused  bool
		body     io.Reader
		code     int
		requests []string
	}{
		"better headers":                {rejectOnce, false, strings.NewReader("body"), 200, []string{"r1 body", "better body"}},
		"no body":                       {rejectOnce, false, nil, 200, []string{"r1 ", "better "}},
		"rejected again":                {reject, false, strings.NewReader("body"), 401, []string{"r1 body", "better body"}},
		"a body that can be read once":  {rejectOnce, false, io.MultiReader(strings.NewReader("body")), 401, []string{"r1 body"}},
		"the broker has nothing better": {rejectOnce, true, nil, 401, []string{"r1 "}},
		"another status": {
			func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }, false, nil, 403, []string{"r1 "},
		},
	} {
		t.Run(name, func(t *testing.T) {
			origin := newBackend(t, test.handle)
			broker := &fakeBroker{}
			if test.refused {
				broker.report = func(int, *pb.ReportRejectedRequest) (*pb.Authorization, error) {
					return nil, status.Error(codes.FailedPrecondition, "nothing is left to try")
				}
			}
			code, body := send(t, user(t, broker, origin.URL), post(t, origin.URL, test.body))
			if code != test.code || code == 401 && body != "rejected" {
				t.Errorf("%d %s", code, body)
			}
			var got []string
			for i, request := range origin.requests {
				got = append(got, strings.TrimPrefix(request.Header.Get("Authorization"), "Bearer secret-of-")+" "+origin.bodies[i])
			}
			if fmt.Sprint(got) != fmt.Sprint(test.requests) {
				t.Errorf("sent %q, want %q", got, test.requests)
			}
			if reports := len(broker.reports); reports != map[bool]int{true: 1}[code != 403] {
				t.Errorf("%d reports", reports)
			}
		})
	}
}

func TestTransportKeepsTheAnswerWhenSendingAgainFails(t *testing.T) {
	origin := newBackend(t, func(call int, w http.ResponseWriter, r *http.Request) {
		if call == 1 {
			reject(call, w, r)
			return
		}
		panic(http.ErrAbortHandler)
	})
	origin.Config.ErrorLog = nil
	if code, body := send(t, user(t, &fakeBroker{}, origin.URL), post(t, origin.URL, nil)); code != 401 || body != "rejected" {
		t.Errorf("%d %s", code, body)
	}
}

func TestTransportWaitsForNoConnectionOfItsOwn(t *testing.T) {
	for _, size := range []int{100, mostAhead, mostAhead + 1, 100 << 10} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			origin := newBackend(t, func(_ int, w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "Bearer secret-of-better" {
					w.WriteHeader(http.StatusUnauthorized)
					_, _ = io.WriteString(w, strings.Repeat("x", size))
				} else {
					accept(0, w, r)
				}
			})
			client := user(t, &fakeBroker{}, origin.URL)
			client.Transport.(*Transport).base.(*http.Transport).MaxConnsPerHost = 1
			client.Timeout = 10 * time.Second // rather than the test's
			if code, body := send(t, client, post(t, origin.URL, nil)); code != 200 || body != "fine" {
				t.Errorf("%d %s", code, body)
			}
		})
	}
}

func TestTransportKeepsWhatItReadOfALongAnswer(t *testing.T) {
	for size, want := range map[int]error{mostAhead: nil, mostAhead + 1: io.ErrUnexpectedEOF} {
		origin := newBackend(t, func(call int, w http.ResponseWriter, _ *http.Request) {
			if call > 1 {
				panic(http.ErrAbortHandler)
			}
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, strings.Repeat("x", size))
		})
		response, err := user(t, &fakeBroker{}, origin.URL).Do(post(t, origin.URL, nil))
		if err != nil || response.StatusCode != 401 {
			t.Fatalf("%v, %v", response, err)
		}
		body, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if len(body) != mostAhead || err != want {
			t.Errorf("%d of %d bytes, then %v", len(body), size, err)
		}
	}
}

func TestErrorsOfOriginsShowNoQuery(t *testing.T) {
	origin := newBackend(t, accept)
	transport := user(t, &fakeBroker{}, origin.URL).Transport
	for _, url := range []string{"https://user:secret@elsewhere.example/secret?secret#secret", "ftp://elsewhere.example?secret", "https:?secret"} {
		_, err := transport.RoundTrip(post(t, url, nil))
		_, parsing := parseOrigin(url)
		if text := fmt.Sprint(err, parsing); !errors.Is(err, ErrOrigin) || strings.Contains(text, "secret") {
			t.Errorf("%s", text)
		}
	}
}

func TestTransportFollowsRedirectsWithoutHeaders(t *testing.T) {
	trap := newBackend(t, accept)
	for _, code := range []int{301, 302, 303, 307, 308} {
		for _, to := range []string{trap.URL + "/elsewhere", "/here"} {
			origin := newBackend(t, func(_ int, w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/here" {
					accept(0, w, r)
				} else {
					http.Redirect(w, r, to, code)
				}
			})
			client := user(t, &fakeBroker{}, origin.URL)
			if got, body := send(t, client, post(t, origin.URL+"/a", strings.NewReader("body"))); got != 200 || body != "fine" {
				t.Errorf("%d to %s: %d %s", code, to, got, body)
			}
			for _, request := range append(trap.requests, origin.requests[1:]...) {
				if text := fmt.Sprint(request.Header); strings.Contains(text, "secret") {
					t.Errorf("%d to %s: it was sent %s", code, to, text)
				}
			}
			client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			if got, _ := send(t, client, post(t, origin.URL+"/a", nil)); got != code {
				t.Errorf("not followed: %d instead of %d", got, code)
			}
		}
	}
}

func TestTransportWithoutHeadersSendsNothing(t *testing.T) {
	origin := newBackend(t, accept)
	broker := &fakeBroker{get: func(int, *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
		return nil, status.Error(codes.PermissionDenied, "no")
	}}
	body := &closing{Reader: strings.NewReader("x")}
	_, err := user(t, broker, origin.URL).Do(post(t, origin.URL, body))
	if problem, ok := errors.AsType[*Error](err); !ok || problem.Code != codes.PermissionDenied || !body.closed {
		t.Errorf("%v, body closed: %v", err, body.closed)
	}
	if len(origin.requests) != 0 {
		t.Error("it was sent")
	}
}

func TestOrigins(t *testing.T) {
	for text, want := range map[string]string{
		"https://Example.COM":             "https://example.com:443",
		"http://example.com/path?query#f": "http://example.com:80",
		"HTTPS://example.com:8443":        "https://example.com:8443",
		"http://[::1]:80":                 "http://[::1]:80",
		"https://user:secret@example.com": "https://example.com:443",
	} {
		if got, err := parseOrigin(text); err != nil || got.String() != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "example.com", "ftp://example.com", "https://", "//example.com", "https://a:b:c", "http://a b"} {
		if got, err := parseOrigin(text); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestPerRPCCredentials(t *testing.T) {
	client, end := (&fakeBroker{}).start(t)
	defer end()
	credentials := client.PerRPCCredentials(wanted)
	metadata, err := credentials.GetRequestMetadata(WithThread(context.Background(), "of-the-context"), "https://backend/service")
	if err != nil || fmt.Sprint(metadata) != "map[authorization:Bearer secret-of-r1 x-account:secret-account]" {
		t.Errorf("%v, %v", metadata, err)
	}
	if !credentials.RequireTransportSecurity() {
		t.Error("they would be sent in the clear")
	}
	if held := client.cache.find(key{"", "inference", "of-the-context"}); held == nil {
		t.Error("the thread of the context was not asked for")
	}
}

func TestPerRPCCredentialsOfACallThatEnds(t *testing.T) {
	for _, test := range []struct {
		end  func(context.Context) (context.Context, context.CancelFunc)
		want codes.Code
	}{
		{context.WithCancel, codes.Canceled},
		{func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, time.Second)
		}, codes.DeadlineExceeded},
	} {
		synctest.Test(t, func(t *testing.T) {
			client, end := (&fakeBroker{get: func(int, *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
				time.Sleep(5 * time.Second)
				return answer("late", time.Minute), nil
			}}).start(t)
			defer end()
			ctx, cancel := test.end(t.Context())
			time.AfterFunc(2*time.Second, cancel)
			if _, err := client.PerRPCCredentials(wanted).GetRequestMetadata(ctx); status.Code(err) != test.want {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestPerRPCCredentialsWithoutHeaders(t *testing.T) {
	for from, want := range map[codes.Code]codes.Code{
		codes.Unauthenticated: codes.Unavailable, codes.ResourceExhausted: codes.Unavailable, codes.Internal: codes.Unavailable,
		codes.PermissionDenied: codes.PermissionDenied, codes.FailedPrecondition: codes.FailedPrecondition,
	} {
		client, end := (&fakeBroker{get: func(int, *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
			return nil, status.Error(from, "no")
		}}).start(t)
		metadata, err := client.PerRPCCredentials(wanted).GetRequestMetadata(t.Context())
		if got := status.Code(err); got != want || metadata != nil {
			t.Errorf("%v fails the call with %v", from, got)
		}
		end()
	}
}
