package etcdtest

import (
	"context"
	"net"
	"sync"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
)

// Careless is a server that speaks etcd's protocol and does the puts of every
// transaction, whatever its conditions. No real etcd does that; something between
// us and etcd, or something that only looks like it, may.
type Careless struct {
	pb.UnimplementedKVServer
	pb.UnimplementedLeaseServer

	Addr string

	// Lies has it say that the conditions did not hold when they did not, and put
	// all the same. Set before the first request.
	Lies bool

	mu       sync.Mutex
	revision int64
	keys     map[string]*mvccpb.KeyValue
}

// StartCareless starts one that ends with the test.
func StartCareless(t testing.TB) *Careless {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &Careless{Addr: l.Addr().String(), revision: 1, keys: map[string]*mvccpb.KeyValue{}}
	s := grpc.NewServer()
	pb.RegisterKVServer(s, c)
	pb.RegisterLeaseServer(s, c)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return c
}

// Keys is how many keys there are.
func (c *Careless) Keys() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.keys)
}

// Range is part of the protocol.
func (c *Careless) Range(_ context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	answer := &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: c.revision}}
	if kv := c.keys[string(r.GetKey())]; kv != nil {
		answer.Kvs = []*mvccpb.KeyValue{kv}
	}
	return answer, nil
}

// Txn is part of the protocol.
func (c *Careless) Txn(_ context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	held := true
	for _, cmp := range r.GetCompare() {
		kv := c.keys[string(cmp.GetKey())]
		switch cmp.GetTarget() {
		case pb.Compare_CREATE:
			held = held && kv.GetCreateRevision() == cmp.GetCreateRevision()
		case pb.Compare_MOD:
			held = held && kv.GetModRevision() == cmp.GetModRevision()
		}
	}
	c.revision++
	for _, op := range r.GetSuccess() {
		put := op.GetRequestPut()
		created := c.revision
		if old := c.keys[string(put.GetKey())]; old != nil {
			created = old.GetCreateRevision()
		}
		c.keys[string(put.GetKey())] = &mvccpb.KeyValue{Key: put.GetKey(), Value: put.GetValue(), CreateRevision: created, ModRevision: c.revision, Lease: put.GetLease()}
	}
	return &pb.TxnResponse{Header: &pb.ResponseHeader{Revision: c.revision}, Succeeded: held || !c.Lies}, nil
}

// LeaseGrant is part of the protocol.
func (c *Careless) LeaseGrant(_ context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.revision++
	return &pb.LeaseGrantResponse{ID: c.revision, TTL: r.GetTTL()}, nil
}

// LeaseRevoke is part of the protocol.
func (c *Careless) LeaseRevoke(_ context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, kv := range c.keys {
		if kv.GetLease() == r.GetID() {
			delete(c.keys, name)
		}
	}
	return &pb.LeaseRevokeResponse{}, nil
}
