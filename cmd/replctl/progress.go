package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"tandem/agent/control"
)

// progress shows the agent's progress messages: on a terminal those that count
// bytes as a bar in place, elsewhere as a line for each tenth.
type progress struct {
	w        io.Writer
	terminal bool

	open  bool // the cursor is behind a bar
	tenth int64
}

func (p *progress) show(m control.Message) {
	var count control.Progress
	if len(m.Data) > 0 {
		if err := json.Unmarshal(m.Data, &count); err != nil {
			count = control.Progress{} // the text alone, then
		}
	}
	if count.TotalBytes <= 0 {
		p.end()
		if m.Text != "" {
			fmt.Fprintln(p.w, m.Text)
		}
		return
	}
	line := formatProgress(count)
	if m.Text != "" {
		line = m.Text + ": " + line
	}
	if p.terminal {
		fmt.Fprintf(p.w, "\r\x1b[K%s %s", bar(count), line)
		p.open = true
		return
	}
	// A log of a resync wants ten lines, not ten thousand.
	if tenth := int64(10*fraction(count)) + 1; tenth != p.tenth {
		p.tenth = tenth
		fmt.Fprintln(p.w, line)
	}
}

// end leaves the last bar standing and puts the cursor below it.
func (p *progress) end() {
	if p.open {
		fmt.Fprintln(p.w)
		p.open = false
	}
}

// fraction is between 0 and 1, whatever the agent says.
func fraction(c control.Progress) float64 {
	if c.TotalBytes <= 0 {
		return 0
	}
	return min(max(float64(c.DoneBytes)/float64(c.TotalBytes), 0), 1)
}

func bar(c control.Progress) string {
	const width = 30
	full := int(math.Round(width * fraction(c)))
	return "[" + strings.Repeat("#", full) + strings.Repeat(" ", width-full) + "]"
}

func formatProgress(c control.Progress) string {
	text := fmt.Sprintf("%.0f %% of %s", math.Floor(100*fraction(c)), formatBytes(c.TotalBytes))
	if c.RateBytesPerSecond > 0 {
		text += fmt.Sprintf(", %s/s, %s left", formatBytes(c.RateBytesPerSecond), formatSeconds(c.ETASeconds))
	}
	return text
}

func formatSeconds(s float64) string {
	if !(s < 1e6) { // also NaN
		return "more than a week"
	}
	return time.Duration(math.Ceil(max(s, 0)) * float64(time.Second)).String()
}

// formatBytes keeps three digits.
func formatBytes(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n), ""
	for _, unit = range []string{"KiB", "MiB", "GiB", "TiB"} {
		v /= 1024
		if v < 1000 {
			break
		}
	}
	switch {
	case v < 10:
		return fmt.Sprintf("%.2f %s", v, unit)
	case v < 100:
		return fmt.Sprintf("%.1f %s", v, unit)
	}
	return fmt.Sprintf("%.0f %s", v, unit)
}
