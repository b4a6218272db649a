package link

import (
	"crypto/tls"
	"io"
	"net"
	"testing"

	"tandem/blockrepl/wire"
)

// BenchmarkPingPong sends writes and waits for their acknowledgements, depth
// of them at a time, over loopback: what a mirrored write costs besides the
// disks. BenchmarkRaw is the same exchange of bytes on a bare socket.
func BenchmarkPingPong(b *testing.B) {
	for _, tc := range []struct {
		name  string
		tls   bool
		size  int
		depth int
	}{
		{"plain/4k/qd1", false, 4096, 1},
		{"plain/4k/qd32", false, 4096, 32},
		{"plain/64k/qd32", false, 65536, 32},
		{"plain/1m/qd4", false, 1 << 20, 4},
		{"tls/4k/qd1", true, 4096, 1},
		{"tls/4k/qd32", true, 4096, 32},
		{"tls/64k/qd32", true, 65536, 32},
		{"tls/1m/qd4", true, 1 << 20, 4},
	} {
		b.Run(tc.name, func(b *testing.B) {
			var ca *authority
			if tc.tls {
				ca = newAuthority(b)
			}
			la, lb := listen(b), listen(b)
			cfgA := nodeConfig("a", la, Peer{"b", lb.Addr().String()})
			cfgB := nodeConfig("b", lb, Peer{"a", la.Addr().String()})
			if ca != nil {
				ca.use(b, &cfgA, "a")
				ca.use(b, &cfgB, "b")
			}
			ra, rb := newRecorder(b), newRecorder(b)
			payload := body(tc.size, 1)
			left := b.N
			done := make(chan struct{})
			send := func(c *Conn) {
				c.Queue(wire.Data, &wire.Msg{Type: wire.Write, Len: uint32(tc.size)}, payload)
			}
			acked := 0
			ra.recv = func(c *Conn, ch wire.Channel, m *wire.Msg, more bool) {
				acked++
				if acked == b.N {
					close(done)
				}
				if left > 0 {
					left--
					send(c)
				}
				if !more {
					c.Kick(ch, true)
				}
			}
			rb.recv = func(c *Conn, ch wire.Channel, m *wire.Msg, more bool) {
				c.Queue(ch, &wire.Msg{Type: wire.Ack, Tag: m.Tag})
				m.Release()
				if !more {
					c.Kick(ch, true)
				}
			}
			cfgA.Handler, cfgB.Handler = ra, rb
			na, nb := start(b, cfgA), start(b, cfgB)
			c := na.next("up").conn
			nb.next("up")
			b.SetBytes(int64(tc.size))
			b.ReportAllocs()
			b.ResetTimer()
			n := min(b.N, tc.depth)
			left -= n
			for range n {
				send(c)
			}
			c.Kick(wire.Data, true)
			<-done
			b.StopTimer()
			na.stop()
			nb.stop()
		})
	}
}

func BenchmarkRaw(b *testing.B) {
	for _, tc := range []struct {
		name  string
		tls   bool
		size  int
		depth int
	}{
		{"plain/4k/qd1", false, 4096, 1},
		{"plain/4k/qd32", false, 4096, 32},
		{"plain/64k/qd32", false, 65536, 32},
		{"tls/4k/qd1", true, 4096, 1},
		{"tls/4k/qd32", true, 4096, 32},
		{"tls/64k/qd32", true, 65536, 32},
	} {
		b.Run(tc.name, func(b *testing.B) {
			l := listen(b)
			defer l.Close()
			accepted := make(chan net.Conn, 1)
			go func() {
				c, _ := l.Accept()
				accepted <- c
			}()
			client, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			server := <-accepted
			if tc.tls {
				var cfg Config
				newAuthority(b).use(b, &cfg, "a")
				client, server = tls.Client(client, strict(cfg.ClientTLS(""))), tls.Server(server, strict(cfg.ServerTLS))
			}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				buf := make([]byte, wire.HeaderSize+tc.size)
				for {
					if _, err := io.ReadFull(server, buf); err != nil {
						return
					}
					if _, err := server.Write(buf[:wire.HeaderSize]); err != nil {
						return
					}
				}
			}()
			out := make([]byte, wire.HeaderSize+tc.size)
			in := make([]byte, wire.HeaderSize)
			if tc.tls {
				if err := client.(*tls.Conn).Handshake(); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(int64(tc.size))
			b.ResetTimer()
			sent := 0
			for ; sent < min(b.N, tc.depth); sent++ {
				client.Write(out)
			}
			for range b.N {
				if _, err := io.ReadFull(client, in); err != nil {
					b.Fatal(err)
				}
				if sent < b.N {
					client.Write(out)
					sent++
				}
			}
			b.StopTimer()
			client.Close()
			server.Close()
			<-ended
		})
	}
}
