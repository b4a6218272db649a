package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
)

// Result is one scenario's entry in results.json.
type Result struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	OK       bool     `json:"ok"`
	Seconds  float64  `json:"seconds"`
	Commit   string   `json:"commit"`   // "-dirty" if the tree differed from it
	Kernel   string   `json:"kernel"`   // of the guests, and how they were run
	Asserted []string `json:"asserted"` // what was found to hold, with the figures
	Error    string   `json:"error,omitempty"`
}

// WriteResults replaces the file as a whole: a reader never sees half of it.
func WriteResults(path string, results []Result) error {
	for i := range results {
		if results[i].Asserted == nil {
			results[i].Asserted = []string{}
		}
	}
	b, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// ReadResults reads what WriteResults has written.
func ReadResults(path string) (results []Result, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	err = json.Unmarshal(b, &results)
	return results, err
}

// InOrder are the results in the order of the scenarios; one that is missing has failed, and says
// so.
func InOrder(scenarios []Scenario, results []Result, commit string) []Result {
	all := make([]Result, len(scenarios))
	for i, s := range scenarios {
		all[i] = Result{ID: s.ID, Name: s.Name, Commit: commit, Error: "it was not played to its end"}
		for _, r := range results {
			if r.ID == s.ID {
				all[i] = r
			}
		}
	}
	return all
}

// PrintTable is for people.
func PrintTable(w io.Writer, results []Result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ID\tRESULT\tSECONDS\tASSERTED\tKERNEL\tNAME")
	for _, r := range results {
		verdict := "ok"
		if !r.OK {
			verdict = "FAILED"
		}
		fmt.Fprintf(t, "%s\t%s\t%.1f\t%d\t%s\t%s\n", r.ID, verdict, r.Seconds, len(r.Asserted), r.Kernel, r.Name)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range results {
		if r.Error != "" {
			fmt.Fprintf(w, "%s: %s\n", r.ID, strings.ReplaceAll(r.Error, "\n", "\n  "))
		}
	}
	return nil
}

// AllOK says whether there are results and none has failed.
func AllOK(results []Result) bool {
	for _, r := range results {
		if !r.OK {
			return false
		}
	}
	return len(results) > 0
}
