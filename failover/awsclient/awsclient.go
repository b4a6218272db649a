// Package awsclient is how Tandem speaks to AWS during a failover: the one place for
// time limits, repeats, credentials and the meaning of error codes. The write path never
// comes here.
//
// The SDK's own limits (30 s to dial, no end to an answer, 20 s between repeats) let an
// endpoint that swallows packets eat minutes. Here a connection has dialLimit, an attempt
// attemptLimit, and a request as a whole the deadline of its context.
package awsclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/smithy-go/logging"
)

const (
	dialLimit    = 1500 * time.Millisecond
	attemptLimit = 4 * time.Second

	// attempts and maxBackoff of a request that may be repeated. Between them is a
	// random pause of at most maxBackoff, so that two nodes do not keep in step.
	attempts   = 6
	maxBackoff = time.Second

	// idleLimit is shorter than what NAT gateways and load balancers keep an idle flow
	// for (350 s): a connection that they have forgotten swallows the next request.
	idleLimit = 60 * time.Second

	// refreshEvery is how often Keep looks whether the credentials want to be fetched
	// anew, which they do from expiryWindow before they end.
	refreshEvery = time.Minute
	expiryWindow = 10 * time.Minute
)

// Options say where AWS is; the zero value is AWS itself, seen from an EC2 instance.
type Options struct {
	Region   string // empty: AWS_REGION, the shared config, or the instance's own
	Endpoint string // URL of the service; empty: AWS's own for the region
	Metadata string // URL of the instance metadata; empty: AWS_EC2_METADATA_SERVICE_ENDPOINT, or 169.254.169.254
}

// Loader has a configuration of the SDK, which it loads when it is first asked for: that
// may need the instance metadata, for the region and for the role's credentials. A load
// that failed is tried again at the next call. It is safe for concurrent use.
type Loader struct {
	options Options

	// turn is full while somebody loads, or looks: unlike a mutex it can be waited for
	// until a deadline.
	turn     chan struct{}
	cfg      *aws.Config // nil: not loaded yet; guarded by turn
	metadata *http.Client
}

// New returns the Loader for o. It asks nobody yet.
func New(o Options) *Loader {
	return &Loader{options: o, turn: make(chan struct{}, 1), metadata: HTTPClient()}
}

// Close ends the connections that wait for a next request. The Loader can be used after it.
func (l *Loader) Close() {
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	l.metadata.CloseIdleConnections()
	if l.cfg == nil {
		return
	}
	if c, ok := l.cfg.HTTPClient.(*http.Client); ok {
		c.CloseIdleConnections()
	}
}

// Metadata is a client of the instance metadata, see the function of that name.
func (l *Loader) Metadata() *imds.Client { return metadata(l.options.Metadata, l.metadata) }

// Options returns what New was given.
func (l *Loader) Options() Options { return l.options }

// ErrNoRegion means that neither the config nor the environment nor the instance
// metadata names a region.
var ErrNoRegion = errors.New("the AWS region is not known: give it as region=, set AWS_REGION, or let the instance metadata (IMDSv2) be reached")

// Config returns the configuration. Requests made with it are repeated by the SDK's
// standard mode, which waits for nothing but its own short pauses; its quota of repeats
// belongs to this Loader alone.
func (l *Loader) Config(ctx context.Context) (aws.Config, error) {
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return aws.Config{}, fmt.Errorf("load the AWS configuration: %w", context.Cause(ctx))
	}
	if l.cfg != nil {
		return l.cfg.Copy(), nil
	}
	cfg, err := l.load(ctx)
	if err != nil {
		return aws.Config{}, err
	}
	l.cfg = &cfg
	return cfg.Copy(), nil
}

func (l *Loader) load(ctx context.Context) (aws.Config, error) {
	metadata := l.Metadata()
	options := []func(*config.LoadOptions) error{
		config.WithHTTPClient(buildable()),
		config.WithLogger(logging.Nop{}), // what matters is in the errors
		config.WithRetryer(func() aws.Retryer { return Retryer(attempts) }),
		config.WithEC2RoleCredentialOptions(func(o *ec2rolecreds.Options) { o.Client = metadata }),
		config.WithCredentialsCacheOptions(func(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = expiryWindow }),
	}
	if l.options.Region != "" {
		options = append(options, config.WithRegion(l.options.Region))
	}
	if l.options.Endpoint != "" {
		options = append(options, config.WithBaseEndpoint(l.options.Endpoint))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return aws.Config{}, fmt.Errorf("load the AWS configuration: %w", err)
	}
	// From here on it stays as it is (the SDK has added what AWS_CA_BUNDLE names).
	if b, ok := cfg.HTTPClient.(*awshttp.BuildableClient); ok {
		cfg.HTTPClient = b.Freeze()
	}
	if cfg.Region == "" {
		out, err := metadata.GetRegion(ctx, &imds.GetRegionInput{})
		if err != nil {
			return aws.Config{}, fmt.Errorf("%w: %w", ErrNoRegion, err)
		}
		cfg.Region = out.Region
	}
	return cfg, nil
}

// Keep fetches the region and the credentials before they are needed, and then again
// before they end, until ctx has ended. What goes wrong is told to failed and tried again.
func (l *Loader) Keep(ctx context.Context, failed func(error)) {
	for {
		if err := l.fetch(ctx); err != nil && ctx.Err() == nil {
			failed(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(refreshEvery):
		}
	}
}

func (l *Loader) fetch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, refreshEvery)
	defer cancel()
	cfg, err := l.Config(ctx)
	if err != nil {
		return err
	}
	if _, err := cfg.Credentials.Retrieve(ctx); err != nil {
		return fmt.Errorf("fetch the AWS credentials: %w", err)
	}
	return nil
}

// HTTPClient is the client of a failover: each request made with it is one attempt.
func HTTPClient() *http.Client {
	b := buildable()
	return &http.Client{Transport: b.GetTransport(), Timeout: b.GetTimeout(), CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func buildable() *awshttp.BuildableClient {
	return awshttp.NewBuildableClient().
		WithTimeout(attemptLimit).
		WithDialerOptions(func(d *net.Dialer) { d.Timeout = dialLimit }).
		WithTransportOptions(func(t *http.Transport) {
			t.TLSHandshakeTimeout = dialLimit
			t.IdleConnTimeout = idleLimit
			// One connection is one flow that can be lost; HTTP/2 would put everything on it.
			t.ForceAttemptHTTP2 = false
		})
}

// Metadata is a client of the instance metadata, by IMDSv2 alone: there is no way back to
// requests without a token.
func Metadata(endpoint string) *imds.Client { return metadata(endpoint, HTTPClient()) }

func metadata(endpoint string, client *http.Client) *imds.Client {
	return imds.New(imds.Options{Logger: logging.Nop{}, Endpoint: endpoint, EnableFallback: aws.FalseTernary, HTTPClient: client})
}

// Retryer repeats what AWS calls transient or throttled, at most so many attempts in all.
// It is standard mode: the adaptive one would hold requests back by itself.
func Retryer(attempts int) aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts = attempts
		o.MaxBackoff = maxBackoff
	})
}
