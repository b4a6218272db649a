package witness

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tandem/failover/awsclient"
	"tandem/failover/awsclient/awstest"
)

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestOpen(t *testing.T) {
	if _, err := Open("redis://h/key", "."); err == nil {
		t.Fatal("an unknown scheme was opened")
	}
	dir := t.TempDir()
	for _, raw := range []string{"file:relative", "file:" + filepath.Join(dir, "absolute")} {
		s, err := Open(raw, dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.CAS(context.Background(), "", []byte("{}")); err != nil {
			t.Fatal(err)
		}
		if _, err := s.CAS(context.Background(), "", []byte("{}")); !errors.Is(err, ErrConflict) {
			t.Fatalf("got %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"relative", "absolute"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

// What is wrong with the files of TLS is said when the store is opened.
func TestOpenTLS(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "empty.pem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ query, err string }{
		{"tls=yes", ""},
		{"ca=none.pem", "witness: ca: open " + dir + "/none.pem: no such file"},
		{"ca=empty.pem", "witness: ca: " + dir + "/empty.pem has no certificate in PEM form"},
		{"cert=empty.pem&key=empty.pem", "witness: cert, key: "},
	} {
		s, err := Open("etcd://127.0.0.1:1/k?"+tc.query, dir)
		if (err == nil) != (tc.err == "") || !strings.HasPrefix(errText(err), tc.err) {
			t.Errorf("%s: got %v", tc.query, err)
		}
		if err == nil {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// A store of AWS's takes the region of the URL before that of the config, and its credentials
// from the instance, before the first request.
func TestOpenOnInstance(t *testing.T) {
	awstest.Environ(t)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "false")
	for _, k := range []string{"AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} {
		if err := os.Unsetenv(k); err != nil {
			t.Fatal(err)
		}
	}
	endpoint := awstest.StartFakeS3(t, "tandem")
	m := awstest.StartMetadata(t, awstest.Identity{InstanceID: "i-1"})
	for _, region := range []string{"", "eu-central-1"} {
		s, err := OpenOn(s3URL(endpoint, "tandem")("k"+region), ".", awsclient.Options{Region: region, Endpoint: "http://127.0.0.1:1", Metadata: m.URL})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.(Keeper).Keep(ctx, func(err error) { t.Error(err) })
		}()
		for end := time.Now().Add(10 * time.Second); m.Requests() < 3 && time.Now().Before(end); {
			time.Sleep(5 * time.Millisecond)
		}
		cas(t, s, "", "x")
		m.Down(true) // not asked again for each request
		holds(t, s, "x", "")
		m.Down(false)
		cancel()
		<-done
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
