package mount

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"tandem/failover/internal/mountinfo"
)

// maxHolders bounds the text: the first few tell what kind of thing it is.
const maxHolders = 8

// holders says who uses the filesystem, in words for an error. It reads links and lists of
// /proc, and asks the filesystem nothing.
func (m *Mount) holders(dev uint64) string {
	var all []string
	if own, err := mountinfo.Read("self"); err == nil {
		for _, path := range append(own.Of(dev), own.Below(m.cfg.Path)...) {
			if path != m.cfg.Path {
				all = append(all, "a mount at "+path)
			}
		}
	}
	if n, err := os.ReadFile("/proc/fs/nfsd/threads"); err == nil && strings.TrimSpace(string(n)) != "0" {
		all = append(all, "perhaps the kernel's NFS server, which runs")
	}
	pids, _ := filepath.Glob("/proc/[0-9]*")
	slices.SortFunc(pids, func(a, b string) int { return number(a) - number(b) })
	self, _ := os.Readlink("/proc/self/ns/mnt")
	seen := make(map[string]bool) // mount namespaces
	for _, dir := range pids {
		name, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil {
			continue // it has ended
		}
		who := fmt.Sprintf("process %d (%s)", number(dir), strings.TrimSpace(string(name)))
		if what := m.heldBy(dir); what != "" {
			all = append(all, who+": "+what)
		}
		// A container that was started while the filesystem was mounted has it, too.
		if ns, err := os.Readlink(dir + "/ns/mnt"); err == nil && ns != self && !seen[ns] {
			seen[ns] = true
			if t, err := mountinfo.Read(filepath.Base(dir)); err == nil && len(t.Of(dev)) > 0 {
				all = append(all, fmt.Sprintf("%s: a mount at %s in its namespace", who, t.Of(dev)[0]))
			}
		}
	}
	switch {
	case len(all) == 0:
		return "no process with a file of it was found"
	case len(all) > maxHolders:
		all = append(all[:maxHolders], fmt.Sprintf("and %d more", len(all)-maxHolders))
	}
	return "used by " + strings.Join(all, ", ")
}

func number(dir string) int {
	n, _ := strconv.Atoi(filepath.Base(dir))
	return n
}

// heldBy is the first file of ours that a process has, or "".
func (m *Mount) heldBy(dir string) string {
	links := []string{"cwd", "root", "exe"}
	fds, _ := os.ReadDir(filepath.Join(dir, "fd"))
	for _, fd := range fds {
		links = append(links, "fd/"+fd.Name())
	}
	for _, l := range links {
		if to, err := os.Readlink(filepath.Join(dir, l)); err == nil && m.inside(to) {
			return to
		}
	}
	maps, _ := os.ReadFile(filepath.Join(dir, "maps"))
	for line := range strings.Lines(string(maps)) {
		if i := strings.IndexByte(line, '/'); i >= 0 && m.inside(strings.TrimSpace(line[i:])) {
			return strings.TrimSpace(line[i:])
		}
	}
	return ""
}

func (m *Mount) inside(path string) bool {
	return path == m.cfg.Path || strings.HasPrefix(path, strings.TrimSuffix(m.cfg.Path, "/")+"/")
}
