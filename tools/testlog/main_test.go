package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestCounter(t *testing.T) {
	const (
		pass    = `{"Action":"output","Package":"p","Test":"TestA","Output":"noise\n"}` + "\n" + `{"Action":"pass","Package":"p","Test":"TestA"}` + "\n"
		sub     = `{"Action":"pass","Package":"p","Test":"TestA/x"}` + "\n"
		fail    = `{"Action":"output","Package":"p","Test":"TestB","Output":"    p_test.go:3: because\n"}` + "\n" + `{"Action":"fail","Package":"p","Test":"TestB"}` + "\n" + `{"Action":"fail","Package":"p"}` + "\n"
		skip    = `{"Action":"output","Package":"p","Test":"TestC","Output":"=== RUN   TestC\n"}` + "\n" + `{"Action":"output","Package":"p","Test":"TestC","Output":"    p_test.go:9: waits for deadlines\n"}` + "\n" + `{"Action":"skip","Package":"p","Test":"TestC"}` + "\n"
		want    = `{"Action":"output","Package":"p","Test":"TestD/x","Output":"    p_test.go:9: fio is missing: apt-get install fio\n"}` + "\n" + `{"Action":"skip","Package":"p","Test":"TestD/x"}` + "\n"
		crashed = `{"Action":"run","Package":"q","Test":"TestE"}` + "\n" + `{"Action":"output","Package":"q","Test":"TestE","Output":"panic: oh\n"}` + "\n" + `{"Action":"fail","Package":"q"}` + "\n"
		build   = `{"ImportPath":"q","Action":"build-output","Output":"q.go:1: syntax error\n"}` + "\n" + `{"Action":"fail","Package":"q"}` + "\n"
		noTests = `{"Action":"output","Package":"n","Output":"?   n [no test files]\n"}` + "\n" + `{"Action":"skip","Package":"n"}` + "\n"
	)
	for _, c := range []struct {
		name, in string
		tools    bool
		ok       bool
		says     []string
		not      string
	}{
		{"passed", pass + sub + noTests, true, true, []string{"1 passed, 0 failed, 0 skipped"}, "noise"},
		{"failed", pass + fail, false, false, []string{"FAIL p", "p_test.go:3: because", "1 passed, 1 failed, 0 skipped"}, "did not run"},
		{"skipped", pass + skip, true, true, []string{"skip p TestC: waits for deadlines", "1 passed, 0 failed, 1 skipped"}, "want of a program"},
		{"tool missing", pass + want, true, false, []string{"1 tests were skipped for want of a program"}, ""},
		{"tool missing, allowed", pass + want, false, true, []string{"skip p TestD/x: fio is missing"}, "here that is"},
		{"panic", pass + crashed, false, false, []string{"panic: oh", "1 packages did not run", "1 passed, 1 failed, 0 skipped"}, ""},
		{"build", pass + build, false, false, []string{"syntax error", "1 packages did not run"}, ""},
		{"nothing", noTests, false, false, []string{"no test ran", "0 passed, 0 failed, 0 skipped"}, ""},
		{"not JSON", "go: updates to go.mod needed\n", false, false, []string{"go: updates"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			n := newCounter(&out)
			if err := n.read(strings.NewReader(c.in)); err != nil {
				t.Fatal(err)
			}
			if ok := n.finish(c.tools); ok != c.ok {
				t.Errorf("%v, want %v", ok, c.ok)
			}
			for _, s := range c.says {
				if !strings.Contains(out.String(), s) {
					t.Errorf("%q is missing in\n%s", s, out.String())
				}
			}
			if c.not != "" && strings.Contains(out.String(), c.not) {
				t.Errorf("%q is in\n%s", c.not, out.String())
			}
		})
	}
}
