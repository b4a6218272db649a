package e2e

import (
	"context"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
)

// traceAt is where a node's events of a kind are gathered, by an instance of ftrace's for each.
func traceAt(event string) string {
	return "/sys/kernel/tracing/instances/" + path.Base(event)
}

// trace has the node's kernel note events, "block/block_rq_complete", of which a filter of
// ftrace's holds; DEV in it is the volume's disk. None is all.
func (n *node) trace(ctx context.Context, event, filter string) error {
	_, err := n.Shell(ctx, fmt.Sprintf(`set -e
		mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing
		mkdir %s && cd %[1]s
		IFS=: read major minor </sys/block/vda/dev
		filter='%s'
		[ -z "$filter" ] || echo "${filter/DEV/$((major << 20 | minor))}" >events/%[3]s/filter
		echo 1 >events/%[3]s/enable`, traceAt(event), filter, event))
	return err
}

// traced is what trace has noted, a line for each event, and ends it.
func (n *node) traced(ctx context.Context, event string) (string, error) {
	return n.Shell(ctx, fmt.Sprintf("cd %s && echo 0 >events/%s/enable && cat trace && cd / && rmdir %[1]s", traceAt(event), event))
}

// A reply of the agent's, as the kernel's NBD client (drivers/block/nbd.c) reads its header. Each
// socket has a thread of its own that reads. In the handle are a cookie of 32 bits, the number of
// the hardware queue that the request came from, 16 bits, and its place there.
var replyEvent = regexp.MustCompile(`-(\d+) +\[\d+\] .* nbd_header_received: .*handle 0x[0-9a-f]{8}([0-9a-f]{4})[0-9a-f]{4}\n`)

// repliesOf counts replies by socket, in the order of the queues. A queue sends on one socket.
func repliesOf(trace string) ([]int, error) {
	queueOf, threadOf := make(map[string]string), make(map[string]string)
	count := make(map[string]int)
	for _, m := range replyEvent.FindAllStringSubmatch(trace+"\n", -1) {
		thread, queue := m[1], m[2]
		if q, ok := queueOf[thread]; ok && q != queue {
			return nil, fmt.Errorf("thread %s has replies for the queues %s and %s", thread, q, queue)
		}
		if t, ok := threadOf[queue]; ok && t != thread {
			return nil, fmt.Errorf("queue %s has replies from the threads %s and %s", queue, t, thread)
		}
		queueOf[thread], threadOf[queue] = queue, thread
		count[queue]++
	}
	var all []int
	for _, q := range slices.Sorted(maps.Keys(count)) {
		all = append(all, count[q])
	}
	return all, nil
}

// zeroedEvent is a WRITE_ZEROES that a disk has completed, of so many sectors.
var zeroedEvent = regexp.MustCompile(` block_rq_complete: \S+ N\S* \(\) \d+ \+ (\d+) `)

// zeroedOf is how many bytes a disk has zeroed by itself.
func zeroedOf(trace string) (n int64) {
	for _, m := range zeroedEvent.FindAllStringSubmatch(trace, -1) {
		if sectors, err := strconv.ParseInt(m[1], 10, 64); err == nil {
			n += sectors * 512
		}
	}
	return n
}
