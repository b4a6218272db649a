// Package vm is a small room of virtual machines on one host: QEMU, a stock
// Debian kernel out of its package, and the host's own root as theirs.
//
//	host ── br-mgmt 10.78.0.0/24 ─┬─ eth1 of each machine: commands and their output; never cut
//	        br-data 10.77.0.0/24 ─┴─ eth0 of each machine: what the scenario is about
//
// A machine's root is the host's, read-only over 9p, under an overlay in memory:
// every program of the host runs in the guest, and nothing that a guest changes
// outlasts its power. What lasts is its disks, and the folder /e2e, which all
// machines and the host share (see share.go: flock holds across it). The kernel
// is unpacked, not installed; nothing is compiled but the harness.
//
// What the package promises:
//
//  1. Nothing is left running. Everything lives in namespaces of its own
//     (Enclose), and the kernel ends what is in them together with the harness,
//     however that ends.
//  2. It only ever signals processes that it started and has not yet waited for.
//  3. A power cut is one: the machine is stopped first, then its disks' caches
//     are gone, then the machine. What the guest had not flushed is lost (disk.go).
//  4. Nothing of the host is changed, but for the Debian packages that are
//     installed when they are missing (needs.go) and a cache of unpacked kernels.
package vm
