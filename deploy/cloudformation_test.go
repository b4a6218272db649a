package deploy

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// checks are what a template of ours must keep. Each returns what is wrong, and TestMutatedTemplatesFail proves that
// each can.
var checks = map[string]func(t *template, stacks []stack) []string{
	"names":       checkNames,
	"use":         checkUse,
	"conditions":  checkConditions,
	"existence":   checkExistence,
	"parameters":  checkParameters,
	"types":       checkTypes,
	"volumes":     checkVolumes,
	"instances":   checkInstances,
	"routing":     checkRouting,
	"tags":        checkTags,
	"ports":       checkPorts,
	"witness":     checkWitness,
	"permissions": checkPermissions,
}

// faults are what all checks find in a template, each with its check's name before it.
func faults(text []byte) []string {
	t, err := parse(text)
	if err != nil {
		return []string{"syntax: " + err.Error()}
	}
	stacks, err := t.stacks()
	if err != nil {
		return []string{"syntax: " + err.Error()}
	}
	var all []string
	for _, name := range slices.Sorted(maps.Keys(checks)) {
		found := checks[name](t, stacks)
		slices.Sort(found)
		for _, fault := range slices.Compact(found) {
			all = append(all, name+": "+fault)
		}
	}
	return all
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTemplate(t *testing.T) {
	for _, fault := range faults(read(t, "cloudformation.yaml")) {
		t.Error(fault)
	}
}

// sections are the parts of the template that have intrinsics.
func (t *template) sections() []any { return []any{t.conditions, t.resources, t.outputs} }

// checkNames: everything that is named exists.
func checkNames(t *template, _ []stack) (found []string) {
	for _, section := range t.sections() {
		calls(section, func(c call) {
			all, err := mentions(c)
			if err != nil {
				found = append(found, err.Error())
			}
			for _, m := range all {
				_, isParameter := t.parameters[m.name]
				_, isResource := t.resources[m.name]
				isPseudo := slices.Contains(pseudo, m.name)
				switch {
				case !isParameter && !isResource && !isPseudo:
					found = append(found, fmt.Sprintf("line %d: %s is neither a parameter nor a resource", m.line, m.name))
				case m.attr != "" && !isResource:
					found = append(found, fmt.Sprintf("line %d: %s.%s: only a resource has attributes", m.line, m.name, m.attr))
				}
			}
		})
	}
	return found
}

// checkUse: there is nothing that nobody asks for.
func checkUse(t *template, _ []stack) (found []string) {
	used := make(map[string]bool)
	for _, section := range t.sections() {
		calls(section, func(c call) {
			all, _ := mentions(c)
			for _, m := range all {
				used[m.name] = true
			}
			used[c.condition()] = true
		})
	}
	for _, section := range []map[string]any{t.resources, t.outputs} {
		for _, v := range section {
			m, _ := v.(map[string]any)
			condition, _ := m["Condition"].(string)
			used[condition] = true
		}
	}
	for _, section := range []map[string]any{t.parameters, t.conditions} {
		for name := range section {
			if !used[name] {
				found = append(found, name+" is used nowhere")
			}
		}
	}
	return found
}

// checkConditions: those that things go by exist, and decide between two.
func checkConditions(t *template, _ []stack) (found []string) {
	known := func(name, where string) {
		if _, ok := t.conditions[name]; !ok {
			found = append(found, fmt.Sprintf("%s: there is no condition %q", where, name))
		}
	}
	for i, section := range t.sections() {
		calls(section, func(c call) {
			where := fmt.Sprintf("line %d", c.line)
			switch c.name {
			case "If":
				if list, ok := c.arg.([]any); !ok || len(list) != 3 {
					found = append(found, where+": If takes a condition and two values")
				}
				known(c.condition(), where)
			case "Condition":
				known(c.condition(), where)
			case "Equals", "Not", "And", "Or":
				if i > 0 {
					found = append(found, fmt.Sprintf("%s: %s belongs to Conditions", where, c.name))
				}
			}
		})
	}
	for _, section := range []map[string]any{t.resources, t.outputs} {
		for name, v := range section {
			m, _ := v.(map[string]any)
			if condition, ok := m["Condition"]; ok {
				known(fmt.Sprint(condition), name)
			}
		}
	}
	return found
}

// checkExistence: whatever the parameters, nothing names a resource that there is not then.
func checkExistence(t *template, stacks []stack) (found []string) {
	type missing struct {
		mention
		by string
	}
	seen := make(map[missing]bool)
	for _, section := range []map[string]any{t.resources, t.outputs} {
		for name, v := range section {
			m, _ := v.(map[string]any)
			condition, conditional := m["Condition"].(string)
			for _, s := range t.distinct(stacks, v) {
				if conditional && !s.isTrue[condition] {
					continue
				}
				calls(s.resolve(v), func(c call) {
					all, _ := mentions(c)
					for _, m := range all {
						_, isResource := t.resources[m.name]
						if missed := (missing{m, name}); isResource && !s.exists(m.name) && !seen[missed] {
							seen[missed] = true
							found = append(found, fmt.Sprintf("line %d: %s names %s, which there is not with %v", m.line, name, m.name, s.given))
						}
					}
				})
			}
		}
	}
	return found
}

var parameterType = regexp.MustCompile(`^(String|Number|CommaDelimitedList|(List<)?AWS::EC2::[A-Za-z]+::[A-Za-z]+>?)$`)

func checkParameters(t *template, _ []stack) (found []string) {
	for name, v := range t.parameters {
		p, _ := v.(map[string]any)
		kind, _ := p["Type"].(string)
		if !parameterType.MatchString(kind) {
			found = append(found, fmt.Sprintf("%s has the type %q", name, kind))
		}
		if allowed, ok := p["AllowedValues"].([]any); ok && !slices.Contains(allowed, p["Default"]) {
			found = append(found, fmt.Sprintf("%s: the default %v is not allowed", name, p["Default"]))
		}
		if _, err := regexp.Compile(fmt.Sprint(p["AllowedPattern"])); err != nil {
			found = append(found, fmt.Sprintf("%s: %v", name, err))
		}
	}
	return found
}

var resourceType = regexp.MustCompile(`^AWS::[A-Za-z0-9]+::[A-Za-z0-9]+$`)

func checkTypes(t *template, _ []stack) (found []string) {
	known := []string{"Type", "Condition", "DeletionPolicy", "UpdateReplacePolicy", "DependsOn", "Properties"}
	for name, v := range t.resources {
		r, _ := v.(map[string]any)
		kind, _ := r["Type"].(string)
		if !resourceType.MatchString(kind) {
			found = append(found, fmt.Sprintf("%s has the type %q", name, kind))
		}
		for key := range r {
			if !slices.Contains(known, key) {
				found = append(found, fmt.Sprintf("%s has %s", name, key))
			}
		}
	}
	return found
}

// of returns the resources of a type, and their properties, by name.
func (t *template) of(kind string) map[string]map[string]any {
	all := make(map[string]map[string]any)
	for name, v := range t.resources {
		if r, _ := v.(map[string]any); r["Type"] == kind {
			properties, _ := r["Properties"].(map[string]any)
			all[name] = properties
		}
	}
	return all
}

// kept says that neither the stack's end nor an update takes the resource's content away.
func (t *template) kept(name string) bool {
	r, _ := t.resources[name].(map[string]any)
	for _, key := range []string{"DeletionPolicy", "UpdateReplacePolicy"} {
		if r[key] != "Retain" && r[key] != "Snapshot" {
			return false
		}
	}
	return true
}

// checkVolumes: the data outlives stack and instances.
func checkVolumes(t *template, _ []stack) (found []string) {
	attached := make(map[any]int)
	for _, p := range t.of("AWS::EC2::VolumeAttachment") {
		c, _ := p["VolumeId"].(call)
		attached[c.arg]++
	}
	volumes := t.of("AWS::EC2::Volume")
	if len(volumes) != 2 {
		found = append(found, fmt.Sprintf("there are %d volumes", len(volumes)))
	}
	for name, p := range volumes {
		if !t.kept(name) {
			found = append(found, name+" goes with the stack")
		}
		if p["Encrypted"] != "true" {
			found = append(found, name+" is not encrypted")
		}
		if attached[name] != 1 {
			found = append(found, fmt.Sprintf("%s is attached %d times", name, attached[name]))
		}
		calls(p["AvailabilityZone"], func(c call) {
			if c.name != "Ref" {
				found = append(found, name+" takes its zone from something that can be replaced")
			}
		})
	}
	// An instance's own volumes end with it.
	for name, p := range t.of("AWS::EC2::LaunchTemplate") {
		data, _ := p["LaunchTemplateData"].(map[string]any)
		if _, has := data["BlockDeviceMappings"]; has {
			found = append(found, name+" has volumes")
		}
	}
	for name, p := range t.of("AWS::EC2::Instance") {
		for _, key := range []string{"BlockDeviceMappings", "Volumes"} {
			if _, has := p[key]; has {
				found = append(found, name+" has volumes")
			}
		}
	}
	return found
}

// checkInstances: both by a launch template, their metadata by IMDSv2 alone, and nothing in the way of the fence.
func checkInstances(t *template, _ []stack) (found []string) {
	templates := t.of("AWS::EC2::LaunchTemplate")
	instances := t.of("AWS::EC2::Instance")
	if len(instances) != 2 {
		found = append(found, fmt.Sprintf("there are %d instances", len(instances)))
	}
	by := make(map[any]bool)
	for name, p := range instances {
		ref, _ := p["LaunchTemplate"].(map[string]any)
		id, _ := ref["LaunchTemplateId"].(call)
		launch, _ := id.arg.(string)
		if templates[launch] == nil || by[launch] {
			found = append(found, name+" has no launch template of its own")
		}
		by[launch] = true
		for _, key := range []string{"DisableApiStop", "DisableApiTermination", "MetadataOptions"} {
			if _, has := p[key]; has {
				found = append(found, fmt.Sprintf("%s has %s", name, key))
			}
		}
	}
	for name, p := range templates {
		data, _ := p["LaunchTemplateData"].(map[string]any)
		metadata, _ := data["MetadataOptions"].(map[string]any)
		if metadata["HttpTokens"] != "required" || metadata["HttpEndpoint"] != "enabled" {
			found = append(found, name+" does not require IMDSv2")
		}
		for _, key := range []string{"DisableApiStop", "DisableApiTermination"} {
			if _, has := data[key]; has {
				found = append(found, fmt.Sprintf("%s has %s", name, key))
			}
		}
		if data["IamInstanceProfile"] == nil {
			found = append(found, name+" has no role")
		}
	}
	return found
}

// checkRouting: the check of sources and destinations is off if there is an overlay address, and on if not.
func checkRouting(t *template, stacks []stack) (found []string) {
	for name, p := range t.of("AWS::EC2::NetworkInterface") {
		for _, s := range t.distinct(stacks, p, "UseOverlay") {
			want := fmt.Sprint(!s.isTrue["UseOverlay"])
			if got := s.resolve(p["SourceDestCheck"]); got != want {
				found = append(found, fmt.Sprintf("%s has SourceDestCheck %v where %s is right", name, got, want))
			}
		}
	}
	return found
}

// checkTags: the rights go by tandem:cluster, and whoever looks for a node's things by tandem:node.
func checkTags(t *template, _ []stack) (found []string) {
	cluster := func(v any) bool {
		c, _ := v.(call)
		return c.name == "Ref" && c.arg == "ClusterName"
	}
	for kind, perNode := range map[string]bool{
		"AWS::EC2::Volume": true, "AWS::EC2::NetworkInterface": true, "AWS::EC2::Instance": true, "AWS::EC2::EIP": false,
	} {
		for name, p := range t.of(kind) {
			tags := make(map[any]any)
			list, _ := p["Tags"].([]any)
			for _, v := range list {
				tag, _ := v.(map[string]any)
				tags[tag["Key"]] = tag["Value"]
			}
			if !cluster(tags["tandem:cluster"]) {
				found = append(found, name+" has no tag tandem:cluster")
			}
			if perNode && tags["tandem:node"] != strings.ToLower(name[len(name)-1:]) {
				found = append(found, fmt.Sprintf("%s has the tag tandem:node %v", name, tags["tandem:node"]))
			}
		}
	}
	return found
}

// checkPorts: the link is open to the nodes alone, NFS to the clients, and nothing to everybody.
func checkPorts(t *template, stacks []stack) (found []string) {
	var rules []any
	var conditions []string // under which there are rules
	for name, p := range t.of("AWS::EC2::SecurityGroupIngress") {
		rules = append(rules, p)
		r, _ := t.resources[name].(map[string]any)
		if condition, ok := r["Condition"].(string); ok {
			conditions = append(conditions, condition)
		}
	}
	for _, p := range t.of("AWS::EC2::SecurityGroup") {
		rules = append(rules, p)
	}
	for _, s := range t.distinct(stacks, rules, conditions...) {
		link, nfs := false, false
		judge := func(name string, v any) {
			rule, _ := s.resolve(v).(map[string]any)
			cidr, _ := rule["CidrIp"].(call)
			group, _ := rule["SourceSecurityGroupId"].(call)
			if rule["FromPort"] != rule["ToPort"] || rule["IpProtocol"] != "tcp" || (cidr.name == "") == (group.name == "") {
				found = append(found, fmt.Sprintf("%s opens %v", name, rule))
			}
			switch rule["FromPort"] {
			case "7788":
				if link = group.arg == "NodeGroup"; !link {
					found = append(found, "the link is open to others than the nodes")
				}
			case "2049":
				nfs = cidr.arg == "ClientCidr"
			}
		}
		for name, p := range t.of("AWS::EC2::SecurityGroupIngress") {
			if s.exists(name) {
				judge(name, p)
			}
		}
		for name, p := range t.of("AWS::EC2::SecurityGroup") {
			rules, _ := s.resolve(p["SecurityGroupIngress"]).([]any)
			for _, rule := range rules {
				judge(name, rule)
			}
		}
		if !link {
			found = append(found, "the nodes do not reach each other")
		}
		if !nfs {
			found = append(found, "the clients do not reach the server")
		}
	}
	return found
}

// checkWitness: there is one, whatever is chosen, and its record stays.
func checkWitness(t *template, stacks []stack) (found []string) {
	stores := slices.Concat(slices.Collect(maps.Keys(t.of("AWS::S3::Bucket"))), slices.Collect(maps.Keys(t.of("AWS::DynamoDB::Table"))))
	for _, name := range stores {
		if !t.kept(name) {
			found = append(found, name+" goes with the stack")
		}
	}
	for _, s := range stacks {
		n := 0
		for _, name := range stores {
			if s.exists(name) {
				n++
			}
		}
		if n != 1 {
			found = append(found, fmt.Sprintf("%d witnesses with %s", n, s.given["Witness"]))
		}
	}
	for name, p := range t.of("AWS::DynamoDB::Table") {
		if !reflect.DeepEqual(p["KeySchema"], []any{map[string]any{"AttributeName": "id", "KeyType": "HASH"}}) {
			found = append(found, name+" has another key than id")
		}
	}
	return found
}

// placeholders are what iam-policy.json has for what the template knows.
var placeholders = map[string]string{
	"AWS::Partition": "aws", "AWS::Region": "REGION", "AWS::AccountId": "ACCOUNT",
	"ClusterName": "CLUSTER", "WitnessBucket": "BUCKET", "WitnessTable": "TABLE",
}

// needs is when a statement of the policy has to be there; the others always do.
var needs = map[string]string{
	"WitnessObject": "UseS3", "WitnessObjectMissing": "UseS3", "WitnessItem": "UseDynamoDB",
	"ElasticIp": "UseEip", "PrivateIp": "UsePrivateIp", "OverlayRoute": "UseOverlay",
}

// checkPermissions: the role may do what iam-policy.json says, of that what the parameters ask for, and nothing else.
func checkPermissions(t *template, stacks []stack) (found []string) {
	want, err := policyFile()
	if err != nil {
		return []string{err.Error()}
	}
	roles := t.of("AWS::IAM::Role")
	if len(roles) != 1 {
		return []string{fmt.Sprintf("there are %d roles", len(roles))}
	}
	for name, p := range roles {
		if _, has := p["ManagedPolicyArns"]; has {
			found = append(found, name+" has the policies of others")
		}
		for _, s := range t.distinct(stacks, p, slices.Collect(maps.Values(needs))...) {
			granted, err := s.statements(p)
			if err != nil {
				return append(found, err.Error())
			}
			for sid, statement := range want {
				condition, conditional := needs[sid]
				needed := !conditional || s.isTrue[condition]
				got, has := granted[sid]
				switch {
				case needed != has:
					found = append(found, fmt.Sprintf("%s is there: %t, needed: %t", sid, has, needed))
				case has && !reflect.DeepEqual(got, statement):
					found = append(found, fmt.Sprintf("%s is not the file's: %v", sid, got))
				}
				delete(granted, sid)
			}
			for sid := range granted {
				found = append(found, fmt.Sprintf("%s is not in iam-policy.json", sid))
			}
		}
	}
	for _, kind := range []string{"AWS::IAM::Policy", "AWS::IAM::ManagedPolicy", "AWS::IAM::RolePolicy", "AWS::IAM::UserPolicy"} {
		for name := range t.of(kind) {
			found = append(found, name+" grants something more")
		}
	}
	return found
}

// statements are the role's, by Sid.
func (s stack) statements(role map[string]any) (map[string]any, error) {
	policies, _ := role["Policies"].([]any)
	byID := make(map[string]any)
	for _, v := range policies {
		policy, _ := v.(map[string]any)
		document, _ := policy["PolicyDocument"].(map[string]any)
		list, ok := document["Statement"].([]any)
		if !ok || document["Version"] != "2012-10-17" {
			return nil, fmt.Errorf("%v is no policy", policy["PolicyName"])
		}
		for _, v := range s.resolve(list).([]any) {
			rendered, err := render(v, placeholders)
			if err != nil {
				return nil, err
			}
			statement, _ := rendered.(map[string]any)
			sid := fmt.Sprint(statement["Sid"])
			if _, doubled := byID[sid]; doubled {
				return nil, fmt.Errorf("%s is there twice", sid)
			}
			byID[sid] = statement
		}
	}
	return byID, nil
}

// policyFile is iam-policy.json, its statements by Sid.
func policyFile() (map[string]any, error) {
	b, err := os.ReadFile("iam-policy.json")
	if err != nil {
		return nil, err
	}
	var document struct {
		Version   string
		Statement []map[string]any
	}
	if err := json.Unmarshal(b, &document); err != nil {
		return nil, fmt.Errorf("iam-policy.json: %w", err)
	}
	byID := make(map[string]any)
	for _, statement := range document.Statement {
		byID[fmt.Sprint(statement["Sid"])] = statement
	}
	if len(byID) != len(document.Statement) || document.Version != "2012-10-17" {
		return nil, fmt.Errorf("iam-policy.json has %d statements, %d of them named", len(document.Statement), len(byID))
	}
	return byID, nil
}

// permitted is every action that Tandem asks AWS for.
var permitted = []string{
	"dynamodb:DeleteItem", "dynamodb:GetItem", "dynamodb:PutItem",
	"ec2:AssignPrivateIpAddresses", "ec2:AssociateAddress", "ec2:CreateRoute", "ec2:DescribeAddresses",
	"ec2:DescribeInstanceTypes", "ec2:DescribeInstances", "ec2:DescribeNetworkInterfaces", "ec2:DescribeRouteTables",
	"ec2:DescribeVolumes", "ec2:DetachVolume", "ec2:DisassociateAddress", "ec2:ReplaceRoute", "ec2:StopInstances",
	"ec2:UnassignPrivateIpAddresses",
	"s3:DeleteObject", "s3:GetObject", "s3:ListBucket", "s3:PutObject",
}

// TestPolicy: well-formed, the actions that are needed and no others, and whatever changes something is bound to
// the cluster.
func TestPolicy(t *testing.T) {
	statements, err := policyFile()
	if err != nil {
		t.Fatal(err)
	}
	action := regexp.MustCompile(`^[a-z0-9-]+:[A-Z][A-Za-z]+$`)
	var all []string
	for sid, v := range statements {
		s := v.(map[string]any)
		for key := range s {
			if !slices.Contains([]string{"Sid", "Effect", "Action", "Resource", "Condition"}, key) {
				t.Errorf("%s has %s", sid, key)
			}
		}
		if s["Effect"] != "Allow" || !regexp.MustCompile(`^[A-Za-z0-9]+$`).MatchString(sid) {
			t.Errorf("%s: %v", sid, s["Effect"])
		}
		actions, ok := s["Action"].([]any)
		resources, ok2 := s["Resource"].([]any)
		if !ok || !ok2 || len(actions) == 0 || len(resources) == 0 {
			t.Fatalf("%s: Action and Resource are lists", sid)
		}
		looks := true
		for _, v := range actions {
			a, _ := v.(string)
			if !action.MatchString(a) {
				t.Errorf("%s: %q is no action", sid, a)
			}
			looks = looks && strings.HasPrefix(a, "ec2:Describe")
			all = append(all, a)
		}
		condition, _ := json.Marshal(s["Condition"])
		for _, v := range resources {
			r, _ := v.(string)
			switch {
			case r == "*" && looks:
			case strings.HasPrefix(r, "arn:aws:ec2:REGION:ACCOUNT:") && strings.HasSuffix(r, "/*"):
				if string(condition) != `{"StringEquals":{"ec2:ResourceTag/tandem:cluster":"CLUSTER"}}` {
					t.Errorf("%s is not bound to the cluster by %s", sid, condition)
				}
			case strings.HasPrefix(r, "arn:aws:s3:::BUCKET"), r == "arn:aws:dynamodb:REGION:ACCOUNT:table/TABLE":
			default:
				t.Errorf("%s: %q", sid, r)
			}
		}
	}
	slices.Sort(all)
	if !slices.Equal(all, permitted) {
		t.Errorf("the actions are\n%v\nneeded are\n%v", all, permitted)
	}
}

// TestMutatedTemplatesFail makes one mistake at a time, which the check that it is meant for must find.
func TestMutatedTemplatesFail(t *testing.T) {
	good := string(read(t, "cloudformation.yaml"))
	const retain = "    DeletionPolicy: Retain\n"
	tests := []struct {
		name     string
		old, new string // the first old becomes new
		want     string // in one of the faults
	}{
		{"tabs", "Parameters:\n  ", "Parameters:\n\t", "syntax: "},
		{"an unknown section", "Outputs:\n", "Output:\n", "syntax: unknown section Output"},
		{"an unknown intrinsic", "!Ref ZoneA", "!Reff ZoneA", "syntax: line"},
		{"an unknown long intrinsic", "AvailabilityZone: !Ref ZoneA", "AvailabilityZone: {\"Fn::Zone\": ZoneA}", "unknown intrinsic Zone"},
		{"a doubled key", "      VolumeType: gp3\n", "      VolumeType: gp3\n      VolumeType: gp2\n", "VolumeType is there twice"},
		{"a doubled resource", "  VolumeB:\n", "  VolumeA:\n", "VolumeA is there twice"},
		{"a boolean for a word", `Default: "yes"`, "Default: yes", "yes without quotes is a boolean"},
		{"an anchor", "VolumeType: gp3", "VolumeType: &kind gp3", "no anchors"},
		{"another language", `"2010-09-09"`, `"2012-10-17"`, "unknown section AWSTemplateFormatVersion"},
		{"a value that is never given", "!Equals [!Ref Witness, s3]", "!Equals [!Ref Witness, S3]", `Witness is never "S3"`},

		{"an unknown Ref", "!Ref ZoneA", "!Ref ZoneC", "names: line"},
		{"an unknown Ref, long", "AvailabilityZone: !Ref ZoneA", "AvailabilityZone: {Ref: ZoneC}", "names: line"},
		{"an unknown GetAtt", "!GetAtt Profile.Arn", "!GetAtt Profil.Arn", "Profil is neither"},
		{"GetAtt of a parameter", "!GetAtt Role.Arn", "!GetAtt VpcId.Arn", "only a resource has attributes"},
		{"GetAtt of nothing", "!GetAtt Role.Arn", "!GetAtt Role", "GetAtt takes"},
		{"an unknown Sub", `"${ClusterName}-a"`, `"${Cluster}-a"`, "Cluster is neither"},
		{"an unknown attribute in Sub", "${ElasticIp.AllocationId}", "${Elastic.AllocationId}", "Elastic is neither"},
		{"Sub without an end", `"${ClusterName}-a"`, `"${ClusterName-a"`, "Sub takes a text"},
		{"Sub of a constant", `"${ClusterName}-a"`, `"a"`, "Sub without anything"},
		{"an unknown pseudo parameter", "${AWS::Region}", "${AWS::Zone}", "AWS::Zone is neither"},

		{"an unused parameter", "Parameters:\n", "Parameters:\n  Colour: {Type: String}\n", "use: Colour"},
		{"an unused condition", "Conditions:\n", "Conditions:\n  HasVpc: !Equals [!Ref VpcId, none]\n", "use: HasVpc"},

		{"an unknown condition of a resource", "Condition: HasA", "Condition: HasC", `conditions: AttachmentA: there is no condition "HasC"`},
		{"an unknown condition of an output", "    Condition: UseEip\n    Description: \"A step", "    Condition: UseIP\n    Description: \"A step", `no condition "UseIP"`},
		{"an unknown condition in If", "!If [HasKey,", "!If [HasKeys,", `no condition "HasKeys"`},
		{"an If without else", `!If [HasKey, !Ref KeyName, !Ref "AWS::NoValue"]`, "!If [HasKey, !Ref KeyName]", "If takes a condition"},
		{"a comparison outside", "Size: !Ref VolumeGiB", "Size: !Equals [!Ref VolumeGiB, \"1\"]", "Equals belongs to Conditions"},

		{"an attachment without an instance", "    Condition: HasA\n    Properties:\n      Device", "    Properties:\n      Device", "existence: line"},
		{"an output of what there is not", "    Condition: UseEip\n    Description: \"A step", "    Description: \"A step", "ElasticIpStep names ElasticIp"},
		{"the other witness's branch", "      - UseS3\n      - !Sub \"s3:", "      - UseDynamoDB\n      - !Sub \"s3:", "WitnessUrl names WitnessBucket"},

		{"a parameter of no type", "Type: AWS::EC2::VPC::Id", "Type: VPC", "parameters: VpcId"},
		{"a default that is refused", "Default: s3", "Default: etcd", "the default etcd is not allowed"},
		{"a pattern that is none", `AllowedPattern: "[a-z0-9]`, `AllowedPattern: "([a-z0-9]`, "parameters: ClusterName: error parsing regexp"},

		{"a type of nobody", "Type: AWS::EC2::EIP\n", "Type: AWS::EIP\n", "types: ElasticIp"},
		{"a misspelt attribute", retain, "    DeletePolicy: Retain\n", "types: VolumeA has DeletePolicy"},

		{"a volume that is deleted", retain, "    DeletionPolicy: Delete\n", "volumes: VolumeA goes with the stack"},
		{"a volume that may be replaced", retain + "    UpdateReplacePolicy: Retain\n", retain, "volumes: VolumeA goes with the stack"},
		{"a volume in the clear", "Encrypted: true", "Encrypted: false", "VolumeA is not encrypted"},
		{"a volume in a launch template", "        ImageId: !Ref ImageA\n", "        ImageId: !Ref ImageA\n        BlockDeviceMappings: [{DeviceName: /dev/sdf, Ebs: {VolumeSize: 100}}]\n", "volumes: LaunchTemplateA has volumes"},
		{"a volume of an instance", "      InstanceType: !Ref InstanceTypeA\n", "      InstanceType: !Ref InstanceTypeA\n      BlockDeviceMappings: []\n", "volumes: InstanceA has volumes"},
		{"one volume for both", "VolumeId: !Ref VolumeB", "VolumeId: !Ref VolumeA", "VolumeB is attached 0 times"},
		{"a zone of an instance", "AvailabilityZone: !Ref ZoneA", "AvailabilityZone: !GetAtt InstanceA.AvailabilityZone", "VolumeA takes its zone"},

		{"IMDSv1", "HttpTokens: required", "HttpTokens: optional", "instances: LaunchTemplateA does not require IMDSv2"},
		{"no word of IMDS", "          HttpTokens: required\n", "", "instances: LaunchTemplateA does not require IMDSv2"},
		{"an unstoppable node", "        ImageId: !Ref ImageB\n", "        ImageId: !Ref ImageB\n        DisableApiStop: true\n", "LaunchTemplateB has DisableApiStop"},
		{"a node without a role", "        IamInstanceProfile: {Arn: !GetAtt Profile.Arn}\n", "", "LaunchTemplateA has no role"},
		{"one launch template for both", "LaunchTemplateId: !Ref LaunchTemplateB", "LaunchTemplateId: !Ref LaunchTemplateA", "has no launch template of its own"},

		{"the check is never off", "SourceDestCheck: !If [UseOverlay, false, true]", "SourceDestCheck: true", "routing: InterfaceA"},
		{"the check is never on", "SourceDestCheck: !If [UseOverlay, false, true]", "SourceDestCheck: false", "routing: InterfaceA"},

		{"no cluster", `        - {Key: "tandem:cluster", Value: !Ref ClusterName}` + "\n", "", "tags: VolumeA has no tag tandem:cluster"},
		{"another node", `{Key: "tandem:node", Value: b}`, `{Key: "tandem:node", Value: a}`, "tags: VolumeB has the tag tandem:node a"},

		{"a link for clients", "      SourceSecurityGroupId: !Ref NodeGroup\n", "      CidrIp: !Ref ClientCidr\n", "ports: the link is open"},
		{"no link", "FromPort: 7788\n      ToPort: 7788", "FromPort: 7789\n      ToPort: 7789", "ports: the nodes do not reach each other"},
		{"a link that there is not always", "    Type: AWS::EC2::SecurityGroupIngress\n    Properties:", "    Type: AWS::EC2::SecurityGroupIngress\n    Condition: HasAdmin\n    Properties:", "ports: the nodes do not reach each other"},
		{"NFS for everybody", "CidrIp: !Ref ClientCidr", "CidrIp: 0.0.0.0/0", "ports: "},
		{"a range", "ToPort: 2049", "ToPort: 2050", "ports: NodeGroup opens"},

		{"no witness", "Condition: UseDynamoDB\n    DeletionPolicy", "Condition: UseEip\n    DeletionPolicy", "witness: "},
		{"a witness that is deleted", "    Condition: UseS3\n" + retain, "    Condition: UseS3\n", "witness: WitnessBucket goes"},
		{"another key", "{AttributeName: id, KeyType: HASH}", "{AttributeName: key, KeyType: HASH}", "witness: WitnessTable"},

		{"a right more", `"s3:PutObject", "s3:DeleteObject"]`, `"s3:PutObject", "s3:DeleteObject", "s3:GetObjectAcl"]`, "permissions: WitnessObject is not the file's"},
		{"a right less", `["ec2:StopInstances", "ec2:DetachVolume"]`, `["ec2:StopInstances"]`, "permissions: Fence is not the file's"},
		{"a fence for everybody", "                Condition: {StringEquals: {\"ec2:ResourceTag/tandem:cluster\": !Ref ClusterName}}\n      Tags:", "      Tags:", "permissions: Fence is not the file's"},
		{"all volumes of the world", "${AWS::AccountId}:volume/*", "*:volume/*", "permissions: Fence is not the file's"},
		{"a statement more", "              - Sid: Look\n", "              - {Sid: All, Effect: Allow, Action: [\"*\"], Resource: [\"*\"]}\n              - Sid: Look\n", "permissions: All is not in iam-policy.json"},
		{"a right that is not asked for", "              - !If\n                - UseOverlay\n", "              - !If\n                - UseEip\n", "permissions: OverlayRoute is there: true, needed: false"},
		{"managed policies", "      Policies:\n", "      ManagedPolicyArns: [\"arn:aws:iam::aws:policy/AdministratorAccess\"]\n      Policies:\n", "permissions: Role has the policies of others"},
		{"another policy", "  Profile:\n", "  More: {Type: AWS::IAM::Policy}\n  Profile:\n", "permissions: More grants"},
	}
	proved := make(map[string]bool)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if !strings.Contains(good, test.old) {
				t.Fatalf("the template has no %q", test.old)
			}
			found := faults([]byte(strings.Replace(good, test.old, test.new, 1)))
			i := slices.IndexFunc(found, func(fault string) bool { return strings.Contains(fault, test.want) })
			if i < 0 {
				t.Fatalf("want %q, found\n%s", test.want, strings.Join(found, "\n"))
			}
			check, _, _ := strings.Cut(found[i], ":")
			proved[check] = true
		})
	}
	for name := range checks {
		if !proved[name] {
			t.Errorf("no mutation is for %s", name)
		}
	}
}
