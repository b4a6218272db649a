package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"tandem/blockrepl"
)

// runHTTP serves /metrics, /primary and /healthz.
func (a *Agent) runHTTP(ctx context.Context) error {
	l, err := net.Listen("tcp", a.cfg.HTTP)
	if err != nil {
		return fmt.Errorf("http: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", a.serveMetrics)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /primary", func(w http.ResponseWriter, _ *http.Request) {
		a.mu.Lock()
		ok := a.node.Serving() && a.node.Vote.LeaseUntil() > now()
		text := a.elsewhere()
		a.mu.Unlock()
		if ok && (!a.stand.runner.Up() || a.stand.mute.Load()) {
			ok, text = false, "node "+a.cfg.Node+" is primary, but its service is not up: see `replctl status`"
		}
		if !ok {
			http.Error(w, text, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "primary")
	})
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// serveMetrics writes the Prometheus text format. It is thirty lines of
// Fprintf; the client library would be a dozen modules.
func (a *Agent) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	a.mu.Lock()
	s := a.statusLocked(now())
	promotions, claim, stop := a.metrics.promotions, a.metrics.claim, a.metrics.stop
	stats := a.node.Vol.Stats()
	a.mu.Unlock()
	var b bytes.Buffer
	metric := func(name, kind, help string) { fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	flag := func(v bool) int {
		if v {
			return 1
		}
		return 0
	}
	metric("tandem_role", "gauge", "1 for the role this node has.")
	for _, r := range []string{"Primary", "Secondary"} {
		fmt.Fprintf(&b, "tandem_role{role=%q} %d\n", r, flag(s.Role == r))
	}
	metric("tandem_epoch", "gauge", "The highest epoch seen.")
	fmt.Fprintf(&b, "tandem_epoch %d\n", s.Epoch)
	metric("tandem_disk_state", "gauge", "1 for the state of this node's copy.")
	for d := blockrepl.DiskInconsistent; d <= blockrepl.DiskFailed; d++ {
		fmt.Fprintf(&b, "tandem_disk_state{state=%q} %d\n", d, flag(s.Disk == d.String()))
	}
	metric("tandem_in_sync", "gauge", "1 if the cluster record names the node in the in-sync set.")
	for _, n := range append([]string{a.cfg.Node}, a.peers...) {
		fmt.Fprintf(&b, "tandem_in_sync{node=%q} %d\n", n, flag(slices.Contains(s.InSync, n)))
	}
	metric("tandem_out_of_sync_bytes", "gauge", "Bytes that the peer is known to lack.")
	for _, p := range s.Peers {
		fmt.Fprintf(&b, "tandem_out_of_sync_bytes{peer=%q} %d\n", p.Node, p.OutOfSyncBytes)
	}
	metric("tandem_wire_bytes_total", "counter", "Bytes sent to the peer, everything included.")
	for _, p := range s.Peers {
		fmt.Fprintf(&b, "tandem_wire_bytes_total{peer=%q} %d\n", p.Node, p.WireBytes)
	}
	metric("tandem_io_seconds", "summary", "Time from a request's arrival to its reply.")
	a.ops.mu.Lock()
	for kind := range statKinds {
		h, op := &a.ops.stats[kind], kind.String()
		for _, q := range []float64{0.5, 0.99} {
			fmt.Fprintf(&b, "tandem_io_seconds{op=%q,quantile=\"%g\"} %g\n", op, q, h.quantile(q).Seconds())
		}
		fmt.Fprintf(&b, "tandem_io_seconds_sum{op=%q} %g\n", op, h.sum.Seconds())
		fmt.Fprintf(&b, "tandem_io_seconds_count{op=%q} %d\n", op, h.count)
	}
	a.ops.mu.Unlock()
	metric("tandem_frozen_seconds", "gauge", "How long I/O has been waiting for a lease or a change of the record.")
	fmt.Fprintf(&b, "tandem_frozen_seconds %g\n", s.FrozenSeconds)
	metric("tandem_witness_up", "gauge", "1 if the cluster record could be read.")
	fmt.Fprintf(&b, "tandem_witness_up %d\n", flag(s.Witness.OK))
	metric("tandem_failovers_total", "counter", "How often this agent became primary.")
	fmt.Fprintf(&b, "tandem_failovers_total %d\n", promotions)
	metric("tandem_phase_seconds", "gauge", "How long the last change of role took, by phase.")
	fmt.Fprintf(&b, "tandem_phase_seconds{phase=\"claim\"} %g\ntandem_phase_seconds{phase=\"stop\"} %g\n", claim, stop)
	metric("tandem_resync_bytes_total", "counter", "Bytes of resync that differed and were sent.")
	fmt.Fprintf(&b, "tandem_resync_bytes_total %d\n", stats.Resynced)
	metric("tandem_activity_log_writes_total", "counter", "Activity-log transactions.")
	fmt.Fprintf(&b, "tandem_activity_log_writes_total %d\n", stats.ALWrites)
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	_, _ = w.Write(b.Bytes())
}
