package credentialbroker

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

func TestReportRejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{report: func(int, *pb.ReportRejectedRequest) (*pb.Authorization, error) {
			time.Sleep(time.Second)
			return answer("better", time.Minute), nil
		}}
		client, end := broker.start(t)
		defer end()
		rejected := get(t, client, wanted)
		var running sync.WaitGroup
		for range 20 {
			running.Go(func() {
				if got, err := client.ReportRejected(t.Context(), rejected, strings.Repeat("w", 300)); err != nil || got.Revision != "better" {
					t.Errorf("%v, %v", got, err)
				}
			})
		}
		running.Wait()
		if got, err := client.ReportRejected(t.Context(), rejected, ""); err != nil || got != get(t, client, wanted) {
			t.Errorf("once it is replaced: %v, %v", got, err)
		}
		if len(broker.reports) != 1 || broker.getCount() != 1 {
			t.Fatalf("%d reports, %d calls", len(broker.reports), broker.getCount())
		}
		if one := broker.reports[0]; one.GetRevision() != "r1" || one.GetHttpStatus() != 401 || one.GetDetail() != strings.Repeat("w", 256) || one.GetScope() != "inference" || one.GetThreadId() != "t1" {
			t.Errorf("%v", one)
		}
	})
}

func TestReportBetweenWithdrawalAndValue(t *testing.T) {
	for reason, kept := range map[pb.WithdrawalReason]bool{
		pb.WithdrawalReason_WITHDRAWAL_REASON_CREDENTIAL_REJECTED: true,
		pb.WithdrawalReason_WITHDRAWAL_REASON_IDENTITY_DISABLED:   false,
	} {
		t.Run(reason.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broker := &fakeBroker{report: func(int, *pb.ReportRejectedRequest) (*pb.Authorization, error) {
					time.Sleep(2 * time.Second)
					return answer("better", time.Minute), nil
				}}
				client, end := broker.start(t)
				defer end()
				rejected := get(t, client, wanted)
				stream := <-broker.opened
				subscribe := (<-stream.messages).GetSubscribe()
				time.AfterFunc(time.Second, func() { stream.withdraw(t, subscribe, reason) })
				got, err := client.ReportRejected(t.Context(), rejected, "")
				if err != nil {
					t.Fatal(err)
				}
				if (got.Revision == "better") != kept {
					t.Errorf("%s is given", got.Revision)
				}
				if got := get(t, client, wanted); (got.Revision == "better") != kept {
					t.Errorf("then %s is given", got.Revision)
				}
			})
		})
	}
}

func TestReportOfWhatTheStreamBringsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{report: func(int, *pb.ReportRejectedRequest) (*pb.Authorization, error) {
			time.Sleep(2 * time.Second)
			return answer("better", time.Minute), nil
		}}
		client, end := broker.start(t)
		defer end()
		rejected := get(t, client, wanted)
		stream := <-broker.opened
		subscribe := (<-stream.messages).GetSubscribe()
		time.AfterFunc(time.Second, func() { stream.value(t, subscribe, answer("r1", time.Minute)) })
		got, err := client.ReportRejected(t.Context(), rejected, "")
		if err != nil || got.Revision != "better" || got != get(t, client, wanted) {
			t.Errorf("%v, %v", got, err)
		}
	})
}

func TestReportThatIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := &fakeBroker{report: func(int, *pb.ReportRejectedRequest) (*pb.Authorization, error) {
			return nil, status.Error(codes.FailedPrecondition, "nothing is left to try")
		}}
		client, end := broker.start(t)
		defer end()
		_, err := client.ReportRejected(t.Context(), get(t, client, wanted), "")
		if problem, ok := errors.AsType[*Error](err); !ok || problem.Code != codes.FailedPrecondition {
			t.Errorf("%v", err)
		}
		if got := get(t, client, wanted); got.Revision != "r2" {
			t.Errorf("%s is still given", got.Revision)
		}
	})
}

func TestReportThatIsRefusedDropsWhatWasReportedAlone(t *testing.T) {
	for name, test := range map[string]struct {
		code   codes.Code
		before bool // it was replaced, by something that has ended
		pushed bool // it is replaced while it is reported
		drops  bool
	}{
		"refused": {codes.PermissionDenied, false, false, true},
		// Something is wrong with the report, which says nothing of what is held.
		"not understood":     {codes.InvalidArgument, false, false, false},
		"replaced meanwhile": {codes.PermissionDenied, false, true, false},
		"replaced long ago":  {codes.PermissionDenied, true, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broker := &fakeBroker{}
				client, end := broker.start(t)
				defer end()
				rejected := get(t, client, wanted)
				stream := <-broker.opened
				subscribe := (<-stream.messages).GetSubscribe()
				if test.before {
					stream.value(t, subscribe, answer("ended", time.Second))
					time.Sleep(time.Second)
				}
				broker.report = func(int, *pb.ReportRejectedRequest) (*pb.Authorization, error) {
					if test.pushed {
						stream.value(t, subscribe, answer("pushed", time.Minute))
					}
					return nil, status.Error(test.code, "no")
				}
				if _, err := client.ReportRejected(t.Context(), rejected, ""); err == nil {
					t.Error("no error")
				}
				if dropped := client.cache.find(client.keyOf(wanted)) == nil; dropped != test.drops {
					t.Errorf("dropped: %v", dropped)
				}
			})
		})
	}
}
