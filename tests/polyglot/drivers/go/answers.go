package main

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc/status"

	credentialbroker "credentialbroker.dev/stubs/go"
)

// errArgument marks what a constructor refused.
type errArgument struct{ error }

// codeWords are gRPC's canonical words, by code.
var codeWords = [...]string{
	"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
	"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
	"INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
}

func describeError(err error) object {
	kind := "other"
	var argument errArgument
	if problem, ok := errors.AsType[*credentialbroker.Error](err); ok {
		return object{
			"type":        "broker",
			"reason":      strings.TrimPrefix(problem.Reason.String(), "ERROR_REASON_"),
			"reason_text": problem.ReasonText,
			"code":        codeWords[problem.Code],
			"message":     problem.Message,
			"retry_delay": problem.RetryDelay.Seconds(),
			"metadata":    problem.Metadata,
		}
	}
	switch {
	case errors.As(err, &argument):
		kind = "argument"
	case errors.Is(err, credentialbroker.ErrClosed):
		kind = "closed"
	case errors.Is(err, credentialbroker.ErrOrigin):
		kind = "origin"
	case errors.Is(err, context.Canceled):
		kind = "cancelled"
	}
	answer := object{"type": kind, "message": err.Error()}
	if from, ok := status.FromError(err); ok { // of a call to another service
		answer["code"] = codeWords[from.Code()]
	}
	return answer
}

func describe(a *credentialbroker.Authorization) object {
	return object{
		"headers":        pairs(a),
		"kind":           strings.TrimPrefix(a.Kind.String(), "CREDENTIAL_KIND_"),
		"reason":         strings.TrimPrefix(a.Reason.String(), "DECISION_REASON_"),
		"revision":       a.Revision,
		"identity":       a.Identity,
		"connection_tag": a.ConnectionTag,
		"stale":          a.Stale,
		"expires_in":     a.ExpiresIn().Seconds(),
		"refresh_in":     a.RefreshIn().Seconds(),
	}
}

func pairs(a *credentialbroker.Authorization) [][2]string {
	var pairs [][2]string
	for name, value := range a.Headers() {
		pairs = append(pairs, [2]string{name, value})
	}
	return pairs
}
