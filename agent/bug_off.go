//go:build !mutant

package agent

import "tandem/blockrepl"

// testBug is a deliberate mistake of the volume's core. Only a binary built
// with the tag mutant can have one: the demo's test shows with it that the
// demo can fail.
func testBug() blockrepl.Bug { return blockrepl.NoBug }
