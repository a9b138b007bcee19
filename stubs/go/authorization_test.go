package credentialbroker

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

func TestHeaders(t *testing.T) {
	authorization := newAuthorization(key{}, answer("r", time.Minute), clock{time.Now()}, 0)
	var got []string
	for name, value := range authorization.Headers() {
		got = append(got, name+"="+value)
	}
	if want := []string{"authorization=Bearer secret-of-r", "x-account=secret-account"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	header := http.Header{"Authorization": {"a", "b"}, "Accept": {"c"}}
	authorization.Apply(header)
	if text := fmt.Sprint(header); text != "map[Accept:[c] Authorization:[Bearer secret-of-r] X-Account:[secret-account]]" {
		t.Error(text)
	}
}

func TestNothingPrintsASecret(t *testing.T) {
	client, end := (&fakeBroker{}).start(t)
	defer end()
	held := get(t, client, wanted)
	connection, err := client.Connection(t.Context(), wanted)
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	type holder struct {
		Exported any
		pointer  *Authorization
		value    Authorization
	}
	for _, thing := range []any{held, *held, holder{held, held, *held}, []Authorization{*held}, client, connection, client.State()} {
		var text bytes.Buffer
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&text, verb, thing)
		}
		slog.New(slog.NewTextHandler(&text, nil)).Info("", "thing", thing)
		slog.New(slog.NewJSONHandler(&text, nil)).Info("", "thing", thing)
		_ = json.NewEncoder(&text).Encode(thing)
		hex := fmt.Sprintf("%x", "secret")
		if strings.Contains(text.String(), "secret") || strings.Contains(text.String(), hex) {
			t.Errorf("%T prints its headers: %s", thing, text.String())
		}
	}
}

func TestAwayIsSaidOnce(t *testing.T) {
	var log bytes.Buffer
	p := presence{
		logger:  slog.New(slog.NewTextHandler(&log, nil)),
		holds:   func() (int, time.Duration) { return 3, 20 * time.Second },
		failing: func() bool { return false },
	}
	refusal := errorOf(statusOf(t, codes.PermissionDenied, &errdetails.ErrorInfo{Reason: "NOT_ALLOWED", Domain: "credentialbroker.v1"}))
	away := errorOf(errUnavailable)
	for range 2 {
		log.Reset()
		p.answered()
		p.failed(refusal)
		if log.Len() > 0 {
			t.Errorf("a broker that refuses is not away: %s", log.String())
		}
		p.failed(away)
		p.failed(away)
		if text := log.String(); strings.Count(text, "the broker is away") != 1 || !strings.Contains(text, "level=WARN") ||
			!strings.Contains(text, "held=3") || !strings.Contains(text, "first_ends_in=20s") {
			t.Error(text)
		}
		if p.lastError() != error(away) {
			t.Errorf("%v", p.lastError())
		}
		p.failed(refusal) // which comes from a broker that is there
		if !strings.Contains(log.String(), "the broker is back") {
			t.Error("a broker that refuses is back")
		}
		p.answered()
		if strings.Count(log.String(), "the broker is back") != 1 {
			t.Error(log.String())
		}
	}
	if (&presence{}).lastError() != nil {
		t.Error("an error without one")
	}
}

func TestEveryReasonHasItsWord(t *testing.T) {
	for _, name := range pb.ErrorReason_name {
		word, ok := strings.CutPrefix(name, reasonPrefix)
		err := errorOfSubscription(&pb.ErrorStatus{Code: 14, Reason: pb.ErrorReason(pb.ErrorReason_value[name]), Message: "m"})
		if !ok || err.ReasonText != word || err.Code != codes.Unavailable {
			t.Errorf("%s: %#v", name, err)
		}
	}
}
