// Package s3 is the witness in an S3 bucket: one object, replaced by conditional writes
// (If-None-Match: *, If-Match: ETag).
//
// S3 is strongly consistent: a read shows the last write that was answered. What remains
// unclear is a write without an answer, so each is sent once, by nobody's retry: the second
// answer would be "412, the condition fails" because the first has landed.
package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"tandem/failover/awsclient"
	"tandem/failover/witness/internal/register"
)

const (
	// maxBytes bounds what is read and written; the record is at most 64 KiB.
	maxBytes = 512 << 10

	// scratchLife is after how long the next probe removes a scratch object whose owner
	// could not, and maxRemoved how many of them at once.
	scratchLife = 10 * time.Minute
	maxRemoved  = 100

	// conflictPause is between a 409 and the same write once more.
	conflictPause = 20 * time.Millisecond
)

// Config says where the register is.
type Config struct {
	Bucket, Key string

	// PathStyle puts the bucket into the path and not into the host name, as most servers
	// other than Amazon's want it.
	PathStyle bool

	AWS *awsclient.Loader
}

// Store is a witness.Store over one object. A version is the object's ETag without its
// quotes. For a plain object that is its content's MD5; the record's nonce keeps two
// contents from being the same.
type Store struct {
	cfg Config

	mu     sync.Mutex
	client *client // nil: not made yet; guarded by mu
}

// client is the operations of *s3.Client that are used, as functions: of the client itself the linker
// would keep all of S3.
type client struct {
	getObject    operation[s3.GetObjectInput, s3.GetObjectOutput]
	putObject    operation[s3.PutObjectInput, s3.PutObjectOutput]
	listObjects  operation[s3.ListObjectsV2Input, s3.ListObjectsV2Output]
	deleteObject operation[s3.DeleteObjectInput, s3.DeleteObjectOutput]
}

type operation[I, O any] func(context.Context, *I, ...func(*s3.Options)) (*O, error)

// New returns the store that cfg describes. It connects at the first call.
func New(cfg Config) (*Store, error) {
	if cfg.Bucket == "" || cfg.Key == "" || cfg.AWS == nil {
		return nil, errors.New("s3: a bucket and a key are required")
	}
	return &Store{cfg: cfg}, nil
}

// Keep has the region and the credentials at hand, see witness.Keeper.
func (s *Store) Keep(ctx context.Context, failed func(error)) { s.cfg.AWS.Keep(ctx, failed) }

// Close ends the connections that wait for a next request.
func (s *Store) Close() error {
	s.cfg.AWS.Close()
	return nil
}

func (s *Store) api(ctx context.Context) (*client, error) {
	cfg, err := s.cfg.AWS.Config(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == nil {
		c := s3.NewFromConfig(cfg, func(o *s3.Options) {
			o.UsePathStyle = s.cfg.PathStyle
			// The record has a checksum of its own, and servers other than Amazon's may not know these.
			o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
			o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		})
		s.client = &client{c.GetObject, c.PutObject, c.ListObjectsV2, c.DeleteObject}
	}
	return s.client, nil
}

func once(o *s3.Options) { o.Retryer = awsclient.OneAttempt() }

// Read returns the content and its version, or nil, "", nil when there is none.
func (s *Store) Read(ctx context.Context) ([]byte, string, error) {
	data, version, err := s.read(ctx)
	if err != nil {
		return nil, "", fmt.Errorf("read witness: %w", s.failed(ctx, err))
	}
	return data, version, nil
}

func (s *Store) read(ctx context.Context) ([]byte, string, error) {
	api, err := s.api(ctx)
	if err != nil {
		return nil, "", err
	}
	out, err := api.getObject(ctx, &s3.GetObjectInput{Bucket: &s.cfg.Bucket, Key: &s.cfg.Key})
	if absent(err) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	defer out.Body.Close()
	data, err := io.ReadAll(io.LimitReader(out.Body, maxBytes+1))
	switch version := strings.Trim(aws.ToString(out.ETag), `"`); {
	case err != nil:
		return nil, "", err
	case len(data) > maxBytes:
		return nil, "", fmt.Errorf("%s is larger than %d bytes: not a cluster record", s.cfg.Key, maxBytes)
	case len(data) == 0:
		return nil, "", fmt.Errorf("%s is empty: not a cluster record", s.cfg.Key)
	case !validVersion(version):
		return nil, "", fmt.Errorf("the ETag %q is not one", version)
	default:
		return data, version, nil
	}
}

// CAS replaces the content if its version is still expect. See witness.Store for what its
// errors mean.
func (s *Store) CAS(ctx context.Context, expect string, data []byte) (string, error) {
	if len(data) == 0 || len(data) > maxBytes {
		return "", fmt.Errorf("write witness: %d bytes, between 1 and %d are possible", len(data), maxBytes)
	}
	if expect != "" && !validVersion(expect) {
		return "", fmt.Errorf("write witness: %w", register.ErrConflict) // no content ever had it
	}
	for {
		version, err := s.put(ctx, expect, data)
		if err == nil {
			return version, nil
		}
		switch outcomeOf(err) {
		case refused:
			return "", fmt.Errorf("write witness: %w", register.ErrConflict)
		case unknown:
			// It may have landed all the same; the nonce in it makes it known again.
			if held, version, err := s.read(ctx); err == nil && bytes.Equal(held, data) {
				return version, nil
			}
			return "", fmt.Errorf("write witness: %w", s.failed(ctx, err))
		case again:
			held, version, err := s.read(ctx)
			switch {
			case err != nil:
				return "", fmt.Errorf("write witness: %w", s.failed(ctx, err))
			case bytes.Equal(held, data):
				return version, nil
			case version != expect:
				return "", fmt.Errorf("write witness: %w", register.ErrConflict)
			}
			select {
			case <-ctx.Done():
				return "", fmt.Errorf("write witness: %w", ctx.Err())
			case <-time.After(conflictPause):
			}
		}
	}
}

// put sends the write, once.
func (s *Store) put(ctx context.Context, expect string, data []byte) (version string, err error) {
	api, err := s.api(ctx)
	if err != nil {
		return "", err
	}
	in := &s3.PutObjectInput{Bucket: &s.cfg.Bucket, Key: &s.cfg.Key, Body: bytes.NewReader(data), ContentType: aws.String("application/json")}
	if expect == "" {
		in.IfNoneMatch = aws.String("*")
	} else {
		in.IfMatch = aws.String(`"` + expect + `"`)
	}
	out, err := api.putObject(ctx, in, once)
	if err != nil {
		return "", err
	}
	if version = strings.Trim(aws.ToString(out.ETag), `"`); !validVersion(version) {
		return "", fmt.Errorf("the ETag %q is not one", version)
	}
	return version, nil
}

// outcome is what is known of a write that has failed.
type outcome uint8

const (
	unknown outcome = iota
	refused         // its condition does not hold
	again           // not carried out, because another was under way; its condition may hold still
)

// outcomeOf tells S3's answers apart:
//
//	412 PreconditionFailed            the condition does not hold
//	404 NoSuchKey                     If-Match, and there is no object
//	409 ConditionalRequestConflict    another conditional write was under way: nothing of this one has landed
//
// A 404 of the bucket is none of them: it is a mistake in the config.
func outcomeOf(err error) outcome {
	switch awsclient.Code(err) {
	case "PreconditionFailed", "NoSuchKey":
		return refused
	case "ConditionalRequestConflict", "OperationAborted":
		return again
	case "NoSuchBucket":
		return unknown
	}
	if awsclient.Status(err) == http.StatusPreconditionFailed {
		return refused
	}
	return unknown
}

// absent: there is a bucket, and no such object in it.
func absent(err error) bool {
	var key *types.NoSuchKey
	return errors.As(err, &key) || awsclient.Code(err) == "NoSuchKey"
}

// failed says in a sentence what the operator can do about it.
func (s *Store) failed(ctx context.Context, err error) error {
	switch awsclient.Code(err) {
	case "NoSuchBucket":
		return fmt.Errorf("there is no bucket %s: create it, or correct witness in the config: %w", s.cfg.Bucket, err)
	case "AccessDenied":
		return fmt.Errorf("access to s3://%s/%s is denied: the node needs s3:GetObject and s3:PutObject on it, and s3:ListBucket to be told that it is not there: %w", s.cfg.Bucket, s.cfg.Key, err)
	}
	if cause := ctx.Err(); cause != nil {
		return fmt.Errorf("s3://%s has not answered: %w", s.cfg.Bucket, cause)
	}
	return err
}

// An ETag has 32 hexadecimal digits, and more for what was uploaded in parts or encrypted;
// other servers draw theirs.
func validVersion(v string) bool {
	return len(v) >= 8 && len(v) <= 128 && !strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '"' })
}

// Scratch returns a register of its own for witness.Probe, in an object beside this one's.
// What a killed agent left of its own is removed on the way, where listing is allowed.
func (s *Store) Scratch(ctx context.Context, name string) (register.Register, func(context.Context) error, error) {
	api, err := s.api(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("scratch register beside the witness: %w", err)
	}
	cfg := s.cfg
	cfg.Key += "." + name
	r := &Store{cfg: cfg, client: api}
	s.removeOld(ctx, api)
	return r, r.remove, nil
}

// The whole of a name that the probe draws: never an object of somebody else's.
func isScratch(rest string) bool {
	name, ok := strings.CutPrefix(rest, ".probe-")
	return ok && len(name) == 26 && strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == ""
}

// removeOld does what it can: the next one tries again.
func (s *Store) removeOld(ctx context.Context, api *client) {
	out, err := api.listObjects(ctx, &s3.ListObjectsV2Input{Bucket: &s.cfg.Bucket, Prefix: aws.String(s.cfg.Key + ".probe-"), MaxKeys: aws.Int32(maxRemoved)}, once)
	if err != nil {
		return
	}
	for _, o := range out.Contents {
		key := aws.ToString(o.Key)
		if rest, ok := strings.CutPrefix(key, s.cfg.Key); ok && isScratch(rest) && o.LastModified != nil && time.Since(*o.LastModified) > scratchLife {
			_, _ = api.deleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.cfg.Bucket, Key: &key}, once)
		}
	}
}

func (s *Store) remove(ctx context.Context) error {
	api, err := s.api(ctx)
	if err != nil {
		return fmt.Errorf("remove scratch register: %w", err)
	}
	if _, err := api.deleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.cfg.Bucket, Key: &s.cfg.Key}); err != nil {
		return fmt.Errorf("remove scratch register: %w", s.failed(ctx, err))
	}
	return nil
}
