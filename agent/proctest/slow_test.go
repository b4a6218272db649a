package proctest

import (
	"bytes"
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"tandem/nbd"
)

// gatedConn is a client's connection from which nothing is read while the gate is
// shut, so that replies pile up in the server.
type gatedConn struct {
	net.Conn
	gate *sync.RWMutex
}

func (c gatedConn) Read(p []byte) (int, error) {
	c.gate.RLock()
	c.gate.RUnlock() //nolint:staticcheck // it was only to wait
	return c.Conn.Read(p)
}

// A client is slow to take the data of its reads while a peer is brought up to
// date. Each read is over for the volume long before its reply is sent, and what
// kept track of it then keeps track of a chunk of the resync: the end of the reply
// must not take that away, or the chunk is never sent and the peer never in sync.
func TestSlowReaderDuringResync(t *testing.T) {
	const reads, readSize = 32, 256 << 10
	c := newCluster(t, options{proxied: true})
	c.startPair()
	for round := range 3 {
		c.b.kill()
		writer, err := dialNBD(t.Context(), c.a)
		if err != nil {
			t.Fatal(err)
		}
		data := bytes.Repeat([]byte{byte(round + 1)}, 1<<20)
		for off := int64(0); off < 16<<20; off += int64(len(data)) {
			if err := writer.WriteAt(t.Context(), data, off, false); err != nil {
				t.Fatal(err)
			}
		}
		writer.Close()

		var gate sync.RWMutex
		conn, err := net.Dial("unix", c.a.socket)
		if err != nil {
			t.Fatal(err)
		}
		reader, err := nbd.NewClient(t.Context(), gatedConn{conn, &gate}, clusterName, nbd.ClientOptions{})
		if err != nil {
			t.Fatal(err)
		}
		gate.Lock()
		before := c.a.status().IO.Read.Count
		var asked sync.WaitGroup
		for i := range int64(reads) {
			asked.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				if err := reader.ReadAt(ctx, make([]byte, readSize), 32<<20+i*readSize); err != nil {
					t.Errorf("a slow read: %v", err)
				}
			})
		}
		c.until("the reads are done and their replies are not sent", func() bool { return c.a.status().IO.Read.Count >= before+reads })
		// A chunk takes two round trips; half of those under way have been read
		// and not yet been asked for.
		c.proxy.Delay(50 * time.Millisecond)
		c.b.start()
		c.until("a resync runs", func() bool {
			p := c.a.status().Peers[0].Resync
			return p != nil && p.DoneBytes > 0
		})
		gate.Unlock()
		asked.Wait()
		c.proxy.Delay(0)
		c.settled(c.a)
		reader.Close()
	}
	c.finish(c.a)
}
