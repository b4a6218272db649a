package doctor

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

func (x *examination) checkClock(context.Context) verdict {
	name, err := x.sys.text("sys/devices/system/clocksource/clocksource0/current_clocksource")
	if err != nil {
		return skip("%v", err)
	}
	switch name {
	case "acpi_pm", "hpet", "jiffies", "refined-jiffies", "pit":
		return warn("see why in dmesg (grep -i -e tsc -e clocksource); on EC2 use a Nitro type, whose guests have tsc or kvm-clock",
			"the kernel keeps time by %s: it has given up the TSC, or there is none, so each look at the clock is slow, and a lease is counted by what the kernel itself distrusts", name)
	}
	return ok("%s", name)
}

func (x *examination) checkWatchdog(context.Context) verdict {
	if x.cfg.Failover.SelfFence != "reboot" {
		return skip("failover.self_fence is %s", x.cfg.Failover.SelfFence)
	}
	if !x.sys.exists("dev/watchdog") {
		return warn("modprobe softdog, and name it in /etc/modules-load.d so that it is there after a restart",
			"there is no /dev/watchdog: a kernel or an agent that is stuck is not ended")
	}
	return ok("/dev/watchdog is there")
}

// checkReplicatedLogs looks for files of the agent's on the filesystem that it serves. A
// write there waits for the agent, which waits for the write; and on the Secondary they are
// not there at all.
func (x *examination) checkReplicatedLogs(context.Context) verdict {
	var mounts []string
	for _, s := range x.cfg.Service {
		if s.Mount != nil {
			mounts = append(mounts, s.Mount.Path)
		}
	}
	if len(mounts) == 0 {
		return skip("no step mounts the volume")
	}
	var found []string
	for _, f := range x.ownFiles() {
		if f.path == "" {
			continue
		}
		at := resolve(f.path)
		for _, m := range mounts {
			if r := resolve(m); at == r || strings.HasPrefix(at, r+"/") {
				found = append(found, fmt.Sprintf("%s (%s)", f.what, f.path))
				break
			}
		}
	}
	if len(found) > 0 {
		return fail("move it to this machine's own disk: the agent would wait for itself, and a Secondary would not have it",
			"on the replicated filesystem: %s", list(found))
	}
	return ok("none of the agent's files is on the replicated filesystem")
}

type ownFile struct{ what, path string }

func (x *examination) ownFiles() []ownFile {
	c := x.cfg
	config, err := filepath.Abs(c.File)
	if err != nil {
		config = c.Dir
	}
	state := c.Dir
	if x.sys.StateDir != "" {
		state = x.sys.StateDir
	}
	all := []ownFile{
		{"the config", config}, {"control", c.Control}, {"nbd.socket", c.NBD.Socket}, {"volume.metadata", c.Volume.Metadata},
		{"the history", filepath.Join(state, c.Node+".history")}, {"tls.ca", c.TLS.CA}, {"tls.cert", c.TLS.Cert}, {"tls.key", c.TLS.Key},
	}
	if x.device.name == "" {
		all = append(all, ownFile{"volume.device", c.Volume.Device})
	}
	if path, is := strings.CutPrefix(c.Witness, "file:"); is {
		path, _, _ = strings.Cut(path, "?")
		if !filepath.IsAbs(path) {
			path = filepath.Join(c.Dir, path)
		}
		all = append(all, ownFile{"the witness", path})
	}
	if x.pid != 0 {
		// Its outputs, where it logs to. A pipe or a journal's socket has no path.
		for _, fd := range []string{"1", "2"} {
			to, err := os.Readlink(x.sys.path("proc", strconv.Itoa(x.pid), "fd", fd))
			if err == nil && strings.HasPrefix(to, "/") {
				all = append(all, ownFile{"the agent's log", strings.TrimSuffix(to, " (deleted)")})
				break
			}
		}
	}
	return all
}

// resolve follows the links of as much of a path as there is.
func resolve(path string) string {
	path = filepath.Clean(path)
	for at := path; ; at = filepath.Dir(at) {
		if real, err := filepath.EvalSymlinks(at); err == nil {
			rest, _ := filepath.Rel(at, path)
			return filepath.Join(real, rest)
		}
		if at == filepath.Dir(at) {
			return path
		}
	}
}

// needed are the programs that the steps run, each with who wants it.
func (x *examination) needed() (all [][2]string) {
	add := func(step string, programs ...string) {
		for _, p := range programs {
			if !slices.ContainsFunc(all, func(have [2]string) bool { return have[0] == p }) {
				all = append(all, [2]string{p, step})
			}
		}
	}
	for _, s := range x.cfg.Service {
		switch {
		case s.Exec != nil:
			for _, argv := range [][]string{s.Exec.Start, s.Exec.Stop, s.Exec.Check} {
				if len(argv) > 0 {
					add(s.Name, argv[0])
				}
			}
		case s.NBD != nil:
			if !x.sys.exists("sys/module/nbd") {
				add(s.Name, "modprobe")
			}
		case s.Mount != nil:
			add(s.Name, "blkid", "mount", "umount")
			if s.Mount.Type == "ext4" {
				add(s.Name, "e2fsck")
			}
		case s.NFS != nil:
			add(s.Name, "modprobe", "mount", "install", "sh", "nfsdcld", "rpc.mountd", "rpc.nfsd", "exportfs")
			if s.NFS.V3() {
				add(s.Name, "rpcbind", "rpc.statd", "find")
			}
		}
	}
	if len(x.cfg.OnChange) > 0 {
		add("on_change", x.cfg.OnChange[0])
	}
	return all
}

func (x *examination) checkTools(context.Context) verdict {
	needed := x.needed()
	if len(needed) == 0 {
		return skip("no step runs a program")
	}
	packages := map[string]string{
		"blkid": "util-linux", "mount": "mount", "umount": "mount", "e2fsck": "e2fsprogs", "modprobe": "kmod",
		"nfsdcld": "nfs-common", "rpc.statd": "nfs-common", "rpc.mountd": "nfs-kernel-server", "rpc.nfsd": "nfs-kernel-server",
		"exportfs": "nfs-kernel-server", "rpcbind": "rpcbind",
	}
	var missing, install, names []string
	for _, n := range needed {
		names = append(names, n[0])
		if _, err := x.sys.LookPath(n[0]); err != nil {
			missing = append(missing, fmt.Sprintf("%s (for %s)", n[0], n[1]))
			if p := packages[n[0]]; p != "" && !slices.Contains(install, p) {
				install = append(install, p)
			}
		}
	}
	if len(missing) == 0 {
		return ok("the steps' programs are there: %s", list(names))
	}
	fix := "install them"
	if len(install) > 0 {
		fix = "apt-get install " + strings.Join(install, " ")
	}
	return fail(fix, "not found: %s", list(missing))
}

func (x *examination) checkModule(context.Context) verdict {
	if !x.cfg.AttachesNBD() {
		return skip("no step nbd")
	}
	if x.sys.exists("sys/module/nbd") {
		return ok("nbd is in the kernel")
	}
	release, err := x.sys.text("proc/sys/kernel/osrelease")
	if err != nil {
		return skip("%v", err)
	}
	for _, index := range []string{"modules.dep", "modules.builtin"} {
		text, _ := x.sys.text("lib/modules", release, index)
		for l := range strings.Lines(text) {
			name, _, _ := strings.Cut(filepath.Base(strings.TrimSpace(strings.SplitN(l, ":", 2)[0])), ".")
			if name == "nbd" {
				return ok("nbd can be loaded into the kernel %s", release)
			}
		}
	}
	return fail("install the kernel's package of further modules (Ubuntu: linux-modules-extra-"+release+"), or a kernel that has nbd",
		"the kernel %s has no module nbd", release)
}

// checkPorts looks whether an agent that is started could listen. It asks the kernel's list
// instead of trying: a port that is taken for a moment is one that an agent, started in that
// moment, does not get.
func (x *examination) checkPorts(context.Context) verdict {
	if x.running {
		return ok("the agent runs, and has them")
	}
	listeners, err := x.listeners()
	if err != nil {
		return skip("%v", err)
	}
	for _, a := range []struct{ key, address string }{{"listen", x.cfg.Listen}, {"http", x.cfg.HTTP}, {"nbd.tcp", x.cfg.NBD.TCP}} {
		if a.address == "" {
			continue
		}
		host, port, err := net.SplitHostPort(a.address)
		n, err2 := strconv.ParseUint(port, 10, 16)
		if err != nil || err2 != nil {
			continue // config has refused it
		}
		if taken(listeners, host, uint16(n)) {
			return fail(fmt.Sprintf("end the other program (ss -ltnp 'sport = :%d' shows it), or change %s on all nodes", n, a.key),
				"%s: another program listens at port %d, and the agent does not run", a.key, n)
		}
	}
	for _, port := range x.cfg.ServicePorts() {
		if taken(listeners, "", port) {
			return warn("see who: ss -ltnp; the machine's own NFS server has to be off (systemctl disable --now nfs-server), what an agent has left running is taken over by the next",
				"something listens at the service's port %d, and the agent does not run", port)
		}
	}
	return ok("nobody else listens there")
}

// taken says whether to listen at host and port would be refused. A name may be any address.
func taken(listeners []netip.AddrPort, host string, port uint16) bool {
	want, err := netip.ParseAddr(host)
	wild := err != nil || want.IsUnspecified()
	return slices.ContainsFunc(listeners, func(l netip.AddrPort) bool {
		return l.Port() == port && (wild || l.Addr().IsUnspecified() || l.Addr().Unmap() == want.Unmap())
	})
}

// stateListen is TCP_LISTEN of linux/tcp_states.h.
const stateListen = "0A"

func (x *examination) listeners() (all []netip.AddrPort, err error) {
	for _, table := range []string{"proc/net/tcp", "proc/net/tcp6"} {
		f, err := os.Open(x.sys.path(table))
		if os.IsNotExist(err) && table == "proc/net/tcp6" {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, err
		}
		in := bufio.NewScanner(f)
		for in.Scan() {
			//   sl  local_address rem_address   st ...
			fields := strings.Fields(in.Text())
			if len(fields) > 3 && fields[3] == stateListen {
				if a, good := hexAddress(fields[1]); good {
					all = append(all, a)
				}
			}
		}
		err = in.Err()
		f.Close()
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// hexAddress reads ADDRESS:PORT of /proc/net/tcp: words of 32 bits as this machine, which is
// little-endian, has them in memory.
func hexAddress(text string) (netip.AddrPort, bool) {
	host, port, _ := strings.Cut(text, ":")
	n, err := strconv.ParseUint(port, 16, 16)
	b, err2 := hex.DecodeString(host)
	if err != nil || err2 != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		slices.Reverse(b[i : i+4])
	}
	a, good := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a, uint16(n)), good
}
