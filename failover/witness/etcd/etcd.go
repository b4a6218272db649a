// Package etcd is the witness in an etcd v3 cluster: one key, replaced by
// transactions.
//
// It speaks etcd's own generated API over gRPC and leaves etcd's client package
// out, for two habits of that package that a witness cannot have: it waits for
// any member to become ready until the deadline is used up, and it repeats
// requests by itself. Here a write is sent once, to a member that has just
// answered, and a member that is silent costs a tenth of a second.
package etcd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"tandem/failover/witness/internal/register"
)

const (
	// maxBytes bounds what is read and written. The record itself is at most
	// 64 KiB, and etcd refuses requests above 1.5 MiB, which has to hold the old
	// content and the new.
	maxBytes = 512 << 10

	// maxAnswer is what a member may send: the content and what is around it.
	maxAnswer = maxBytes + 64<<10

	// nextAfter is how long one member is waited for alone, connecting
	// included. Members that are a few milliseconds away answer well within it,
	// and asking a second one for nothing does no harm.
	nextAfter = 100 * time.Millisecond

	// dialLimit, firstRedial and lastRedial keep a member that was away from
	// being away for longer than it was: gRPC's own are 20 s, 1 s and 2 min.
	dialLimit   = time.Second
	firstRedial = 50 * time.Millisecond
	lastRedial  = time.Second

	// A connection is given up when sent bytes stay without a TCP
	// acknowledgement for pingLimit (TCP_USER_TIMEOUT), or an open request
	// without the answer to a ping, every pingEvery: gRPC and etcd allow it no
	// more often.
	pingEvery = 10 * time.Second
	pingLimit = 2 * time.Second

	// scratchLife is after how many seconds etcd forgets a scratch register
	// whose owner could not remove it.
	scratchLife = 60
)

// Config says where the register is.
type Config struct {
	Hosts []string    // HOST:PORT of each member; they are asked in this order
	Key   string      // the register
	TLS   *tls.Config // nil: in the clear
}

// Store is a witness.Store over one key.
//
// A version is the key's modification revision and a hash of the content:
//
//	412-0f343b0931126a20f133d67c2b018a3b
//
// The revision makes the compare of a transaction; two contents never have the
// same one. Unless etcd was restored from a snapshot: then revisions are given out
// a second time, and the hash tells.
type Store struct {
	key     []byte
	members []*member
	lease   int64 // of a scratch register: what it puts goes when the lease ends

	// first is the member that is asked first: the one that answered last. A
	// scratch register has it from, and shares it with, the register it is beside.
	first *atomic.Int32

	// beforeTxn is where a test breaks the line.
	beforeTxn func()
}

// member is one etcd server and our connection to it. Each has a connection of
// its own, because which one is asked is not for gRPC's balancer to choose: that
// would send every third request to a silent one until its connection breaks.
type member struct {
	host   string
	conn   *grpc.ClientConn
	kv     pb.KVClient
	leases pb.LeaseClient
}

// New returns the store that cfg describes. It connects at the first call.
func New(cfg Config) (*Store, error) {
	if len(cfg.Hosts) == 0 || cfg.Key == "" {
		return nil, errors.New("etcd: a member and a key are required")
	}
	security := insecure.NewCredentials()
	if cfg.TLS != nil {
		security = credentials.NewTLS(cfg.TLS)
	}
	s := &Store{key: []byte(cfg.Key), first: new(atomic.Int32)}
	for _, host := range cfg.Hosts {
		// passthrough: the name is looked up by the dialler, at every dial.
		conn, err := grpc.NewClient("passthrough:///"+host,
			grpc.WithTransportCredentials(security),
			grpc.WithDisableRetry(), // what is left is what gRPC knows was never processed
			grpc.WithDisableServiceConfig(),
			grpc.WithNoProxy(),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: firstRedial, Multiplier: 2, Jitter: 0.2, MaxDelay: lastRedial},
				MinConnectTimeout: dialLimit,
			}),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingLimit}),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("etcd: %s: %w", host, err), s.Close())
		}
		s.members = append(s.members, &member{host, conn, pb.NewKVClient(conn), pb.NewLeaseClient(conn)})
	}
	return s, nil
}

// Close ends the connections. A request under way fails.
func (s *Store) Close() error {
	var err error
	for _, m := range s.members {
		err = errors.Join(err, m.conn.Close())
	}
	return err
}

// Read returns the content and its version, or nil, "", nil when there is none.
func (s *Store) Read(ctx context.Context) ([]byte, string, error) {
	_, kv, err := s.ask(ctx)
	if err != nil {
		return nil, "", fmt.Errorf("read witness: %w", err)
	}
	if kv == nil {
		return nil, "", nil
	}
	if len(kv.Value) > maxBytes {
		return nil, "", fmt.Errorf("read witness: %s is larger than %d bytes: not a cluster record", s.key, maxBytes)
	}
	return kv.Value, versionOf(kv.ModRevision, kv.Value), nil
}

// CAS replaces the content if its version is still expect. See witness.Store for
// what its errors mean.
//
// The key is read first, for a member that is known to answer and for the
// content that the transaction compares with. What it shows decides nothing: the
// transaction does.
func (s *Store) CAS(ctx context.Context, expect string, data []byte) (string, error) {
	if len(data) == 0 || len(data) > maxBytes {
		return "", fmt.Errorf("write witness: %d bytes, between 1 and %d are possible", len(data), maxBytes)
	}
	m, kv, err := s.ask(ctx)
	if err != nil {
		return "", fmt.Errorf("write witness: %w", err)
	}
	conditions, ok := s.conditions(expect, kv)
	if !ok {
		return "", fmt.Errorf("write witness: %w", register.ErrConflict)
	}
	if s.beforeTxn != nil {
		s.beforeTxn()
	}
	put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: s.key, Value: data, Lease: s.lease}}}
	answer, err := m.kv.Txn(withLeader(ctx), &pb.TxnRequest{Compare: conditions, Success: []*pb.RequestOp{put}})
	if err != nil {
		// Sent or not, landed or not: nobody knows. The next request, which finds
		// that out, had better go to another member.
		s.passOver(m)
		return "", fmt.Errorf("write witness: %w", failed(ctx, m, err))
	}
	if !answer.GetSucceeded() {
		return "", fmt.Errorf("write witness: %w", register.ErrConflict)
	}
	return versionOf(answer.GetHeader().GetRevision(), data), nil
}

// conditions is what has to hold for a CAS to be done. False: it cannot hold any
// more. kv is what the key was a moment ago.
func (s *Store) conditions(expect string, kv *mvccpb.KeyValue) ([]*pb.Compare, bool) {
	if expect == "" {
		return []*pb.Compare{{Key: s.key, Target: pb.Compare_CREATE, TargetUnion: &pb.Compare_CreateRevision{CreateRevision: 0}}}, true
	}
	digits, sum, _ := strings.Cut(expect, "-")
	revision, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || revision < 1 {
		return nil, false // no content ever had this version
	}
	c := []*pb.Compare{{Key: s.key, Target: pb.Compare_MOD, TargetUnion: &pb.Compare_ModRevision{ModRevision: revision}}}
	if kv == nil || kv.ModRevision != revision {
		return c, true // the transaction finds that too
	}
	if sumOf(kv.Value) != sum {
		return nil, false // another content under the same revision: etcd was restored
	}
	// And it may be restored between now and then.
	return append(c, &pb.Compare{Key: s.key, Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: kv.Value}}), true
}

// Scratch returns a register of its own for witness.Probe, which does not exist
// yet. Its content is bound to a lease, so that etcd removes what a killed or cut
// off agent leaves behind.
func (s *Store) Scratch(ctx context.Context, name string) (register.Register, func(context.Context) error, error) {
	m, _, err := s.ask(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("scratch register beside the witness: %w", err)
	}
	granted, err := m.leases.LeaseGrant(withLeader(ctx), &pb.LeaseGrantRequest{TTL: scratchLife})
	if err != nil {
		s.passOver(m)
		return nil, nil, fmt.Errorf("scratch register beside the witness: %w", failed(ctx, m, err))
	}
	r := &Store{key: bytes.Join([][]byte{s.key, []byte(name)}, []byte(".")), members: s.members, lease: granted.GetID(), first: s.first}
	return r, r.remove, nil
}

// remove ends the lease of a scratch register, and with it the register.
func (s *Store) remove(ctx context.Context) error {
	m, _, err := s.ask(ctx)
	if err != nil {
		return fmt.Errorf("remove scratch register: %w", err)
	}
	if _, err := m.leases.LeaseRevoke(withLeader(ctx), &pb.LeaseRevokeRequest{ID: s.lease}); err != nil {
		return fmt.Errorf("remove scratch register: %w", failed(ctx, m, err))
	}
	return nil
}

// reply is what one member said.
type reply struct {
	m   *member
	i   int
	kv  *mvccpb.KeyValue
	err error
}

// ask reads the key, linearizably, and returns it (nil: absent) with the member
// that said so. Members are asked one after the other, each as soon as the one
// before has failed or has had its time; the first answer is as good as any.
func (s *Store) ask(ctx context.Context) (*member, *mvccpb.KeyValue, error) {
	patience := nextAfter
	if end, ok := ctx.Deadline(); ok {
		// A short deadline is shared out, with a part left for what comes after.
		patience = min(patience, time.Until(end)/time.Duration(len(s.members)+1))
	}
	each, cancel := context.WithCancel(withLeader(ctx))
	var asked sync.WaitGroup
	defer asked.Wait()
	defer cancel() // first: the slower ones are not waited for
	replies := make(chan reply, len(s.members))
	first, next := int(s.first.Load()), 0
	askNext := func() {
		i := (first + next) % len(s.members)
		next++
		asked.Go(func() { replies <- s.askOne(each, i) })
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	askNext()
	var errs []error
	for len(errs) < len(s.members) {
		select {
		case r := <-replies:
			if r.err == nil {
				s.first.Store(int32(r.i))
				return r.m, r.kv, nil
			}
			errs = append(errs, failed(ctx, r.m, r.err))
		case <-timer.C:
		}
		if next < len(s.members) {
			askNext()
			timer.Reset(patience)
		}
	}
	return nil, nil, errors.Join(errs...)
}

func (s *Store) askOne(ctx context.Context, i int) reply {
	r := reply{m: s.members[i], i: i}
	answer, err := r.m.kv.Range(ctx, &pb.RangeRequest{Key: s.key})
	if err != nil {
		r.err = err
	} else if len(answer.GetKvs()) > 0 {
		r.kv = answer.GetKvs()[0]
	}
	return r
}

// passOver lets the next request begin with another member than m.
func (s *Store) passOver(m *member) {
	for i := range s.members {
		if s.members[i] == m {
			s.first.CompareAndSwap(int32(i), int32((i+1)%len(s.members)))
		}
	}
}

// withLeader has a member that knows no leader say so at once, instead of after
// seven seconds.
func withLeader(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
}

// failed words the error of one request.
func failed(ctx context.Context, m *member, err error) error {
	// gRPC's own deadline error is not context.DeadlineExceeded.
	if cause := ctx.Err(); cause != nil {
		return fmt.Errorf("etcd member %s has not answered: %w", m.host, cause)
	}
	return fmt.Errorf("etcd member %s: %s", m.host, status.Convert(err).Message())
}

func versionOf(revision int64, content []byte) string {
	return strconv.FormatInt(revision, 10) + "-" + sumOf(content)
}

func sumOf(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:16])
}
