package control

import (
	"fmt"
	"net"
	"os/user"
	"strconv"

	"golang.org/x/sys/unix"
)

// Caller is who asks, as the connection proves it: the kernel names the user
// behind a unix socket, a certificate the node behind any other.
type Caller struct {
	Node string // the peer that asks, "" for somebody on this machine
	User string // "uid 0/root"; of a peer what it says of its operator; "" if not known
}

// Local says that the request came over the agent's own socket.
func (c Caller) Local() bool { return c.Node == "" }

// String is how the log and the history name the caller.
func (c Caller) String() string {
	s := "local"
	if !c.Local() {
		s = "node " + c.Node
	}
	if c.User != "" {
		s += ", " + c.User
	}
	return s
}

// callerOf asks the connection. origin counts only from a peer, which answers for
// it with its certificate: a local user could write anything there.
func callerOf(conn net.Conn, origin string) Caller {
	switch c := conn.(type) {
	case interface{ Peer() string }:
		return Caller{Node: c.Peer(), User: origin}
	case *net.UnixConn:
		return Caller{User: userOf(c)}
	}
	return Caller{}
}

func userOf(c *net.UnixConn) string {
	raw, err := c.SyscallConn()
	if err != nil {
		return ""
	}
	var cred *unix.Ucred
	if e := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); e != nil || err != nil {
		return ""
	}
	return UserName(cred.Uid)
}

// UserName is a user as a Caller names it.
func UserName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	u, err := user.LookupId(id)
	if err != nil || len(u.Username) > 64 {
		return "uid " + id
	}
	return fmt.Sprintf("uid %s/%s", id, u.Username)
}
