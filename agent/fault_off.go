//go:build !faults

package agent

// faultPoint is a place where the process may be killed in tests built with
// the tag faults: before and after each durable effect. Without the tag it is
// nothing.
func faultPoint(string) {}
