package awsclient

import (
	"errors"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
)

// Class is what an error of AWS means for whoever asked.
type Class uint8

// The classes. Unknown is everything that may be over in a moment, and whose request may
// have been carried out.
const (
	Unknown   Class = iota // no answer, a broken one, or a failure of the service
	Throttled              // not carried out: too many requests
	Refused                // trying again is of no use until somebody changes the set-up
	Clock                  // this machine's clock is wrong
	Missing                // what was named is not there (which proves nothing soon after a change)
	State                  // it is in another state than the request needs, perhaps the wanted one
)

// Classify sorts an error of an EC2 request by its code.
func Classify(err error) Class {
	switch Code(err) {
	case "RequestLimitExceeded", "Throttling", "ThrottlingException", "EC2ThrottledException", "SlowDown",
		"ProvisionedThroughputExceededException", "RequestThrottled", "TooManyRequestsException":
		return Throttled
	case "UnauthorizedOperation", "AuthFailure", "AccessDenied", "AccessDeniedException", "OptInRequired", "OperationNotPermitted",
		"InvalidAllocationID.NotFound", "InvalidAllocationID.Malformed", "InvalidNetworkInterfaceID.NotFound",
		"InvalidRouteTableID.NotFound", "InvalidParameterValue", "UnrecognizedClientException", "InvalidClientTokenId",
		"InvalidAccessKeyId", "ExpiredToken", "NoSuchBucket", "ResourceNotFoundException", "Blocked", "PendingVerification":
		return Refused
	case "RequestExpired", "SignatureDoesNotMatch", "RequestTimeTooSkewed", "InvalidSignatureException":
		return Clock
	case "InvalidInstanceID.NotFound", "InvalidAssociationID.NotFound", "InvalidRoute.NotFound", "InvalidVolume.NotFound", "InvalidAddress.NotFound":
		return Missing
	case "IncorrectInstanceState", "IncorrectState", "Resource.AlreadyAssociated", "VolumeInUse", "RouteAlreadyExists":
		return State
	}
	return Unknown
}

// Code returns AWS's code of the error, or "".
func Code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

// Status returns the HTTP status of the answer that the error stands for, or 0.
func Status(err error) int {
	var response *awshttp.ResponseError
	if errors.As(err, &response) {
		return response.HTTPStatusCode()
	}
	return 0
}

// Allowed says what a dry run has found out: that the request would have been carried out
// (true), that it may not be (false), or, by an error, neither.
func Allowed(err error) (bool, error) {
	switch Code(err) {
	case "DryRunOperation":
		return true, nil
	case "UnauthorizedOperation", "AccessDenied":
		return false, nil
	}
	if err == nil {
		err = errors.New("the service has ignored DryRun")
	}
	return false, err
}

// OneAttempt is for requests that must not be repeated by the SDK: the second answer would
// be about the first one's effect.
func OneAttempt() aws.Retryer { return aws.NopRetryer{} }
