package deploy

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"tandem/agent/config"
)

const guide = "../docs/aws.md"

// block returns what docs/aws.md has between ```kind and ```, which it has once.
func block(t *testing.T, kind string) []byte {
	t.Helper()
	_, rest, ok := strings.Cut(string(read(t, guide)), "\n```"+kind+"\n")
	text, after, end := strings.Cut(rest, "\n```\n")
	if !ok || !end || strings.Contains(after, "\n```"+kind+"\n") {
		t.Fatalf("%s has not one block of %s", guide, kind)
	}
	return []byte(text + "\n")
}

// TestGuideShowsThePolicy: what is read is what is installed.
func TestGuideShowsThePolicy(t *testing.T) {
	if !bytes.Equal(block(t, "json"), read(t, "iam-policy.json")) {
		t.Errorf("the block in %s is not iam-policy.json: put the file there as it is", guide)
	}
}

// TestGuideKnowsTheTemplate: the parameters that the guide gives exist, and are all that have to be given.
func TestGuideKnowsTheTemplate(t *testing.T) {
	tmpl, err := parse(read(t, "cloudformation.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	_, command, _ := strings.Cut(string(read(t, guide)), "--parameter-overrides")
	command, _, _ = strings.Cut(command, "describe-stacks")
	given := make(map[string]bool)
	for _, found := range regexp.MustCompile(`(?m)^\s+([A-Z]\w+)=`).FindAllStringSubmatch(command, -1) {
		given[found[1]] = true
		if tmpl.parameters[found[1]] == nil {
			t.Errorf("the template has no parameter %s", found[1])
		}
	}
	for name, v := range tmpl.parameters {
		p, _ := v.(map[string]any)
		if _, optional := p["Default"]; !optional && !given[name] {
			t.Errorf("%s has to be given", name)
		}
	}
}

// TestGuidesConfigLoads: the agent takes the file that is to be copied.
func TestGuidesConfigLoads(t *testing.T) {
	text := block(t, "yaml")
	path := filepath.Join(t.TempDir(), "nfs1.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(path)
	if err != nil && strings.Contains(err.Error(), "not in this version") {
		t.Skip("this version of the agent does not know AWS yet: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if c.Volume.EBS == "" {
		t.Error("the volume is not named by its id")
	}
	if len(c.Service) != 5 {
		t.Errorf("%d steps", len(c.Service))
	}

	// The same with the peers by tag.
	byTag := regexp.MustCompile("`(peers: {tag: [^`]*)`").FindSubmatch(read(t, guide))
	if byTag == nil {
		t.Fatal("the guide does not say how peers are named by tag")
	}
	text = regexp.MustCompile("(?m)^peers: .*$").ReplaceAllLiteral(text, byTag[1])
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err = config.Load(path); err != nil {
		t.Fatal(err)
	}
	if tag, port := c.PeersByTag(); tag != "tandem:node" || port != 7788 {
		t.Error(tag, port)
	}
}
