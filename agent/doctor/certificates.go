package doctor

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"time"

	"tandem/agent/certs"
)

// warnDays is when a certificate wants to be renewed.
const warnDays = 30

func (x *examination) checkCertificates(context.Context) verdict {
	t := x.cfg.TLS
	if t.Insecure {
		return skip("tls: insecure is set: the nodes are on one machine")
	}
	fix := fmt.Sprintf("make new ones: replctl certs --cluster %s --force %s, in the folder with ca.key", x.cfg.Cluster, x.cfg.Node)
	cert, err := readCertificates(t.Cert)
	if err != nil {
		return fail(fix, "tls.cert: %v", err)
	}
	ca, err := readCertificates(t.CA)
	if err != nil {
		return fail("copy ca.pem from the node that made the certificates", "tls.ca: %v", err)
	}
	// Dates first, by our clock: ServerConfig says the same of the node's own, by its own.
	leaf, authority := cert[0], signer(ca, cert[0])
	now := x.sys.Now()
	for _, c := range []struct {
		file string
		cert *x509.Certificate
		fix  string
	}{
		{t.Cert, leaf, fix},
		{t.CA, authority, fmt.Sprintf("make a new authority: replctl certs --cluster %s in an empty folder, then the files of all nodes at once", x.cfg.Cluster)},
	} {
		days := int(c.cert.NotAfter.Sub(now) / (24 * time.Hour))
		switch {
		case now.Before(c.cert.NotBefore):
			return fail("set this machine's clock", "%s is not valid before %s, and now it is %s", c.file, date(c.cert.NotBefore), date(now))
		case !now.Before(c.cert.NotAfter):
			return fail(c.fix, "%s has expired on %s: no peer takes it", c.file, date(c.cert.NotAfter))
		case days < warnDays:
			return warn(c.fix, "%s expires in %d days, on %s: then no peer takes it", c.file, days, date(c.cert.NotAfter))
		}
	}
	if _, err := certs.ServerConfig(t.CA, t.Cert, t.Key, x.cfg.Cluster, x.cfg.Node); err != nil {
		return fail(fix, "%v", err)
	}
	if st, err := os.Stat(t.Key); err == nil && st.Mode().Perm()&0o077 != 0 {
		return warn("chmod 600 "+t.Key, "the key %s can be read by others than its owner", t.Key)
	}
	first := leaf.NotAfter
	if authority.NotAfter.Before(first) {
		first = authority.NotAfter
	}
	return ok("of node %s, valid for another %d days", x.cfg.Node, int(first.Sub(now)/(24*time.Hour)))
}

func date(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// signer is the authority that has signed leaf; if none of them has, ServerConfig says it.
func signer(all []*x509.Certificate, leaf *x509.Certificate) *x509.Certificate {
	for _, c := range all {
		if leaf.CheckSignatureFrom(c) == nil {
			return c
		}
	}
	return all[0]
}

// readCertificates returns those of a file, at least one.
func readCertificates(path string) (all []*x509.Certificate, err error) {
	rest, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no certificate in %s", path)
	}
	return all, nil
}
