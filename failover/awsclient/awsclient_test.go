package awsclient_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/smithy-go"

	"tandem/failover/awsclient"
	"tandem/failover/awsclient/awstest"
)

func code(c string) error {
	return fmt.Errorf("asked: %w", &smithy.GenericAPIError{Code: c, Message: "m"})
}

func TestClassify(t *testing.T) {
	for want, codes := range map[awsclient.Class][]string{
		awsclient.Throttled: {"RequestLimitExceeded", "Throttling", "ThrottlingException", "SlowDown"},
		awsclient.Refused:   {"UnauthorizedOperation", "AuthFailure", "AccessDenied", "OptInRequired", "InvalidAllocationID.NotFound", "OperationNotPermitted"},
		awsclient.Clock:     {"RequestExpired", "SignatureDoesNotMatch"},
		awsclient.Missing:   {"InvalidInstanceID.NotFound", "InvalidAssociationID.NotFound"},
		awsclient.State:     {"IncorrectInstanceState", "Resource.AlreadyAssociated", "VolumeInUse"},
		awsclient.Unknown:   {"InternalError", "Unavailable", "SomethingNew"},
	} {
		for _, c := range codes {
			if got := awsclient.Classify(code(c)); got != want {
				t.Errorf("%s: %d, want %d", c, got, want)
			}
		}
	}
	if awsclient.Classify(context.DeadlineExceeded) != awsclient.Unknown {
		t.Error("no answer says something")
	}
}

func TestAllowed(t *testing.T) {
	for _, tc := range []struct {
		err     error
		allowed bool
		known   bool
	}{
		{code("DryRunOperation"), true, true},
		{code("UnauthorizedOperation"), false, true},
		{code("RequestLimitExceeded"), false, false},
		{nil, false, false}, // it was done
	} {
		allowed, err := awsclient.Allowed(tc.err)
		if allowed != tc.allowed || (err == nil) != tc.known {
			t.Errorf("%v: %v %v", tc.err, allowed, err)
		}
	}
}

// Region and credentials are the instance's, by a token alone, and a metadata service that
// does not answer is said to be what is missing.
func TestRegion(t *testing.T) {
	awstest.Environ(t)
	for _, k := range []string{"AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} {
		t.Setenv(k, "")
	}
	t.Setenv("AWS_EC2_METADATA_DISABLED", "false")
	m := awstest.StartMetadata(t, awstest.Identity{InstanceID: "i-1", Region: "eu-central-1"})
	l := awsclient.New(awsclient.Options{Metadata: m.URL})
	defer l.Close()
	cfg, err := l.Config(t.Context())
	if err != nil || cfg.Region != "eu-central-1" {
		t.Fatalf("%q, %v", cfg.Region, err)
	}
	if c, err := cfg.Credentials.Retrieve(t.Context()); err != nil || c.AccessKeyID != awstest.AccessKey || c.SessionToken == "" {
		t.Errorf("%+v, %v", c, err)
	}
	m.Down(true)
	other := awsclient.New(awsclient.Options{Metadata: m.URL})
	defer other.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := other.Config(ctx); !errors.Is(err, awsclient.ErrNoRegion) {
		t.Errorf("without metadata: %v", err)
	}
	m.Down(false) // and it is tried again
	if _, err := other.Config(t.Context()); err != nil {
		t.Error(err)
	}
}

// A black hole costs an attempt its limit and no more, and what is repeated ends with the deadline.
func TestBlackHole(t *testing.T) {
	awstest.Environ(t)
	p := awstest.NewProxy(t, "http://127.0.0.1:1")
	p.Set(awstest.BlackHole)
	l := awsclient.New(awsclient.Options{Region: awstest.Region, Endpoint: p.URL})
	defer l.Close()
	cfg, err := l.Config(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	api := dynamodb.NewFromConfig(cfg)
	began := time.Now()
	if _, err := api.ListTables(t.Context(), &dynamodb.ListTablesInput{}, func(o *dynamodb.Options) { o.Retryer = awsclient.OneAttempt() }); err == nil || time.Since(began) > 6*time.Second {
		t.Errorf("one attempt: %v after %v", err, time.Since(began))
	}
	if n := p.Count("ListTables"); n != 1 {
		t.Errorf("%d attempts", n)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	began = time.Now()
	if _, err := api.ListTables(ctx, &dynamodb.ListTablesInput{}); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 2*time.Second {
		t.Errorf("with a deadline: %v after %v", err, time.Since(began))
	}
	// What was not carried out is repeated, for a while.
	p.Set(awstest.Throttle)
	before := p.Count("ListTables")
	began = time.Now()
	_, err = api.ListTables(t.Context(), &dynamodb.ListTablesInput{})
	if n := p.Count("ListTables") - before; awsclient.Code(err) == "" || n < 3 || time.Since(began) > 15*time.Second {
		t.Errorf("throttled: %d attempts in %v: %v", n, time.Since(began), err)
	}
}
