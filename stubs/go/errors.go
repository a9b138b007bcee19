package credentialbroker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

const (
	reasonPrefix = "ERROR_REASON_" // of the enum's values; what is sent goes without
	reasonDomain = "credentialbroker.v1"
)

// ErrClosed is the error of every use of a client that was closed, and of what still waited then.
var ErrClosed = errors.New("credential broker: the client is closed")

// ErrOrigin is the error of a request to another origin than the one that a [Transport] was made for. Nothing was sent.
var ErrOrigin = errors.New("credential broker: not the origin that the headers are for")

// Error is what the broker answered instead of an authorization, or what gRPC made of a broker that did not answer.
//
//	if problem, ok := errors.AsType[*credentialbroker.Error](err); ok {
//		switch problem.Reason { ...
//
// [status.FromError] takes it as well, and [errors.Is] finds [context.DeadlineExceeded] in one of that code.
type Error struct {
	// Reason says why. It is unspecified where gRPC itself made the error, and where a newer broker sent a word that this
	// package does not know; the code says then what to do.
	Reason pb.ErrorReason
	// ReasonText is the word as it was sent, without the prefix of the enum. Empty where gRPC made the error.
	ReasonText string
	Code       codes.Code
	// Message is for people, and may change.
	Message string
	// RetryDelay is how long to wait before trying again, 0 where the broker did not say.
	RetryDelay time.Duration
	// Metadata is what the reason is about, such as the scope; each reason's documentation shows its keys.
	Metadata map[string]string

	status *status.Status
}

// Error implements error.
func (e *Error) Error() string {
	if e.ReasonText == "" {
		return fmt.Sprintf("credential broker: %v: %s", e.Code, e.Message)
	}
	return fmt.Sprintf("credential broker: %s: %s", e.ReasonText, e.Message)
}

// GRPCStatus returns the status as it came, with all details, for [status.FromError].
func (e *Error) GRPCStatus() *status.Status { return e.status }

// Is finds [context.DeadlineExceeded] in an error of that code, whoever kept the time.
func (e *Error) Is(target error) bool {
	return target == context.DeadlineExceeded && e.Code == codes.DeadlineExceeded
}

// errorOf types what a call failed with.
func errorOf(err error) *Error {
	return errorOfStatus(status.Convert(err))
}

func errorOfStatus(from *status.Status) *Error {
	e := &Error{Code: from.Code(), Message: from.Message(), status: from}
	for _, detail := range from.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() != reasonDomain {
				continue // of something that stands before the broker
			}
			e.ReasonText = detail.GetReason()
			e.Reason = pb.ErrorReason(pb.ErrorReason_value[reasonPrefix+detail.GetReason()])
			e.Metadata = maps.Clone(detail.GetMetadata())
		case *errdetails.RetryInfo:
			e.RetryDelay = detail.GetRetryDelay().AsDuration()
		}
	}
	return e
}

// errorOfSubscription types what a stream says of one subscription.
func errorOfSubscription(from *pb.ErrorStatus) *Error {
	code := codes.Code(from.GetCode())
	return &Error{
		Reason:     from.GetReason(),
		ReasonText: strings.TrimPrefix(from.GetReason().String(), reasonPrefix),
		Code:       code,
		Message:    from.GetMessage(),
		RetryDelay: from.GetRetryDelay().AsDuration(),
		status:     status.New(code, from.GetMessage()),
	}
}

// errorOfContext is what a user gets whose own context ended first. A cancelled one stays what it is.
func errorOfContext(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return errorOfStatus(status.New(codes.DeadlineExceeded, "the deadline passed before the broker answered"))
	}
	return ctx.Err()
}

// unreached says whether an error means that the broker was not reached, rather than that it answered so or was slow.
func (e *Error) unreached() bool {
	return e.ReasonText == "" && e.Code == codes.Unavailable
}
