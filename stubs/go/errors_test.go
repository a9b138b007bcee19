package credentialbroker

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

func statusOf(t *testing.T, code codes.Code, details ...protoadapt.MessageV1) error {
	t.Helper()
	made, err := status.New(code, "why").WithDetails(details...)
	if err != nil {
		t.Fatal(err)
	}
	return made.Err()
}

func TestErrorOfTheBroker(t *testing.T) {
	err := errorOf(statusOf(t, codes.Unavailable,
		&errdetails.ErrorInfo{Reason: "STORE_DOWN", Domain: "credentialbroker.v1", Metadata: map[string]string{"a": "b"}},
		&errdetails.RetryInfo{RetryDelay: durationpb.New(3 * time.Second)},
	))
	if err.Reason != pb.ErrorReason_ERROR_REASON_STORE_DOWN || err.ReasonText != "STORE_DOWN" || err.Code != codes.Unavailable ||
		err.Message != "why" || err.RetryDelay != 3*time.Second || err.Metadata["a"] != "b" {
		t.Errorf("%#v", err)
	}
	if err.unreached() {
		t.Error("the broker was there")
	}
	var wrapped error = err
	if from, ok := status.FromError(wrapped); !ok || from.Code() != codes.Unavailable || len(from.Details()) != 2 {
		t.Errorf("as a status: %v, %v", from, ok)
	}
}

func TestReasonOfANewerBroker(t *testing.T) {
	err := errorOf(statusOf(t, codes.FailedPrecondition, &errdetails.ErrorInfo{Reason: "FROM_THE_FUTURE", Domain: "credentialbroker.v1"}))
	if err.Reason != pb.ErrorReason_ERROR_REASON_UNSPECIFIED || err.ReasonText != "FROM_THE_FUTURE" || err.Code != codes.FailedPrecondition {
		t.Errorf("%#v", err)
	}
}

func TestReasonOfWhatStandsBeforeTheBroker(t *testing.T) {
	err := errorOf(statusOf(t, codes.Unavailable, &errdetails.ErrorInfo{Reason: "STORE_DOWN", Domain: "proxy.example", Metadata: map[string]string{"a": "b"}}))
	if err.Reason != pb.ErrorReason_ERROR_REASON_UNSPECIFIED || err.ReasonText != "" || err.Metadata != nil || !err.unreached() {
		t.Errorf("%#v", err)
	}
}

func TestErrorOfTheRuntime(t *testing.T) {
	err := errorOf(status.Error(codes.DeadlineExceeded, "late"))
	if err.Reason != pb.ErrorReason_ERROR_REASON_UNSPECIFIED || err.ReasonText != "" || err.unreached() || !errorOf(errUnavailable).unreached() {
		t.Errorf("%#v", err)
	}
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		t.Error("errors.Is must find the deadline, and only that")
	}
	if errors.Is(errorOf(errUnavailable), context.DeadlineExceeded) {
		t.Error("UNAVAILABLE is no deadline")
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
