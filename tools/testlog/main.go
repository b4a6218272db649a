// Command testlog makes the output of `go test -json` short and counts it:
//
//	go test -json ./... | go run ./tools/testlog
//
// It prints a line for each package, the whole output of what failed, why tests
// were skipped, and last "N passed, N failed, N skipped". It exits 1 if a test or
// package failed, if no test ran, and with -tools also if a test was skipped
// because a program was missing: such a run has shown nothing.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
)

func main() {
	tools := flag.Bool("tools", false, "fail if a test was skipped for want of a program")
	flag.Parse()
	c := newCounter(os.Stdout)
	if err := c.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "testlog:", err)
		os.Exit(1)
	}
	if !c.finish(*tools) {
		os.Exit(1)
	}
}

// event is one line of test2json (go doc test2json), or of the build.
type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64
}

// test is what output belongs to; name is empty for that of the package.
type test struct{ pkg, name string }

type counter struct {
	out                     io.Writer
	output                  map[test][]string // until the test has ended
	failedIn                map[string]bool   // packages with a failed test
	passed, failed, skipped int               // top-level tests
	broken                  int               // packages that failed with no failed test: a build, a panic, the time
	wanting                 int               // skipped for want of a program
	skips                   []string
}

func newCounter(out io.Writer) *counter {
	return &counter{out: out, output: map[test][]string{}, failedIn: map[string]bool{}}
}

// missing recognises the reasons of the skips that -tools turns into failures.
var missing = regexp.MustCompile(`missing|not found|not installed|apt-get|\bno losetup\b`)

func (c *counter) read(r io.Reader) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) != nil || e.Action == "" {
				fmt.Fprint(c.out, line) // go itself, about flags or modules
			} else {
				c.take(e)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (c *counter) take(e event) {
	key := test{e.Package, e.Test}
	switch {
	case e.Action == "build-output":
		fmt.Fprint(c.out, e.Output)
	case e.Action == "output":
		c.output[key] = append(c.output[key], e.Output)
	case e.Test != "":
		c.ended(key, e)
	case e.Action == "pass", e.Action == "skip": // skip: no test files
		if e.Action == "pass" {
			fmt.Fprintf(c.out, "ok   %-40s %6.1fs\n", e.Package, e.Elapsed)
		}
		delete(c.output, key)
	case e.Action == "fail":
		fmt.Fprintf(c.out, "FAIL %-40s %6.1fs\n", e.Package, e.Elapsed)
		if !c.failedIn[e.Package] {
			c.broken++
			c.show(key)
			// The test that ran when the process ended has no end of its own.
			for k := range c.output {
				if k.pkg == e.Package {
					c.show(k)
				}
			}
		}
		delete(c.output, key)
	}
}

func (c *counter) ended(key test, e event) {
	top := !strings.Contains(e.Test, "/")
	switch e.Action {
	case "pass":
		if top {
			c.passed++
		}
	case "fail":
		c.failedIn[e.Package] = true
		if top {
			c.failed++
		}
		c.show(key)
	case "skip":
		why := reason(c.output[key])
		if top {
			c.skipped++
		}
		if missing.MatchString(why) {
			c.wanting++
		}
		c.skips = append(c.skips, fmt.Sprintf("skip %s %s: %s", e.Package, e.Test, why))
	default: // run, pause, cont, bench, start
		return
	}
	delete(c.output, key)
}

// maxShown bounds what one test may print here: the stacks of all goroutines, when
// a test ran out of time, would push everything else out of a CI's log. The cause
// is at their head.
const maxShown = 150

// show prints what a test said.
func (c *counter) show(key test) {
	lines := slices.DeleteFunc(c.output[key], func(line string) bool { return strings.HasPrefix(line, "=== ") })
	for i, line := range lines {
		if i == maxShown {
			fmt.Fprintf(c.out, "... and %d lines more\n", len(lines)-i)
			break
		}
		fmt.Fprint(c.out, line)
	}
}

// reason is what t.Skip was given: its line is "    file_test.go:12: reason".
func reason(output []string) string {
	var why []string
	for _, line := range output {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "===") || strings.HasPrefix(line, "---") {
			continue
		}
		if _, rest, ok := strings.Cut(line, ".go:"); ok {
			_, line, _ = strings.Cut(rest, ": ")
		}
		why = append(why, line)
	}
	return strings.Join(why, " ")
}

// finish prints the summary and says whether all is well.
func (c *counter) finish(tools bool) bool {
	for _, s := range c.skips {
		fmt.Fprintln(c.out, s)
	}
	if c.broken > 0 {
		fmt.Fprintf(c.out, "%d packages did not run to their end; each counts as one failure\n", c.broken)
	}
	c.failed += c.broken
	ok := c.failed == 0
	if tools && c.wanting > 0 {
		fmt.Fprintf(c.out, "%d tests were skipped for want of a program, and here that is a failure\n", c.wanting)
		ok = false
	}
	if c.passed+c.failed == 0 {
		fmt.Fprintln(c.out, "no test ran")
		ok = false
	}
	fmt.Fprintf(c.out, "%d passed, %d failed, %d skipped\n", c.passed, c.failed, c.skipped)
	return ok
}
