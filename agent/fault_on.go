//go:build faults

package agent

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

var fault struct {
	sync.Mutex
	seen map[string]int
}

// faultPoint kills the process with SIGKILL at the n-th visit of a place:
// TANDEM_FAULT=PLACE:N. With TANDEM_FAULT_LOG=FILE each first visit of a place
// is written there, so that a test can show that all were visited.
func faultPoint(place string) {
	fault.Lock()
	defer fault.Unlock()
	if fault.seen == nil {
		fault.seen = make(map[string]int)
	}
	fault.seen[place]++
	if log := os.Getenv("TANDEM_FAULT_LOG"); log != "" && fault.seen[place] == 1 {
		if f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err == nil {
			fmt.Fprintln(f, place)
			f.Close()
		}
	}
	name, nth, _ := strings.Cut(os.Getenv("TANDEM_FAULT"), ":")
	n, err := strconv.Atoi(nth)
	if err != nil {
		n = 1
	}
	if name == place && fault.seen[place] == n {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
}
