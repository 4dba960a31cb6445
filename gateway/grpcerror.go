package gateway

import (
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"kvstore/api/kvstorev1"
	"kvstore/wire"
)

// errorDomain is the domain of our google.rpc.ErrorInfo.
const errorDomain = "kvstore"

// grpcCode maps a status to gRPC. UNAVAILABLE and RESOURCE_EXHAUSTED mean that a write was not applied: clients repeat
// the first by themselves. An outcome that can't be known is UNKNOWN.
func grpcCode(st wire.Status) codes.Code {
	switch st {
	case wire.StatusOK:
		return codes.OK
	case wire.StatusNotFound, wire.StatusNoNamespace:
		return codes.NotFound
	case wire.StatusConditionFailed, wire.StatusNotANumber:
		return codes.FailedPrecondition
	case wire.StatusLimited, wire.StatusQuota, wire.StatusTooMany, wire.StatusReplyFull, wire.StatusSessionsTooMany:
		return codes.ResourceExhausted
	case wire.StatusNamespaceExists:
		return codes.AlreadyExists
	case wire.StatusUnauthenticated:
		return codes.Unauthenticated
	case wire.StatusDenied:
		return codes.PermissionDenied
	case wire.StatusCompacted, wire.StatusFutureRevision:
		return codes.OutOfRange
	case wire.StatusUnknownOp, wire.StatusUnsupported:
		return codes.Unimplemented
	case wire.StatusDamaged:
		return codes.DataLoss
	case wire.StatusCancelled:
		return codes.Canceled
	}
	switch st.Class() {
	case wire.ClassRetry:
		return codes.Unavailable
	case wire.ClassRefused:
		return codes.InvalidArgument
	default:
		return codes.Unknown
	}
}

// callError is an answer that is none of success, as a gRPC method returns it.
type callError struct {
	status wire.Status
	st     *status.Status
}

// Error gives the text.
func (e *callError) Error() string { return e.st.Message() }

// GRPCStatus gives what is sent.
func (e *callError) GRPCStatus() *status.Status { return e.st }

// grpcFail makes an error of an answer. write says that the call was one that changes something; keys, where there are
// several, gives the key of an operation.
func grpcFail(write bool, r *wire.Response, keys func(operation uint32) string) error {
	p := problemOf(write, r)
	info := &errdetails.ErrorInfo{Reason: p.Title, Domain: errorDomain, Metadata: map[string]string{"code": p.Code, "retryable": "false"}}
	if p.Retryable {
		info.Metadata["retryable"] = "true"
	}
	if p.Applied != "" {
		info.Metadata["applied"] = p.Applied
	}
	details := []protoadapt.MessageV1{protoadapt.MessageV1Of(info)}
	if pause := retryAfter(r); pause != 0 {
		details = append(details, protoadapt.MessageV1Of(&errdetails.RetryInfo{RetryDelay: durationpb.New(pause)}))
	}
	if len(p.Failed) != 0 {
		failed := &kvstorev1.FailedConditions{}
		for _, f := range p.Failed {
			c := &kvstorev1.FailedCondition{Operation: f.Operation, Condition: f.Condition}
			if keys != nil {
				c.Key = keys(f.Operation)
			}
			failed.Failed = append(failed.Failed, c)
		}
		details = append(details, protoadapt.MessageV1Of(failed))
	}
	st := status.New(grpcCode(r.Status), p.Detail)
	if with, err := st.WithDetails(details...); err == nil { // it fails for OK alone
		st = with
	}
	return &callError{r.Status, st}
}

// grpcRefuse is grpcFail for a refusal of the gateway's own.
func grpcRefuse(write bool, ref *wire.Refusal) error {
	r := wire.ErrorResponse(ref, nil)
	return grpcFail(write, &r, nil)
}
