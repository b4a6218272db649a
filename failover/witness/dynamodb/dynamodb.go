// Package dynamodb is the witness in a DynamoDB table: one item, replaced by writes with a
// condition expression and read with ConsistentRead.
//
// A write is sent once, by nobody's retry: the second answer would be "the condition
// fails" because the first has landed.
package dynamodb

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"tandem/failover/awsclient"
	"tandem/failover/witness/internal/register"
)

const (
	// maxBytes bounds what is read and written: an item has at most 400 KB, names included.
	maxBytes = 390 << 10

	// scratchLife is in what an item says of its end: a table whose time to live is that
	// attribute removes what a killed agent has left.
	scratchLife = 10 * time.Minute

	// DefaultHashKey is the table's partition key, a string.
	DefaultHashKey = "id"
)

// The item's attributes beside the partition key.
const (
	contentAttribute = "record"  // B
	versionAttribute = "version" // S
	expiresAttribute = "expires" // N, seconds since 1970; of a scratch register only
)

// Config says where the register is.
type Config struct {
	Table, Key string
	HashKey    string // name of the partition key; empty: DefaultHashKey
	AWS        *awsclient.Loader
}

// Store is a witness.Store over one item.
//
// A version is a count of the writes and a hash of the content:
//
//	412-0f343b0931126a20f133d67c2b018a3b
//
// The hash is there because a table that was restored counts a second time.
type Store struct {
	cfg     Config
	expires bool // what is written says when it ends

	mu     sync.Mutex
	client *client // nil: not made yet; guarded by mu
}

// client is the operations of *dynamodb.Client that are used, as functions: of the client itself the
// linker would keep all of DynamoDB.
type client struct {
	getItem    operation[dynamodb.GetItemInput, dynamodb.GetItemOutput]
	putItem    operation[dynamodb.PutItemInput, dynamodb.PutItemOutput]
	deleteItem operation[dynamodb.DeleteItemInput, dynamodb.DeleteItemOutput]
}

type operation[I, O any] func(context.Context, *I, ...func(*dynamodb.Options)) (*O, error)

// New returns the store that cfg describes. It connects at the first call.
func New(cfg Config) (*Store, error) {
	if cfg.Table == "" || cfg.Key == "" || cfg.AWS == nil {
		return nil, errors.New("dynamodb: a table and a key are required")
	}
	if cfg.HashKey == "" {
		cfg.HashKey = DefaultHashKey
	}
	switch cfg.HashKey {
	case contentAttribute, versionAttribute, expiresAttribute:
		return nil, fmt.Errorf("dynamodb: %s is an attribute of the record and cannot be the partition key", cfg.HashKey)
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
		c := dynamodb.NewFromConfig(cfg)
		s.client = &client{c.GetItem, c.PutItem, c.DeleteItem}
	}
	return s.client, nil
}

func once(o *dynamodb.Options) { o.Retryer = awsclient.OneAttempt() }

func (s *Store) key() map[string]types.AttributeValue {
	return map[string]types.AttributeValue{s.cfg.HashKey: &types.AttributeValueMemberS{Value: s.cfg.Key}}
}

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
	out, err := api.getItem(ctx, &dynamodb.GetItemInput{TableName: &s.cfg.Table, Key: s.key(), ConsistentRead: aws.Bool(true)})
	if err != nil {
		return nil, "", err
	}
	if len(out.Item) == 0 {
		return nil, "", nil
	}
	content, ok := out.Item[contentAttribute].(*types.AttributeValueMemberB)
	version, okToo := out.Item[versionAttribute].(*types.AttributeValueMemberS)
	if !ok || !okToo || len(content.Value) == 0 || len(content.Value) > maxBytes || !strings.HasSuffix(version.Value, "-"+sumOf(content.Value)) {
		return nil, "", fmt.Errorf("the item %s in the table %s is not a cluster record", s.cfg.Key, s.cfg.Table)
	}
	return content.Value, version.Value, nil
}

// CAS replaces the content if its version is still expect. See witness.Store for what its
// errors mean.
func (s *Store) CAS(ctx context.Context, expect string, data []byte) (string, error) {
	if len(data) == 0 || len(data) > maxBytes {
		return "", fmt.Errorf("write witness: %d bytes, between 1 and %d are possible", len(data), maxBytes)
	}
	count := uint64(0)
	if expect != "" {
		digits, _, _ := strings.Cut(expect, "-")
		n, err := strconv.ParseUint(digits, 10, 62)
		if err != nil || n == 0 {
			return "", fmt.Errorf("write witness: %w", register.ErrConflict) // no content ever had it
		}
		count = n
	}
	version := strconv.FormatUint(count+1, 10) + "-" + sumOf(data)
	err := s.put(ctx, expect, version, data)
	if err == nil {
		return version, nil
	}
	var failed *types.ConditionalCheckFailedException
	if errors.As(err, &failed) {
		return "", fmt.Errorf("write witness: %w", register.ErrConflict)
	}
	// It may have landed all the same; the nonce in it makes it known again.
	if held, v, err := s.read(ctx); err == nil && v == version && bytes.Equal(held, data) {
		return version, nil
	}
	return "", fmt.Errorf("write witness: %w", s.failed(ctx, err))
}

// put sends the write, once.
func (s *Store) put(ctx context.Context, expect, version string, data []byte) error {
	api, err := s.api(ctx)
	if err != nil {
		return err
	}
	item := s.key()
	item[contentAttribute] = &types.AttributeValueMemberB{Value: data}
	item[versionAttribute] = &types.AttributeValueMemberS{Value: version}
	if s.expires {
		item[expiresAttribute] = &types.AttributeValueMemberN{Value: strconv.FormatInt(time.Now().Add(scratchLife).Unix(), 10)}
	}
	in := &dynamodb.PutItemInput{TableName: &s.cfg.Table, Item: item}
	if expect == "" {
		in.ConditionExpression = aws.String("attribute_not_exists(#id)")
		in.ExpressionAttributeNames = map[string]string{"#id": s.cfg.HashKey}
	} else {
		in.ConditionExpression = aws.String("#version = :expect")
		in.ExpressionAttributeNames = map[string]string{"#version": versionAttribute}
		in.ExpressionAttributeValues = map[string]types.AttributeValue{":expect": &types.AttributeValueMemberS{Value: expect}}
	}
	_, err = api.putItem(ctx, in, once)
	return err
}

// failed says in a sentence what the operator can do about it.
func (s *Store) failed(ctx context.Context, err error) error {
	switch awsclient.Code(err) {
	case "ResourceNotFoundException":
		return fmt.Errorf("there is no table %s in this region: create it, or correct witness in the config: %w", s.cfg.Table, err)
	case "AccessDeniedException":
		return fmt.Errorf("access to the table %s is denied: the node needs dynamodb:GetItem, PutItem and DeleteItem on it: %w", s.cfg.Table, err)
	case "ValidationException":
		return fmt.Errorf("the table %s does not take the record: its partition key must be %s, a string (another name: hash-key=), without a sort key: %w", s.cfg.Table, s.cfg.HashKey, err)
	}
	if cause := ctx.Err(); cause != nil {
		return fmt.Errorf("the table %s has not answered: %w", s.cfg.Table, cause)
	}
	return err
}

// Scratch returns a register of its own for witness.Probe, in an item of its own.
func (s *Store) Scratch(ctx context.Context, name string) (register.Register, func(context.Context) error, error) {
	api, err := s.api(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("scratch register beside the witness: %w", err)
	}
	cfg := s.cfg
	cfg.Key += "." + name
	r := &Store{cfg: cfg, expires: true, client: api}
	return r, r.remove, nil
}

func (s *Store) remove(ctx context.Context) error {
	api, err := s.api(ctx)
	if err != nil {
		return fmt.Errorf("remove scratch register: %w", err)
	}
	if _, err := api.deleteItem(ctx, &dynamodb.DeleteItemInput{TableName: &s.cfg.Table, Key: s.key()}); err != nil {
		return fmt.Errorf("remove scratch register: %w", s.failed(ctx, err))
	}
	return nil
}

func sumOf(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:16])
}
