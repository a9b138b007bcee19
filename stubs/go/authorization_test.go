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
	header := http.Header{"Authorization": {"a", "b"}, "authorization": {"c"}, "X-ACCOUNT": {"d"}, "Accept": {"c"}}
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
