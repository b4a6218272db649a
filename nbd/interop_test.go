package nbd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// need skips the test without the tool, or fails it where tools are required.
func need(t *testing.T, tool, debian string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err == nil {
		return
	}
	if os.Getenv("TANDEM_REQUIRE_TOOLS") == "1" {
		t.Fatalf("%s is missing: apt-get install %s", tool, debian)
	}
	t.Skipf("%s is missing: apt-get install %s", tool, debian)
}

// tool runs a real client to its end and returns what it printed.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (v *served) uri() string { return "nbd+unix:///vol?socket=" + v.socket }

// image writes a file of testSize with data, zeroes and holes.
func image(t *testing.T) (path string, data []byte) {
	t.Helper()
	data = make([]byte, testSize)
	rng := rand.NewChaCha8([32]byte{1})
	for off := 0; off < len(data); off += 3 << 20 {
		rng.Read(data[off : off+1<<20])
	}
	path = filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, data
}

func (v *served) wantData(t *testing.T, want []byte) {
	t.Helper()
	v.device.mu.RLock()
	defer v.device.mu.RUnlock()
	if !bytes.Equal(v.device.data, want) {
		t.Error("the device's bytes differ")
	}
}

func TestInteropNbdinfo(t *testing.T) {
	need(t, "nbdinfo", "libnbd-bin")
	v := serve(t, nil)
	var info struct {
		Protocol   string
		Structured bool
		Exports    []map[string]any
	}
	if err := json.Unmarshal([]byte(tool(t, "nbdinfo", "--json", v.uri())), &info); err != nil {
		t.Fatal(err)
	}
	if info.Protocol != "newstyle-fixed" || !info.Structured || len(info.Exports) != 1 {
		t.Fatalf("%+v", info)
	}
	for key, want := range map[string]any{
		"export-name": "vol", "export-size": float64(testSize), "description": "a test volume", "is_read_only": false,
		"can_cache": true, "can_df": true, "can_fast_zero": true, "can_flush": true, "can_fua": true,
		"can_multi_conn": true, "can_trim": true, "can_zero": true,
		"block_minimum": 512.0, "block_preferred": 4096.0, "block_maximum": float64(MaximumBlock),
		"contexts": []any{"base:allocation"},
	} {
		got, ok := info.Exports[0][key]
		if !ok && strings.HasPrefix(key, "block_") {
			got = info.Exports[0][strings.Replace(key, "block_", "block_size_", 1)]
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s is %v, want %v", key, got, want)
		}
	}
	if out := tool(t, "nbdinfo", "--list", "nbd+unix:///?socket="+v.socket); !strings.Contains(out, `export="vol"`) {
		t.Errorf("list: %s", out)
	}
	if out := tool(t, "nbdinfo", "--map", v.uri()); !strings.Contains(out, "hole,zero") {
		t.Errorf("map: %s", out)
	}
}

// TestInteropRefusal: a user of qemu-img sees the text that a backend refuses with (libnbd shows it in debug output only).
func TestInteropRefusal(t *testing.T) {
	need(t, "qemu-img", "qemu-utils")
	v := serve(t, func(c *Config, e *Export) {
		c.Backend = &memBackend{exports: []*Export{e}, refusal: &Refusal{Code: ERR_POLICY, Text: "node b is Primary"}}
	})
	out, err := exec.Command("qemu-img", "info", v.uri()).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "node b is Primary") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestInteropNbdcopy(t *testing.T) {
	need(t, "nbdcopy", "libnbd-bin")
	for _, connections := range []string{"1", "4"} {
		t.Run(connections+" connections", func(t *testing.T) {
			v := serve(t, func(_ *Config, e *Export) { e.Device.(*memDevice).async = connections == "4" })
			path, data := image(t)
			tool(t, "nbdcopy", "--flush", "--connections="+connections, path, v.uri())
			v.wantData(t, data)
			back := filepath.Join(t.TempDir(), "back")
			tool(t, "nbdcopy", "--connections="+connections, v.uri(), back)
			if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, data) {
				t.Errorf("what came back differs, %v", err)
			}
			if v.device.flushes.Load() == 0 {
				t.Error("no flush arrived")
			}
		})
	}
}

// nbdshScript runs every command of libnbd, in the strict mode that lets the server's errors through.
const nbdshScript = `
import nbd, errno, os, sys
structured = sys.argv[2] == "structured"
h = nbd.NBD()
h.set_request_structured_replies(structured)
if structured: h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(sys.argv[1])
assert h.get_structured_replies_negotiated() == structured
assert h.get_size() == 64 << 20 and h.can_multi_conn() and h.can_fast_zero() and h.can_cache()
assert h.get_block_size(nbd.SIZE_MINIMUM) == 512 and h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
data = os.urandom(1 << 20)
h.pwrite(data, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(1 << 20, 4096) == data
h.pwrite(b"x" * (32 << 20), 32 << 20)
assert h.pread(32 << 20, 32 << 20) == b"x" * (32 << 20)
h.zero(4096, 8192)
h.zero(4096, 16384, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.zero(4096, 4096, nbd.CMD_FLAG_FAST_ZERO)
h.trim(32 << 20, 32 << 20, nbd.CMD_FLAG_FUA)
h.cache(1 << 20, 0)
h.flush()
assert h.pread(8192, 4096) == bytes(8192)
assert h.pread(4096, 32 << 20) == bytes(4096)
h.set_strict_mode(0)
def fails(code, f, *args):
    try: f(*args)
    except nbd.Error as e: assert e.errnum == code, (f, args, e)
    else: assert False, (f, args)
fails(errno.EINVAL, h.pread, 100, 0)
fails(errno.EINVAL, h.pread, 512, 1)
fails(errno.EINVAL, h.pread, 512, 64 << 20)
fails(errno.EINVAL, h.pread, (32 << 20) + 512, 0)
fails(errno.ENOSPC, h.pwrite, bytes(512), 64 << 20)
fails(errno.EINVAL, h.pwrite, bytes(513), 0)
fails(errno.ENOSPC, h.zero, 512, 64 << 20)
fails(errno.EINVAL, h.trim, (1 << 32) - 1, 0)
if structured:
    h.pread_structured(4096, 0, lambda *a: None, nbd.CMD_FLAG_DF)
    got = []
    h.block_status(64 << 20, 0, lambda ctx, off, entries, err: got.append((ctx, off, list(entries))) or 0)
    assert len(got) == 1 and got[0][:2] == ("base:allocation", 0), got
    assert got[0][2][:2] == [12288, 3] and sum(got[0][2][::2]) == 64 << 20, got
    one = []
    h.block_status(64 << 20, 0, lambda ctx, off, entries, err: one.append(list(entries)) or 0, nbd.CMD_FLAG_REQ_ONE)
    assert len(one) == 1 and len(one[0]) == 2, one
# a window of requests in flight
cookies = []
bufs = [nbd.Buffer.from_bytearray(bytearray([i]) * 4096) for i in range(200)]
for i, b in enumerate(bufs): cookies.append(h.aio_pwrite(b, (1 << 20) + i * 4096))
while cookies:
    cookies = [c for c in cookies if not h.aio_command_completed(c)]
    if cookies: h.poll(-1)
assert h.pread(200 * 4096, 1 << 20) == b"".join(bytes([i]) * 4096 for i in range(200))
h.shutdown()
`

func TestInteropNbdsh(t *testing.T) {
	need(t, "nbdsh", "libnbd-bin, python3-libnbd")
	for _, style := range []string{"structured", "simple"} {
		for _, async := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, async=%v", style, async), func(t *testing.T) {
				v := serve(t, func(_ *Config, e *Export) { e.Device.(*memDevice).async = async })
				tool(t, "/usr/bin/python3", "-c", nbdshScript, v.uri(), style)
				if v.device.fua.Load() < 3 || v.device.noHole.Load() != 1 || v.device.flushes.Load() != 1 {
					t.Error("flags did not reach the device")
				}
			})
		}
	}
}

func TestInteropQemuImg(t *testing.T) {
	need(t, "qemu-img", "qemu-utils")
	v := serve(t, nil)
	path, data := image(t)
	tool(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", path, v.uri())
	v.wantData(t, data)
	if out := tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", path, v.uri()); !strings.Contains(out, "identical") {
		t.Error(out)
	}
	if out := tool(t, "qemu-img", "map", "-f", "raw", "--output=json", v.uri()); !strings.Contains(out, `"zero": true`) {
		t.Errorf("map: %s", out)
	}
	if out := tool(t, "qemu-img", "info", v.uri()); !strings.Contains(out, "64 MiB") {
		t.Errorf("info: %s", out)
	}
}

func TestInteropQemuIO(t *testing.T) {
	need(t, "qemu-io", "qemu-utils")
	v := serve(t, nil)
	out := tool(t, "qemu-io", "-f", "raw", "-t", "none", v.uri(),
		"-c", "write -P 0xaa 0 1M", "-c", "write -f -P 0xbb 1M 64k", "-c", "read -P 0xaa 0 1M", "-c", "read -P 0xbb 1M 64k",
		"-c", "write -z 4k 4k", "-c", "write -z -u 8k 4k", "-c", "write -z -n 12k 4k", "-c", "discard 1M 64k", "-c", "flush",
		"-c", "read -P 0 4k 12k", "-c", "read -P 0 1M 64k",
		// Below the minimum block: qemu reads, changes and writes back.
		"-c", "write -P 0xcc 100 17", "-c", "read -P 0xcc 100 17", "-c", "read -P 0xaa 117 300",
		"-c", "aio_write -P 1 2M 128k", "-c", "aio_write -P 2 3M 128k", "-c", "aio_flush", "-c", "read -P 2 3M 128k")
	if strings.Contains(out, "failed") || strings.Contains(out, "error") {
		t.Error(out)
	}
	if v.device.fua.Load() == 0 || v.device.flushes.Load() == 0 || v.device.noHole.Load() == 0 {
		t.Error("flags did not reach the device")
	}
}

func TestInteropFio(t *testing.T) {
	need(t, "fio", "fio")
	for _, async := range []bool{false, true} {
		t.Run(fmt.Sprintf("async=%v", async), func(t *testing.T) {
			v := serve(t, func(_ *Config, e *Export) { e.Device.(*memDevice).async = async })
			out := tool(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+v.uri(), "--rw=randrw", "--bsrange=512-256k",
				"--size=32m", "--iodepth=64", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--fsync=64", "--numjobs=1")
			if !strings.Contains(out, "err= 0") {
				t.Error(out)
			}
		})
	}
}
