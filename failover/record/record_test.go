package record

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func sample() Record {
	return Record{
		Version: Version, Cluster: "nfs1", ClusterID: 0x6b1f0c55a1d20e77, Serial: 12, Epoch: 3, Primary: "a",
		InSync:     []string{"a", "b"},
		Members:    []Member{{"a", 0xa1}, {"b", 0xb1}},
		Generation: 0x9e03, Nonce: 0xfedcba9876543210,
		ChangedBy: "a", Reason: "b is counted again: epoch 3 > 2 & <flushed>",
		ChangedAt: time.Date(2026, 11, 22, 12, 0, 0, 5000, time.UTC),
	}
}

func TestEncodeGolden(t *testing.T) {
	r := sample()
	r.Paused = &Paused{Since: time.Date(2026, 11, 22, 13, 0, 0, 0, time.FixedZone("CET", 3600)), By: "b"}
	got, err := Encode(r)
	if err != nil {
		t.Fatal(err)
	}
	want := `{
  "version": 1,
  "cluster": "nfs1",
  "cluster_id": "6b1f0c55a1d20e77",
  "serial": 12,
  "epoch": 3,
  "primary": "a",
  "in_sync": [
    "a",
    "b"
  ],
  "members": [
    {
      "node": "a",
      "disk_id": "00000000000000a1"
    },
    {
      "node": "b",
      "disk_id": "00000000000000b1"
    }
  ],
  "generation": "0000000000009e03",
  "paused": {
    "since": "2026-11-22T12:00:00Z",
    "by": "b"
  },
  "nonce": "fedcba9876543210",
  "changed_by": "a",
  "reason": "b is counted again: epoch 3 > 2 & <flushed>",
  "changed_at": "2026-11-22T12:00:00.000005Z"
}
`
	if string(got) != want {
		t.Fatalf("got\n%s", got)
	}
}

func TestRoundTrip(t *testing.T) {
	paused := sample()
	paused.Paused = &Paused{Since: paused.ChangedAt, By: "a"}
	diskless := sample()
	diskless.InSync = []string{"b"}
	zeroNonce := sample()
	zeroNonce.Nonce = 0
	for _, r := range []Record{sample(), paused, diskless, zeroNonce} {
		b, err := Encode(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, r) {
			t.Fatalf("got %+v, want %+v", got, r)
		}
	}
}

// The sets come from maps in the callers; their order must not reach the bytes.
func TestEncodeSortsAndKeepsItsArgument(t *testing.T) {
	r := sample()
	want, err := Encode(r)
	if err != nil {
		t.Fatal(err)
	}
	r.InSync = []string{"b", "a"}
	r.Members = []Member{{"b", 0xb1}, {"a", 0xa1}}
	got, err := Encode(r)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("the order of the sets reached the bytes")
	}
	if r.InSync[0] != "b" || r.Members[0].Node != "b" {
		t.Fatal("the argument was changed")
	}
}

type contradiction struct {
	want string
	edit func(*Record)
}

// contradictions are what makes a record impossible.
func contradictions() []contradiction {
	return []contradiction{
		{"version 2", func(r *Record) { r.Version = 2 }},
		{`cluster name "-x"`, func(r *Record) { r.Cluster = "-x" }},
		{"no cluster id", func(r *Record) { r.ClusterID = 0 }},
		{"serial 0", func(r *Record) { r.Serial = 0 }},
		{"epoch 0", func(r *Record) { r.Epoch = 0 }},
		{"no generation", func(r *Record) { r.Generation = 0 }},
		{"0 members, between 1 and 4 are possible", func(r *Record) { r.Members = nil }},
		{"5 members, between 1 and 4 are possible", func(r *Record) { r.Members = make([]Member, 5) }},
		{"the in-sync set is empty", func(r *Record) { r.InSync = nil }},
		{`member name "b c"`, func(r *Record) { r.Members[1].Node = "b c" }},
		{"member b has no disk id", func(r *Record) { r.Members[1].DiskID = 0 }},
		{"members are doubled or out of order at a", func(r *Record) { r.Members[1].Node = "a" }},
		{`primary "c" is not a member`, func(r *Record) { r.Primary = "c" }},
		{`primary "" is not a member`, func(r *Record) { r.Primary = "" }},
		{`"c" is in sync but not a member`, func(r *Record) { r.InSync[1] = "c" }},
		{"the in-sync set is doubled or out of order at a", func(r *Record) { r.InSync[1] = "a" }},
		{`paused by ""`, func(r *Record) { r.Paused = &Paused{Since: time.Now()} }},
		{"paused since 0001-01-01 00:00:00 +0000 UTC", func(r *Record) { r.Paused = &Paused{By: "a"} }},
		{`changed by ""`, func(r *Record) { r.ChangedBy = "" }},
		{"a reason of 1025 bytes, at most 1024 are possible", func(r *Record) { r.Reason = strings.Repeat("x", 1025) }},
		{"a reason that is not UTF-8", func(r *Record) { r.Reason = "\xff" }},
		{"changed at 0001-01-01 00:00:00 +0000 UTC", func(r *Record) { r.ChangedAt = time.Time{} }},
		{"changed at 10000-01-01 00:00:00 +0000 UTC", func(r *Record) { r.ChangedAt = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }},
	}
}

func TestValidate(t *testing.T) {
	for _, tc := range contradictions() {
		t.Run(tc.want, func(t *testing.T) {
			r := sample()
			tc.edit(&r)
			err := r.Validate()
			if !errors.Is(err, ErrInvalid) || err.Error() != ErrInvalid.Error()+": "+tc.want {
				t.Fatalf("got %v", err)
			}
			if r.Version == Version { // Encode sorts, so only a doubled entry stays wrong
				if _, err := Encode(r); !errors.Is(err, ErrInvalid) {
					t.Fatalf("Encode wrote it: %v", err)
				}
			}
		})
	}
}

type badDocument struct {
	name string
	in   []byte
	is   error  // nil = any
	text string // part of the error
}

// badDocuments are what must not be taken for a record.
func badDocuments(t testing.TB) []badDocument {
	b, err := Encode(sample())
	if err != nil {
		t.Fatal(err)
	}
	good := string(b)
	swap := func(old, new string) []byte {
		if !strings.Contains(good, old) {
			t.Fatalf("%q is not in the sample", old)
		}
		return []byte(strings.Replace(good, old, new, 1))
	}
	return []badDocument{
		{"nothing", nil, nil, "unexpected end"},
		{"not JSON", []byte("hello"), nil, "invalid character"},
		{"a list", []byte("[]"), nil, "cannot unmarshal array"},
		{"too large", bytes.Repeat([]byte(" "), MaxBytes+1), ErrTooLarge, "65537 bytes"},
		{"no version", swap("\"version\": 1,", ""), ErrInvalid, "version 0"},
		{"older than the first", swap("\"version\": 1", "\"version\": 0"), ErrInvalid, "version 0"},
		{"newer", swap("\"version\": 1", "\"version\": 2"), ErrNewer, "(2, this is 1)"},
		{"newer with other fields", []byte(`{"version": 7, "epoch": {"major": 1}}`), ErrNewer, "(7, this is 1)"},
		{"unknown field", swap("\"serial\"", "\"extra\": 1, \"serial\""), nil, `unknown field "extra"`},
		{"doubled epoch", swap("\"epoch\": 3,", "\"epoch\": 9, \"epoch\": 3,"), ErrNotCanonical, ""},
		{"epoch in capitals", swap("\"epoch\"", "\"EPOCH\""), ErrNotCanonical, ""},
		{"reordered", swap("\"serial\": 12,\n  \"epoch\": 3", "\"epoch\": 3, \"serial\": 12"), ErrNotCanonical, ""},
		{"upper-case hex", swap("6b1f0c55a1d20e77", "6B1F0C55A1D20E77"), nil, "16 lower-case hex digits"},
		{"short hex", swap("6b1f0c55a1d20e77", "6b"), nil, "16 lower-case hex digits"},
		{"hex as a number", swap(`"6b1f0c55a1d20e77"`, "7"), nil, "cannot unmarshal"},
		{"negative epoch", swap("\"epoch\": 3", "\"epoch\": -3"), nil, "cannot unmarshal"},
		{"fractional epoch", swap("\"epoch\": 3", "\"epoch\": 3.0"), nil, "cannot unmarshal"},
		{"time with an offset", swap("12:00:00.000005Z", "13:00:00.000005+01:00"), ErrNotCanonical, ""},
		{"paused is null", swap("\"nonce\"", "\"paused\": null, \"nonce\""), ErrNotCanonical, ""},
		{"two documents", append([]byte(good), []byte("{}")...), nil, "after top-level value"},
		{"foreign primary", swap(`"primary": "a"`, `"primary": "z"`), ErrInvalid, "not a member"},
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, tc := range badDocuments(t) {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Decode(tc.in)
			if err == nil || (tc.is != nil && !errors.Is(err, tc.is)) || !strings.Contains(err.Error(), tc.text) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

// An operator looks at the file with an editor or jq; that must not break it.
func TestDecodeIgnoresWhiteSpace(t *testing.T) {
	b, err := Encode(sample())
	if err != nil {
		t.Fatal(err)
	}
	loose := bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n\t "))
	if _, err := Decode(loose); err != nil {
		t.Fatal(err)
	}
}

func TestCloneSharesNothing(t *testing.T) {
	r := sample()
	r.Paused = &Paused{Since: r.ChangedAt, By: "a"}
	c := r.Clone()
	c.InSync[0], c.Members[0].Node, c.Paused.By = "x", "x", "x"
	if r.InSync[0] != "a" || r.Members[0].Node != "a" || r.Paused.By != "a" {
		t.Fatal("the copy shares memory")
	}
	if !r.Has("b") || r.Has("x") {
		t.Fatal("Has")
	}
}

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "0": true, "nfs-1.eu_west": true, strings.Repeat("a", 63): true,
		"": false, strings.Repeat("a", 64): false, ".a": false, "-a": false, "_a": false,
		"a b": false, "a/b": false, "ä": false, "a\n": false,
	} {
		if ValidName(name) != want {
			t.Errorf("ValidName(%q) != %v", name, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	b, err := Encode(sample())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(bytes.ReplaceAll(b, []byte("\n"), nil))
	paused := sample()
	paused.Paused = &Paused{Since: paused.ChangedAt, By: "a"}
	if b, err = Encode(paused); err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"paused":{"since":"2026-11-22T12:00:00Z","by":"a"}}`))
	for _, tc := range badDocuments(f) {
		f.Add(tc.in)
	}
	for _, tc := range contradictions() {
		r := sample()
		tc.edit(&r)
		if b, err = marshal(r); err == nil { // not all of them can be written
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Decode(b)
		if err != nil {
			return
		}
		c, err := Encode(r)
		if err != nil {
			t.Fatalf("decoded but not encodable: %v", err)
		}
		r2, err := Decode(c)
		if err != nil || !reflect.DeepEqual(r, r2) {
			t.Fatalf("%v: %+v became %+v", err, r, r2)
		}
		c2, err := Encode(r2)
		if err != nil || !bytes.Equal(c, c2) {
			t.Fatalf("%v: the canonical form is not stable", err)
		}
	})
}
