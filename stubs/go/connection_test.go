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
