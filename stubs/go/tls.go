package credentialbroker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// tlsFiles names the files that make up a TLS configuration.
type tlsFiles struct{ authorities, certificate, privateKey string }

// load reads the files. An error names the file that is wrong.
func (f tlsFiles) load() (*tls.Config, error) {
	authorities, err := os.ReadFile(f.authorities)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool()}
	if !config.RootCAs.AppendCertsFromPEM(authorities) {
		return nil, fmt.Errorf("%s holds no certificate", f.authorities)
	}
	if f.certificate == "" {
		return config, nil
	}
	for _, path := range []string{f.certificate, f.privateKey} {
		if _, err := os.Stat(path); err != nil {
			return nil, err
		}
	}
	pair, err := tls.LoadX509KeyPair(f.certificate, f.privateKey)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", f.certificate, f.privateKey, err)
	}
	config.Certificates = []tls.Certificate{pair}
	return config, nil
}

// fileCredentials are TLS credentials that each new connection reads anew from files which changed. Connections are rare
// (0.2 to 5 s apart while the broker is away), so that looking at every one needs no schedule.
type fileCredentials struct {
	files tlsFiles

	mu      sync.Mutex
	stamp   [3]fileStamp
	current credentials.TransportCredentials
}

// fileStamp is what changes with a file's content. A link that is switched to another file, as a mounted secret is,
// changes it too.
type fileStamp struct {
	modified time.Time
	size     int64
}

func newFileCredentials(files tlsFiles) (*fileCredentials, error) {
	c := &fileCredentials{files: files}
	c.stamp = files.stamps()
	config, err := files.load()
	if err != nil {
		return nil, err
	}
	c.current = credentials.NewTLS(config)
	return c, nil
}

func (f tlsFiles) stamps() (stamps [3]fileStamp) {
	for i, path := range [3]string{f.authorities, f.certificate, f.privateKey} {
		if info, err := os.Stat(path); err == nil {
			stamps[i] = fileStamp{info.ModTime(), info.Size()}
		}
	}
	return stamps
}

// fresh returns credentials of what the files hold now, or held when they last parsed.
func (c *fileCredentials) fresh() credentials.TransportCredentials {
	c.mu.Lock()
	defer c.mu.Unlock()
	stamp := c.files.stamps()
	if stamp != c.stamp {
		if config, err := c.files.load(); err == nil {
			c.stamp, c.current = stamp, credentials.NewTLS(config)
		}
	}
	return c.current
}

// ClientHandshake implements credentials.TransportCredentials.
func (c *fileCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.fresh().ClientHandshake(ctx, authority, raw)
}

// ServerHandshake implements credentials.TransportCredentials.
func (c *fileCredentials) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are for clients")
}

// Info implements credentials.TransportCredentials.
func (c *fileCredentials) Info() credentials.ProtocolInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current.Info()
}

// Clone implements credentials.TransportCredentials. A clone shares what was read.
func (c *fileCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials; gRPC deprecated it and does not call it.
func (c *fileCredentials) OverrideServerName(string) error {
	return errors.New("the server name is an option of the client")
}
