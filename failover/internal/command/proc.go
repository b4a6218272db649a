package command

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
)

// alive says whether a process of the group pgid still runs. Zombies do not
// count: they hold nothing, and one whose parent never reaps it stays for ever.
func alive(pgid int) bool {
	names, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return false
	}
	for _, name := range names {
		if state, group, ok := readStat(name); ok && group == pgid && state != 'Z' && state != 'X' {
			return true
		}
	}
	return false
}

// readStat takes state and process group out of /proc/PID/stat, proc(5):
//
//	pid (comm) state ppid pgrp …
//
// comm may hold blanks and brackets, so the last bracket is what counts.
func readStat(name string) (state byte, pgrp int, ok bool) {
	data, err := os.ReadFile(name)
	if err != nil {
		return 0, 0, false // it has just ended
	}
	return parseStat(data)
}

func parseStat(data []byte) (state byte, pgrp int, ok bool) {
	_, rest, found := bytes.Cut(data[bytes.LastIndexByte(data, ')')+1:], []byte(" "))
	fields := bytes.Fields(rest)
	if !found || len(fields) < 3 || len(fields[0]) != 1 {
		return 0, 0, false
	}
	pgrp, err := strconv.Atoi(string(fields[2]))
	return fields[0][0], pgrp, err == nil
}
