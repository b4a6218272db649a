package agent

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"tandem/blockrepl/disk"
	"tandem/blockrepl/link"
	"tandem/blockrepl/wire"
)

// linkHandler is the agent as the link manager sees it.
type linkHandler Agent

// LinkUp tells the cores.
func (h *linkHandler) LinkUp(c *link.Conn) {
	a := (*Agent)(h)
	p := slices.Index(a.peers, c.Peer())
	if p < 0 {
		c.Close(fmt.Errorf("%s is no peer of ours", c.Peer()))
		return
	}
	a.mu.Lock()
	a.conns[p] = c
	a.linkSince[p] = time.Now()
	t := now()
	a.node.LinkUp(t, p)
	b := a.collect(t)
	a.mu.Unlock()
	a.carry(b, false)
}

// LinkDown tells the cores. Only after it may the memory of a frame that was
// queued be used again, so nothing is completed on account of a lost link
// before it.
func (h *linkHandler) LinkDown(c *link.Conn, err error) {
	a := (*Agent)(h)
	p := slices.Index(a.peers, c.Peer())
	if p < 0 {
		return
	}
	a.mu.Lock()
	if a.conns[p] != c {
		a.mu.Unlock()
		return
	}
	a.conns[p] = nil
	a.linkSince[p] = time.Now()
	sent, received := c.Stats()
	a.metrics.wireSent[p] += sent
	a.metrics.wireReceived[p] += received
	a.event(fmt.Sprintf("link to %s is down: %v", c.Peer(), err))
	t := now()
	a.node.LinkDown(t, p)
	b := a.collect(t)
	a.mu.Unlock()
	a.carry(b, false)
}

// Recv hands a frame to the cores.
func (h *linkHandler) Recv(c *link.Conn, ch wire.Channel, m *wire.Msg, more bool) {
	a := (*Agent)(h)
	p := slices.Index(a.peers, c.Peer())
	a.mu.Lock()
	if p < 0 || a.conns[p] != c || a.closed {
		a.mu.Unlock()
		m.Release()
		return
	}
	at := now()
	t := a.node.Recv(at, p, ch, m)
	kept := t != 0 && len(m.Body) > 0
	if kept {
		*a.slot(t) = payload{tag: t, data: m.Body, msg: *m}
	}
	b := a.collect(at)
	// A secondary's receiver may write its small answers itself, because a
	// primary's never blocks on a send: it always comes back to read them.
	inline := ch == wire.Data && !a.node.Vol.Serving() && !more
	a.mu.Unlock()
	a.carry(b, inline)
	if !kept {
		m.Release()
	}
}

// digestSize is what one block's digest takes in a frame: the first half of
// its SHA-256. A block of zeroes has a digest of zeroes, which costs neither
// side a hash.
const digestSize = 16

func (a *Agent) blockSize() int64 { return 1 << a.geometry.BlockShift }

func digest(dst, block []byte) {
	if isZero(block) {
		clear(dst[:digestSize])
		return
	}
	s := sha256.Sum256(block)
	copy(dst[:digestSize], s[:])
}

func (a *Agent) digests(buf []byte) []byte {
	bs := int(a.blockSize())
	n := (len(buf) + bs - 1) / bs
	out := make([]byte, n*digestSize)
	for i := range n {
		digest(out[i*digestSize:], buf[i*bs:min((i+1)*bs, len(buf))])
	}
	return out
}

// readChunk reads a range; of a hole it makes zeroes without asking the disk
// for them. The range is locked, so a hole stays one.
func (a *Agent) readChunk(off, n int64) ([]byte, error) {
	if ext, err := a.disk.Allocated(off, n); err == nil && len(ext) == 1 && !ext[0].Data && ext[0].Len >= n && n <= int64(len(zeroes)) {
		return zeroes[:n:n], nil
	}
	buf := disk.Buffer(int(n))
	return buf, a.disk.ReadAt(buf, off)
}

// resyncRead reads a chunk and asks the target which blocks differ.
func (a *Agent) resyncRead(j *job) *batch {
	buf, err := a.readChunk(j.off, j.len)
	if err != nil {
		return a.diskDone(j.tag, err)
	}
	d := a.digests(buf)
	a.mu.Lock()
	// With its tag: a read that had the slot before may be over for the core
	// and its reply not yet sent, and Sent clears what is still that read's.
	*a.slot(j.tag) = payload{tag: j.tag, rs: buf}
	a.mu.Unlock()
	if j.conn != nil {
		j.conn.Send(wire.Bulk, &wire.Msg{Type: wire.RsCheck, Epoch: j.epoch, Tag: uint64(j.tag), Off: uint64(j.off), Len: uint32(j.len), Body: d}, false)
	}
	return a.diskDone(j.tag, nil)
}

// resyncSend sends the blocks that differ: their bitmap, then the blocks.
func (a *Agent) resyncSend(j *job) *batch {
	if j.conn == nil || j.rs == nil {
		return nil
	}
	bs := int(a.blockSize())
	parts := make([][]byte, 0, 8)
	for i := 0; i*bs < len(j.rs); {
		if j.data[i/8]&(1<<(i%8)) == 0 {
			i++
			continue
		}
		k := i
		for k*bs < len(j.rs) && j.data[k/8]&(1<<(k%8)) != 0 {
			k++
		}
		parts = append(parts, j.rs[i*bs:min(k*bs, len(j.rs))])
		i = k
	}
	j.conn.Send(wire.Bulk, &wire.Msg{Type: wire.RsData, Epoch: j.epoch, Tag: uint64(j.tag), Off: uint64(j.off), Len: uint32(j.len), Body: j.data}, false, parts...)
	return nil
}

// resyncCompare compares the source's digests with our blocks.
func (a *Agent) resyncCompare(j *job) *batch {
	bs := int(a.blockSize())
	n := (int(j.len) + bs - 1) / bs
	if len(j.data) != n*digestSize {
		if j.conn != nil {
			j.conn.Close(fmt.Errorf("%d bytes of digests for %d blocks", len(j.data), n))
		}
		return nil
	}
	buf, err := a.readChunk(j.off, j.len)
	if err != nil {
		a.log.Error("local disk", "err", err)
		a.input(func(now int64) { a.node.Vol.DiskFailed(now, err.Error()) })
		return nil
	}
	own := a.digests(buf)
	need := make([]byte, (n+7)/8)
	for i := range n {
		if string(own[i*digestSize:(i+1)*digestSize]) != string(j.data[i*digestSize:(i+1)*digestSize]) {
			need[i/8] |= 1 << (i % 8)
		}
	}
	if j.conn != nil {
		j.conn.Send(wire.Bulk, &wire.Msg{Type: wire.RsNeed, Epoch: j.epoch, Tag: j.ptag, Body: need}, false)
	}
	return nil
}

// resyncApply writes the blocks that differ. Zeroes become holes again.
func (a *Agent) resyncApply(j *job) error {
	bs := int(a.blockSize())
	n := (int(j.len) + bs - 1) / bs
	if len(j.data) < (n+7)/8 {
		return fmt.Errorf("resync data without a bitmap: %w", errPeer)
	}
	need, rest := j.data[:(n+7)/8], j.data[(n+7)/8:]
	for i := 0; i < n; {
		if need[i/8]&(1<<(i%8)) == 0 {
			i++
			continue
		}
		k, size := i, 0
		for k < n && need[k/8]&(1<<(k%8)) != 0 {
			size += min(bs, int(j.len)-k*bs)
			k++
		}
		if size > len(rest) {
			return fmt.Errorf("resync data of %d bytes where %d are announced: %w", len(rest), size, errPeer)
		}
		off := j.off + int64(i*bs)
		var err error
		if isZero(rest[:size]) {
			err = a.disk.Zero(off, int64(size), false)
		} else {
			err = a.disk.WriteAt(rest[:size], off, false)
		}
		if err != nil {
			return err
		}
		rest = rest[size:]
		i = k
	}
	if len(rest) != 0 {
		return fmt.Errorf("%d bytes of resync data too many: %w", len(rest), errPeer)
	}
	return nil
}

// errPeer is data that a peer should not have sent: the link goes, not the
// disk.
var errPeer = errors.New("the peer's mistake")

// zeroes is never written to: the longest chunk of a resync, all zero.
var zeroes [1 << 20]byte

func isZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeroes))
		if !bytes.Equal(b[:n], zeroes[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}
