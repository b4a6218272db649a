package link

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"unicode"
)

// The preface is what two agents say on a new connection, inside TLS, before
// there are any channels. Messages, all of one format:
//
//	dialler                     listener
//	   │ hello ────────────────────▶ │ checks cluster, node, version, certificate
//	   │ ◀─────────────────── answer │ verdict ok, or refused and why
//	   │ confirm ──────────────────▶ │ the dialler's own verdict on the answer
//	   ┆  (the same on the link's second connection; a control connection
//	   ┆  is one alone, and its first request follows the confirmation)
//	   │ ◀─────────────────────── go │ on the main connection, when the listener
//	   │                             │ has ended the link that this one replaces
//
// Each side says why it refuses, so that both logs name the cause; "connection
// reset" in one of them is where half of all evenings go.
//
//	 0                8     10    12   13   14   15   16    18    20         28
//	┌────────────────┬─────┬─────┬────┬────┬────┬────┬─────┬─────┬──────────┐
//	│ magic          │ ver │ old │role│verd│len │len │len  │ 0   │ features │
//	│                │     │ est │    │ict │clus│node│text │     │          │
//	├────────────────┴─────┴─────┴────┴──┬─┴────┼────┴─────┴─────┴──────────┘
//	│ link id                         28 │sum 44│ cluster, node, text
//	└────────────────────────────────────┴──────┴──────────────────────────
//
//	magic     garbage, a port scanner or another protocol is told apart from a
//	          peer that is merely wrong; it gets no answer.
//	ver,      the newest and the oldest protocol that the sender speaks. The
//	oldest    newest common one is spoken, so N and N-1 work together and a
//	          cluster is upgraded one node after the other.
//	role      main or bulk: which half of the link this connection is; or
//	          control: none, an operator's request (control.go).
//	verdict   ok, refused, or go.
//	len ...   of the strings behind the header: the only variable lengths,
//	          bounded by their own width and, for text, by maxText.
//	0         must be zero, so that it can mean something later.
//	features  what both have is used.
//	link id   drawn by the dialler; pairs the two connections. Two half-made
//	          links of a peer that dials twice can never be joined crosswise.
//	sum       CRC32C of all other bytes. On a connection without TLS nothing
//	          else would notice a damaged name.
//
// A connection has prefaceTimeout for TLS and all of this together.
const (
	prefaceSize  = 48
	prefaceMagic = "tandem\r\n" // a line end, so that a text protocol answers quickly
	maxText      = 512

	// protocolVersion is what this build speaks, oldestVersion what it can
	// still speak to a peer that is one release behind.
	protocolVersion = 1
	oldestVersion   = 1
)

// role is which of the link's two connections one is.
type role uint8

const (
	roleMain  role = iota // channels Ctl and Data
	roleBulk              // channel Bulk
	roleCount             // the number of connections of a link

	// roleControl is no part of a link, so its number lies apart: the ones
	// below are left for links of more connections.
	roleControl role = 16
)

// verdict is what the sender of a preface thinks of the receiver.
type verdict uint8

const (
	verdictOK verdict = iota
	verdictRefused
	verdictGo
	verdicts
)

type linkID [16]byte

type preface struct {
	version  uint16
	oldest   uint16
	role     role
	verdict  verdict
	features uint64
	link     linkID
	cluster  string
	node     string
	text     string
}

// encode returns the preface as it travels. A text that is too long is cut.
func (p *preface) encode() []byte {
	text := p.text
	if len(text) > maxText {
		text = text[:maxText]
	}
	b := make([]byte, prefaceSize, prefaceSize+len(p.cluster)+len(p.node)+len(text))
	copy(b, prefaceMagic)
	binary.LittleEndian.PutUint16(b[8:], p.version)
	binary.LittleEndian.PutUint16(b[10:], p.oldest)
	b[12] = uint8(p.role)
	b[13] = uint8(p.verdict)
	b[14] = uint8(len(p.cluster)) // both at most maxName, by Config.validate
	b[15] = uint8(len(p.node))
	binary.LittleEndian.PutUint16(b[16:], uint16(len(text)))
	binary.LittleEndian.PutUint64(b[20:], p.features)
	copy(b[28:44], p.link[:])
	b = append(b, p.cluster...)
	b = append(b, p.node...)
	b = append(b, text...)
	binary.LittleEndian.PutUint32(b[44:], prefaceSum(b))
	return b
}

// prefaceSum is the checksum of all of b but the checksum.
func prefaceSum(b []byte) uint32 {
	t := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Update(0, t, b[:44]), t, b[48:])
}

// readPreface reads one preface and not a byte more: yamux starts right
// behind the last one.
func readPreface(r io.Reader) (*preface, error) {
	b := make([]byte, prefaceSize, prefaceSize+2*maxName+maxText)
	// The magic alone first: a stranger that says little should be known for
	// one without waiting for 48 bytes.
	if _, err := io.ReadFull(r, b[:8]); err != nil {
		return nil, plain(err)
	}
	if !bytes.Equal(b[:8], []byte(prefaceMagic)) {
		if b[0] == 22 && b[1] == 3 {
			return nil, fmt.Errorf("%w: it speaks TLS and we do not", ErrNotPreface)
		}
		return nil, fmt.Errorf("%w: it says %q", ErrNotPreface, b[:8])
	}
	if _, err := io.ReadFull(r, b[8:]); err != nil {
		return nil, plain(err)
	}
	nc, nn, nt := int(b[14]), int(b[15]), int(binary.LittleEndian.Uint16(b[16:]))
	if nt > maxText {
		return nil, fmt.Errorf("%w: a text of %d bytes", ErrPreface, nt)
	}
	b = b[:prefaceSize+nc+nn+nt]
	if _, err := io.ReadFull(r, b[prefaceSize:]); err != nil {
		return nil, plain(err)
	}
	if binary.LittleEndian.Uint32(b[44:]) != prefaceSum(b) {
		return nil, fmt.Errorf("%w: checksum does not match", ErrPreface)
	}
	p := &preface{
		version:  binary.LittleEndian.Uint16(b[8:]),
		oldest:   binary.LittleEndian.Uint16(b[10:]),
		role:     role(b[12]),
		verdict:  verdict(b[13]),
		features: binary.LittleEndian.Uint64(b[20:]),
		cluster:  string(b[48 : 48+nc]),
		node:     string(b[48+nc : 48+nc+nn]),
		text:     printable(string(b[48+nc+nn:])),
	}
	copy(p.link[:], b[28:44])
	switch {
	case p.role >= roleCount && p.role != roleControl:
		return nil, fmt.Errorf("%w: role %d", ErrPreface, p.role)
	case p.verdict >= verdicts:
		return nil, fmt.Errorf("%w: verdict %d", ErrPreface, p.verdict)
	case p.oldest > p.version:
		return nil, fmt.Errorf("%w: versions %d to %d", ErrPreface, p.oldest, p.version)
	case b[18] != 0 || b[19] != 0:
		return nil, fmt.Errorf("%w: reserved field is set", ErrPreface)
	}
	return p, nil
}

// printable keeps a peer's text from drawing on an operator's terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// check compares what the peer says of itself with what we are. peer is the
// node we dialled, or "" on the listening side, where any known node that is
// to dial us will do; cert is the name in the certificate, "" without TLS.
// The reason is written for both logs.
func (m *Manager) check(p *preface, peer, cert string) error {
	switch {
	case p.oldest > m.version || p.version < m.oldest:
		return refuse("protocol versions %d to %d and %d to %d have none in common", p.oldest, p.version, m.oldest, m.version)
	case p.cluster != m.cfg.Cluster:
		return refuse("cluster %q is not ours (%q)", p.cluster, m.cfg.Cluster)
	case cert != "" && p.node != cert:
		return refuse("node calls itself %q, its certificate says %q", p.node, cert)
	case p.node == m.cfg.Self:
		return refuse("node calls itself %q, as we do", p.node)
	case m.peers[p.node] == nil:
		return refuse("node %q is not a peer of %q", p.node, m.cfg.Self)
	case peer != "" && p.node != peer:
		return refuse("the address of node %q leads to node %q", peer, p.node)
	case peer == "" && p.node > m.cfg.Self && p.role != roleControl:
		return refuse("node %q must not dial: links are dialled by the node whose name sorts first", p.node)
	}
	return nil
}
