package mountinfo

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const sample = `22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
23 22 0:21 / /proc rw,nosuid - proc proc rw
40 22 43:0 / /srv/nfs rw,noatime shared:7 master:3 - ext4 /dev/nbd0 ro
41 40 0:33 / /srv/nfs/a\040b\134c rw - tmpfs none rw,size=10k
42 22 43:0 /sub /mnt ro - ext4 /dev/nbd0 rw
43 40 43:512 / /srv/nfs rw - xfs /dev/nbd2 rw
44 22 0:40 / /srv/nfs2 rw - tmpfs none rw
`

func TestParse(t *testing.T) {
	table, err := Parse([]byte(sample))
	if err != nil || len(table) != 7 {
		t.Fatal(table, err)
	}
	want := Mount{Dev: unix.Mkdev(43, 0), Root: "/", Path: "/srv/nfs", Options: []string{"rw", "noatime"}, Type: "ext4", Source: "/dev/nbd0", Super: []string{"ro"}}
	if !reflect.DeepEqual(table[2], want) {
		t.Errorf("%+v", table[2])
	}
	if table[3].Path != `/srv/nfs/a b\c` || table[4].Root != "/sub" || table[5].Dev != unix.Mkdev(43, 512) {
		t.Errorf("%+v", table[3:6])
	}
	for i, ro := range []bool{false, false, true, false, true, false, false} {
		if table[i].ReadOnly() != ro {
			t.Errorf("%+v: read-only is %v", table[i], !ro)
		}
	}
}

func TestLookUp(t *testing.T) {
	table, err := Parse([]byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	if m, ok := table.At("/srv/nfs"); !ok || m.Source != "/dev/nbd2" {
		t.Errorf("the topmost is %+v", m)
	}
	if m, ok := table.At("/srv"); ok {
		t.Errorf("%+v", m)
	}
	for path, source := range map[string]string{"/srv": "/dev/vda1", "/srv/nfs/x/y": "/dev/nbd2", "/srv/nfs22": "/dev/vda1", "/mnt": "/dev/nbd0", "/": "/dev/vda1"} {
		if m, ok := table.Holding(path); !ok || m.Source != source {
			t.Errorf("%s is on %+v", path, m)
		}
	}
	if _, ok := table[1:].Holding("/srv"); ok {
		t.Error("nothing is mounted at /")
	}
	if got := table.Of(unix.Mkdev(43, 0)); !slices.Equal(got, []string{"/srv/nfs", "/mnt"}) {
		t.Errorf("%q", got)
	}
	if got := table.Below("/srv/nfs"); !slices.Equal(got, []string{`/srv/nfs/a b\c`}) {
		t.Errorf("%q", got)
	}
	if got := table.Below("/"); len(got) != 7 {
		t.Errorf("%q", got)
	}
}

func TestNoMountinfo(t *testing.T) {
	for _, bad := range []string{"\n", "a b c\n", strings.Replace(sample, "43:512", "43", 1), strings.Replace(sample, "43:512", "43:x", 1), strings.Replace(sample, " - xfs", " xfs", 1), strings.Replace(sample, " rw,size=10k", "", 1)} {
		if table, err := Parse([]byte(bad)); err == nil {
			t.Errorf("%q is %+v", bad, table)
		}
	}
	if _, err := Read("0"); err == nil {
		t.Error("process 0 has a table")
	}
}

func TestOwn(t *testing.T) {
	table, err := Read("self")
	if err != nil {
		t.Fatal(err)
	}
	if m, ok := table.At("/proc"); !ok || m.Type != "proc" {
		t.Errorf("%+v", m)
	}
}
