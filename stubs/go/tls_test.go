package credentialbroker

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// pair is a self-signed certificate of broker.test, which is its own authority.
type pair struct{ certificate, key []byte }

func newPair(t *testing.T) pair {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "broker"}, DNSNames: []string{"broker.test"},
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pair{
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
	}
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// shakeHands connects with the credentials to a server of the pair that demands a certificate of the client.
func shakeHands(t *testing.T, credentials *fileCredentials, server, clients pair) error {
	t.Helper()
	own, err := tls.X509KeyPair(server.certificate, server.key)
	if err != nil {
		t.Fatal(err)
	}
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(clients.certificate)
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	result := make(chan error, 1)
	go func() {
		result <- tls.Server(far, &tls.Config{
			Certificates: []tls.Certificate{own}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: authorities,
			NextProtos: []string{"h2"}, MaxVersion: tls.VersionTLS12, // in 1.3 the client is done before it is refused
		}).Handshake()
		_ = far.Close()
	}()
	if _, _, err := credentials.ClientHandshake(t.Context(), "broker.test:50051", near); err != nil {
		return err
	}
	return <-result
}

func TestFilesAreReadAgain(t *testing.T) {
	folder := t.TempDir()
	files := tlsFiles{
		authorities: filepath.Join(folder, "ca.pem"),
		certificate: filepath.Join(folder, "certificate.pem"),
		privateKey:  filepath.Join(folder, "key.pem"),
	}
	first, second := newPair(t), newPair(t)
	write(t, files.authorities, first.certificate)
	write(t, files.certificate, first.certificate)
	write(t, files.privateKey, first.key)
	credentials, err := newFileCredentials(files)
	if err != nil {
		t.Fatal(err)
	}
	if err := shakeHands(t, credentials, first, first); err != nil {
		t.Errorf("the files as they were: %v", err)
	}
	if shakeHands(t, credentials, second, first) == nil {
		t.Error("a broker of another authority was believed")
	}

	write(t, files.authorities, []byte("half of a fi"))
	if err := shakeHands(t, credentials, first, first); err != nil {
		t.Errorf("with a file that does not parse: %v", err)
	}
	write(t, files.authorities, second.certificate)
	write(t, files.certificate, second.certificate) // the key is still the first one's
	if err := shakeHands(t, credentials, first, first); err != nil {
		t.Errorf("with a certificate and another's key: %v", err)
	}
	write(t, files.privateKey, append(second.key, '\n'))
	if err := shakeHands(t, credentials, second, second); err != nil {
		t.Errorf("the files as they are: %v", err)
	}
}

func TestUnreadableFilesAreNamed(t *testing.T) {
	folder := t.TempDir()
	one := newPair(t)
	good, junk, missing := filepath.Join(folder, "good.pem"), filepath.Join(folder, "junk.pem"), filepath.Join(folder, "missing.pem")
	write(t, good, append(one.certificate, one.key...))
	write(t, junk, []byte("junk"))
	for _, test := range []struct {
		files tlsFiles
		named string
	}{
		{tlsFiles{authorities: missing}, missing},
		{tlsFiles{authorities: junk}, junk},
		{tlsFiles{authorities: good, certificate: junk, privateKey: good}, junk},
		{tlsFiles{authorities: good, certificate: good, privateKey: junk}, junk},
		{tlsFiles{authorities: good, certificate: good, privateKey: missing}, missing},
	} {
		_, err := New(WithCAFile(test.files.authorities), WithCertificateFiles(test.files.certificate, test.files.privateKey))
		if err == nil || !strings.Contains(err.Error(), test.named) {
			t.Errorf("%v: %v", test.files, err)
		}
	}
}
