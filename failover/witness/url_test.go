package witness

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	none := Location{}
	for _, tc := range []struct {
		raw  string
		want Location
		err  string
	}{
		{"file:./witness", Location{Scheme: "file", Path: "./witness"}, ""},
		{"file:/var/lib/w?shared=yes", Location{Scheme: "file", Path: "/var/lib/w", Shared: true}, ""},
		{"file:w?", Location{Scheme: "file", Path: "w"}, ""},
		{"file:100%", Location{Scheme: "file", Path: "100%"}, ""},
		{"witness", none, `"witness" has no scheme: write file:PATH or etcd://HOST:PORT,HOST:PORT/KEY`},
		{"file:", none, `"file:" names no file`},
		{"file:dir/", none, `"file:dir/" names no file`},
		{"file://host/w", none, `"file://host/w" names a host: write file:PATH, with at most one slash in front`},
		{"file:a\x00b", none, `"file:a\x00b" has a zero byte in its path`},
		{"file:w?shared=no", none, `"file:w?shared=no": shared can only be yes`},
		{"file:w?shared=yes&shared=yes", none, `"file:w?shared=yes&shared=yes": shared is there twice`},
		{"file:w?mode=1", none, `"file:w?mode=1": unknown parameter "mode": a file has only shared=yes`},
		{"file:w?tls=yes", none, `"file:w?tls=yes": unknown parameter "tls": a file has only shared=yes`},
		{"file:w?%zz", none, `"file:w?%zz": invalid URL escape "%zz"`},

		{"etcd://h1:2379/key", Location{Scheme: "etcd", Path: "key", Hosts: []string{"h1:2379"}}, ""},
		{"etcd://h1:2379,[::1]:1,10.0.0.3:65535/a/b%", Location{Scheme: "etcd", Path: "a/b%", Hosts: []string{"h1:2379", "[::1]:1", "10.0.0.3:65535"}}, ""},
		{"etcd://h:1//key", Location{Scheme: "etcd", Path: "/key", Hosts: []string{"h:1"}}, ""},
		{"etcd://h:1/k?tls=yes", Location{Scheme: "etcd", Path: "k", Hosts: []string{"h:1"}, TLS: true}, ""},
		{"etcd://h:1/k?ca=ca.pem", Location{Scheme: "etcd", Path: "k", Hosts: []string{"h:1"}, TLS: true, CA: "ca.pem"}, ""},
		{"etcd://h:1/k?ca=/etc/ca.pem&cert=c.pem&key=c.key&tls=yes", Location{Scheme: "etcd", Path: "k", Hosts: []string{"h:1"}, TLS: true, CA: "/etc/ca.pem", Cert: "c.pem", Key: "c.key"}, ""},
		{"etcd:h:1/k", none, `"etcd:h:1/k" names no host: write etcd://HOST:PORT,HOST:PORT/KEY`},
		{"etcd://h:1", none, `"etcd://h:1" names no key: write etcd://HOST:PORT,HOST:PORT/KEY`},
		{"etcd://h:1/", none, `"etcd://h:1/" names no key: write etcd://HOST:PORT,HOST:PORT/KEY`},
		{"etcd://h:1/a\x00", none, `"etcd://h:1/a\x00" has a character in its key that cannot be typed`},
		{"etcd://h:1/\xff", none, `"etcd://h:1/\xff" has a character in its key that cannot be typed`},
		{"etcd://h/k", none, `"etcd://h/k": "h" is not HOST:PORT`},
		{"etcd:///k", none, `"etcd:///k": "" is not HOST:PORT`},
		{"etcd://:1/k", none, `"etcd://:1/k": ":1" is not HOST:PORT`},
		{"etcd://h:1,/k", none, `"etcd://h:1,/k": "" is not HOST:PORT`},
		{"etcd://h:1, i:1/k", none, `"etcd://h:1, i:1/k": " i:1" is not HOST:PORT`},
		{"etcd://h:0/k", none, `"etcd://h:0/k": "h:0" is not HOST:PORT: "0" is no port number`},
		{"etcd://h:65536/k", none, `"etcd://h:65536/k": "h:65536" is not HOST:PORT: "65536" is no port number`},
		{"etcd://h:1,h:1/k", none, `"etcd://h:1,h:1/k": h:1 is there twice`},
		{"etcd://a:1,a:2,a:3,a:4,a:5,a:6,a:7,a:8,a:9,a:10/k", none, `"etcd://a:1,a:2,a:3,a:4,a:5,a:6,a:7,a:8,a:9,a:10/k" has 10 hosts, at most 9 are possible`},
		{"etcd://u:p@h:1/k", none, `"etcd://u:p@h:1/k": "u:p@h:1": a user and a password are not possible: give a certificate by cert and key`},
		{"etcd://h:1/k?tls=no", none, `"etcd://h:1/k?tls=no": tls can only be yes`},
		{"etcd://h:1/k?ca=", none, `"etcd://h:1/k?ca=": ca names no file`},
		{"etcd://h:1/k?cert=c", none, `"etcd://h:1/k?cert=c": cert and key go together`},
		{"etcd://h:1/k?key=c", none, `"etcd://h:1/k?key=c": cert and key go together`},
		{"etcd://h:1/k?ca=a&ca=b", none, `"etcd://h:1/k?ca=a&ca=b": ca is there twice`},
		{"etcd://h:1/k?shared=yes", none, `"etcd://h:1/k?shared=yes": unknown parameter "shared": etcd has ca, cert, key and tls`},

		{"ftp://x/y", none, `unknown scheme "ftp": write file:PATH or etcd://HOST:PORT,HOST:PORT/KEY`},
		{"s3://bucket/key", none, "s3: witnesses are not in this version: write file:PATH or etcd://HOST:PORT,HOST:PORT/KEY"},
		{"dynamodb://table/key", none, "dynamodb: witnesses are not in this version: write file:PATH or etcd://HOST:PORT,HOST:PORT/KEY"},
	} {
		t.Run(tc.raw, func(t *testing.T) {
			got, err := Parse(tc.raw)
			if !reflect.DeepEqual(got, tc.want) || errText(err) != tc.err {
				t.Fatalf("got %+v, %v", got, err)
			}
		})
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestOpen(t *testing.T) {
	if _, err := Open("s3://bucket/key", "."); !errors.Is(err, ErrNotInVersion) {
		t.Fatalf("got %v", err)
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
