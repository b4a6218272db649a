package sim

import (
	"encoding/binary"
	"fmt"
	"strings"

	"tandem/agent/node"
	"tandem/blockrepl"
	"tandem/blockrepl/meta"
	"tandem/blockrepl/wire"
	"tandem/failover"
)

func newNode(m *machine, st *meta.State) *node.Node {
	w := m.w
	var names []string
	for _, p := range m.peers {
		names = append(names, p.name)
	}
	return node.New(node.Config{
		Vol: blockrepl.Config{
			Peers: names, Rand: m.draw, Volatile: w.volatile, Bug: w.opt.VolBug,
			PeerTimeout: 2 * w.opt.lease, MarkEvery: w.opt.lease / 3,
		},
		Vote: failover.Config{
			Self: m.name, Cluster: "nfs1", DiskID: m.diskID, Peers: names,
			Heartbeat: w.opt.heartbeat, Lease: w.opt.lease, Freeze: w.opt.freeze, Restart: 2 * w.opt.lease,
			Auto: !w.opt.manual, Rand: m.draw, Bug: w.opt.VoteBug,
		},
		TickEvery: w.opt.heartbeat,
	}, st, node.Boot{ID: m.bootID(), Identity: m.identity, Volatile: w.volatile})
}

func nodeText(m *machine) string {
	var s []string
	for i := range m.peers {
		s = append(s, fmt.Sprintf("out of sync %d", m.agent.Vol.OutOfSync(i)))
	}
	usable, cur, prop, outdated := m.agent.Vol.Copy()
	return fmt.Sprintf("%s usable %v gen %04x prop %04x outdated %v marked %v", strings.Join(s, ","), usable, cur&0xffff, prop&0xffff, outdated, m.agent.Vote.Hard().Marked)
}

// effectClass groups effects for the faults that choose one of a kind.
type effectClass uint8

const (
	classMeta effectClass = iota
	classDisk
	classFlush
	classApply
	classSend
	classResync
	classComplete
	classCAS
	classOther
	classes
)

func (c effectClass) String() string {
	return [...]string{"Meta", "DiskWrite", "DiskFlush", "Apply", "Send", "resync effect", "Complete", "CAS", "other effect"}[c]
}

func volClass(e *blockrepl.Effect) effectClass {
	switch e.Kind {
	case blockrepl.Meta:
		return classMeta
	case blockrepl.DiskWrite, blockrepl.DiskZero:
		return classDisk
	case blockrepl.DiskFlush:
		return classFlush
	case blockrepl.Apply:
		return classApply
	case blockrepl.Send:
		return classSend
	case blockrepl.RsRead, blockrepl.RsSend, blockrepl.RsCompare, blockrepl.RsApply, blockrepl.RsDrop:
		return classResync
	case blockrepl.Complete:
		return classComplete
	}
	return classOther
}

func voteClass(e *failover.Effect) effectClass {
	if e.Kind == failover.CAS {
		return classCAS
	}
	return classOther
}

func units(off, n int64) (lo, hi int) { return int(off / unitSize), int((off + n) / unitSize) }

func (m *machine) diskDone(inc int, tag blockrepl.Tag) func() {
	return func() {
		if m.inc == inc {
			m.input(func(now int64) { m.agent.Vol.DiskDone(now, tag, blockrepl.OK) })
		}
	}
}

func (m *machine) diskDelay(k delayKind) int64 {
	d := m.w.delay(k)
	if m.w.faults.stalled == m {
		d += m.w.between(0, m.w.opt.lease)
	}
	return d
}

// doVol carries out one effect of the volume.
func (m *machine) doVol(e *blockrepl.Effect) {
	w := m.w
	if w.hook.vol != nil {
		w.hook.vol(m, e)
		if m.agent == nil {
			return
		}
	}
	if m.broken {
		switch e.Kind {
		case blockrepl.DiskRead, blockrepl.DiskWrite, blockrepl.DiskZero, blockrepl.DiskFlush, blockrepl.Apply, blockrepl.RsRead, blockrepl.RsApply:
			t := e.Tag
			m.later(m.diskDelay(delayDisk), func(now int64) { m.agent.Vol.DiskDone(now, t, blockrepl.EIO) })
			return
		case blockrepl.RsCompare:
			return
		}
	}
	switch e.Kind {
	case blockrepl.DiskRead:
		o := m.ops[e.Tag].o
		lo, hi := units(e.Off, e.Len)
		inc, d := m.inc, m.diskDelay(delayDisk)
		w.at(w.now+w.between(1, d), func() {
			if m.inc != inc {
				return
			}
			o.got = o.got[:0]
			for i := lo; i < hi; i++ {
				o.got = append(o.got, m.data.units[i].cur)
			}
		})
		w.at(w.now+d, m.diskDone(inc, e.Tag))
	case blockrepl.DiskWrite, blockrepl.DiskZero:
		o := m.ops[e.Tag].o
		lo, hi := units(e.Off, e.Len)
		m.data.write(&ioReq{lo: lo, hi: hi, val: o.name, fua: e.Flags&wire.FUA != 0}, m.diskDelay(delayDisk), m.diskDone(m.inc, e.Tag))
	case blockrepl.DiskFlush:
		m.data.flush(m.diskDelay(delayFlush), m.diskDone(m.inc, e.Tag))
	case blockrepl.Apply:
		if e.Op == blockrepl.OpFlush {
			m.data.flush(m.diskDelay(delayFlush), m.diskDone(m.inc, e.Tag))
			return
		}
		val, ok := m.inbox[e.Tag]
		if !ok {
			panic(fmt.Sprintf("Apply of a payload that is not there: tag %x of %s", e.PeerTag, m.peers[e.Peer].name))
		}
		delete(m.inbox, e.Tag)
		lo, hi := units(e.Off, e.Len)
		m.data.write(&ioReq{lo: lo, hi: hi, val: val, fua: e.Flags&wire.FUA != 0}, m.diskDelay(delayDisk), m.diskDone(m.inc, e.Tag))
	case blockrepl.Meta:
		inc := m.inc
		m.meta.put(e.MetaID, e.Off, e.Data, e.Last, func(id uint64) {
			if m.inc == inc {
				m.casOnWay = false
				m.input(func(now int64) { m.agent.Vol.MetaDone(now, id) })
			}
		})
	case blockrepl.RsRead:
		m.rsRead(e)
	case blockrepl.RsSend:
		vals, ok := m.rsOut[e.Tag]
		if !ok {
			panic(fmt.Sprintf("RsSend of %x, whose bytes were let go", uint64(e.Tag)))
		}
		w.hit(HitResync)
		end := m.ends[e.Peer]
		f := &frame{msg: wire.Msg{Type: wire.RsData, Epoch: end.epoch, Tag: uint64(e.Tag), Off: uint64(e.Off), Len: uint32(e.Len), Body: append([]byte(nil), e.Data...)}, vals: vals}
		m.traceSend(e.Peer, f)
		end.send(wire.Bulk, f)
	case blockrepl.RsDrop:
		delete(m.rsOut, e.Tag)
	case blockrepl.RsCompare:
		m.rsCompare(e)
	case blockrepl.RsApply:
		f, ok := m.rsIn[e.Tag]
		if !ok {
			panic(fmt.Sprintf("RsApply of a payload that is not there: tag %x of %s", e.PeerTag, m.peers[e.Peer].name))
		}
		delete(m.rsIn, e.Tag)
		lo, hi := units(e.Off, e.Len)
		m.data.write(&ioReq{lo: lo, hi: hi, vals: f.vals, mask: f.msg.Body}, m.diskDelay(delayDisk), m.diskDone(m.inc, e.Tag))
	case blockrepl.Send:
		m.send(e)
		if e.Msg.Type == wire.Control && w.faults.asks == m {
			if msg, err := failover.DecodeMsg(e.Msg.Body); err == nil && msg.Kind == failover.LeaseRequest {
				w.at(w.now, func() { w.asked(m) })
			}
		}
	case blockrepl.Reset:
		w.trace(m.id, "resets the link to %s: %s", m.peers[e.Peer].name, e.Text)
		w.hit(HitReset)
		m.ends[e.Peer].reset()
	case blockrepl.Complete:
		m.complete(e)
	case blockrepl.Released:
		// The model's payloads are numbers; nothing has to be given back.
	case blockrepl.Event:
		w.trace(m.id, "vol: %s", e.Text)
		if strings.Contains(e.Text, "compared in full") {
			w.hit(HitFullResync)
		}
	default:
		panic(fmt.Sprintf("an effect of the volume for nobody: kind %d", e.Kind))
	}
}

func (m *machine) send(e *blockrepl.Effect) {
	f := &frame{msg: e.Msg}
	f.msg.Body = append([]byte(nil), e.Msg.Body...)
	end := m.ends[e.Peer]
	switch e.Msg.Type {
	case wire.Write, wire.Zero:
		p := m.ops[blockrepl.Tag(e.Msg.Tag)]
		if p == nil {
			panic(fmt.Sprintf("sends the payload of %x, which is no request", e.Msg.Tag))
		}
		f.val = p.o.name
	default:
		// The real encoder refuses what must never be sent.
		wire.AppendHeader(nil, &f.msg)
		if e.Msg.Type == wire.Retire && len(e.Msg.Body) > 0 {
			m.w.hit(HitRetire)
		}
	}
	if e.Msg.Type != wire.Control && e.Msg.Type != wire.Hello {
		end.epoch = e.Msg.Epoch
	}
	m.traceSend(e.Peer, f)
	if m.w.hook.frame != nil && !m.w.hook.frame(m, m.peers[e.Peer], f) {
		return
	}
	end.send(e.Chan, f)
}

func (m *machine) traceSend(peer int, f *frame) {
	if m.w.opt.Trace {
		m.w.trace(m.id, "  -> %s %s%s", m.peers[peer].name, msgText(f), when(!m.ends[peer].up, " (no link)"))
	}
}

func msgText(f *frame) string {
	msg := &f.msg
	if msg.Type == wire.Control {
		c, err := failover.DecodeMsg(msg.Body)
		if err != nil {
			return err.Error()
		}
		return fmt.Sprintf("%v n=%d e=%d %s", c.Kind, c.N, c.Epoch, c.Text)
	}
	s := fmt.Sprintf("%v e%d tag %x", msg.Type, msg.Epoch, msg.Tag)
	switch msg.Type {
	case wire.Hello:
		return fmt.Sprintf("Hello %s", msg.Body)
	case wire.Write, wire.Zero:
		lo, hi := units(int64(msg.Off), int64(msg.Len))
		s += fmt.Sprintf(" w%d [%d,%d)", f.val, lo, hi)
	case wire.RsCheck, wire.RsNeed, wire.RsData:
		lo, hi := units(int64(msg.Off), int64(msg.Len))
		s += fmt.Sprintf(" [%d,%d)", lo, hi)
		if msg.Type != wire.RsCheck {
			s += fmt.Sprintf(" %x", msg.Body)
		}
	case wire.Retire, wire.HotSet:
		s += fmt.Sprintf(" %x", msg.Body)
	case wire.SyncStart, wire.SyncDone, wire.Mark:
		s += fmt.Sprintf(" flags %d off %x", msg.Flags, msg.Off)
	}
	return s
}

// rsRead reads the source's units at some time, then tells the target what they
// are.
func (m *machine) rsRead(e *blockrepl.Effect) {
	w := m.w
	lo, hi := units(e.Off, e.Len)
	inc, gen, end := m.inc, m.ends[e.Peer].l.gen, m.ends[e.Peer]
	tag, off, n := e.Tag, e.Off, e.Len
	epoch := e.Msg.Epoch
	d := m.diskDelay(delayDisk)
	m.rsOut[tag] = nil
	syncing := 0
	for i := range m.peers {
		if m.agent.Vol.Peer(i).Syncing {
			syncing++
		}
	}
	if syncing > 1 {
		w.hit(HitTwoResyncs)
	}
	w.at(w.now+w.between(1, d), func() {
		if _, ok := m.rsOut[tag]; !ok || m.inc != inc {
			return
		}
		vals := make([]uint64, 0, hi-lo)
		for i := lo; i < hi; i++ {
			vals = append(vals, m.data.units[i].cur)
		}
		m.rsOut[tag] = vals
	})
	w.at(w.now+d, func() {
		if m.inc != inc {
			return
		}
		m.input(func(now int64) {
			if vals := m.rsOut[tag]; vals != nil && end.l.gen == gen {
				body := make([]byte, 0, 8*len(vals))
				for _, v := range vals {
					body = binary.LittleEndian.AppendUint64(body, v)
				}
				f := &frame{msg: wire.Msg{Type: wire.RsCheck, Epoch: epoch, Tag: uint64(tag), Off: uint64(off), Len: uint32(n), Body: body}}
				m.traceSend(e.Peer, f)
				end.send(wire.Bulk, f)
			}
			m.agent.Vol.DiskDone(now, tag, blockrepl.OK)
		})
	})
}

// rsCompare says which blocks differ from the source's.
func (m *machine) rsCompare(e *blockrepl.Effect) {
	w := m.w
	lo, hi := units(e.Off, e.Len)
	end := m.ends[e.Peer]
	inc, gen, epoch := m.inc, end.l.gen, end.epoch
	data, tag, off, n, peer := e.Data, e.PeerTag, e.Off, e.Len, e.Peer
	w.at(w.now+m.diskDelay(delayDisk), func() {
		if m.inc != inc || end.l.gen != gen {
			return
		}
		blocks := (hi - lo + unitsPerBlock - 1) / unitsPerBlock
		body := make([]byte, (blocks+7)/8)
		for i := lo; i < hi; i++ {
			if binary.LittleEndian.Uint64(data[8*(i-lo):]) != m.data.units[i].cur {
				b := (i - lo) / unitsPerBlock
				body[b/8] |= 1 << (b % 8)
			}
		}
		m.input(func(now int64) {
			f := &frame{msg: wire.Msg{Type: wire.RsNeed, Epoch: epoch, Tag: tag, Off: uint64(off), Len: uint32(n), Body: body}}
			m.traceSend(peer, f)
			end.send(wire.Bulk, f)
		})
	})
}

// doVote carries out one effect of the layer that decides who is primary.
func (m *machine) doVote(e *failover.Effect) {
	w := m.w
	if w.hook.vote != nil {
		w.hook.vote(m, e)
		if m.agent == nil {
			return
		}
	}
	switch e.Kind {
	case failover.Read:
		w.witness.read(m, e.Tag)
	case failover.CAS:
		w.trace(m.id, "sends CAS %v: %s, expects %q", e.Change, recText(e.Record), e.Version)
		if err := m.validate(e); err != nil {
			w.fail("%s sends a record that is not valid: %v", m.name, err)
			return
		}
		w.check.casSent(m, e.Record.Nonce)
		w.witness.cas(m, e.Tag, e.Version, e.Record)
	case failover.Reply:
		w.trace(m.id, "reply %d: ok=%v %s", e.Tag, e.OK, e.Text)
	case failover.Progress:
		w.trace(m.id, "progress %d: %s", e.Tag, e.Text)
	case failover.Event:
		w.trace(m.id, "vote: %s", e.Text)
		w.noteEvent(m, e.Text)
	case failover.StepDown:
		w.trace(m.id, "steps down: %s", e.Text)
	default:
		panic(fmt.Sprintf("an effect of failover for nobody: %v", e.Kind))
	}
}

// validate asks the strict codec's rules, with the shell's clock filled in.
func (m *machine) validate(e *failover.Effect) error {
	r := e.Record.Clone()
	r.ChangedAt = epochZero
	if r.Paused != nil {
		r.Paused.Since = epochZero
	}
	e.Record = &r
	return r.Validate()
}

func (w *World) noteEvent(m *machine, text string) {
	for _, x := range [...]struct {
		part string
		hit  Hit
	}{
		{"left the in-sync set", HitShrink},
		{"joined the in-sync set", HitGrow},
		{": frozen for", HitFreeze},
		{": deposed", HitDeposed},
		{": handed over to", HitPlannedMove},
		{": demoted by the operator", HitDemote},
	} {
		if strings.Contains(text, x.part) {
			w.hit(x.hit)
		}
	}
}
