package credentialbroker

import (
	"errors"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/resolver"
)

// resolved is a channel that notes when it is told of addresses.
type resolved struct {
	resolver.ClientConn
	at    []time.Time
	state resolver.State
	err   error
}

func (r *resolved) UpdateState(state resolver.State) error {
	r.at, r.state = append(r.at, time.Now()), state
	return r.err
}

func (r *resolved) ReportError(error) { r.at = append(r.at, time.Now()) }

func resolve(t *testing.T, channel *resolved, address string) resolver.Resolver {
	t.Helper()
	r, err := dnsResolver{}.Build(resolver.Target{URL: url.URL{Path: "/" + address}}, channel, resolver.BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	return r
}

func TestNameIsLookedUpAgainWhenAConnectionIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var channel resolved
		r := resolve(t, &channel, "[::1]:50051")
		if len(channel.at) != 1 || len(channel.state.Addresses) != 1 || channel.state.Addresses[0].Addr != "[::1]:50051" {
			t.Errorf("%v", channel.state)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(channel.at) != 1 {
			t.Errorf("looked up %d times though no connection was lost", len(channel.at))
		}
		for range 120 { // a minute in which connections are lost again and again
			r.ResolveNow(resolver.ResolveNowOptions{})
			time.Sleep(500 * time.Millisecond)
		}
		r.Close()
		again := channel.at[1:]
		if len(again) < 12 || len(again) > 13 {
			t.Errorf("looked up %d times in a minute", len(again))
		}
		if wait := again[0].Sub(channel.at[0]); wait != time.Hour {
			t.Errorf("first looked up again %v after a connection was lost", wait-time.Hour)
		}
	})
}

func TestNameThatCannotBeUsedIsLookedUpAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		channel := resolved{err: errors.New("no use")}
		r := resolve(t, &channel, "127.0.0.1:50051")
		time.Sleep(time.Minute)
		r.Close()
		for i, most := range []time.Duration{200, 400, 800, 1600, 3200, 5000, 5000} {
			most *= time.Millisecond
			if wait := channel.at[i+1].Sub(channel.at[i]); wait < most/2 || wait > most {
				t.Errorf("wait %d was %v, not %v to %v", i, wait, most/2, most)
			}
		}
	})
}
