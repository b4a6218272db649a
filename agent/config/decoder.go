package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// decoder walks the YAML nodes itself instead of decoding into a struct, because
// only the nodes still know their lines, and a struct silently takes the last of
// two equal keys.
//
// It goes on after an error, so that the mistake reported is the first in the
// file and not the first in the order of our code. Readers of values return
// ok = false when there is nothing to check further.
type decoder struct {
	file string
	dir  string
	errs []*Error
}

func (d *decoder) fail(line int, key, format string, args ...any) {
	err := fmt.Errorf(format, args...)
	d.errs = append(d.errs, &Error{File: d.file, Line: line, Key: key, Msg: err.Error(), cause: errors.Unwrap(err)})
}

// missingMsg begins the errors that first puts behind all others.
const missingMsg = "missing: this key is required"

// first returns the error to show. A misspelt key is reported twice, as unknown
// and as missing, and only the former helps.
func (d *decoder) first() error {
	if len(d.errs) == 0 {
		return nil
	}
	rank := func(e *Error) int {
		if strings.HasPrefix(e.Msg, missingMsg) {
			return 1
		}
		return 0
	}
	return slices.MinFunc(d.errs, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Line, b.Line))
	})
}

// document returns the root mapping, or nil after an error.
func (d *decoder) document(data []byte) *yaml.Node {
	if len(data) > maxFile {
		d.fail(0, "", "larger than %d bytes: not a config file", maxFile)
		return nil
	}
	var doc, second yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) {
		d.fail(0, "", "the file is empty: examples/a.yaml is a start")
		return nil
	}
	if err == nil {
		err = dec.Decode(&second)
		if err == nil {
			d.fail(second.Line, "", "a second document starts here: one file is one node")
			return nil
		}
	}
	if !errors.Is(err, io.EOF) {
		d.syntax(err)
		return nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		d.fail(root.Line, "", "the file is not a list of keys and values: examples/a.yaml is a start")
		return nil
	}
	return root
}

// syntax takes the line out of the parser's text, "yaml: line 3: found a tab".
func (d *decoder) syntax(err error) {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 0
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		if number, msg, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(number); err == nil {
				line, text = n, msg
			}
		}
	}
	d.fail(line, "", "not YAML: %s", text)
}

// field is the value of a key, and where it stands.
type field struct {
	d    *decoder
	key  string
	line int
	node *yaml.Node // nil: the key is absent
}

func (f field) fail(format string, args ...any) { f.d.fail(f.line, f.key, format, args...) }

func (f field) present() bool { return f.node != nil }

// fields is one mapping.
type fields struct {
	d      *decoder
	path   string
	line   int
	values map[string]field
}

// fields checks the keys of a mapping against the known ones. It returns
// ok = false if f is no mapping; unknown and doubled keys are only reported.
func (f field) fields(known ...string) (fields, bool) {
	if !f.plain() {
		return fields{}, false
	}
	if f.node.Kind != yaml.MappingNode {
		f.fail("is not a list of keys and values: write {%s: …}", known[0])
		return fields{}, false
	}
	m := fields{d: f.d, path: f.key, line: f.line, values: make(map[string]field)}
	for i := 0; i+1 < len(f.node.Content); i += 2 {
		k, v := f.node.Content[i], f.node.Content[i+1]
		name := k.Value
		at := field{d: f.d, key: m.dotted(name), line: k.Line, node: v}
		switch {
		case k.Kind != yaml.ScalarNode:
			f.d.fail(k.Line, f.key, "a key that is not a word")
		case !slices.Contains(known, name):
			if near := nearest(name, known); near != "" {
				at.fail("unknown key, did you mean %q?", near)
			} else {
				at.fail("unknown key: known here are %s", strings.Join(known, ", "))
			}
		case m.values[name].present():
			at.fail("doubled: it is also on line %d", m.values[name].line)
		default:
			m.values[name] = at
		}
	}
	return m, true
}

func (m fields) dotted(name string) string {
	if m.path == "" {
		return name
	}
	return m.path + "." + name
}

// optional returns the field called name, which may be absent.
func (m fields) optional(name string) field {
	if f := m.values[name]; f.present() {
		return f
	}
	return field{d: m.d, key: m.dotted(name), line: m.line}
}

// required is optional, and reports what is absent.
func (m fields) required(name string) field {
	f := m.optional(name)
	if !f.present() {
		f.fail(missingMsg)
	}
	return f
}

// plain refuses the parts of YAML that no config needs and that make a file
// mean something else than it says: aliases and tags.
func (f field) plain() bool {
	switch {
	case !f.present():
		return false
	case f.node.Kind == yaml.AliasNode || f.node.Anchor != "":
		f.fail("anchors and aliases are not supported: write the value out")
		return false
	case f.node.Style&yaml.TaggedStyle != 0:
		f.fail("tags are not supported: leave out %s", f.node.Tag)
		return false
	}
	return true
}

// text returns a scalar as it is written, so that a node may be called 1 or yes.
func (f field) text() (string, bool) {
	if !f.plain() {
		return "", false
	}
	if f.node.Kind != yaml.ScalarNode {
		f.fail("is a list, a single value is expected")
		return "", false
	}
	if f.node.ShortTag() == "!!null" {
		f.fail("has no value")
		return "", false
	}
	return f.node.Value, true
}

// items returns the elements of a list, each named KEY[i].
func (f field) items() ([]field, bool) {
	if !f.plain() {
		return nil, false
	}
	if f.node.Kind != yaml.SequenceNode {
		f.fail("is not a list: write [] for an empty one")
		return nil, false
	}
	var items []field
	for i, n := range f.node.Content {
		items = append(items, field{d: f.d, key: fmt.Sprintf("%s[%d]", f.key, i), line: n.Line, node: n})
	}
	return items, true
}

// nearest returns the known key that is a slip of the finger away, or "". Up to
// two slips, but never half of a short word.
func nearest(name string, known []string) string {
	best, bestAt := "", 3
	for _, k := range known {
		if at := distance(name, k); at < bestAt && 2*at < len(k) {
			best, bestAt = k, at
		}
	}
	return best
}

// distance is Levenshtein's. Long words are not compared: they are no slip.
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
