package location

import (
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
		{"witness", none, `"witness" has no scheme: write file:PATH, etcd://HOST:PORT,HOST:PORT/KEY, s3://BUCKET/KEY or dynamodb://TABLE/KEY`},
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

		{"ftp://x/y", none, `unknown scheme "ftp": write file:PATH, etcd://HOST:PORT,HOST:PORT/KEY, s3://BUCKET/KEY or dynamodb://TABLE/KEY`},

		{"s3://bucket/key", Location{Scheme: "s3", Name: "bucket", Path: "key"}, ""},
		{"s3://a.b-c/x/y%?region=eu-central-1&endpoint=https://10.0.0.5:9000&path-style=yes", Location{Scheme: "s3", Name: "a.b-c", Path: "x/y%", Region: "eu-central-1", Endpoint: "https://10.0.0.5:9000", PathStyle: true}, ""},
		{"s3:bucket/key", none, `"s3:bucket/key": write s3://BUCKET/KEY`},
		{"s3://bucket", none, `"s3://bucket": write s3://BUCKET/KEY`},
		{"s3://bucket/", none, `"s3://bucket/": write s3://BUCKET/KEY`},
		{"s3:///key", none, `"s3:///key": write s3://BUCKET/KEY`},
		{"s3://Bucket/key", none, `"s3://Bucket/key": "Bucket" is not the name of a bucket`},
		{"s3://ab/key", none, `"s3://ab/key": "ab" is not the name of a bucket`},
		{"s3://bucket/a\x00", none, `"s3://bucket/a\x00" has a character in its key that cannot be typed`},
		{"s3://bucket/k?path-style=no", none, `"s3://bucket/k?path-style=no": path-style can only be yes`},
		{"s3://bucket/k?region=", none, `"s3://bucket/k?region=": region: "" is not the name of a region, such as eu-central-1`},
		{"s3://bucket/k?endpoint=10.0.0.5:9000", none, `"s3://bucket/k?endpoint=10.0.0.5:9000": endpoint: "10.0.0.5:9000" is not the URL of a server, such as https://10.0.0.5:9000`},
		{"s3://bucket/k?endpoint=http://u:p@h", none, `"s3://bucket/k?endpoint=http://u:p@h": endpoint: "http://u:p@h" is not the URL of a server, such as https://10.0.0.5:9000`},
		{"s3://bucket/k?hash-key=id", none, `"s3://bucket/k?hash-key=id": unknown parameter "hash-key": s3 has region, endpoint and path-style`},

		{"dynamodb://table/key", Location{Scheme: "dynamodb", Name: "table", Path: "key"}, ""},
		{"dynamodb://My_Table.1/a/b?hash-key=pk&region=us-east-1", Location{Scheme: "dynamodb", Name: "My_Table.1", Path: "a/b", HashKey: "pk", Region: "us-east-1"}, ""},
		{"dynamodb:table/key", none, `"dynamodb:table/key": write dynamodb://TABLE/KEY`},
		{"dynamodb://t/key", none, `"dynamodb://t/key": "t" is not the name of a table`},
		{"dynamodb://table/k?hash-key=version", none, `"dynamodb://table/k?hash-key=version": hash-key: version is what the record itself is kept in`},
		{"dynamodb://table/k?hash-key=", none, `"dynamodb://table/k?hash-key=": hash-key: "" is not the name of an attribute`},
		{"dynamodb://table/k?path-style=yes", none, `"dynamodb://table/k?path-style=yes": unknown parameter "path-style": dynamodb has region, endpoint and hash-key`},
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

// A key leaves room for the names of scratch registers.
func TestKeyTooLong(t *testing.T) {
	for _, raw := range []string{"s3://bucket/" + strings.Repeat("k", 901), "dynamodb://table/" + strings.Repeat("k", 1901)} {
		if _, err := Parse(raw); !strings.Contains(errText(err), "is too long") {
			t.Errorf("got %v", err)
		}
	}
}
