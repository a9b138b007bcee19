package credentialbroker

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

func TestConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{}
		client, end := broker.start(t)
		defer end()
		connect := func() *Connection {
			connection, err := client.Connection(t.Context(), wanted)
			if err != nil {
				t.Fatal(err)
			}
			return connection
		}
		connection := connect()
		stream := <-broker.opened
		subscribe := (<-stream.messages).GetSubscribe()
		stream.value(t, subscribe, answer("refreshed", time.Minute))
		if connection.Err() != nil {
			t.Error("another revision of the same tag is no reason to dial anew")
		}
		moved := answer("moved", time.Minute)
		moved.ConnectionTag = "another"
		stream.value(t, subscribe, moved)
		<-connection.Changed()
		if connection.Err() == nil {
			t.Error("no word of another tag")
		}

		withdrawn := connect()
		stream.withdraw(t, subscribe, pb.WithdrawalReason_WITHDRAWAL_REASON_TASK_ENDED)
		<-withdrawn.Changed()

		closed := connect()
		end()
		<-closed.Changed()
		if !errors.Is(closed.Err(), ErrClosed) || errors.Is(withdrawn.Err(), ErrClosed) {
			t.Errorf("%v, %v", closed.Err(), withdrawn.Err())
		}
		_ = closed.Close()
		_ = closed.Close()
	})
}

func TestConnectionIsRefreshedWithoutAWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{get: func(call int, _ *pb.GetAuthorizationRequest) (*pb.Authorization, error) {
			value := answer(fmt.Sprintf("r%d", call), time.Minute)
			value.ConnectionTag = fmt.Sprintf("tag-%d", call/3)
			return value, nil
		}}
		client, end := broker.start(t, WithoutWatch())
		defer end()
		connection, err := client.Connection(t.Context(), wanted)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		<-connection.Changed()
		if got := time.Since(began); got < 59*time.Second || got > 62*time.Second {
			t.Errorf("learned of the third value after %v", got)
		}
	})
}

func TestConnectionThatIsMadeTooLate(t *testing.T) {
	for name, test := range map[string]struct {
		meanwhile func(t *testing.T, client *Client, stream *fakeStream, to *pb.Subscribe)
		closed    bool
	}{
		"withdrawn": {func(t *testing.T, _ *Client, stream *fakeStream, to *pb.Subscribe) {
			stream.withdraw(t, to, pb.WithdrawalReason_WITHDRAWAL_REASON_TASK_ENDED)
		}, false},
		"replaced by one of another tag": {func(t *testing.T, _ *Client, stream *fakeStream, to *pb.Subscribe) {
			another := answer("pushed", time.Minute)
			another.ConnectionTag = "another"
			stream.value(t, to, another)
		}, false},
		"task ended": {func(_ *testing.T, client *Client, _ *fakeStream, _ *pb.Subscribe) { client.cache.endTask("", "t1") }, false},
		"closed":     {func(_ *testing.T, client *Client, _ *fakeStream, _ *pb.Subscribe) { _ = client.Close() }, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broker := &fakeBroker{}
				client, end := broker.start(t)
				defer end()
				connection := &Connection{cache: &client.cache, authorization: get(t, client, wanted), changed: make(chan struct{})}
				stream := <-broker.opened
				test.meanwhile(t, client, stream, (<-stream.messages).GetSubscribe())
				client.cache.connect(connection) // as Client.Connection does with what it was answered
				<-connection.Changed()
				if errors.Is(connection.Err(), ErrClosed) != test.closed {
					t.Errorf("%v", connection.Err())
				}
				_ = connection.Close()
			})
		})
	}
}
