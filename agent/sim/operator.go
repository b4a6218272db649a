package sim

// operate is the person who looks after the cluster: moves the service now and
// then, and brings it back when nobody serves.
func (w *World) operate() {
	var missing int64
	var look func()
	look = func() {
		if w.calm || w.done {
			return
		}
		w.at(w.now+w.between(w.opt.lease/2, 5*w.opt.lease), look)
		if w.witness.rec == nil || w.faults.shield != nil {
			return
		}
		p := w.primary()
		if p == nil {
			if missing == 0 {
				missing = w.now
			}
			switch {
			case w.now-missing <= w.between(0, 8*w.opt.lease):
			case w.chance(0.5):
				w.helpOut()
			case w.witness.rec.Paused != nil:
				w.anyone().resumeAuto()
			}
			return
		}
		missing = 0
		switch w.rng.Uint32() % 12 {
		case 0, 1, 2:
			if m := w.other(p); m.agent != nil {
				if m.ends[m.indexOf(p)].up {
					w.hit(HitPromoteUp)
				}
				m.promote()
			}
		case 3:
			p.demote()
		case 4:
			p.promote()
		}
	}
	w.at(w.now+w.between(0, 5*w.opt.lease), look)
}

func (w *World) other(p *machine) *machine {
	for {
		if m := w.anyone(); m != p {
			return m
		}
	}
}

// helpOut promotes somebody.
func (w *World) helpOut() {
	if m := w.anyone(); m.agent != nil {
		m.promote()
	}
}
