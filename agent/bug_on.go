//go:build mutant

package agent

import (
	"os"

	"tandem/blockrepl"
)

// testBug is the deliberate mistake that TANDEM_BUG names.
func testBug() blockrepl.Bug {
	for b := blockrepl.NoBug; b < blockrepl.Bugs; b++ {
		if b.String() == os.Getenv("TANDEM_BUG") {
			return b
		}
	}
	return blockrepl.NoBug
}
