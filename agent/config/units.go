package config

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// parseSize reads a number of bytes with its unit. A bare number is refused,
// except 0: nobody agrees on what "size: 100" means.
func parseSize(s string) (int64, error) {
	if s == "0" {
		return 0, nil
	}
	digits := len(s) - len(strings.TrimLeft(s, "0123456789"))
	if digits == 0 {
		return 0, fmt.Errorf("%q is not a size: write a whole number and a unit, such as 1GiB", s)
	}
	var unit int64
	switch strings.TrimSpace(s[digits:]) {
	case "":
		return 0, fmt.Errorf("%s has no unit: write B, KiB, MiB, GiB or TiB (or kB, MB, GB, TB)", s)
	case "B":
		unit = 1
	case "KiB":
		unit = 1 << 10
	case "MiB":
		unit = 1 << 20
	case "GiB":
		unit = 1 << 30
	case "TiB":
		unit = 1 << 40
	case "kB":
		unit = 1e3
	case "MB":
		unit = 1e6
	case "GB":
		unit = 1e9
	case "TB":
		unit = 1e12
	default:
		return 0, fmt.Errorf("%q is not a size: the units are B, KiB, MiB, GiB and TiB (or kB, MB, GB, TB)", s)
	}
	n, err := strconv.ParseInt(s[:digits], 10, 64)
	if err != nil || n > math.MaxInt64/unit {
		return 0, fmt.Errorf("%s is too large", s)
	}
	return n * unit, nil
}

// parseDuration is time.ParseDuration with texts for an operator, and without
// negative values: no key has a use for one.
func parseDuration(s string) (time.Duration, error) {
	if s != "0" && strings.Trim(s, "0123456789.") == "" {
		return 0, fmt.Errorf("%s has no unit: write ms, s, m or h", s)
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration: write a number and ms, s, m or h, such as 3s", s)
	}
	if v < 0 {
		return 0, errors.New("must not be negative")
	}
	return v, nil
}

// formatDuration leaves out the zero minutes and seconds that Duration.String
// appends to 1h0m0s.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
