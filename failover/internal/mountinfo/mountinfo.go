// Package mountinfo reads what is mounted where, from /proc/PID/mountinfo (proc(5)). That
// asks the kernel's list and no filesystem, so it does not wait for one that is frozen.
package mountinfo

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount is one line:
//
//	36 35 43:0 / /srv/nfs rw,noatime shared:1 - ext4 /dev/nbd0 rw,errors=continue
//	      dev  root path  options             - type source    super options
type Mount struct {
	Dev     uint64 // the filesystem's, as in stat; a block device's own for ext4 and XFS
	Root    string // which folder of the filesystem is mounted
	Path    string
	Options []string // of this mount
	Type    string
	Source  string
	Super   []string // options of the filesystem, all of its mounts share them
}

// ReadOnly says whether nothing can be written, here or anywhere on the filesystem.
func (m Mount) ReadOnly() bool {
	return slices.Contains(m.Options, "ro") || slices.Contains(m.Super, "ro")
}

// Table is what is mounted, in the kernel's order: of two at one path the later one is on top.
type Table []Mount

// Read returns the table of a process: "self", or a pid.
func Read(pid string) (Table, error) {
	b, err := os.ReadFile("/proc/" + pid + "/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read what is mounted: %w", err)
	}
	return Parse(b)
}

// Parse reads the file's text.
func Parse(text []byte) (Table, error) {
	var t Table
	for line := range bytes.Lines(text) {
		m, ok := parse(string(bytes.TrimSuffix(line, []byte("\n"))))
		if !ok {
			return nil, fmt.Errorf("read what is mounted: %q is no line of mountinfo", line)
		}
		t = append(t, m)
	}
	return t, nil
}

func parse(line string) (m Mount, ok bool) {
	// The optional fields in the middle may be none, or several.
	left, right, ok := strings.Cut(line, " - ")
	l, r := strings.Split(left, " "), strings.Split(right, " ")
	if !ok || len(l) < 6 || len(r) < 3 {
		return m, false
	}
	major, minor, ok := strings.Cut(l[2], ":")
	ma, err := strconv.ParseUint(major, 10, 32)
	mi, err2 := strconv.ParseUint(minor, 10, 32)
	if !ok || err != nil || err2 != nil {
		return m, false
	}
	return Mount{
		Dev: unix.Mkdev(uint32(ma), uint32(mi)), Root: unescape(l[3]), Path: unescape(l[4]), Options: strings.Split(l[5], ","),
		Type: unescape(r[0]), Source: unescape(r[1]), Super: strings.Split(r[2], ","),
	}, true
}

// unescape undoes the kernel's \ooo, which stands for blanks and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// At returns what is mounted at the path itself, the topmost.
func (t Table) At(path string) (Mount, bool) {
	for _, m := range slices.Backward(t) {
		if m.Path == path {
			return m, true
		}
	}
	return Mount{}, false
}

// Holding returns the mount that a clean, absolute path is on: the topmost of those with the longest path.
func (t Table) Holding(path string) (Mount, bool) {
	for {
		if m, ok := t.At(path); ok {
			return m, true
		}
		if path == "/" {
			return Mount{}, false
		}
		path = filepath.Dir(path)
	}
}

// Of returns the paths at which a filesystem is mounted.
func (t Table) Of(dev uint64) (paths []string) {
	for _, m := range t {
		if m.Dev == dev {
			paths = append(paths, m.Path)
		}
	}
	return paths
}

// Below returns the paths of the mounts inside a folder, itself not included.
func (t Table) Below(path string) (paths []string) {
	for _, m := range t {
		if strings.HasPrefix(m.Path, strings.TrimSuffix(path, "/")+"/") {
			paths = append(paths, m.Path)
		}
	}
	return paths
}
