//go:build faults

package agent

import "os"

// testBootID lets a test pretend that the host restarted: with another
// TANDEM_BOOT_ID a process finds itself in another boot. The kernel's own
// changes only with the machine.
func testBootID() string { return os.Getenv("TANDEM_BOOT_ID") }
