package proctest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// refusesToStart runs the agent, which must end with status 1 and a last line on
// stderr that has all the texts.
func (n *node) refusesToStart(t *testing.T, texts ...string) {
	t.Helper()
	status, _, stderr := runProgram(t, patience, n.env, n.c.program, "--config", n.config)
	lines := strings.Split(strings.TrimSpace(stderr), "\n")
	last := lines[len(lines)-1]
	if status != 1 || !strings.HasPrefix(last, "replagent: ") {
		t.Errorf("exit status %d, want 1 and a line of replagent on stderr:\n%s", status, stderr)
	}
	if strings.Contains(stderr, "panic") || strings.Contains(stderr, "goroutine ") {
		t.Errorf("a panic:\n%s", stderr)
	}
	for _, text := range texts {
		if !strings.Contains(last, text) {
			t.Errorf("the error is %q, want %q", last, text)
		}
	}
}

// fingerprint tells whether files have changed.
func fingerprint(t *testing.T, paths ...string) string {
	t.Helper()
	h := sha256.New()
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			fmt.Fprintln(h, err)
		}
		fmt.Fprintln(h, len(b))
		h.Write(b)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// A config that is not right is refused with file, line and key, by both
// programs, and nothing is touched.
func TestBadConfig(t *testing.T) {
	c := newCluster(t, options{})
	n := c.a
	good := n.yaml()
	for _, x := range []struct{ name, old, new, line, key, text string }{
		{"typo", "control:", "contorl:", "8", "contorl", `unknown key, did you mean "control"?`},
		{"typo below", "heartbeat:", "hartbeat:", "13", "failover.hartbeat", `unknown key, did you mean "heartbeat"?`},
		{"missing", "control: ", "# ", "1", "control", "missing: this key is required"},
		{"doubled", "node: a\n", "node: a\nnode: a\n", "3", "node", "doubled: it is also on line 2"},
		{"unit", "size: 67108864B", "size: 67108864", "6", "volume.size", "has no unit"},
		{"wrong unit", "lease: 1s", "lease: 1 sec", "13", "failover.lease", ""},
		{"lease", "lease: 1s", "lease: 300ms", "13", "failover.lease", "less than two heartbeats"},
		{"size", "size: 67108864B", "size: 1000B", "6", "volume.size", "not a multiple of 4096"},
		{"socket", n.socket, "/" + strings.Repeat("x", 120), "7", "nbd.socket", ""},
		{"insecure", "listen: 127.0.0.1", "listen: 10.0.0.1", "10", "tls", ""},
		{"witness", "witness: file:./witness", "witness: s3://bucket", "11", "witness", "write s3://BUCKET/KEY"},
		{"protocol", "volume: {", "volume: {protocol: A, ", "6", "volume.protocol", "not in this version"},
		{"yaml", "peers:\n", "peers:\n\t", "", "", "not YAML"},
		{"empty", good, "", "", "", "the file is empty"},
	} {
		t.Run(x.name, func(t *testing.T) {
			text := strings.Replace(good, x.old, x.new, 1)
			if x.name == "insecure" {
				text = strings.Replace(text, "{ca: ca.pem, cert: a.pem, key: a.key}", "{insecure: true}", 1)
			}
			if text == good {
				t.Fatal("nothing was changed")
			}
			n.writeConfig(text)
			before := fingerprint(t, n.image, n.metadata)
			where := n.config
			if x.line != "" {
				where += ":" + x.line + ": " + x.key
			}
			n.refusesToStart(t, where, x.text)
			for _, verb := range []string{"init", "status", "dump-md"} {
				status, _, stderr := runProgram(t, patience, nil, programs.ctl, "--config", n.config, verb)
				if status != 1 || !strings.Contains(stderr, where) || !strings.Contains(stderr, x.text) {
					t.Errorf("replctl %s: exit status %d: %s", verb, status, stderr)
				}
			}
			if fingerprint(t, n.image, n.metadata) != before {
				t.Error("the volume or its metadata was touched")
			}
		})
	}
	n.writeConfig(good)
	for _, args := range [][]string{{}, {"--conf", n.config}, {"--config", n.config, "more"}} {
		if status, _, stderr := runProgram(t, patience, nil, c.program, args...); status != 2 || stderr == "" {
			t.Errorf("replagent %q: exit status %d: %q", args, status, stderr)
		}
	}
	c.nothingLeft()
}

// reseal computes a metadata block's checksums anew, as blockrepl/meta draws
// them, after a field was changed: what a newer or a malicious program would
// write.
func reseal(block []byte, kind uint32) {
	diskID := binary.LittleEndian.Uint64(block[16:])
	for i := range 8 {
		s := block[i*512 : (i+1)*512]
		var name [24]byte
		binary.LittleEndian.PutUint64(name[0:], diskID)
		binary.LittleEndian.PutUint64(name[8:], uint64(kind))
		binary.LittleEndian.PutUint64(name[16:], uint64(i)<<32)
		sum := crc32.Update(crc32.Checksum(name[:], castagnoli), castagnoli, s[:508])
		binary.LittleEndian.PutUint32(s[508:], sum)
	}
}

const superKind = 0x52505553 // "SUPR"

// Metadata that is not this node's, not whole, or not of this version: the agent
// says which, ends with status 1, and writes nothing.
func TestBadMetadata(t *testing.T) {
	c := newCluster(t, options{})
	c.startPair()
	l := c.startLoad()
	l.more(200)
	l.halt()
	// Superblocks of two times, for a torn one.
	early, err := os.ReadFile(c.b.metadata)
	if err != nil {
		t.Fatal(err)
	}
	c.b.promote()
	c.settled(c.b)
	c.stopAll()
	n := c.b
	good, err := os.ReadFile(n.metadata)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if bytes.Equal(early[i*4096:(i+1)*4096], good[i*4096:(i+1)*4096]) {
			t.Fatalf("superblock %d has not changed in a promotion", i)
		}
	}
	for _, x := range []struct {
		name  string
		spoil func(md []byte) []byte
		texts []string
	}{
		{"all zeroes", func(md []byte) []byte { clear(md); return md }, []string{n.metadata, "no Tandem metadata"}},
		{"zero superblocks", func(md []byte) []byte { clear(md[:8192]); return md }, []string{n.metadata, "no Tandem metadata"}},
		{"foreign", func(md []byte) []byte { copy(md, bytes.Repeat([]byte("\x7fELF"), len(md)/4)); return md }, []string{n.metadata, "no Tandem metadata"}},
		{"empty", func([]byte) []byte { return nil }, []string{n.metadata, "no Tandem metadata"}},
		{"cut off", func(md []byte) []byte { return md[:len(md)/2] }, []string{"wrong size", n.metadata, "it was cut off"}},
		{"rotten", func(md []byte) []byte { md[700] ^= 1; md[4096+700] ^= 1; return md }, []string{n.metadata, "a sector has a wrong checksum"}},
		{"torn", func(md []byte) []byte {
			for i := range 2 {
				copy(md[i*4096+512:(i+1)*4096], early[i*4096+512:])
			}
			return md
		}, []string{n.metadata, "the metadata block is torn"}},
		{"newer", func(md []byte) []byte {
			for i := range 2 {
				binary.LittleEndian.PutUint32(md[i*4096+8:], 2)
				reseal(md[i*4096:(i+1)*4096], superKind)
			}
			return md
		}, []string{n.metadata, "written by a newer version: format 2, this program knows 1"}},
		{"one copy newer", func(md []byte) []byte {
			binary.LittleEndian.PutUint32(md[8:], 2)
			reseal(md[:4096], superKind)
			return md
		}, []string{"written by a newer version"}},
		{"absurd", func(md []byte) []byte {
			for i := range 2 {
				binary.LittleEndian.PutUint64(md[i*4096+32:], 1<<60) // the volume's size
				reseal(md[i*4096:(i+1)*4096], superKind)
			}
			return md
		}, []string{n.metadata, "invalid metadata"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			if err := os.WriteFile(n.metadata, x.spoil(bytes.Clone(good)), 0o600); err != nil {
				t.Fatal(err)
			}
			before := fingerprint(t, n.image, n.metadata)
			n.refusesToStart(t, x.texts...)
			if status, _, stderr := runProgram(t, patience, nil, programs.ctl, "--config", n.config, "dump-md"); status != 1 || !strings.Contains(stderr, x.texts[len(x.texts)-1]) {
				t.Errorf("replctl dump-md: exit status %d: %s", status, stderr)
			}
			if fingerprint(t, n.image, n.metadata) != before {
				t.Error("the volume or its metadata was written to")
			}
		})
	}
	restore := func() {
		if err := os.WriteFile(n.metadata, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	restore()
	t.Run("device smaller", func(t *testing.T) {
		whole, err := os.ReadFile(n.image)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(n.image, c.size-4096); err != nil {
			t.Fatal(err)
		}
		before := fingerprint(t, n.image, n.metadata)
		n.refusesToStart(t, "wrong size", n.image, "the device is smaller than it was at init")
		if fingerprint(t, n.image, n.metadata) != before {
			t.Error("the volume or its metadata was written to")
		}
		// In place: another inode would be another disk.
		if err := os.WriteFile(n.image, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	for _, x := range []struct {
		name, old, new string
		texts          []string
	}{
		{"another size", "size: 67108864B", "size: 64MB", []string{"wrong size", "was initialised with 67108864 bytes, the configuration says 64000000"}},
		{"no such file", n.image, c.path("none.img"), []string{"none.img", "no such file"}},
		{"a folder", n.image, c.dir, []string{"is neither a block device nor a regular file"}},
		{"the other node's disk", n.image, c.a.image, []string{"was initialised for node a of cluster proc, not for node b of cluster proc"}},
		{"metadata is the volume", n.metadata, n.image, []string{"volume.metadata", "is the device itself"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			text := strings.Replace(n.yaml(), x.old, x.new, 1)
			if x.name == "the other node's disk" {
				text = strings.Replace(text, n.metadata, c.a.metadata, 1)
			}
			n.writeConfig(text)
			before := fingerprint(t, n.image, n.metadata, c.a.image, c.a.metadata)
			n.refusesToStart(t, x.texts...)
			if fingerprint(t, n.image, n.metadata, c.a.image, c.a.metadata) != before {
				t.Error("a volume or its metadata was written to")
			}
		})
	}
	n.writeConfig(n.yaml())

	// One of two superblocks is enough to start, and not to be trusted: the copy
	// is compared with its peer's, and both are sound afterwards.
	spoiled := bytes.Clone(good)
	spoiled[700] ^= 1
	if err := os.WriteFile(n.metadata, spoiled, 0o600); err != nil {
		t.Fatal(err)
	}
	c.a.start()
	n.start()
	c.anyServes()
	l = c.startLoad()
	l.more(200)
	l.halt()
	c.finish(c.serving())
}

// Metadata at the end of the device: a trailer of a later version, a device that
// was cut off, one that has grown.
func TestBadInternalMetadata(t *testing.T) {
	c := newCluster(t, options{size: 8 << 20, disks: func(_ *cluster, n *node) { n.metadata = "internal" }})
	n := c.b
	good, err := os.ReadFile(n.image)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		name  string
		spoil func(img []byte) []byte
		texts []string
	}{
		{"newer", func(img []byte) []byte {
			tr := img[len(img)-4096:]
			binary.LittleEndian.PutUint32(tr[8:], 2)
			binary.LittleEndian.PutUint32(tr[4092:], crc32.Checksum(tr[:4092], castagnoli))
			return img
		}, []string{n.image, "written by a newer version"}},
		{"smaller", func(img []byte) []byte { return img[:len(img)-16<<10] }, []string{"the device is smaller than it was at init"}},
		{"much smaller", func(img []byte) []byte { return img[:4<<20] }, []string{"wrong size", "the file was cut off, or never initialised"}},
		{"larger", func(img []byte) []byte { return append(img, make([]byte, 1<<20)...) }, []string{"the device has grown since init"}},
		{"zeroes", func(img []byte) []byte { clear(img); return img }, []string{"no Tandem metadata at its end"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			if err := os.WriteFile(n.image, x.spoil(bytes.Clone(good)), 0o600); err != nil {
				t.Fatal(err)
			}
			before := fingerprint(t, n.image)
			n.refusesToStart(t, x.texts...)
			if fingerprint(t, n.image) != before {
				t.Error("the volume was written to")
			}
		})
	}
}

// A second agent on the same volume is refused by whatever name it comes, and
// the first one does not notice.
func TestBadSecondAgent(t *testing.T) {
	c := newCluster(t, options{})
	c.startPair()
	l := c.startLoad()
	began := monotonic()
	t.Run("same config", func(t *testing.T) { c.a.refusesToStart(t, "in use", "another agent has locked it") })
	t.Run("standby", func(t *testing.T) { c.b.refusesToStart(t, "in use", "another agent has locked it") })

	other := *c.a
	other.config, other.listen = c.path("second.yaml"), freeAddresses(t, 1)[0]
	other.socket, other.control, other.http = c.path("second.nbd"), c.path("second.sock"), freeAddresses(t, 1)[0]
	other.image = c.path("second.img")
	if err := os.Link(c.a.image, other.image); err != nil {
		t.Fatal(err)
	}
	other.writeConfig(other.yaml())
	t.Run("hard link", func(t *testing.T) { other.refusesToStart(t, "in use", "another agent has locked it") })
	if err := os.Remove(other.image); err != nil {
		t.Fatal(err)
	}
	t.Run("init", func(t *testing.T) {
		for _, args := range [][]string{{"init"}, {"init", "--force"}} {
			status, _, stderr := runProgram(t, patience, nil, programs.ctl, append([]string{"--config", c.a.config}, args...)...)
			if status != 1 || !strings.Contains(stderr, "another agent has locked it") {
				t.Errorf("replctl %v: exit status %d: %s", args, status, stderr)
			}
		}
	})

	// Another volume on addresses and sockets that are taken.
	other.image, other.metadata = c.path("third.img"), c.path("third.md")
	for _, x := range []struct {
		name  string
		take  func(n *node)
		texts []string
	}{
		{"listen", func(n *node) { n.listen = c.a.listen }, []string{"address already in use"}},
		{"control", func(n *node) { n.control = c.a.control }, []string{"another agent is running", c.a.control}},
		{"http", func(n *node) { n.http = c.a.http }, []string{"http", "address already in use"}},
	} {
		t.Run(x.name+" taken", func(t *testing.T) {
			n := other
			x.take(&n)
			n.writeConfig(n.yaml())
			if status, _, stderr := runProgram(t, patience, nil, programs.ctl, "--config", n.config, "init", "--force"); status != 0 {
				t.Fatal(stderr)
			}
			n.refusesToStart(t, x.texts...)
			for _, p := range []string{other.socket, other.control} {
				if isSocket(p) {
					t.Errorf("%s is left by an agent that did not start", p)
				}
			}
		})
	}
	l.more(200)
	if gap := time.Duration(c.ledger.longestGap(began, monotonic())); gap > 2*time.Second {
		t.Errorf("the load stood still for %v", gap)
	}
	if r := c.record(); r.Epoch != 1 || len(r.InSync) != 2 {
		t.Errorf("the record has changed: %+v", r)
	}
	l.halt()
	if n := l.reconnects.Load(); n > 0 {
		t.Errorf("%d client connections ended", n)
	}
	c.finish(c.a)
}

// A socket of a dead agent is replaced, a file in its place is not.
func TestBadSocketFiles(t *testing.T) {
	c := newCluster(t, options{})
	n := c.a
	for _, path := range []string{n.socket, n.control} {
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Run(filepath.Base(path), func(t *testing.T) {
			n.refusesToStart(t, path, "socket")
			for _, p := range []string{n.socket, n.control} {
				if isSocket(p) {
					t.Errorf("%s is left by an agent that did not start", p)
					_ = os.Remove(p)
				}
			}
		})
		if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
			t.Errorf("%s: %q, %v", path, b, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	n.start()
	n.kill()
	if !isSocket(n.socket) || !isSocket(n.control) {
		t.Fatal("a killed agent has left no sockets")
	}
	n.start()
	n.promote()
	n.signal(t, syscall.SIGTERM)
	n.stopped()
	c.nothingLeft()
}
