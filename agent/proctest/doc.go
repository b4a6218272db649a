// Package proctest runs real agents as processes of their own, on loopback with
// TLS, and kills, stops and cuts them off under load. It has tests only.
//
// Every test ends in the same three questions: is every acknowledged write
// there, do the two images agree byte for byte, has anything been left behind.
//
// One test asks more: TestLinearizable has clients for whom each block is a
// register, breaks the pair in ten ways, and has porcupine judge what they were
// told (register_test.go, linear_test.go). Most others promote by hand, to choose
// the moment; takeover_test.go and that one leave it to the agents.
//
//	test ─┬─ replagent a ──TLS──▶ faultproxy ──▶ replagent b      two processes
//	      ├─ load: workers ──▶ NBD socket of whoever serves
//	      └─ ledger: what each block may hold
//
// Killing a process over a page-cache file loses nothing. What a power cut loses
// is modelled by nbdkit's write-back cache under nbdfuse (power_test.go); what
// lies between two effects of the agent by its build tag faults (fault_test.go).
package proctest
