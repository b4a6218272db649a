package sim

import (
	"tandem/blockrepl/wire"
)

// link is the connection between two nodes: three ordered streams each way.
// Frames never cross from one incarnation into the next. While a direction is
// cut its frames wait, as TCP would resend them; when the cut ends they arrive
// in order, or the connection is found broken.
type link struct {
	w    *World
	ends [2]*end
	gen  int // incarnation
	// dialling: a connection is being set up.
	dialling bool
}

// end is one node's side.
type end struct {
	l     *link
	m     *machine
	peer  int // index of the other node in m's peers
	other *end
	up    bool // the agent was told LinkUp, and not LinkDown
	since uint64
	// knownSince is that of the session that this node knows of.
	knownSince uint64
	upAt       int64
	// toward the other end
	cut    int                     // cuts in force on frames from here
	last   [wire.Channels]int64    // arrival of the newest frame
	queue  [wire.Channels][]*frame // under way
	dead   [wire.Channels]bool     // nothing more arrives in this incarnation
	held   [wire.Channels]bool     // by a scripted test
	downAt int64                   // LinkDown is scheduled; 0: not
	epoch  uint64                  // of the frames that the core sends here
}

// frame is a message and the values of the units that it carries.
type frame struct {
	msg  wire.Msg
	val  uint64   // Write, Zero: the name of the write
	vals []uint64 // RsCheck, RsData: one per unit
	at   int64
	// arrived: waits only for a cut to end.
	arrived bool
	gen     int
	dropped bool
}

// consider sets up the connection when nothing stands in the way.
func (l *link) consider() {
	a, b := l.ends[0], l.ends[1]
	if l.dialling || a.cut > 0 || b.cut > 0 || a.m.agent == nil || b.m.agent == nil {
		return
	}
	if a.up && b.up {
		return
	}
	for _, e := range l.ends {
		if e.up {
			// The other side has forgotten this connection: the first packet
			// that arrives there is answered with a reset.
			e.down(l.w.delay(delayNet))
			return
		}
	}
	l.dialling = true
	w := l.w
	incA, incB := a.m.inc, b.m.inc
	w.at(w.now+w.delay(delayDial), func() {
		l.dialling = false
		if a.cut > 0 || b.cut > 0 || a.m.inc != incA || b.m.inc != incB || a.m.agent == nil || b.m.agent == nil || a.up || b.up {
			l.consider()
			return
		}
		l.gen++
		gen := l.gen
		for _, e := range l.ends {
			e.up, e.downAt = true, 0
			e.since, e.upAt = w.tick(), w.now
			e.dead = [wire.Channels]bool{}
			e.queue = [wire.Channels][]*frame{}
		}
		for _, e := range l.ends {
			at := w.now + w.delay(delayNet)
			// Nothing arrives before the agent knows the link.
			for c := range e.other.last {
				e.other.last[c] = at
			}
			inc := e.m.inc
			w.at(at, func() {
				if e.l.gen == gen && e.up && e.m.inc == inc {
					e.m.linkUp(e.peer)
				}
			})
		}
	})
}

// send puts a frame on its stream.
func (e *end) send(ch wire.Channel, f *frame) {
	if !e.up || e.dead[ch] {
		return
	}
	w := e.l.w
	f.gen = e.l.gen
	at := w.now + w.delay(delayNet)
	if ch == wire.Bulk {
		at += w.delay(delayNet)
	}
	at = max(at, e.last[ch]+1)
	e.last[ch] = at
	f.at = at
	e.queue[ch] = append(e.queue[ch], f)
	w.at(at, func() {
		if f.dropped || f.gen != e.l.gen {
			return
		}
		f.arrived = true
		e.deliver(ch)
	})
}

// deliver hands over what has arrived, in order.
func (e *end) deliver(ch wire.Channel) {
	for len(e.queue[ch]) > 0 && e.queue[ch][0].arrived && e.cut == 0 && !e.held[ch] && !e.dead[ch] {
		f := e.queue[ch][0]
		e.queue[ch] = e.queue[ch][1:]
		if e.other.up {
			e.other.m.recv(e.other, ch, f)
		}
	}
}

// down tells this side after a while that the connection is gone. What is
// under way towards it still arrives until then, each stream up to some frame.
func (e *end) down(after int64) {
	w := e.l.w
	if !e.up || e.downAt != 0 && e.downAt <= w.now+after {
		return
	}
	at := w.now + after
	e.downAt = at
	gen := e.l.gen
	in := e.other
	for ch := range in.dead {
		stop := w.now + w.between(0, after)
		w.at(stop, func() {
			if e.l.gen == gen && e.up && e.downAt == at {
				in.dead[ch] = true
			}
		})
	}
	inc := e.m.inc
	w.at(at, func() {
		if e.l.gen != gen || !e.up || e.downAt != at {
			return
		}
		e.close()
		if e.m.inc == inc {
			e.m.linkDown(e.peer)
		}
		// A side that has closed answers with a reset, if it can be heard.
		if e.cut == 0 {
			e.other.down(w.delay(delayNet))
		} else {
			e.other.down(w.between(0, 3*w.opt.lease))
		}
		e.l.consider()
	})
}

// close forgets the connection on this side.
func (e *end) close() {
	e.up, e.downAt = false, 0
	for ch := range e.other.queue {
		for _, f := range e.other.queue[ch] {
			f.dropped = true
		}
		e.other.queue[ch] = nil
	}
}

// agentGone: the process that held this side has ended. A killed agent's kernel
// sends a reset; a host without power says nothing.
func (e *end) agentGone(host bool) {
	if !e.up {
		return
	}
	w := e.l.w
	e.close()
	switch {
	case e.cut > 0 || host && w.chance(0.7):
		e.other.down(w.between(w.opt.lease/4, 3*w.opt.lease))
	default:
		e.other.down(w.delay(delayNet))
	}
}

// reset takes the connection down at the wish of this side.
func (e *end) reset() { e.down(e.l.w.delay(delayNet)) }

// cutFor stops frames from here for a time.
func (e *end) cutFor(d int64) {
	w := e.l.w
	e.cut++
	gen := e.l.gen
	w.at(w.now+d, func() { e.heal(gen) })
	// The resends give up after a time that both kernels choose on their own.
	if d > w.opt.lease/2 {
		w.at(w.now+w.between(w.opt.lease/4, d), func() {
			if e.l.gen == gen && e.cut > 0 {
				e.down(1)
			}
		})
	}
}

func (e *end) heal(gen int) {
	w := e.l.w
	e.cut--
	if e.cut > 0 {
		return
	}
	if e.l.gen == gen && e.up && w.chance(0.3) {
		e.down(w.delay(delayNet))
	}
	for ch := range e.queue {
		e.deliver(wire.Channel(ch))
	}
	e.l.consider()
}
