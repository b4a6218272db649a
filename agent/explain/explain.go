// Package explain says in plain sentences how a cluster is: what its state is,
// what would be lost if a node died now, and what to type next. It is a pure
// function of what the nodes say of themselves, so every state has a test that
// holds the whole text.
package explain

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"tandem/agent/control"
	"tandem/failover"
)

// Command is how the reader reaches the nodes.
type Command struct {
	// Base is the program and what it is told of where to look, such as
	// "replctl --config a.yaml".
	Base string
	// Home is the node that Base alone reaches, "" if that is not known.
	Home string
}

// At is the command that has node do verb.
func (c Command) At(node, verb string) string {
	if node == c.Home {
		return c.Base + " " + verb
	}
	return c.Base + " --node " + node + " " + verb
}

// Text explains the cluster as its first node sees it, for a reader in loc. The
// states are tried in the order in which they matter to somebody who was woken up.
func Text(c control.ClusterStatus, cmd Command, loc *time.Location) string {
	e := newExplainer(c, cmd, loc)
	switch {
	case e.any == nil:
		e.nobody()
	case e.record == nil:
		e.noRecord()
	case e.split():
	case e.primary != nil && e.primary.FrozenSeconds > 0:
		e.frozen()
	case e.deposed():
	case e.primary == nil:
		e.noPrimary()
	default:
		e.serving()
	}
	return e.b.String()
}

// explainer has the facts, sorted by what they mean.
type explainer struct {
	b   strings.Builder
	cmd Command
	loc *time.Location

	nodes   []control.NodeStatus
	asked   string                // whose view it is
	any     *control.Status       // of some node, the asked one's if there is one
	primary *control.Status       // of the one that serves; nil if none is known
	record  *control.RecordStatus // the newest that anybody has
	newest  *control.Status       // who has it
	others  []string              // all nodes but the primary
}

func newExplainer(c control.ClusterStatus, cmd Command, loc *time.Location) *explainer {
	e := &explainer{cmd: cmd, loc: loc, nodes: c.Nodes}
	for i := range c.Nodes {
		s := c.Nodes[i].Status
		if i == 0 {
			e.asked = c.Nodes[i].Node
		}
		if s == nil {
			continue
		}
		if e.any == nil {
			e.any = s
		}
		// A primary that has not noticed yet that it was deposed loses to the other.
		if s.Role == "Primary" && (e.primary == nil || s.Epoch > e.primary.Epoch) {
			e.primary = s
		}
		if s.Record != nil && (e.record == nil || s.Record.Serial > e.record.Serial) {
			e.record, e.newest = s.Record, s
		}
	}
	for _, n := range c.Nodes {
		if e.primary == nil || n.Node != e.primary.Node {
			e.others = append(e.others, n.Node)
		}
	}
	return e
}

func (e *explainer) say(format string, args ...any) { fmt.Fprintf(&e.b, format+"\n", args...) }

// typed is a command on a line of its own, so that it can be copied.
func (e *explainer) typed(node, verb string) { e.say("    %s", e.cmd.At(node, verb)) }

func (e *explainer) status(node string) *control.Status {
	for _, n := range e.nodes {
		if n.Node == node {
			return n.Status
		}
	}
	return nil
}

// peer is what s says of a node, an empty status if it says nothing.
func peer(s *control.Status, node string) control.PeerStatus {
	if s != nil {
		for _, p := range s.Peers {
			if p.Node == node {
				return p
			}
		}
	}
	return control.PeerStatus{Node: node}
}

// inSync: the newest record names the node.
func (e *explainer) inSync(node string) bool {
	return e.newest != nil && slices.Contains(e.newest.InSync, node)
}

func (e *explainer) nobody() {
	e.say("No node answers.")
	for _, n := range e.nodes {
		e.say("Node %s: %s.", n.Node, reason(n))
	}
	e.say("If a node died now, nothing would change: nothing is served. What each of them has is on its disk.")
	e.say("Start the agent of node %s (replagent --config FILE on its machine). To see what it finds then, type:", e.asked)
	e.typed(e.asked, "explain")
}

func (e *explainer) noRecord() {
	if e.any.Witness.Error == failover.ErrNotRead.Error() {
		e.say("Node %s has just started, and has not read the cluster record yet.", e.any.Node)
		e.say("If a node died now, nothing would be lost that is not lost already. To see what the record says, type:")
		e.typed(e.any.Node, "explain")
		return
	}
	if !e.any.Witness.OK {
		e.say("Node %s has not read the cluster record: the witness does not answer (%s).", e.any.Node, e.any.Witness.Error)
		e.say("Nothing is served, and nothing can be decided without it. If a node died now, nothing would be lost that is not lost already.")
		e.say("Mend the witness. To see what the record says then, type:")
		e.typed(e.any.Node, "explain")
		return
	}
	e.say("The cluster %s is new: it has no record yet, and nothing is served.", e.any.Cluster)
	e.say("The first promote makes that node's data the truth, and the others are filled from it.")
	e.say("If a node died now, what is on its disk would be lost, if it is anything.")
	e.say("If node %s has the data that counts, type:", e.any.Node)
	e.typed(e.any.Node, "promote")
}

// head is the first sentence where somebody serves.
func (e *explainer) head(rest string) {
	p := e.primary
	e.say("Node %s is the primary of cluster %s, in epoch %d%s", p.Node, p.Cluster, p.Epoch, rest)
}

// standby is how one of the other nodes is doing.
type standby int

const (
	inSync  standby = iota
	joining         // everything is there, the record is about to say so
	syncing
	gone
	refused // connected, and something keeps it out
)

func (e *explainer) standby(node string) standby {
	p := peer(e.primary, node)
	switch {
	case p.Link == "StandAlone":
		return refused
	case p.Link != "Connected" || p.Replication == "":
		return gone
	case p.Resync != nil || p.Replication == "SyncSource":
		return syncing
	case !e.inSync(node):
		return joining
	}
	return inSync
}

// serving is the cluster with a primary whose I/O flows.
func (e *explainer) serving() {
	p := e.primary
	worst, who := inSync, ""
	for _, n := range e.others {
		if s := e.standby(n); who == "" || s > worst {
			worst, who = s, n
		}
	}
	if who == "" {
		e.head(", and has no peer.")
		e.say("If node %s died now, the service would stop, and what is on its disk would be lost with it.", p.Node)
		e.say("Give it a peer: name one under peers in the configuration of both. To see this node, type:")
		e.typed(p.Node, "status")
		return
	}
	e.head(".")
	for _, n := range e.others {
		e.sayStandby(n)
	}
	e.sayModes()
	for _, n := range e.others {
		e.ifStandbyDied(n)
	}
	e.ifPrimaryDied()
	switch {
	case !p.Witness.OK:
		e.say("Mend the witness. To wait until it answers and all nodes are in sync, type:")
		e.typed(p.Node, "wait-sync")
	case worst == refused:
		e.say("Mend what keeps node %s out. To see the whole of it, type:", who)
		e.typed(p.Node, "status")
	case worst == gone:
		e.say("%s To wait until it is in sync, type:", e.bringBack(who))
		e.typed(p.Node, "wait-sync")
	case worst == syncing || worst == joining:
		e.say("Nothing needs to be done. To wait until node %s is in sync, type:", who)
		e.typed(p.Node, "wait-sync")
	case p.Paused != nil:
		e.say("To let nodes take over by themselves again, type:")
		e.typed(e.asked, "resume")
	default:
		e.say("Nothing needs to be done. To move the service to node %s, type:", who)
		e.typed(who, "promote")
	}
}

// bringBack says what there is to do for a node without a link.
func (e *explainer) bringBack(node string) string {
	if e.status(node) != nil {
		return fmt.Sprintf("Mend the link to node %s, whose agent runs; it is resynced by itself then.", node)
	}
	return fmt.Sprintf("Start the agent of node %s (replagent --config FILE on its machine); it is resynced by itself then.", node)
}

// sayStandby says how a node is doing, as the primary sees it.
func (e *explainer) sayStandby(node string) {
	p := peer(e.primary, node)
	switch e.standby(node) {
	case inSync:
		e.say("Node %s is in sync with it: it has every acknowledged write.", node)
	case joining:
		e.say("Node %s has everything, and is about to be taken into the in-sync set.", node)
	case syncing:
		if p.Resync == nil {
			e.say("Node %s is being resynced: it lacks up to %s.", node, Bytes(p.OutOfSyncBytes))
			break
		}
		r := *p.Resync
		text := fmt.Sprintf("Node %s is being resynced: %d %% of %s is compared", node, percent(r), Bytes(r.TotalBytes))
		if r.RateBytesPerSecond > 0 {
			text += fmt.Sprintf(", at %s/s, about %s are left", Bytes(r.RateBytesPerSecond), span(r.ETASeconds))
		}
		e.say("%s.", text)
	case refused:
		e.say("Node %s is connected and kept out: %s.", node, stop(p.LinkError))
	case gone:
		why := ""
		if p.LinkError != "" {
			why = " (" + stop(p.LinkError) + ")"
		}
		e.say("Node %s has been gone for %s%s.", node, e.since(p.LinkSince), why)
		switch {
		case e.inSync(node):
			e.say("Nothing was written since that needed it: it is still in the in-sync set.")
		case p.OutOfSyncBytes > 0:
			e.say("%s on node %s are not on node %s.", Bytes(p.OutOfSyncBytes), e.primary.Node, node)
		default:
			e.say("Nothing was written since.")
		}
	}
}

// sayModes says what keeps nodes from taking over.
func (e *explainer) sayModes() {
	p := e.primary
	if !p.Witness.OK {
		e.say("The witness does not answer (%s). While the nodes see each other the service goes on without it.", stop(p.Witness.Error))
	}
	if w := p.Paused; w != nil {
		e.say("Automatic promotion is paused since %s; that was asked for on node %s.", e.clock(w.Since), w.By)
	}
	for _, n := range e.others {
		if s := e.status(n); s != nil && !s.Auto {
			e.say("Node %s does not take over by itself: failover.auto is off there.", n)
		}
	}
}

func (e *explainer) ifStandbyDied(node string) {
	p := e.primary
	switch {
	case e.standby(node) == gone || e.standby(node) == refused:
		e.say("If node %s's disk were lost now, nothing would be lost with it: node %s has everything.", node, p.Node)
	case !p.Witness.OK:
		e.say("If node %s died now, nothing would be lost, but I/O would freeze until the witness is back, and fail after %s.", node, span(p.FreezeSeconds))
	case e.standby(node) == inSync:
		e.say("If node %s died now, nothing would be lost: the service goes on on node %s.", node, p.Node)
	default:
		e.say("If node %s died now, nothing would be lost: node %s has everything, and the resync goes on when it is back.", node, p.Node)
	}
}

func (e *explainer) ifPrimaryDied() {
	p := e.primary
	heir := ""
	for _, n := range e.others {
		if e.inSync(n) && e.standby(n) == inSync {
			heir = n
			break
		}
	}
	if heir == "" {
		var missing int64
		who := e.others[0]
		for i, n := range e.others {
			if lacks := peer(p, n).OutOfSyncBytes; i == 0 || lacks < missing {
				missing, who = lacks, n
			}
		}
		only := fmt.Sprintf("Up to %s are on node %s only: they come back with it, or are lost with its disk.", Bytes(missing), p.Node)
		if missing == 0 {
			only = fmt.Sprintf("Everything that was acknowledged comes back with node %s.", p.Node)
		}
		why := "is not in sync and does not take over by itself"
		if e.standby(who) == syncing {
			why = "has an incomplete copy until the resync ends, and cannot take over"
		} else if e.inSync(who) {
			why = "does not answer"
		}
		e.say("If node %s died now, the service would stop: node %s %s. %s", p.Node, who, why, only)
		return
	}
	s := e.status(heir)
	switch {
	case !p.Witness.OK:
		e.say("If node %s died now, nothing would be lost, but node %s cannot take over before the witness is back.", p.Node, heir)
	case p.Paused != nil:
		e.say("If node %s died now, nothing would be lost, but the service would stop until somebody says resume or promote.", p.Node)
	case s != nil && !s.Auto:
		e.say("If node %s died now, nothing would be lost, but the service would stop until somebody promotes node %s.", p.Node, heir)
	default:
		e.say("If node %s died now, nothing would be lost: node %s takes over by itself after about %s.", p.Node, heir, span(takeover(p.LeaseMS)))
	}
}

// takeover is how long a standby waits after its last grant, in seconds.
func takeover(leaseMS int64) float64 { return math.Ceil(float64(leaseMS)*1.1/1000 + 0.1) }

func (e *explainer) frozen() {
	p := e.primary
	e.head(fmt.Sprintf(", and its I/O has been frozen for %s: no acknowledgement may be given.", span(p.FrozenSeconds)))
	for _, n := range e.others {
		if q := peer(p, n); q.Link != "Connected" || q.Replication == "" {
			e.say("Node %s does not answer it (%s).", n, stop(q.LinkError))
		}
	}
	if !p.Witness.OK {
		e.say("The witness does not answer either (%s), so it cannot go on alone.", stop(p.Witness.Error))
	}
	if left := p.FreezeSeconds - p.FrozenSeconds; left > 0 {
		e.say("In %s I/O fails with an error and node %s stops serving; an in-sync node promotes by itself when the cause is gone.", span(left), p.Node)
	}
	for _, n := range e.others {
		e.say("If node %s died now, nothing would be lost: node %s has every acknowledged write.", n, p.Node)
	}
	if i := slices.IndexFunc(e.others, e.inSync); i >= 0 {
		e.say("If node %s died now, nothing would be lost: node %s has every acknowledged write, too, but takes over only with the witness.", p.Node, e.others[i])
	} else {
		e.say("If node %s died now, what is on its disk only would come back with it, or be lost with its disk.", p.Node)
	}
	who := "the other node"
	if len(e.others) > 0 {
		who = "node " + e.others[0]
	}
	e.say("Mend the link to %s or the witness: I/O goes on when either is back. To wait until all is well, type:", who)
	e.typed(p.Node, "wait-sync")
}

// deposed explains a node that was overtaken and has not caught up yet; false if
// none is, or if its resync says enough. The one that took over may be out of reach
// for everybody who is asked.
func (e *explainer) deposed() bool {
	for _, n := range e.others {
		s := e.status(n)
		if s == nil || s.Deposed == nil || e.inSync(n) || e.primary != nil && e.standby(n) != gone {
			continue
		}
		name := e.newest.Primary
		switch {
		case e.primary != nil:
			e.head(".")
		case e.status(name) != nil:
			return false // it is here, and does not serve
		default:
			e.unknownPrimary()
		}
		e.say("Node %s was primary in epoch %d and is deposed: node %s took over. The cluster record last changed at %s.", n, s.Deposed.Epoch, name, e.clock(s.Deposed.Since))
		q := peer(s, name)
		why := ""
		if q.LinkError != "" {
			why = " (" + stop(q.LinkError) + ")"
		}
		e.say("It serves nothing. Its copy lacks what was written on node %s since, and it has no link to it%s.", name, why)
		if e.primary != nil {
			e.sayModes()
		}
		e.say("If node %s died now, nothing would be lost: what it had not acknowledged is given up in any case.", n)
		if e.primary != nil {
			e.ifPrimaryDied()
		} else {
			e.say("If node %s died now, the service would stop: node %s is not in sync and does not take over by itself.", name, n)
		}
		e.say("Mend the link; node %s is resynced by itself then. To wait for that, type:", n)
		e.typed(e.asked, "wait-sync")
		return true
	}
	return false
}

// unknownPrimary: the recorded primary cannot be asked by anybody here.
func (e *explainer) unknownPrimary() {
	for _, n := range e.nodes {
		if n.Node == e.newest.Primary {
			e.say("Node %s is the primary of cluster %s in the cluster record, in epoch %d, and cannot be asked: %s.", n.Node, e.any.Cluster, e.record.Epoch, reason(n))
			if !n.NoAgent {
				e.say("Whether it serves is not known from here.")
			}
			return
		}
	}
	e.say("Node %s is the primary of cluster %s in the cluster record, in epoch %d, and no configuration here names it.", e.newest.Primary, e.any.Cluster, e.record.Epoch)
}

// split explains two copies that both went on; false if there are none.
func (e *explainer) split() bool {
	for _, n := range e.nodes {
		if n.Status == nil {
			continue
		}
		for _, p := range n.Status.Peers {
			if p.SplitBrain {
				e.splitBetween(n.Status, p.Node)
				return true
			}
		}
	}
	return false
}

func (e *explainer) splitBetween(s *control.Status, other string) {
	keep, lose := s.Node, other
	if e.primary != nil && e.primary.Node == other || e.primary == nil && e.newest.Primary == other {
		keep, lose = other, s.Node
	}
	e.say("Split brain: nodes %s and %s have both gone on from one state. Nothing is decided by itself.", keep, lose)
	mine, ok := e.alone(keep, lose)
	theirs, known := e.alone(lose, keep)
	role := "which the cluster record names as the primary"
	if e.primary != nil && e.primary.Node == keep {
		role = "the primary"
	}
	e.say("Node %s, %s in epoch %d, has %s that node %s lacks.", keep, role, e.record.Epoch, sized(mine, ok), lose)
	e.say("Node %s has %s that node %s lacks.", lose, sized(theirs, known), keep)
	e.say("If node %s died now, what only it has would be lost, and nothing else.", lose)
	e.say("If node %s died now, the service would stop: node %s does not take over by itself. What only node %s has would come back with it, or be lost with its disk.", keep, lose, keep)
	e.say("Choose whose changes are given up. To keep those of node %s and give up those of node %s, type:", keep, lose)
	e.typed(lose, "resync --discard-my-data")
	e.say("To keep those of node %s instead: stop the agent of node %s, promote node %s with --force, start node %s again and discard there.", lose, keep, lose, keep)
}

// alone is how much was written on a node and not on the other.
func (e *explainer) alone(node, other string) (int64, bool) {
	s := e.status(node)
	if s == nil {
		return 0, false
	}
	return peer(s, other).OutOfSyncBytes, true
}

func sized(n int64, known bool) string {
	if !known {
		return "an unknown amount"
	}
	return "up to " + Bytes(n)
}

// noPrimary is a cluster with a record in which nobody serves.
func (e *explainer) noPrimary() {
	name := e.newest.Primary
	if e.status(name) == nil {
		e.unknownPrimary()
	} else {
		e.say("No node serves cluster %s. The cluster record names node %s as the primary, in epoch %d.", e.any.Cluster, name, e.record.Epoch)
	}
	e.say("In sync %s %s.", is(e.newest.InSync), list(e.newest.InSync))
	for _, n := range e.nodes {
		switch {
		case n.Status == nil && n.Node != name:
			e.say("Node %s cannot be asked: %s.", n.Node, reason(n))
		case n.Status != nil && n.Status.Marked:
			e.say("The host of node %s has restarted: what was not flushed then may be missing there.", n.Node)
		case n.Status != nil && n.Status.Disk == "Failed":
			e.say("The disk of node %s has failed.", n.Node)
		}
	}
	if !e.newest.Witness.OK {
		e.say("The witness does not answer (%s), and nobody can become primary without it.", stop(e.newest.Witness.Error))
		e.say("If a node died now, nothing would be lost as long as one that is in sync is left.")
		e.say("Mend the witness. To see what happens then, type:")
		e.typed(e.any.Node, "explain")
		return
	}
	if w := e.newest.Paused; w != nil {
		e.say("Automatic promotion is paused since %s; that was asked for on node %s.", e.clock(w.Since), w.By)
	}
	// The one to promote: in sync, sound, and here; the recorded primary first.
	heir := ""
	for _, n := range e.nodes {
		s := n.Status
		if s == nil || !e.inSync(n.Node) || s.Disk != "UpToDate" || s.Marked {
			continue
		}
		if heir == "" || n.Node == name {
			heir = n.Node
		}
	}
	if heir != "" {
		s := e.status(heir)
		e.say("Node %s has every acknowledged write.", heir)
		if slices.ContainsFunc(e.newest.InSync, func(n string) bool { return n != heir }) {
			e.say("If node %s died now, nothing would be lost as long as another node that is in sync comes back.", heir)
		} else {
			e.say("If node %s died now, everything since the others were in sync would come back with it, or be lost with its disk.", heir)
		}
		if s.Auto && e.newest.Paused == nil {
			e.say("It takes over by itself when the lease of the last primary has run out, %s at the most. To have it do so now, type:", span(takeover(s.LeaseMS)))
		} else {
			e.say("To have it serve, type:")
		}
		e.typed(heir, "promote")
		return
	}
	missing := slices.DeleteFunc(slices.Clone(e.newest.InSync), func(n string) bool { return e.status(n) != nil })
	e.say("No node that answers is known to have every acknowledged write.")
	e.say("If one of them died now, nothing would be lost that %s still %s.", nodes(e.newest.InSync), has(e.newest.InSync))
	if len(missing) > 0 {
		e.say("Bring back %s: nothing is lost then. To see whether it is there, type:", nodes(missing))
	} else {
		e.say("Mend what is wrong on %s. To see what it is, type:", nodes(e.newest.InSync))
	}
	e.typed(e.any.Node, "status")
	e.say("If it is gone for good: promote --force on node %s says what would be lost, and asks.", e.any.Node)
}

// since is the time from t to the primary's now.
func (e *explainer) since(t time.Time) string { return span(e.primary.Time.Sub(t).Seconds()) }

func (e *explainer) clock(t time.Time) string { return t.In(e.loc).Format(time.DateTime) }

// stop makes an error the end of a sentence.
func stop(s string) string { return strings.TrimRight(strings.ReplaceAll(s, "\n", "; "), ". ") }

// reason is why a node has no status, without its name.
func reason(n control.NodeStatus) string {
	return stop(strings.TrimPrefix(n.Error, "node "+n.Node+" cannot be asked: "))
}

func percent(p control.Progress) int64 {
	if p.TotalBytes <= 0 {
		return 0
	}
	return min(max(p.DoneBytes, 0), p.TotalBytes) * 100 / p.TotalBytes
}

// Bytes is a size for people: it keeps three digits and no zeroes behind them.
func Bytes(n int64) string {
	v, unit := float64(n), "bytes"
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if v < 1000 {
			break
		}
		v, unit = v/1024, u
	}
	digits := 2
	if v >= 100 {
		digits = 0
	} else if v >= 10 {
		digits = 1
	}
	text := fmt.Sprintf("%.*f", digits, v)
	if strings.Contains(text, ".") {
		text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
	}
	return text + " " + unit
}

// span is a duration as people say it.
func span(s float64) string {
	unit := func(n float64, one string) string {
		if n = math.Floor(n); n == 1 {
			return "1 " + one
		}
		return fmt.Sprintf("%.0f %ss", n, one)
	}
	switch {
	case !(s >= 0): // also NaN
		return "0 s"
	case s < 60:
		return fmt.Sprintf("%.0f s", math.Ceil(s))
	case s < 3600:
		return unit(s/60, "minute")
	case s < 48*3600:
		return unit(s/3600, "hour")
	}
	return unit(s/86400, "day")
}

// nodes is a list with what its names are of.
func nodes(names []string) string {
	if len(names) > 1 {
		return "nodes " + list(names)
	}
	return "node " + list(names)
}

func has(names []string) string {
	if len(names) > 1 {
		return "have"
	}
	return "has"
}

func is(names []string) string {
	if len(names) == 1 {
		return "is"
	}
	return "are"
}

func list(names []string) string {
	switch n := len(names); n {
	case 0:
		return "nobody"
	case 1:
		return names[0]
	default:
		return strings.Join(names[:n-1], ", ") + " and " + names[n-1]
	}
}
