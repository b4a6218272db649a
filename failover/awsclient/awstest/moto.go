// Package awstest runs stand-ins for AWS in tests: real emulators as processes on
// loopback, an instance metadata service with an identity for each node, and a proxy in
// front of any of them that answers as AWS does on a bad day.
package awstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	dynamodbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

const (
	// patience is for what takes seconds on a quiet machine.
	patience = 60 * time.Second

	// startTries is how often a start is tried when others take its port.
	startTries = 5

	// Region, AccessKey and Secret are what the emulators are spoken to with.
	Region    = "us-east-1"
	AccessKey = "AKIAIOSFODNN7EXAMPLE"
	Secret    = "an-example-and-no-secret"
)

// Environ has the SDK use the emulators' credentials and region, and nothing of the
// machine that the test runs on.
func Environ(t testing.TB) {
	t.Helper()
	for k, v := range map[string]string{
		"AWS_ACCESS_KEY_ID": AccessKey, "AWS_SECRET_ACCESS_KEY": Secret, "AWS_SESSION_TOKEN": "", "AWS_REGION": Region,
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull, "AWS_PROFILE": "", "AWS_ENDPOINT_URL": "",
		"AWS_EC2_METADATA_DISABLED": "true",
	} {
		t.Setenv(k, v)
		if v == "" {
			// Set and empty is a profile without a name to some; Setenv above puts it back.
			if err := os.Unsetenv(k); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Missing skips the test for want of a program, or fails it where none may be missing.
func Missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("TANDEM_REQUIRE_TOOLS") == "1" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// Moto is a moto_server: EC2, DynamoDB, S3 and the rest in one process, in memory.
//
// It is not to be trusted for races of creates in S3, for AssignPrivateIpAddresses with
// AllowReassignment, for a volume attached twice, and for AssociateAddress without
// AllowReassociation.
type Moto struct {
	URL string
}

// StartMoto runs one until the test ends.
func StartMoto(t testing.TB) *Moto {
	t.Helper()
	m, stop, err := RunMoto("127.0.0.1")
	if errors.Is(err, ErrNoMoto) {
		Missing(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return m
}

// ErrNoMoto means that there is no moto on this machine.
var ErrNoMoto = errors.New("moto_server is not installed: pip install 'moto[server]'")

// RunMoto runs one on a port of an address of this machine until stop, for those who are no test.
func RunMoto(address string) (m *Moto, stop func(), err error) {
	program, err := exec.LookPath("moto_server")
	if err != nil {
		return nil, nil, ErrNoMoto
	}
	url, stop, err := run("moto", address, func(port string) *exec.Cmd {
		return exec.Command(program, "-H", address, "-p", port)
	})
	return &Moto{URL: url}, stop, err
}

// CreateBucket makes a bucket of S3's.
func (m *Moto) CreateBucket(t testing.TB, name string) {
	t.Helper()
	api := s3.NewFromConfig(m.Config(t), func(o *s3.Options) { o.UsePathStyle = true })
	if _, err := api.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &name}); err != nil {
		t.Fatal(err)
	}
}

// CreateTable makes a table of DynamoDB's with a partition key that is a string.
func (m *Moto) CreateTable(t testing.TB, name, key string) {
	t.Helper()
	if _, err := dynamodb.NewFromConfig(m.Config(t)).CreateTable(t.Context(), &dynamodb.CreateTableInput{
		TableName:            &name,
		BillingMode:          dynamodbtypes.BillingModePayPerRequest,
		AttributeDefinitions: []dynamodbtypes.AttributeDefinition{{AttributeName: &key, AttributeType: dynamodbtypes.ScalarAttributeTypeS}},
		KeySchema:            []dynamodbtypes.KeySchemaElement{{AttributeName: &key, KeyType: dynamodbtypes.KeyTypeHash}},
	}); err != nil {
		t.Fatal(err)
	}
}

// Config is an SDK configuration that leads to it.
func (m *Moto) Config(t testing.TB) aws.Config {
	t.Helper()
	t.Helper()
	return m.SDK()
}

// SDK is Config for those who are no test.
func (m *Moto) SDK() aws.Config {
	url := m.URL
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	return aws.Config{
		Region: Region, BaseEndpoint: &url, HTTPClient: client,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: AccessKey, SecretAccessKey: Secret}, nil
		}),
	}
}

// StartFakeS3 runs an S3 in this process until the test ends, and makes the bucket.
func StartFakeS3(t testing.TB, bucket string) (url string) {
	t.Helper()
	backend := s3mem.New()
	if err := backend.CreateBucket(bucket); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(gofakes3.New(backend, gofakes3.WithLogger(gofakes3.DiscardLog())).Server())
	t.Cleanup(s.Close)
	return s.URL
}

// serve is run on loopback, and ends the server with the test.
func serve(t testing.TB, name string, command func(port string) *exec.Cmd) (url string) {
	t.Helper()
	url, stop, err := run(name, "127.0.0.1", command)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return url
}

// run starts a server that answers HTTP on a port of its own, until stop.
func run(name, address string, command func(port string) *exec.Cmd) (url string, stop func(), err error) {
	var last string
	for range startTries {
		port, err := freePort(address)
		if err != nil {
			return "", nil, fmt.Errorf("%s: %w", name, err)
		}
		var out bytes.Buffer
		cmd := command(port)
		cmd.Stdout, cmd.Stderr = &out, &out
		// A group of its own, so that its children end with it; and with us.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
		cmd.WaitDelay = time.Second
		if err := cmd.Start(); err != nil {
			return "", nil, fmt.Errorf("%s: %w", name, err)
		}
		ended := make(chan struct{})
		go func() { _ = cmd.Wait(); close(ended) }()
		stop := func() {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-ended
		}
		url := "http://" + net.JoinHostPort(address, port)
		if answers(url, ended) {
			return url, stop, nil
		}
		stop()
		last = out.String()
	}
	return "", nil, fmt.Errorf("%s does not start:\n%s", name, last)
}

// answers waits until somebody speaks HTTP there, whatever it says.
func answers(url string, ended <-chan struct{}) bool {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		select {
		case <-ended:
			return false
		default:
		}
		if r, err := client.Get(url); err == nil {
			_ = r.Body.Close()
			return true
		}
	}
	return false
}

func freePort(address string) (string, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

// versityVersion is the gateway's, from the module proxy; a new pin is a new build.
const versityVersion = "v1.8.0"

// Versity is a versitygw over a folder: an S3 server that keeps the conditions of
// writes also when they race.
type Versity struct {
	URL    string
	Bucket string // exists
}

// StartVersity runs one until the test ends. The first time builds it, which takes a minute.
func StartVersity(t testing.TB) *Versity {
	t.Helper()
	program, err := versity()
	if err != nil {
		Missing(t, err.Error())
	}
	const bucket = "tandem"
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, bucket), 0o755); err != nil {
		t.Fatal(err)
	}
	url := serve(t, "versitygw", func(port string) *exec.Cmd {
		return exec.Command(program, "--access", AccessKey, "--secret", Secret, "--region", Region, "--port", "127.0.0.1:"+port, "posix", dir)
	})
	return &Versity{URL: url, Bucket: bucket}
}

// versity builds the gateway, once for all tests on this machine that run in this tree.
func versity() (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, ".cache", "versitygw-"+versityVersion)
	program := filepath.Join(dir, "versitygw")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("versitygw: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", fmt.Errorf("versitygw: %w", err)
	}
	defer lock.Close() // and with it the lock
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("versitygw: %w", err)
	}
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "install", "-trimpath", "github.com/versity/versitygw/cmd/versitygw@"+versityVersion)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("versitygw cannot be built: %w\n%s", err, out)
	}
	return program, nil
}

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod above the working folder")
		}
	}
}
