package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The test binary is started again as replagent, because exit statuses are what
// is tested.
func TestMain(m *testing.M) {
	if os.Getenv("REPLAGENT_TEST_RUN") != "" {
		main()
	}
	os.Exit(m.Run())
}

func TestCommandLine(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("cluster: nfs1\nnodes: a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args   string
		code   int
		stderr string
	}{
		{"", 2, "replagent: which node? write --config FILE: see `replagent --help`\n"},
		{"--config", 2, "replagent: flag needs an argument: -config: see `replagent --help`\n"},
		{"--nope", 2, "replagent: flag provided but not defined: -nope: see `replagent --help`\n"},
		{"--config a.yaml x", 2, "replagent: there are no arguments, and \"x\" is one: see `replagent --help`\n"},
		{"x --config a.yaml", 2, "replagent: there are no arguments, and \"x\" is one: see `replagent --help`\n"},
		{"help", 2, "replagent: there are no arguments, and \"help\" is one: see `replagent --help`\n"},
		{"--config none.yaml", 1, "replagent: config: open none.yaml: no such file or directory\n"},
		{"--config " + bad, 1, "replagent: " + bad + ":2: nodes: unknown key, did you mean \"node\"?\n"},
		{"--help", 0, ""},
	} {
		t.Run(tc.args, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], strings.Fields(tc.args)...)
			cmd.Env = append(os.Environ(), "REPLAGENT_TEST_RUN=1", "GOCOVERDIR="+t.TempDir())
			var stderr strings.Builder
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			code := 0
			if exit, ok := errors.AsType[*exec.ExitError](err); ok {
				code = exit.ExitCode()
			} else if err != nil {
				t.Fatal(err)
			}
			if code != tc.code || stderr.String() != tc.stderr {
				t.Fatalf("exit %d, %q", code, stderr.String())
			}
			if tc.code == 0 && !strings.Contains(string(out), "Example:") {
				t.Fatalf("help without an example: %s", out)
			}
		})
	}
}
