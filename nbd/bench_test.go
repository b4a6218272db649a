package nbd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
)

// nullDevice completes everything at once: what is left is the cost of the protocol.
type nullDevice struct{}

func (nullDevice) Submit(r *Request) { r.Complete(nil) }
func (nullDevice) Sent(*Request)     {}

// BenchmarkNull is one connection over a unix socket. The client is part of what is measured.
func BenchmarkNull(b *testing.B) {
	for _, op := range []string{"read", "write"} {
		for _, size := range []int{4 << 10, 64 << 10, 1 << 20} {
			for _, depth := range []int{1, 32} {
				b.Run(fmt.Sprintf("%s/%dk/qd%d", op, size>>10, depth), func(b *testing.B) {
					v := serve(b, func(_ *Config, e *Export) { e.Device = nullDevice{} })
					c := v.dial(b, ClientOptions{SimpleReplies: true})
					b.SetBytes(int64(size))
					b.ReportAllocs()
					b.ResetTimer()
					var left atomic.Int64
					left.Store(int64(b.N))
					var wg sync.WaitGroup
					for range depth {
						wg.Go(func() {
							p := make([]byte, size)
							for left.Add(-1) >= 0 {
								var err error
								if op == "read" {
									err = c.ReadAt(context.Background(), p, 0)
								} else {
									err = c.WriteAt(context.Background(), p, 0, false)
								}
								if err != nil {
									b.Error(err)
									return
								}
							}
						})
					}
					wg.Wait()
				})
			}
		}
	}
}

// TestNoAllocations: a request costs the server none, alone or in a window. The client here is bytes made beforehand.
func TestNoAllocations(t *testing.T) {
	v := serve(t, func(_ *Config, e *Export) { e.Device = nullDevice{} })
	for name, requests := range map[string][]byte{
		"read":  request(0, CMD_READ, 1, 0, 4096),
		"write": append(request(0, CMD_WRITE, 1, 0, 4096), make([]byte, 4096)...),
	} {
		for _, depth := range []int{1, 8} {
			w := v.wire(t).start(true)
			out := bytes.Repeat(requests, depth)
			in := make([]byte, depth*20)
			if name == "read" {
				in = make([]byte, depth*(28+4096))
			}
			n := testing.AllocsPerRun(500, func() {
				if _, err := w.Write(out); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(w, in); err != nil {
					t.Fatal(err)
				}
			})
			if n > float64(depth)/2 { // under the race detector sync.Pool drops one item in four
				t.Errorf("%s at depth %d: %v allocations", name, depth, n)
			}
		}
	}
}
