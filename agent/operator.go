package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"tandem/agent/control"
	"tandem/agent/history"
	"tandem/failover"
)

// answer is what the core says to an operator's request: progress, or the end.
type answer struct {
	done, ok bool
	text     string
}

// asks are the operators' requests that the core is working on.
type asks struct {
	next uint64
	wait map[uint64]chan answer
	by   map[uint64]string // who asked, for the record and the history
}

// asker is who asked for a change of the record that is about to be written. The
// mutex is held.
func (a *Agent) asker(change failover.Change) string {
	switch change {
	case failover.Create, failover.Promote, failover.Pause, failover.Resume, failover.Forget:
	default:
		return "" // the node's own business, whoever waits for something meanwhile
	}
	if len(a.asks.by) != 1 {
		return ""
	}
	for _, by := range a.asks.by {
		return "asked by " + by
	}
	return ""
}

// answer hands on what the core says. The mutex is held.
func (a *Agent) answer(op uint64, x answer) {
	ch := a.asks.wait[op]
	if ch == nil {
		return
	}
	for {
		select {
		case ch <- x:
			return
		default:
		}
		if !x.done {
			return // an operator who does not read loses progress lines, not the end
		}
		select {
		case <-ch:
		default:
		}
	}
}

// ask gives the core a request and passes on what it says until it ends.
func (a *Agent) ask(ctx context.Context, by string, send func(control.Message) error, begin func(now int64, op uint64)) error {
	ch := make(chan answer, 16)
	a.mu.Lock()
	a.asks.next++
	op := a.asks.next
	if a.asks.wait == nil {
		a.asks.wait, a.asks.by = make(map[uint64]chan answer), make(map[uint64]string)
	}
	a.asks.wait[op], a.asks.by[op] = ch, by
	begin(now(), op)
	b := a.collect(now())
	a.mu.Unlock()
	a.carry(b, false)
	defer func() {
		a.mu.Lock()
		delete(a.asks.wait, op)
		delete(a.asks.by, op)
		a.node.Vote.Cancel(op)
		b := a.collect(now())
		a.mu.Unlock()
		a.carry(b, false)
	}()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case x := <-ch:
			if !x.done {
				if err := send(control.Message{Kind: control.KindProgress, Text: x.text}); err != nil {
					return err
				}
				continue
			}
			if !x.ok {
				return &control.Refused{Text: x.text}
			}
			return send(control.Message{Kind: control.KindResult, Text: x.text})
		}
	}
}

// handle answers replctl, of this node or of a peer. What changes something is in
// the history, with who wanted it and how it ended.
func (a *Agent) handle(ctx context.Context, req control.Request, send func(control.Message) error) error {
	if req.Node != "" && req.Node != a.cfg.Node {
		return a.relay(ctx, req, send)
	}
	switch req.Verb {
	case "promote", "demote", "resync", "pause", "resume", "forget":
	default:
		return a.handleVerb(ctx, req, send)
	}
	began := time.Now()
	a.note(history.Entry{Kind: history.KindRequest, Why: commandOf(req), By: req.By.String()})
	result := ""
	err := a.handleVerb(ctx, req, func(m control.Message) error {
		if m.Kind == control.KindResult {
			result = m.Text
		}
		return send(m)
	})
	e := history.Entry{Kind: history.KindRequest, Why: req.Verb + " is done: " + result, By: req.By.String(), Seconds: time.Since(began).Seconds()}
	if _, ok := errors.AsType[*control.Confirm](err); ok {
		e.Why = req.Verb + " waits for the operator's agreement"
	} else if err != nil {
		e.Why = req.Verb + " was not done: " + err.Error()
	}
	a.note(e)
	return err
}

// commandOf is a request as it was typed, more or less.
func commandOf(req control.Request) string {
	s := req.Verb
	for _, k := range slices.Sorted(maps.Keys(req.Args)) {
		switch v := req.Args[k]; {
		case v == "true":
			s += " --" + k
		case k == "node":
			s += " " + v
		default:
			s += " --" + k + "=" + v
		}
	}
	return s
}

func (a *Agent) handleVerb(ctx context.Context, req control.Request, send func(control.Message) error) error {
	by := req.By.String()
	switch req.Verb {
	case "status":
		return result(send, a.status())
	case "facts":
		return result(send, a.facts(ctx))
	case "cluster":
		return result(send, a.cluster(ctx, req.By))
	case "promote":
		return a.handlePromote(ctx, req, send)
	case "demote":
		return a.ask(ctx, by, send, func(now int64, op uint64) { a.node.Vote.Demote(now, op) })
	case "pause":
		return a.ask(ctx, by, send, func(now int64, op uint64) { a.node.Vote.Pause(now, op) })
	case "resume":
		return a.ask(ctx, by, send, func(now int64, op uint64) { a.node.Vote.Resume(now, op) })
	case "forget":
		return a.handleForget(ctx, req, send)
	case "resync":
		return a.handleResync(ctx, req, send)
	case "wait-sync":
		return a.handleWaitSync(ctx, req, send)
	case "events":
		return a.handleEvents(ctx, req.Args["follow"] == "true", send)
	case "history":
		return a.handleHistory(send)
	}
	return &control.Refused{Text: fmt.Sprintf("this agent does not know the verb %q: is replctl newer than replagent?", req.Verb)}
}

// result sends a document.
func result(send func(control.Message) error, data any) error {
	m, err := control.NewMessage(control.KindResult, "", data)
	if err != nil {
		return err
	}
	return send(m)
}

func (a *Agent) handleHistory(send func(control.Message) error) error {
	entries, err := a.chronicle.log.Entries()
	if err != nil {
		return err
	}
	for _, e := range entries {
		m, err := control.NewMessage(control.KindEvent, e.Text(time.Local), e)
		if err != nil {
			return err
		}
		if err := send(m); err != nil {
			return err
		}
	}
	return nil
}

func (a *Agent) handleResync(ctx context.Context, req control.Request, send func(control.Message) error) error {
	if req.Args["discard-my-data"] == "true" {
		a.mu.Lock()
		rec, _ := a.node.Vote.Record()
		switch {
		case a.node.Vol.Serving() || a.node.Vote.Role() != failover.Secondary:
			a.mu.Unlock()
			return &control.Refused{Text: fmt.Sprintf("node %s is primary: its data is the truth; demote it first, or run this on the other node", a.cfg.Node)}
		case rec == nil:
			a.mu.Unlock()
			return &control.Refused{Text: "the cluster record cannot be read: without it nobody knows whether this node holds the only copy; mend the witness first"}
		case rec.Has(a.cfg.Node) && len(rec.InSync) == 1:
			a.mu.Unlock()
			return &control.Refused{Text: fmt.Sprintf("node %s holds the only in-sync copy: discarding it would lose everything", a.cfg.Node)}
		case rec.Has(a.cfg.Node):
			a.mu.Unlock()
			return &control.Refused{Text: fmt.Sprintf("node %s is in sync: there is nothing to discard", a.cfg.Node)}
		}
		a.event("the local data is discarded by the operator")
		a.node.Vol.Discard(now())
		b := a.collect(now())
		a.mu.Unlock()
		a.carry(b, false)
	} else {
		a.mu.Lock()
		for i := range a.peers {
			if a.node.Vol.Peer(i).Replication != "Established" {
				a.node.Vol.Drop(now(), i, "resync asked for by the operator")
			}
		}
		b := a.collect(now())
		a.mu.Unlock()
		a.carry(b, false)
	}
	return a.waitSync(ctx, send, 0)
}

func (a *Agent) handleWaitSync(ctx context.Context, req control.Request, send func(control.Message) error) error {
	limit := time.Duration(0)
	if t := req.Args["timeout"]; t != "" {
		d, err := time.ParseDuration(t)
		if err != nil {
			return &control.Refused{Text: fmt.Sprintf("timeout %q is no duration", t)}
		}
		limit = d
	}
	return a.waitSync(ctx, send, limit)
}

// waitSync returns when every member is in the in-sync set.
func (a *Agent) waitSync(ctx context.Context, send func(control.Message) error, limit time.Duration) error {
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	began := time.Now()
	for {
		s := a.status()
		rec := s.InSync
		if len(rec) == len(a.peers)+1 && s.Witness.OK {
			return send(control.Message{Kind: control.KindResult, Text: "in sync: " + strings.Join(rec, ", ")})
		}
		for _, p := range s.Peers {
			if p.Resync != nil {
				m, err := control.NewMessage(control.KindProgress, "resync to "+p.Node, p.Resync)
				if err == nil {
					if err := send(m); err != nil {
						return err
					}
				}
			}
		}
		if limit > 0 && time.Since(began) > limit {
			return &control.Refused{Text: fmt.Sprintf("not in sync after %v: the in-sync set is %s", limit, strings.Join(rec, ", "))}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
		}
	}
}
