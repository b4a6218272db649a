// Package node joins the two pure cores of one node, the volume's and that of
// who may be primary, into one pure state machine. The agent drives it with
// real disks, links and a real witness, the simulation with modelled ones;
// what it decides is the same code in both.
//
// The contract: call any input of Vol or Vote, then Pump; then take VolOut and
// VoteOut, in order, and clear them with Taken.
package node

import (
	"errors"

	"tandem/blockrepl"
	"tandem/blockrepl/meta"
	"tandem/blockrepl/wire"
	"tandem/failover"
)

// Config is what a node is told once.
type Config struct {
	Vol  blockrepl.Config
	Vote failover.Config
	// TickEvery is the longest time between two ticks, ns.
	TickEvery int64
	// Service: something runs on top of the volume, and has to stop before a
	// planned stop of the volume. Quiesce is then an effect of VoteOut, and
	// ServiceStopped its answer.
	Service bool
}

// Boot is what the host says at the start of a life.
type Boot struct {
	ID       string // of this boot of the host
	Identity string // of the backing device
	Volatile bool   // the disk path has a cache that a power cut empties
}

// Node is one node. Not safe for concurrent use.
type Node struct {
	Vol  *blockrepl.Core
	Vote *failover.Core

	// VolOut and VoteOut are what is to be done outside, oldest first.
	VolOut  []blockrepl.Effect
	VoteOut []failover.Effect

	cfg      Config
	boot     Boot
	sameBoot bool
	peers    int
	pumping  bool
	stopping uint64          // the epoch of a Quiesce that waits for the service; 0: none
	applied  failover.Change // the change that PrepAlone prepares
	info     [failover.MaxPeers]failover.PeerInfo
}

// New makes a node of the metadata of its disk.
func New(cfg Config, st *meta.State, boot Boot) *Node {
	s := st.Super
	n := &Node{cfg: cfg, boot: boot, peers: len(cfg.Vol.Peers)}
	n.sameBoot = s.BootID == "" || s.BootID == boot.ID
	n.Vol = blockrepl.New(cfg.Vol, st, boot.ID, boot.Identity)
	n.Vote = failover.New(cfg.Vote, failover.HardState(s.Vote))
	return n
}

// Start begins the life.
func (n *Node) Start(now int64) {
	n.copyChanged(now)
	n.Vote.Start(now, n.sameBoot, n.boot.Volatile)
	n.Pump(now)
	n.Vol.Start(now)
	n.Pump(now)
}

// Serving tells whether this is the primary, and not about to stop.
func (n *Node) Serving() bool { return n.Vol.Serving() && n.Vote.Role() == failover.Primary }

// Open tells whether client requests are taken. Where a service is being stopped they are
// until it has: an unmount writes back.
func (n *Node) Open() bool { return n.Serving() || n.stopping != 0 && n.Vol.Serving() }

// Deadline is the latest time of the next Tick.
func (n *Node) Deadline() int64 { return n.Vote.Deadline() }

// Tick says that time has passed.
func (n *Node) Tick(now int64) {
	n.Vol.Tick(now)
	n.Pump(now)
	mask, gated := n.Vol.Waiting()
	var waiting [failover.MaxPeers]bool
	for i := range waiting {
		waiting[i] = mask&(1<<i) != 0
	}
	n.Vote.Tick(now, waiting, gated)
	n.Pump(now)
}

// Recv takes a frame from peer p; see blockrepl.Core.Recv for the tag.
func (n *Node) Recv(now int64, p int, ch wire.Channel, m *wire.Msg) blockrepl.Tag {
	if m.Type != wire.Control {
		t := n.Vol.Recv(now, p, ch, m)
		n.Pump(now)
		return t
	}
	// A message to the other core is a frame of the session like any other.
	if !n.Vol.InSession(p) {
		return 0
	}
	msg, err := failover.DecodeMsg(m.Body)
	if err != nil {
		n.Vol.Misspoke(now, p, err)
	} else {
		n.Vote.Recv(now, p, msg)
	}
	n.Pump(now)
	return 0
}

// LinkUp says that a link to peer p is up.
func (n *Node) LinkUp(now int64, p int) {
	n.Vol.LinkUp(now, p)
	n.Pump(now)
}

// LinkDown says that it is down.
func (n *Node) LinkDown(now int64, p int) {
	n.Vol.LinkDown(now, p)
	n.Vote.LinkDown(now, p)
	n.Pump(now)
}

// Pump carries effects from core to core until both are quiet.
func (n *Node) Pump(now int64) {
	if n.pumping {
		return
	}
	n.pumping = true
	for {
		vol, vote := n.Vol.Effects(), n.Vote.Effects()
		if len(vol) == 0 && len(vote) == 0 {
			break
		}
		for i := range vol {
			n.fromVol(now, &vol[i])
		}
		n.fromVote(now, vote)
	}
	n.pumping = false
}

// ServiceStopped answers the Quiesce of epoch where there is a service: it has
// stopped, or err says why it has not.
func (n *Node) ServiceStopped(now int64, epoch uint64, err error) {
	if n.stopping == 0 || n.stopping != epoch {
		return // the term has ended meanwhile, or another has begun
	}
	n.stopping = 0
	if err != nil {
		n.Vote.Quiesced(now, err)
	} else {
		n.Vol.Quiesce(now)
	}
	n.Pump(now)
}

// Taken says that VolOut and VoteOut have been carried out or copied.
func (n *Node) Taken() {
	clear(n.VolOut)
	clear(n.VoteOut)
	n.VolOut, n.VoteOut = n.VolOut[:0], n.VoteOut[:0]
}

func (n *Node) copyChanged(now int64) {
	usable, cur, prop, out := n.Vol.Copy()
	n.Vote.Copy(now, usable, cur, prop, out)
}

var errPrepare = errors.New("the volume could not prepare")

func (n *Node) fromVol(now int64, e *blockrepl.Effect) {
	switch e.Kind {
	case blockrepl.PeerHello:
		n.info[e.Peer] = failover.PeerInfo{
			Epoch: e.Hello.Epoch, Serving: e.Hello.Serving, Marked: e.Hello.Marked, Usable: e.Hello.Usable, DiskID: e.Hello.DiskID, Replaces: e.Hello.Replaces,
		}
		n.Vote.Hello(now, e.Peer, n.info[e.Peer])
	case blockrepl.SessionUp:
		n.Vote.Established(now, e.Peer)
	case blockrepl.CaughtUp:
		// What the handshake said of the peer's copy is over: a grow makes it
		// take our generation and drop its mark before the CAS goes out.
		i := &n.info[e.Peer]
		if !i.Usable || i.Marked {
			i.Usable, i.Marked = true, false
			n.Vote.Hello(now, e.Peer, *i)
		}
		n.Vote.CaughtUp(now, e.Peer)
	case blockrepl.MustLeave:
		n.Vote.MustLeave(now, e.Peer, e.Text)
	case blockrepl.Ready:
		var err error
		if e.Err != blockrepl.OK {
			err = errors.New(e.Text)
			if e.Text == "" {
				err = errPrepare
			}
		}
		n.Vote.Prepared(now, n.change(e.Prep), e.Peer, e.Gen, err)
	case blockrepl.Began:
		n.Vote.Began(now)
	case blockrepl.Stopped:
		var err error
		if e.Err != blockrepl.OK {
			err = errPrepare
			n.Vol.Unquiesce(now)
		}
		n.Vote.Quiesced(now, err)
	case blockrepl.Failed:
		n.Vote.DiskFailed(now, e.Text)
	case blockrepl.CopyChanged:
		n.copyChanged(now)
	case blockrepl.VoteDurable:
		n.Vote.Persisted(now, e.Gen)
	case blockrepl.Unmarked:
		n.Vote.Unmark(now)
	default:
		n.VolOut = append(n.VolOut, *e)
	}
}

// change is the change that a preparation was for.
func (n *Node) change(p blockrepl.Prep) failover.Change {
	switch p {
	case blockrepl.PrepShrink:
		return failover.Shrink
	case blockrepl.PrepGrow:
		return failover.Grow
	}
	return n.applied
}

func prep(c failover.Change) blockrepl.Prep {
	switch c {
	case failover.Shrink:
		return blockrepl.PrepShrink
	case failover.Grow:
		return blockrepl.PrepGrow
	}
	return blockrepl.PrepAlone
}

func (n *Node) fromVote(now int64, out []failover.Effect) {
	gone := false // the Go of this step went out ahead of its StepDown
	for i := range out {
		e := &out[i]
		switch e.Kind {
		case failover.Persist:
			n.Vol.SetVote(now, meta.Vote(e.Hard), e.Tag)
		case failover.Send:
			if e.Msg.Kind == failover.Go && e.Msg.N == 0 && n.cfg.Service {
				// The service may still answer out of the page cache, until its
				// permission has run out with the lease: that cannot be given back early.
				continue
			}
			if e.Msg.Kind != failover.Go || !gone {
				n.send(e)
			}
		case failover.Prepare:
			if prep(e.Change) == blockrepl.PrepAlone {
				n.applied = e.Change
			}
			n.Vol.Prepare(now, prep(e.Change), e.Peer)
		case failover.Apply:
			switch e.Change {
			case failover.Create, failover.Promote:
				n.Vol.BecomePrimary(now, e.Epoch, meta.Vote(e.Hard))
			case failover.Shrink:
				n.Vol.Shrunk(now, e.Peer)
			}
		case failover.Abort:
			n.Vol.Abort(now, prep(e.Change), e.Peer)
		case failover.Serve:
			n.Vol.Serve(now, e.Until)
			if n.cfg.Service {
				n.VoteOut = append(n.VoteOut, *e) // what answers clients goes by it, too
			}
		case failover.Quiesce:
			if n.cfg.Service {
				n.stopping = e.Epoch
				n.VoteOut = append(n.VoteOut, *e)
			} else {
				n.Vol.Quiesce(now)
			}
		case failover.StepDown:
			// The word that we have stopped for good is emitted after the stop.
			// Both happen in this step, so nobody can see the order; but the
			// stop takes the links down, and the word must still go out.
			n.stopping = 0
			handedOver := false
			for k := range out[i:] {
				if g := &out[i+k]; g.Kind == failover.Send && g.Msg.Kind == failover.Go && (g.Msg.N != 0 || !n.cfg.Service) {
					n.send(g)
					handedOver, gone = true, true
				}
			}
			n.Vol.StepDown(now, handedOver && e.OK)
			n.VoteOut = append(n.VoteOut, *e)
		case failover.Follow:
			n.Vol.Follow(now, e.Peer, e.Epoch)
		case failover.Drop:
			n.Vol.Drop(now, e.Peer, e.Text)
		default:
			n.VoteOut = append(n.VoteOut, *e)
		}
	}
}

func (n *Node) send(e *failover.Effect) {
	if !n.Vol.InSession(e.Peer) {
		return
	}
	n.VolOut = append(n.VolOut, blockrepl.Effect{
		Kind: blockrepl.Send, Peer: e.Peer, Chan: wire.Ctl,
		Msg: wire.Msg{Type: wire.Control, Epoch: e.Msg.Epoch, Body: failover.AppendMsg(nil, e.Msg)},
	})
}
