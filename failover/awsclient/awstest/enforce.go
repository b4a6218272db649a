package awstest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"
)

// Enforced is a moto that looks at who asks: a user with a policy, whose key is in the
// environment from now on.
type Enforced struct {
	moto *Moto
	user string
}

// unasked is how many requests are let through while a policy is changed.
const unasked = "1000"

// Enforce makes the user, who may do nothing yet.
func (m *Moto) Enforce(t testing.TB, user string) *Enforced {
	t.Helper()
	e := &Enforced{m, user}
	e.aws(t, "create-user", "--user-name", user)
	var out struct {
		AccessKey struct {
			AccessKeyID     string `json:"AccessKeyId"`
			SecretAccessKey string
		}
	}
	if err := json.Unmarshal(e.aws(t, "create-access-key", "--user-name", user), &out); err != nil {
		t.Fatal(err)
	}
	e.Allow(t, nil)
	t.Setenv("AWS_ACCESS_KEY_ID", out.AccessKey.AccessKeyID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", out.AccessKey.SecretAccessKey)
	t.Cleanup(func() { e.reset(t, unasked) })
	return e
}

// Allow gives the user the rights to these actions, on everything, and to no others.
func (e *Enforced) Allow(t testing.TB, actions []string) {
	t.Helper()
	e.reset(t, unasked)
	if len(actions) == 0 {
		actions = []string{"sts:GetCallerIdentity"}
	}
	type statement struct {
		Effect   string
		Action   []string
		Resource string
	}
	b, err := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": []statement{{"Allow", actions, "*"}}})
	if err != nil {
		t.Fatal(err)
	}
	e.aws(t, "put-user-policy", "--user-name", e.user, "--policy-name", "all", "--policy-document", string(b))
	e.reset(t, "0")
}

// reset says how many requests more are let through whoever asks.
func (e *Enforced) reset(t testing.TB, n string) {
	t.Helper()
	r, err := http.Post(e.moto.URL+"/moto-api/reset-auth", "text/plain", strings.NewReader(n))
	if err == nil {
		err = r.Body.Close()
		if r.StatusCode != http.StatusOK {
			err = fmt.Errorf("status %d", r.StatusCode)
		}
	}
	if err != nil {
		t.Fatalf("moto's reset-auth: %v", err)
	}
}

func (e *Enforced) aws(t testing.TB, args ...string) []byte {
	t.Helper()
	out, err := exec.Command("aws", append([]string{"--endpoint-url", e.moto.URL, "--region", Region, "--output", "json", "iam"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("aws iam %s: %v\n%s", args[0], err, out)
	}
	return out
}
