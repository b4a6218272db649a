package deploy

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// The part of CloudFormation's language that a mistake in a template can be found by without asking AWS: the short
// intrinsics, the names, and which resources there are for which parameters.
//
// A value is a map[string]any, a []any, a scalar as its text, or a call.

// call is an intrinsic: !Ref X is {"Ref", "X"}, also when it was written {Ref: X}.
type call struct {
	name string
	arg  any
	line int
}

// none is what !Ref AWS::NoValue leaves: the key or item is not there.
type none struct{}

// template is a parsed one.
type template struct {
	parameters, conditions, resources, outputs map[string]any
}

var (
	// intrinsics are those that are understood; the rest is refused, so that nothing goes unseen.
	intrinsics = []string{"Ref", "GetAtt", "Sub", "If", "Equals", "Not", "And", "Or", "Condition", "Select", "Split", "GetAZs", "Join"}

	pseudo = []string{
		"AWS::AccountId", "AWS::NoValue", "AWS::NotificationARNs", "AWS::Partition", "AWS::Region", "AWS::StackId",
		"AWS::StackName", "AWS::URLSuffix",
	}

	substitution = regexp.MustCompile(`\$\{([^}]*)\}`)
)

func parse(text []byte) (*template, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, errors.New("the file is empty")
	}
	v, err := convert(doc.Content[0])
	if err != nil {
		return nil, err
	}
	root, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("a template is a mapping")
	}
	t := &template{}
	sections := map[string]*map[string]any{
		"Parameters": &t.parameters, "Conditions": &t.conditions, "Resources": &t.resources, "Outputs": &t.outputs,
	}
	for _, name := range slices.Sorted(maps.Keys(root)) {
		to, known := sections[name]
		switch {
		case known:
			if *to, ok = root[name].(map[string]any); !ok {
				return nil, fmt.Errorf("%s is no mapping", name)
			}
		case name == "AWSTemplateFormatVersion" && root[name] == "2010-09-09", name == "Description":
		default:
			return nil, fmt.Errorf("unknown section %s: %v", name, root[name])
		}
	}
	if len(t.resources) == 0 {
		return nil, errors.New("there are no resources")
	}
	return t, nil
}

func convert(n *yaml.Node) (any, error) {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		return nil, fmt.Errorf("line %d: CloudFormation has no anchors", n.Line)
	}
	v, err := bare(n)
	if err != nil {
		return nil, err
	}
	name, short := strings.CutPrefix(n.Tag, "!")
	if short && !strings.HasPrefix(name, "!") { // !!str and the like are YAML's own
		return intrinsic(name, v, n.Line)
	}
	if m, ok := v.(map[string]any); ok && len(m) == 1 {
		for key, arg := range m {
			if name, long := strings.CutPrefix(key, "Fn::"); long || key == "Ref" {
				return intrinsic(name, arg, n.Line)
			}
		}
	}
	return v, nil
}

func intrinsic(name string, arg any, line int) (any, error) {
	if !slices.Contains(intrinsics, name) {
		return nil, fmt.Errorf("line %d: unknown intrinsic %s", line, name)
	}
	return call{name, arg, line}, nil
}

func bare(n *yaml.Node) (any, error) {
	switch n.Kind {
	case yaml.SequenceNode:
		list := make([]any, 0, len(n.Content))
		for _, item := range n.Content {
			v, err := convert(item)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return list, nil
	case yaml.MappingNode:
		m := make(map[string]any)
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			v, err := convert(n.Content[i+1])
			if err != nil {
				return nil, err
			}
			if _, doubled := m[key.Value]; doubled {
				return nil, fmt.Errorf("line %d: %s is there twice", key.Line, key.Value)
			}
			m[key.Value] = v
		}
		return m, nil
	case yaml.ScalarNode:
		// YAML 1.1, which CloudFormation reads, takes these for booleans, and yaml.v3 for words.
		if n.Style == 0 && slices.Contains([]string{"yes", "no", "on", "off", "y", "n"}, strings.ToLower(n.Value)) {
			return nil, fmt.Errorf("line %d: %s without quotes is a boolean", n.Line, n.Value)
		}
		return n.Value, nil
	}
	return nil, fmt.Errorf("line %d: a node of kind %d", n.Line, n.Kind)
}

// calls visits every intrinsic in v, the inner ones too.
func calls(v any, visit func(call)) {
	switch v := v.(type) {
	case call:
		visit(v)
		calls(v.arg, visit)
	case []any:
		for _, item := range v {
			calls(item, visit)
		}
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			calls(v[key], visit)
		}
	}
}

// mention is one name that an intrinsic takes something from.
type mention struct {
	name string // of a parameter, a resource or AWS::Something
	attr string // of a resource's attribute, or ""
	line int
}

// mentions are the names in c itself, not in the intrinsics within it. A malformed one is an error.
func mentions(c call) ([]mention, error) {
	text, isText := c.arg.(string)
	switch c.name {
	case "Ref":
		if !isText {
			return nil, fmt.Errorf("line %d: Ref takes one name", c.line)
		}
		return []mention{{text, "", c.line}}, nil
	case "GetAtt":
		name, attr, ok := strings.Cut(text, ".")
		if list, isList := c.arg.([]any); isList && len(list) == 2 {
			var one, two bool
			name, one = list[0].(string)
			attr, two = list[1].(string)
			ok = one && two
		}
		if !ok || name == "" || attr == "" {
			return nil, fmt.Errorf("line %d: GetAtt takes NAME.ATTRIBUTE", c.line)
		}
		return []mention{{name, attr, c.line}}, nil
	case "Sub":
		var own map[string]any
		if list, isList := c.arg.([]any); isList && len(list) == 2 {
			text, isText = list[0].(string)
			own, _ = list[1].(map[string]any)
		}
		if !isText || strings.Count(text, "${") != len(substitution.FindAllString(text, -1)) {
			return nil, fmt.Errorf("line %d: Sub takes a text", c.line)
		}
		var all []mention
		for _, found := range substitution.FindAllStringSubmatch(text, -1) {
			name, attr, _ := strings.Cut(found[1], ".")
			if _, isOwn := own[name]; !isOwn && !strings.HasPrefix(name, "!") {
				all = append(all, mention{name, attr, c.line})
			}
		}
		if len(all) == 0 && own == nil {
			return nil, fmt.Errorf("line %d: Sub without anything to put in", c.line)
		}
		return all, nil
	}
	return nil, nil
}

// condition is the name of the condition that c goes by, or "".
func (c call) condition() string {
	arg := c.arg
	if list, ok := arg.([]any); ok && c.name == "If" && len(list) == 3 {
		arg = list[0]
	} else if c.name != "Condition" {
		return ""
	}
	name, _ := arg.(string)
	return name
}

// stack is the template with all parameters given that its conditions ask for.
type stack struct {
	t      *template
	given  map[string]string
	isTrue map[string]bool
}

// other stands for any value that no condition names.
const other = "any other"

// stacks are all that the conditions can tell apart.
func (t *template) stacks() ([]stack, error) {
	values := make(map[string][]string)
	var err error
	calls(t.conditions, func(c call) {
		list, _ := c.arg.([]any)
		if c.name != "Equals" {
			return
		}
		if len(list) != 2 {
			err = fmt.Errorf("line %d: Equals takes two values", c.line)
			return
		}
		ref, isRef := list[0].(call)
		name, _ := ref.arg.(string)
		literal, isText := list[1].(string)
		if !isRef || ref.name != "Ref" || !isText {
			err = fmt.Errorf("line %d: Equals compares a parameter with a text here", c.line)
			return
		}
		parameter, _ := t.parameters[name].(map[string]any)
		if allowed, ok := parameter["AllowedValues"].([]any); ok {
			values[name] = nil
			for _, v := range allowed {
				values[name] = append(values[name], fmt.Sprint(v))
			}
			if !slices.Contains(values[name], literal) {
				err = fmt.Errorf("line %d: %s is never %q", c.line, name, literal)
			}
			return
		}
		if values[name] == nil {
			values[name] = []string{other}
		}
		if !slices.Contains(values[name], literal) {
			values[name] = append(values[name], literal)
		}
	})
	if err != nil {
		return nil, err
	}
	all := []map[string]string{{}}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		var more []map[string]string
		for _, given := range all {
			for _, v := range values[name] {
				one := maps.Clone(given)
				one[name] = v
				more = append(more, one)
			}
		}
		all = more
	}
	var out []stack
	for _, given := range all {
		s := stack{t, given, make(map[string]bool)}
		for name := range t.conditions {
			if s.isTrue[name], err = s.holds(t.conditions[name], 0); err != nil {
				return nil, fmt.Errorf("condition %s: %w", name, err)
			}
		}
		out = append(out, s)
	}
	return out, nil
}

// distinct are those of stacks that may differ in v: in a condition that v goes by, or that a resource goes by which v
// names, or in one of more.
func (t *template) distinct(stacks []stack, v any, more ...string) []stack {
	conditions := slices.Clone(more)
	own := func(v any) {
		m, _ := v.(map[string]any)
		if condition, ok := m["Condition"].(string); ok {
			conditions = append(conditions, condition)
		}
	}
	own(v)
	calls(v, func(c call) {
		if condition := c.condition(); condition != "" {
			conditions = append(conditions, condition)
		}
		all, _ := mentions(c)
		for _, m := range all {
			own(t.resources[m.name])
		}
	})
	slices.Sort(conditions)
	conditions = slices.Compact(conditions)
	var out []stack
	seen := make(map[string]bool)
	for _, s := range stacks {
		key := make([]byte, len(conditions))
		for i, condition := range conditions {
			if s.isTrue[condition] {
				key[i] = 1
			}
		}
		if !seen[string(key)] {
			seen[string(key)] = true
			out = append(out, s)
		}
	}
	return out
}

// holds evaluates a condition. depth ends those that go by each other.
func (s stack) holds(v any, depth int) (bool, error) {
	c, ok := v.(call)
	if !ok || depth > len(s.t.conditions)+8 {
		return false, fmt.Errorf("%v is no condition", v)
	}
	if c.name == "Condition" {
		return s.holds(s.t.conditions[c.condition()], depth+1)
	}
	list, ok := c.arg.([]any)
	if !ok {
		return false, fmt.Errorf("line %d: %s takes a list", c.line, c.name)
	}
	switch c.name {
	case "Equals":
		name, _ := list[0].(call).arg.(string)
		return s.given[name] == list[1], nil
	case "Not", "And", "Or":
		result := c.name == "And"
		for _, item := range list {
			one, err := s.holds(item, depth+1)
			switch {
			case err != nil:
				return false, err
			case c.name == "Not":
				result = !one
			case c.name == "And":
				result = result && one
			default:
				result = result || one
			}
		}
		return result, nil
	}
	return false, fmt.Errorf("line %d: %s is no condition", c.line, c.name)
}

// exists says whether the stack has the resource.
func (s stack) exists(resource string) bool {
	m, ok := s.t.resources[resource].(map[string]any)
	condition, conditional := m["Condition"].(string)
	return ok && (!conditional || s.isTrue[condition])
}

// resolve is v with its If decided and what has no value left out.
func (s stack) resolve(v any) any {
	switch v := v.(type) {
	case call:
		if list, ok := v.arg.([]any); v.name == "If" && ok && len(list) == 3 {
			if s.isTrue[v.condition()] {
				return s.resolve(list[1])
			}
			return s.resolve(list[2])
		}
		if v.name == "Ref" && v.arg == "AWS::NoValue" {
			return none{}
		}
		return call{v.name, s.resolve(v.arg), v.line}
	case []any:
		list := make([]any, 0, len(v))
		for _, item := range v {
			if item = s.resolve(item); item != (none{}) {
				list = append(list, item)
			}
		}
		return list
	case map[string]any:
		m := make(map[string]any)
		for key, item := range v {
			if item = s.resolve(item); item != (none{}) {
				m[key] = item
			}
		}
		return m
	}
	return v
}

// render is a resolved v with names put in for its Ref and Sub, as CloudFormation would.
func render(v any, names map[string]string) (any, error) {
	switch v := v.(type) {
	case call:
		all, err := mentions(v)
		if err != nil {
			return nil, err
		}
		for _, m := range all {
			if _, ok := names[m.name]; !ok || m.attr != "" {
				return nil, fmt.Errorf("line %d: %s%s has no name to be compared by", m.line, m.name, m.attr)
			}
		}
		text, _ := v.arg.(string)
		switch v.name {
		case "Ref":
			return names[text], nil
		case "Sub":
			return substitution.ReplaceAllStringFunc(text, func(s string) string { return names[s[2:len(s)-1]] }), nil
		}
		return nil, fmt.Errorf("line %d: %s is not expected here", v.line, v.name)
	case []any:
		list := make([]any, 0, len(v))
		for _, item := range v {
			item, err := render(item, names)
			if err != nil {
				return nil, err
			}
			list = append(list, item)
		}
		return list, nil
	case map[string]any:
		m := make(map[string]any)
		for key, item := range v {
			item, err := render(item, names)
			if err != nil {
				return nil, err
			}
			m[key] = item
		}
		return m, nil
	}
	return v, nil
}
