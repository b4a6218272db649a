package vm

import (
	"context"
	"os"
	"path/filepath"
)

// virtiofsd is not in PATH, and not every version will do.
const virtiofsd = "/usr/lib/qemu/virtiofsd"

// The folder that the machines and the host share, /e2e in a guest, is virtiofs
// and not 9p, because a file witness on it must be one register for all of them:
//
//   - flock. QEMU's 9p server grants every lock and keeps none. virtiofsd with
//     -o flock takes the lock on the host's file, in the host's kernel, where the
//     other machine's virtiofsd (each machine has its own) meets it. The lock goes
//     with the process, so a power cut releases it. Only LOCK_NB works that way,
//     which is all that the file witness uses.
//   - freshness. With cache=none every name is looked up and every byte is read on
//     the host, so a rename by one machine is seen at once by the other.
//   - atomicity. rename and O_EXCL are the host's own.
//
// Scenarios that rely on it check it first: see the lock verb of e2e-guest.
func (m *Machine) startShare(ctx context.Context) error {
	socket := filepath.Join(m.dir, "share.sock")
	_ = os.Remove(socket)
	p, err := startProcess(filepath.Join(m.dir, "share.log"), virtiofsd, "-f", "--socket-path="+socket,
		"-o", "source="+m.lab.Share, "-o", "cache=none", "-o", "flock", "-o", "sandbox=chroot")
	if err != nil {
		return err
	}
	m.share = p
	return waitForSocket(ctx, p, socket)
}
