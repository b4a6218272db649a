package proctest

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// fio runs a job on a node's NBD socket.
func (c *cluster) fio(n *node, name string, args ...string) (status int, text string) {
	c.t.Helper()
	args = append([]string{
		"--name=" + name, "--ioengine=nbd", fmt.Sprintf("--uri=nbd+unix:///%s?socket=%s", clusterName, n.socket),
		"--rw=randwrite", "--bs=4k", "--bssplit=4k/70:16k/20:64k/10", "--iodepth=32", "--size=24m", "--randseed=7",
		"--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--group_reporting", "--aux-path=" + c.dir,
	}, args...)
	status, out, errs := runProgram(c.t, time.Minute, nil, "fio", args...)
	return status, out + errs
}

// What fio has written through the primary is verified by fio on the standby
// after the primary was killed in the middle of a second job, and again, after
// the way back, on the first.
func TestFioVerify(t *testing.T) {
	requireTools(t, "fio:fio")
	c := newCluster(t, options{})
	c.startPair()
	primary := c.a
	for round := range 2 {
		job := fmt.Sprintf("job%d", round)
		if status, text := c.fio(primary, job, "--do_verify=0"); status != 0 {
			t.Fatalf("fio on %s: exit status %d\n%s", primary.name, status, text)
		}
		// Another job, in the other half of the volume, meets the kill.
		broken := make(chan string, 1)
		go func() {
			_, text := c.fio(primary, "victim", "--do_verify=0", "--offset=32m", "--time_based", "--runtime=20s")
			broken <- text
		}()
		time.Sleep(time.Second)
		primary.kill()
		if text := <-broken; !strings.Contains(text, "error") {
			t.Errorf("fio did not notice that %s was killed:\n%s", primary.name, text)
		}
		heir := c.other(primary)
		heir.promote()
		if status, text := c.fio(heir, job, "--verify_only=1"); status != 0 {
			t.Errorf("fio verify on %s after the kill: exit status %d\n%s", heir.name, status, text)
		}
		primary.start()
		c.settled(heir)
		c.identical()
		primary = heir
	}
	// And after a planned move, without any kill.
	heir := c.other(primary)
	heir.promote()
	if status, text := c.fio(heir, "job1", "--verify_only=1"); status != 0 {
		t.Errorf("fio verify on %s after the move: exit status %d\n%s", heir.name, status, text)
	}
	// The verification can fail: a rotten block is found.
	client, err := dialNBD(t.Context(), heir)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.WriteAt(t.Context(), make([]byte, 4096), 8<<20, false); err != nil {
		t.Fatal(err)
	}
	if status, _ := c.fio(heir, "job1", "--verify_only=1"); status == 0 {
		t.Error("fio verifies what was overwritten: this test has no teeth")
	}
	c.finish(heir)
}
