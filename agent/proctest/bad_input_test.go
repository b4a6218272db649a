package proctest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tandem/agent/certs"
	"tandem/blockrepl/link"
	"tandem/blockrepl/wire"
	"tandem/nbd"
)

// undisturbed runs f beside a load that must not notice.
func (c *cluster) undisturbed(primary *node, f func()) {
	c.t.Helper()
	l := c.startLoad()
	l.more(100)
	began := monotonic()
	f()
	l.more(100)
	if gap := time.Duration(c.ledger.longestGap(began, monotonic())); gap > 2*time.Second {
		c.t.Errorf("the load stood still for %v", gap)
	}
	l.halt()
	if n := l.reconnects.Load(); n > 0 {
		c.t.Errorf("%d of the load's connections ended", n)
	}
	for _, n := range c.nodes {
		if n.process != nil && n.ended() && n.err != nil {
			c.t.Fatalf("agent %s ended: %v\n%s", n.name, n.err, n.tail(30))
		}
		if n.hasLogged("panic") {
			c.t.Errorf("%s logged a panic", n.name)
		}
	}
}

// resident is a process's memory in MiB.
func (n *node) resident() int {
	n.c.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.cmd.Process.Pid))
	if err != nil {
		n.c.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kb, err := strconv.Atoi(f[1])
			if err != nil {
				n.c.t.Fatal(err)
			}
			return kb >> 10
		}
	}
	n.c.t.Fatal("no VmRSS")
	return 0
}

// stranger is a connection that says what it likes. All its reads and writes
// end after some seconds.
type stranger struct {
	net.Conn
	t testing.TB
}

// strangerLimit is longer than any of the agent's own limits for a handshake.
const strangerLimit = 20 * time.Second

func dialStranger(t testing.TB, network, addr string) *stranger {
	t.Helper()
	conn, err := net.DialTimeout(network, addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(strangerLimit)); err != nil {
		t.Fatal(err)
	}
	return &stranger{conn, t}
}

// say writes and does not mind if nobody reads it to the end.
func (s *stranger) say(b []byte) { _, _ = s.Write(b) }

// rest is everything that is answered until the other side ends the connection.
func (s *stranger) rest() []byte {
	s.t.Helper()
	b, err := io.ReadAll(s)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		s.t.Errorf("the connection is still open after %v", strangerLimit)
	}
	return b
}

// ends waits for the end of the connection.
func (s *stranger) ends() { s.t.Helper(); s.rest() }

func garbage(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	b[0] = 0x7f
	return b
}

// What is no protocol of ours, on every port, beside a load.
func TestBadGarbage(t *testing.T) {
	c := newCluster(t, options{})
	c.startPair()
	before := []int{c.a.resident(), c.b.resident()}
	var slow sync.WaitGroup // what has to wait for a timeout of the agent
	c.undisturbed(c.a, func() {
		t.Run("link", func(t *testing.T) { badLink(t, c, &slow) })
		t.Run("nbd", func(t *testing.T) { badNBD(t, c, &slow) })
		t.Run("control", func(t *testing.T) { badControl(t, c, &slow) })
		t.Run("http", func(t *testing.T) { badHTTP(t, c, &slow) })
		began := time.Now()
		slow.Wait()
		t.Logf("the last timeout came after %v", time.Since(began).Round(time.Millisecond))
	})
	for i, n := range c.nodes {
		// The NBD server's buffers alone may take 256 MiB.
		if now := n.resident(); now > before[i]+400 {
			t.Errorf("%s has grown from %d to %d MiB", n.name, before[i], now)
		}
	}
	if r := c.record(); r.Epoch != 1 {
		t.Errorf("the record has changed: %+v", r)
	}
	c.finish(c.a)
}

func badLink(t *testing.T, c *cluster, slow *sync.WaitGroup) {
	for _, n := range c.nodes {
		s := dialStranger(t, "tcp", n.listen)
		s.say(garbage(64 << 10))
		s.ends()
		s = dialStranger(t, "tcp", n.listen)
		s.say([]byte("GET / HTTP/1.1\r\n\r\n"))
		s.ends()
		n.logged("connection refused", "tls: first record does not look like a TLS handshake")

		// Half a handshake, and silence.
		hello := clientHello(t)
		for _, part := range []int{0, 1, 5, len(hello) / 2} {
			s := dialStranger(c.t, "tcp", n.listen)
			s.say(hello[:part])
			slow.Go(s.ends)
		}

		// TLS without a certificate. In TLS 1.3 the client's handshake is over
		// before the server has looked.
		for _, x := range []struct {
			name   string
			config *tls.Config
			want   string
		}{
			{"no certificate", &tls.Config{InsecureSkipVerify: true}, "certificate required"},
			{"TLS 1.2", &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, Certificates: c.certificate("a")}, "protocol version not supported"},
			{"another authority", &tls.Config{InsecureSkipVerify: true, Certificates: c.strangers("a")}, "bad certificate"},
			{"another cluster", &tls.Config{InsecureSkipVerify: true, Certificates: c.issue("tandem://other/a")}, "bad certificate"},
			{"two names", &tls.Config{InsecureSkipVerify: true, Certificates: c.issue("tandem://proc/a", "tandem://proc/b")}, "bad certificate"},
			{"no peer", &tls.Config{InsecureSkipVerify: true, Certificates: c.issue("tandem://proc/zz")}, "bad certificate"},
			{"its own", &tls.Config{InsecureSkipVerify: true, Certificates: c.certificate(n.name)}, "bad certificate"},
		} {
			s := dialStranger(t, "tcp", n.listen)
			tc := tls.Client(s, x.config)
			_, err := tc.Read(make([]byte, 1))
			if err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("%s at %s: %v, want %q", x.name, n.name, err, x.want)
			}
		}
	}

	// Whoever has a's certificate and says something else than an agent.
	b := c.b
	asA := func() *tls.Conn {
		return tls.Client(dialStranger(c.t, "tcp", b.listen), &tls.Config{InsecureSkipVerify: true, Certificates: c.certificate("a")})
	}
	tc := asA()
	_, _ = tc.Write([]byte("EHLO localhost\r\n"))
	expectEnd(t, tc)
	b.logged(`not a tandem agent`, `EHLO loc`)
	tc = asA()
	damaged := preface{version: 1, oldest: 1, cluster: clusterName, node: "a"}.encode()
	damaged[20] ^= 1
	_, _ = tc.Write(damaged)
	expectEnd(t, tc)
	b.logged("damaged preface", "checksum does not match")
	long := preface{version: 1, oldest: 1, cluster: clusterName, node: "a"}.encode()
	binary.LittleEndian.PutUint16(long[16:], 0xffff)
	tc = asA()
	_, _ = tc.Write(long)
	expectEnd(t, tc)
	b.logged("damaged preface", "a text of 65535 bytes")
	for _, part := range []int{4, 30} {
		tc := asA()
		_, _ = tc.Write(preface{version: 1, oldest: 1, cluster: clusterName, node: "a"}.encode()[:part])
		slow.Go(func() { expectEnd(c.t, tc) })
	}
	for _, x := range []struct {
		name string
		say  preface
		want string
	}{
		{"newer", preface{version: 9, oldest: 8, cluster: clusterName, node: "a"}, "protocol versions 8 to 9 and 1 to 1 have none in common"},
		{"cluster", preface{version: 1, oldest: 1, cluster: "other", node: "a"}, `cluster "other" is not ours ("proc")`},
		{"name", preface{version: 1, oldest: 1, cluster: clusterName, node: "c"}, `node calls itself "c", its certificate says "a"`},
	} {
		tc := asA()
		if _, err := tc.Write(x.say.encode()); err != nil {
			t.Fatal(err)
		}
		answer, err := readPreface(tc)
		if err != nil || answer.verdict != 1 || answer.text != x.want {
			t.Errorf("%s: %+v, %v, want a refusal: %s", x.name, answer, err, x.want)
		}
		expectEnd(t, tc)
		b.logged("no link", "refused: "+strings.ReplaceAll(x.want, `"`, `\"`))
	}
	// A newer agent that still speaks our version is welcome, as far as this goes.
	// The second connection of its link never comes.
	tc = asA()
	if _, err := tc.Write(preface{version: 9, oldest: 1, cluster: clusterName, node: "a"}.encode()); err != nil {
		t.Fatal(err)
	}
	if answer, err := readPreface(tc); err != nil || answer.verdict != 0 || answer.version != 1 {
		t.Errorf("a newer agent that speaks version 1 too: %+v, %v", answer, err)
	}
	_, _ = tc.Write(preface{version: 9, oldest: 1, cluster: clusterName, node: "a"}.encode())
	slow.Go(func() { expectEnd(c.t, tc) })
	if s := c.a.status(); s.Peers[0].Link != "Connected" {
		t.Errorf("the link is %s", s.Peers[0].Link)
	}
}

func expectEnd(t testing.TB, conn net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection is still open after %v", strangerLimit)
	}
}

// clientHello is the first flight of a TLS client.
func clientHello(t *testing.T) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() { _ = tls.Client(theirs, &tls.Config{InsecureSkipVerify: true}).Handshake() }()
	b := make([]byte, 4096)
	n, err := ours.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// preface is the link's first message, written by hand: blockrepl/link draws it.
type preface struct {
	version, oldest uint16
	verdict         byte
	cluster, node   string
	text            string
}

func (p preface) encode() []byte {
	b := append(append(make([]byte, 48), p.cluster...), p.node...)
	copy(b, "tandem\r\n")
	binary.LittleEndian.PutUint16(b[8:], p.version)
	binary.LittleEndian.PutUint16(b[10:], p.oldest)
	b[14], b[15] = byte(len(p.cluster)), byte(len(p.node))
	copy(b[28:44], "a link of a test")
	sum := crc32.Update(crc32.Checksum(b[:44], castagnoli), castagnoli, b[48:])
	binary.LittleEndian.PutUint32(b[44:], sum)
	return b
}

func readPreface(r io.Reader) (p preface, err error) {
	b := make([]byte, 48)
	if _, err := io.ReadFull(r, b); err != nil {
		return p, err
	}
	rest := make([]byte, int(b[14])+int(b[15])+int(binary.LittleEndian.Uint16(b[16:])))
	if _, err := io.ReadFull(r, rest); err != nil {
		return p, err
	}
	p.version, p.verdict = binary.LittleEndian.Uint16(b[8:]), b[13]
	p.text = string(rest[int(b[14])+int(b[15]):])
	return p, nil
}

// certificate is a node's own.
func (c *cluster) certificate(node string) []tls.Certificate {
	c.t.Helper()
	pair, err := tls.LoadX509KeyPair(c.path(node+".pem"), c.path(node+".key"))
	if err != nil {
		c.t.Fatal(err)
	}
	return []tls.Certificate{pair}
}

// strangers is a certificate of the same names by another authority.
func (c *cluster) strangers(node string) []tls.Certificate {
	c.t.Helper()
	dir := c.t.(*testing.T).TempDir()
	if _, err := certs.Create(dir, clusterName, []string{node}, certs.Options{}); err != nil {
		c.t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, node+".pem"), filepath.Join(dir, node+".key"))
	if err != nil {
		c.t.Fatal(err)
	}
	return []tls.Certificate{pair}
}

// issue signs a certificate with these URIs by the cluster's own authority: what
// one would get who has ca.key and makes a mistake.
func (c *cluster) issue(uris ...string) []tls.Certificate {
	c.t.Helper()
	ca, err := tls.LoadX509KeyPair(c.path("ca.pem"), c.path("ca.key"))
	if err != nil {
		c.t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: uris[0]},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, u := range uris {
		uri, err := url.Parse(u)
		if err != nil {
			c.t.Fatal(err)
		}
		template.URIs = append(template.URIs, uri)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Leaf, key.Public(), ca.PrivateKey)
	if err != nil {
		c.t.Fatal(err)
	}
	return []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
}

// writeCertificate puts a certificate where an agent finds it.
func (c *cluster) writeCertificate(name string, pair tls.Certificate) {
	c.t.Helper()
	key, err := x509.MarshalECPrivateKey(pair.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		c.t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{
		c.path(name + ".pem"): {Type: "CERTIFICATE", Bytes: pair.Certificate[0]},
		c.path(name + ".key"): {Type: "EC PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			c.t.Fatal(err)
		}
	}
}

func badNBD(t *testing.T, c *cluster, slow *sync.WaitGroup) {
	greeted := func() *stranger {
		t.Helper()
		s := dialStranger(c.t, "unix", c.a.socket)
		if _, err := io.ReadFull(s, make([]byte, 18)); err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := greeted()
	s.say(garbage(64 << 10))
	s.ends()
	s = greeted()
	s.say([]byte{0xff, 0xff, 0xff, 0xff}) // flags that do not exist
	s.ends()
	option := func(id, length uint32, data []byte) []byte {
		b := append([]byte{0, 0, 0, 3}, "IHAVEOPT"...)
		b = binary.BigEndian.AppendUint32(b, id)
		b = binary.BigEndian.AppendUint32(b, length)
		return append(b, data...)
	}
	for _, b := range [][]byte{
		option(nbd.OPT_GO, 1<<32-1, garbage(8192)),
		option(nbd.OPT_LIST, 1<<31, nil),
		append([]byte{0, 0, 0, 3}, garbage(100)...),
	} {
		s := greeted()
		s.say(b)
		s.ends()
	}
	for _, part := range []int{0, 2, 4, 12, 19} {
		s := greeted()
		s.say(option(nbd.OPT_LIST, 100, nil)[:part])
		slow.Go(s.ends)
	}

	// In the transmission phase. Errors are answers, and the connection stays;
	// what cannot be understood ends it.
	transmission := func() *stranger {
		t.Helper()
		s := greeted()
		s.say(option(nbd.OPT_EXPORT_NAME, uint32(len(clusterName)), []byte(clusterName)))
		if _, err := io.ReadFull(s, make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		return s
	}
	request := func(flags, kind uint16, off uint64, length uint32) []byte {
		b := binary.BigEndian.AppendUint32(nil, 0x25609513)
		b = binary.BigEndian.AppendUint16(b, flags)
		b = binary.BigEndian.AppendUint16(b, kind)
		b = append(b, "TEST-REQ"...)
		b = binary.BigEndian.AppendUint64(b, off)
		return binary.BigEndian.AppendUint32(b, length)
	}
	size := uint64(c.size)
	s = transmission()
	for _, x := range []struct {
		name    string
		request []byte
		want    nbd.Error
	}{
		{"read of 4 GiB", request(0, nbd.CMD_READ, 0, 1<<32-512), nbd.EINVAL},
		{"read beyond the end", request(0, nbd.CMD_READ, size, 512), nbd.EINVAL},
		{"read over the end", request(0, nbd.CMD_READ, size-512, 1024), nbd.EINVAL},
		{"read at 2^64", request(0, nbd.CMD_READ, 1<<64-512, 1024), nbd.EINVAL},
		{"read of 100 bytes", request(0, nbd.CMD_READ, 0, 100), nbd.EINVAL},
		{"read at 1", request(0, nbd.CMD_READ, 1, 512), nbd.EINVAL},
		{"write beyond the end", append(request(0, nbd.CMD_WRITE, size, 512), garbage(512)...), nbd.ENOSPC},
		{"write at 2^63", append(request(0, nbd.CMD_WRITE, 1<<63, 512), garbage(512)...), nbd.ENOSPC},
		{"write of 100 bytes", append(request(0, nbd.CMD_WRITE, 0, 100), garbage(100)...), nbd.EINVAL},
		{"zeroes of 4 GiB", request(0, nbd.CMD_WRITE_ZEROES, 0, 1<<32-512), nbd.ENOSPC},
		{"trim beyond the end", request(0, nbd.CMD_TRIM, size-512, 1<<31), nbd.EINVAL},
		{"unknown command", request(0, 77, 0, 0), nbd.EINVAL},
		{"unknown flag", request(1<<15, nbd.CMD_READ, 0, 512), nbd.EINVAL},
		{"flush with a range", request(0, nbd.CMD_FLUSH, 0, 512), nbd.EINVAL},
	} {
		s.say(x.request)
		reply := make([]byte, 16)
		if _, err := io.ReadFull(s, reply); err != nil {
			t.Fatalf("%s: %v", x.name, err)
		}
		if got := nbd.Error(binary.BigEndian.Uint32(reply[4:])); got != x.want || string(reply[8:]) != "TEST-REQ" {
			t.Errorf("%s: %v for %q, want %v", x.name, got, reply[8:], x.want)
		}
	}
	s.say(request(0, nbd.CMD_READ, 0, 512))
	if _, err := io.ReadFull(s, make([]byte, 16+512)); err != nil {
		t.Errorf("a good read after the bad ones: %v", err)
	}
	s = transmission()
	s.say(request(0, nbd.CMD_WRITE, 0, 1<<32-512))
	s.ends()
	s = transmission()
	s.say(garbage(4096))
	s.ends()
	// Half a write, and the client is gone: nothing of it is written.
	s = transmission()
	s.say(append(request(0, nbd.CMD_WRITE, uint64(area{c.size, maxInFlight + 3}.first())*blockSize, blockSize), garbage(1000)...))
	s.Close()
	_, err := nbd.Dial(c.t.Context(), "unix", c.a.socket, "other", nbd.ClientOptions{})
	if err == nil || !strings.Contains(err.Error(), `there is no export "other" here, only "proc"`) {
		t.Errorf("another export: %v", err)
	}
	_, err = dialNBD(c.t.Context(), c.b)
	if err == nil || !strings.Contains(err.Error(), "node b is Secondary; the primary is node a") {
		t.Errorf("a client at the standby: %v", err)
	}
	if names, err := nbd.List(c.t.Context(), "unix", c.b.socket); err != nil || len(names) != 1 || names[0] != clusterName {
		t.Errorf("LIST at the standby: %q, %v", names, err)
	}
}

// A client that asks for much and reads nothing of it. Others, who write to the
// very blocks that it has asked for, are not kept waiting.
func TestBadStalledReader(t *testing.T) {
	c := newCluster(t, options{})
	c.startPair()
	p := c.pin(c.a, 3)
	block := p.area.first()
	s := dialStranger(t, "unix", c.a.socket)
	hello := append([]byte{0, 0, 0, 3}, "IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x00"...) // EXPORT_NAME of the default export
	s.say(hello)
	if _, err := io.ReadFull(s, make([]byte, 18+10)); err != nil {
		t.Fatal(err)
	}
	var requests []byte
	for range 100 {
		requests = binary.BigEndian.AppendUint32(requests, 0x25609513)
		requests = append(requests, 0, 0, 0, byte(nbd.CMD_READ), 'T', 'E', 'S', 'T', '-', 'R', 'E', 'Q')
		requests = binary.BigEndian.AppendUint64(requests, uint64(block*blockSize))
		requests = binary.BigEndian.AppendUint32(requests, 1<<20)
	}
	s.say(requests)
	time.Sleep(500 * time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	began := time.Now()
	seq := c.ledger.issue(block, 1, false)
	data := make([]byte, blockSize)
	fillBlock(data, c.ledger.run, block, seq)
	if err := p.client.WriteAt(ctx, data, block*blockSize, false); err != nil {
		t.Errorf("a write to a block that a stalled client is reading: %v after %v", err, time.Since(began).Round(time.Millisecond))
	} else {
		c.ledger.ack(seq, block, 1, false, ackedOp{"a", 0, monotonic()})
	}
	s.Close()
	c.finish(c.a)
}

// first is the first block of a writer.
func (a area) first() int64 { return int64(a.writer) * (a.size / (areas * writers) / blockSize) }

func badControl(t *testing.T, c *cluster, slow *sync.WaitGroup) {
	for _, x := range []struct{ name, say, want string }{
		{"garbage", "\x00\x01\x02\xff\n", "not the control protocol"},
		{"no JSON", "status\n", "not the control protocol"},
		{"unknown verb", `{"verb":"explode"}` + "\n", `does not know the verb \"explode\"`},
		{"unknown field", `{"verb":"status","colour":"red"}` + "\n", "not the control protocol"},
		{"no verb", "{}\n", "a verb of 0 bytes"},
		{"more after it", `{"verb":"status"} {"verb":"promote"}` + "\n", "text after the request"},
		{"a long line", strings.Repeat("x", 2<<20), "a line of more than 1048576 bytes"},
		{"a strange timeout", `{"verb":"wait-sync","args":{"timeout":"soon"}}` + "\n", `timeout \"soon\" is no duration`},
	} {
		s := dialStranger(t, "unix", c.a.control)
		s.say([]byte(x.say))
		answer, err := bufio.NewReader(s).ReadBytes('\n')
		if err != nil || !bytes.Contains(answer, []byte(x.want)) || !bytes.Contains(answer, []byte(`"kind":"error"`)) {
			t.Errorf("%s: %q, %v, want an error with %q", x.name, answer, err, x.want)
		}
	}
	for _, half := range []string{"", `{"verb":`} {
		s := dialStranger(c.t, "unix", c.a.control)
		s.say([]byte(half))
		slow.Go(s.ends)
	}
	if fi, err := os.Stat(c.a.control); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("control socket: %v, %v", fi.Mode(), err)
	}
	if fi, err := os.Stat(c.a.socket); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("NBD socket: %v, %v", fi.Mode(), err)
	}
}

func badHTTP(t *testing.T, c *cluster, slow *sync.WaitGroup) {
	for _, x := range []struct {
		say  string
		want string
	}{
		{string(garbage(100)) + "\r\n\r\n", "400 Bad Request"},
		{"GET /none HTTP/1.1\r\nHost: x\r\n\r\n", "404 Not Found"},
		{"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 4294967296\r\n\r\n", "405 Method Not Allowed"},
		{"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("y", 64<<10) + "\r\n\r\n", "431 Request Header Fields Too Large"},
		{"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "200 OK"},
	} {
		s := dialStranger(t, "tcp", c.a.http)
		s.say([]byte(x.say))
		line, err := bufio.NewReader(s).ReadString('\n')
		if !strings.Contains(line, x.want) {
			t.Errorf("%.60q: %q, %v, want %s", x.say, line, err, x.want)
		}
	}
	s := dialStranger(c.t, "tcp", c.a.http)
	s.say([]byte("GET /metr"))
	slow.Go(s.ends)
}

// A thousand connections that say nothing, on each port, beside a load. New ones
// get through, the link can be made anew, and an operator is kept out for some
// seconds at most.
func TestBadIdle(t *testing.T) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	count := 1000
	if limit.Cur < 6000 {
		count = int(limit.Cur / 6)
		t.Logf("only %d of each: RLIMIT_NOFILE is %d", count, limit.Cur)
	}
	c := newCluster(t, options{proxied: true})
	c.startPair()
	c.undisturbed(c.a, func() {
		var idle []net.Conn
		defer func() {
			for _, conn := range idle {
				conn.Close()
			}
		}()
		for range count {
			for _, x := range [][2]string{{"unix", c.a.socket}, {"tcp", c.b.listen}, {"unix", c.a.control}, {"tcp", c.a.http}} {
				conn, err := net.DialTimeout(x[0], x[1], 5*time.Second)
				if err != nil {
					t.Fatalf("%v after %d idle connections: %v", x, len(idle), err)
				}
				idle = append(idle, conn)
			}
		}
		client, err := dialNBD(t.Context(), c.a)
		if err != nil {
			t.Fatalf("a client behind %d idle ones: %v", count, err)
		}
		if err := client.ReadAt(t.Context(), make([]byte, blockSize), 0); err != nil {
			t.Error(err)
		}
		client.Close()
		if got := getStatus(t, c.a, "/healthz"); got != 200 {
			t.Errorf("/healthz: %d", got)
		}
		// The agent gives a request five seconds.
		began := time.Now()
		c.untilLimit("the control socket answers", 8*time.Second, func() bool {
			_, err := c.a.tryStatus()
			return err == nil
		})
		t.Logf("the control socket answered after %v", time.Since(began).Round(time.Millisecond))
		c.proxy.Reset()
		c.settled(c.a)
	})
	c.finish(c.a)
}

// fakeA is a peer that has a's name and certificate and a mind of its own.
type fakeA struct {
	up   chan *link.Conn
	down chan error
	recv func(*link.Conn, *wire.Msg)
}

func (f *fakeA) LinkUp(c *link.Conn)              { f.up <- c }
func (f *fakeA) LinkDown(_ *link.Conn, err error) { f.down <- err }
func (f *fakeA) Recv(c *link.Conn, _ wire.Channel, m *wire.Msg, _ bool) {
	if f.recv != nil {
		f.recv(c, m)
	}
	m.Release()
}

// A peer that gets through the handshake of the link and then says what no agent
// says: the link goes, the agent stays, and nothing is written.
func TestBadPeerFrames(t *testing.T) {
	c := newCluster(t, options{})
	c.b.start()
	c.b.promote()
	hello := map[string]any{
		"version": 1, "disk_id": 42, "volume_size": c.size, "block_shift": 12, "extent_shift": 20, "al_slots": 48,
	}
	with := func(key string, value any) []byte {
		h := map[string]any{}
		for k, v := range hello {
			h[k] = v
		}
		h[key] = value
		b, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	good := with("version", 1)
	for _, x := range []struct {
		name string
		say  func(conn *link.Conn)
		want string // in b's log
	}{
		{"newer hello", func(conn *link.Conn) { sendHello(conn, with("version", 99)) },
			"peer a speaks version 99 of the handshake, this agent 1: bring both to versions at most one apart"},
		{"no JSON", func(conn *link.Conn) { sendHello(conn, []byte("{{{{")) }, "hello refused: not a hello"},
		{"no version", func(conn *link.Conn) { sendHello(conn, with("version", 0)) }, "a hello without a version"},
		{"long history", func(conn *link.Conn) { sendHello(conn, with("history", make([]uint64, 65))) }, "a history longer than any"},
		{"another size", func(conn *link.Conn) { sendHello(conn, with("volume_size", 4096)) },
			fmt.Sprintf("peer a has a volume of 4096 bytes, ours has %d", c.size)},
		{"another geometry", func(conn *link.Conn) { sendHello(conn, with("block_shift", 16)) }, "another geometry"},
		{"another cluster", func(conn *link.Conn) { sendHello(conn, with("cluster_id", 77)) }, "belongs to another cluster"},
		{"write before hello", func(conn *link.Conn) {
			conn.Send(wire.Data, &wire.Msg{Type: wire.Write, Epoch: 1, Tag: 1, Len: blockSize, Body: garbage(blockSize)}, false)
		}, "Write before the handshake"},
		{"old epoch", func(conn *link.Conn) {
			sendHello(conn, good)
			conn.Send(wire.Ctl, &wire.Msg{Type: wire.DirtyEnd, Epoch: 77}, false)
		}, "DirtyEnd of epoch 77 in a session of epoch 1"},
		{"frames of a primary", func(conn *link.Conn) {
			sendHello(conn, good)
			conn.Send(wire.Ctl, &wire.Msg{Type: wire.SyncStart, Epoch: 1}, false)
		}, "unexpected SyncStart"},
		{"bits beyond the volume", func(conn *link.Conn) {
			sendHello(conn, good)
			conn.Send(wire.Ctl, &wire.Msg{Type: wire.DirtyPage, Epoch: 1, Tag: 1 << 60, Body: garbage(4032)}, false)
		}, "unexpected DirtyPage"},
		{"an answer to nothing", func(conn *link.Conn) {
			sendHello(conn, good)
			time.Sleep(300 * time.Millisecond) // channels are not ordered: the hello has to be there first
			conn.Send(wire.Data, &wire.Msg{Type: wire.Ack, Epoch: 1, Tag: 12345}, false)
		}, "acknowledgement of nothing"},
		{"vote that is none", func(conn *link.Conn) {
			sendHello(conn, good)
			conn.Send(wire.Ctl, &wire.Msg{Type: wire.Control, Epoch: 1, Body: garbage(100)}, false)
		}, "link to a is down"},
	} {
		t.Run(x.name, func(t *testing.T) {
			at := logSize(t, c.b.log)
			conn, down, stop := c.fake(t, nil)
			defer stop()
			x.say(conn)
			select {
			case <-down:
			case <-time.After(10 * time.Second):
				t.Fatal("the link stays")
			}
			c.until("b says why", func() bool {
				b, err := os.ReadFile(c.b.log)
				return err == nil && bytes.Contains(b[at:], []byte(x.want))
			})
		})
	}

	c.undisturbed(c.b, func() {
		conn, down, stop := c.fake(t, nil)
		defer stop()
		// A hello of somebody who claims to serve in our own epoch.
		h := with("serving", true)
		sendHello(conn, append(h[:len(h)-1], `,"epoch":1}`...))
		select {
		case <-down:
		case <-time.After(10 * time.Second):
			t.Error("b goes on with a peer that claims to be primary too")
		}
	})
	if c.b.hasLogged("panic") {
		t.Error("a panic")
	}
	// The true a is welcome afterwards.
	c.a.start()
	l := c.startLoad()
	l.more(100)
	l.halt()
	c.finish(c.b)
}

func logSize(t *testing.T, path string) int64 {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Size()
}

func sendHello(conn *link.Conn, body []byte) {
	conn.Send(wire.Ctl, &wire.Msg{Type: wire.Hello, Body: body}, false)
}

// fake dials b as a.
func (c *cluster) fake(t *testing.T, recv func(*link.Conn, *wire.Msg)) (conn *link.Conn, down chan error, stop func()) {
	t.Helper()
	f := &fakeA{up: make(chan *link.Conn, 16), down: make(chan error, 16), recv: recv}
	client, err := certs.ClientConfig(c.path("ca.pem"), c.path("a.pem"), c.path("a.key"), clusterName, "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	server, err := certs.ServerConfig(c.path("ca.pem"), c.path("a.pem"), c.path("a.key"), clusterName, "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	m, err := link.New(link.Config{
		Self: "a", Cluster: clusterName, Listen: "127.0.0.1:0", Peers: []link.Peer{{Node: "b", Address: c.b.listen}},
		ServerTLS: server, ClientTLS: func(string) *tls.Config { return client },
		PeerNode: func(s tls.ConnectionState) (string, error) { return certs.PeerNode(s, clusterName) },
		Handler:  f, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { _ = m.Run(ctx); close(ended) }()
	stop = func() { cancel(); <-ended }
	select {
	case conn = <-f.up:
	case <-time.After(patience):
		stop()
		t.Fatal("no link to b")
	}
	return conn, f.down, stop
}

// Peers that are configured wrongly. The primary, whose peer they would be, goes
// on; both logs say what is wrong.
func TestBadPeer(t *testing.T) {
	c := newCluster(t, options{})
	c.b.start()
	c.b.promote()
	good := c.a.yaml()
	c.undisturbed(c.b, func() {
		other := filepath.Join(c.dir, "other")
		if _, err := certs.Create(other, clusterName, []string{"a"}, certs.Options{}); err != nil {
			t.Fatal(err)
		}
		t.Run("another authority", func(t *testing.T) {
			c.a.writeConfig(strings.Replace(good, "{ca: ca.pem, cert: a.pem, key: a.key}", "{ca: other/ca.pem, cert: other/a.pem, key: other/a.key}", 1))
			c.a.start()
			c.a.logged("no link", "certificate of", "unknown authority")
			c.b.logged("connection refused", "tls:", "certificate")
			c.until("status says it", func() bool { return strings.Contains(c.a.status().StateDetail, "unknown authority") })
			c.a.signal(t, syscall.SIGTERM)
			c.a.stopped()
		})
		for _, x := range []struct {
			name, uri, want string
		}{
			{"another cluster's certificate", "tandem://other/a", `the certificate is of cluster "other", this is "proc"`},
			{"another node's certificate", "tandem://proc/b", `the certificate is of node "b", this is "a"`},
			{"a certificate without identity", "https://example.org/a", "tandem://CLUSTER/NODE is expected"},
		} {
			t.Run(x.name, func(t *testing.T) {
				c.writeCertificate("wrong", c.issue(x.uri)[0])
				c.a.writeConfig(strings.Replace(good, "cert: a.pem, key: a.key", "cert: wrong.pem, key: wrong.key", 1))
				c.a.refusesToStart(t, "tls: ", x.want)
			})
		}
		t.Run("no such certificate", func(t *testing.T) {
			c.a.writeConfig(strings.Replace(good, "cert: a.pem", "cert: none.pem", 1))
			c.a.refusesToStart(t, "tls: ", "none.pem", "no such file")
		})
		t.Run("another cluster's disk", func(t *testing.T) {
			c.a.writeConfig(strings.Replace(good, "cluster: proc", "cluster: other", 1))
			c.a.refusesToStart(t, "was initialised for node a of cluster proc, not for node a of cluster other")
		})
		t.Run("another size", func(t *testing.T) {
			n := *c.a
			n.image, n.metadata = c.path("small.img"), c.path("small.md")
			n.writeConfig(strings.Replace(n.yaml(), fmt.Sprintf("size: %dB", c.size), "size: 32MiB", 1))
			c.replctl("--config", n.config, "init")
			c.a.start()
			c.a.logged(fmt.Sprintf("peer b has a volume of %d bytes, ours has %d", c.size, 32<<20))
			c.b.logged(fmt.Sprintf("peer a has a volume of %d bytes, ours has %d", 32<<20, c.size))
			for _, x := range c.nodes {
				c.until("status of "+x.name+" says it", func() bool { return strings.Contains(x.status().StateDetail, "bytes, ours has") })
			}
			if _, _, err := c.a.call("promote", nil); err == nil {
				t.Error("a was promoted with another volume")
			}
			c.a.signal(t, syscall.SIGTERM)
			c.a.stopped()
		})
	})
	c.a.writeConfig(good)
	c.a.start()
	c.finish(c.b)
}

// Without TLS nothing but the preface knows the cluster's name.
func TestBadClusterName(t *testing.T) {
	c := newCluster(t, options{insecure: true})
	c.b.start()
	c.b.promote()
	good := c.a.yaml()
	c.undisturbed(c.b, func() {
		n := *c.a
		n.image, n.metadata = c.path("other.img"), c.path("other.md")
		n.writeConfig(strings.Replace(n.yaml(), "cluster: proc", "cluster: other", 1))
		c.replctl("--config", n.config, "init")
		c.a.start()
		c.a.logged("no link", `refused by the peer: cluster \"other\" is not ours (\"proc\")`)
		c.b.logged("no link", `refused: cluster \"other\" is not ours (\"proc\")`)
		// It finds another cluster's record at the witness, too.
		_, _, err := c.a.call("promote", nil)
		if text := refusal(err); !strings.Contains(text, `the witness holds the record of the cluster "proc", this node belongs to "other"`) {
			t.Errorf("promote: %v", err)
		}
		c.a.signal(t, syscall.SIGTERM)
		c.a.stopped()
	})
	c.a.writeConfig(good)
	c.a.start()
	c.finish(c.b)
}

// A line that damages bytes, without TLS to notice: every frame has a checksum.
// Links go down and come back, and nothing wrong is ever written.
func TestBadLine(t *testing.T) {
	r := newRottenLine(t)
	c := newCluster(t, options{insecure: true, peerTimeout: 2 * time.Second, relay: r.start})
	c.startPair()
	l := c.startLoad()
	for round := range 6 {
		l.more(200)
		r.spoil(1 + round%2)
		time.Sleep(400 * time.Millisecond)
	}
	l.more(200)
	c.settled(c.a)
	l.halt()
	t.Logf("%d bytes were damaged, %d client connections ended", r.spoiled(), l.reconnects.Load())
	if r.spoiled() < 6 {
		t.Error("hardly a byte was damaged")
	}
	c.finish(c.a)
}

// rottenLine is a TCP relay that flips bits on demand.
type rottenLine struct {
	t      *testing.T
	target string

	mu   sync.Mutex
	due  int // bytes still to be damaged
	done int
}

func newRottenLine(t *testing.T) *rottenLine { return &rottenLine{t: t} }

// start relays from the returned address to target.
func (r *rottenLine) start(target string) string {
	r.target = target
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go r.relay(in)
		}
	}()
	return l.Addr().String()
}

func (r *rottenLine) relay(in net.Conn) {
	defer in.Close()
	out, err := net.Dial("tcp", r.target)
	if err != nil {
		return
	}
	defer out.Close()
	var both sync.WaitGroup
	pipe := func(dst, src net.Conn) {
		defer dst.Close()
		defer src.Close()
		b := make([]byte, 32<<10)
		for {
			n, err := src.Read(b)
			r.mu.Lock()
			if n > 200 && r.due > 0 {
				r.due--
				r.done++
				b[n/2] ^= 1 << (r.done % 8)
			}
			r.mu.Unlock()
			if _, werr := dst.Write(b[:n]); err != nil || werr != nil {
				return
			}
		}
	}
	both.Go(func() { pipe(in, out) })
	both.Go(func() { pipe(out, in) })
	both.Wait()
}

func (r *rottenLine) spoil(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.due += n
}

func (r *rottenLine) spoiled() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.done
}
