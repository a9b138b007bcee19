package credentialbroker

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"
)

// The variables of the environment that say what no option says. An empty one counts as unset.
const (
	envAddress     = "CREDENTIAL_BROKER_ADDRESS"
	envCA          = "CREDENTIAL_BROKER_CA_FILE"
	envCertificate = "CREDENTIAL_BROKER_CERTIFICATE_FILE"
	envPrivateKey  = "CREDENTIAL_BROKER_PRIVATE_KEY_FILE"
	envServerName  = "CREDENTIAL_BROKER_SERVER_NAME"
	envPlaintext   = "CREDENTIAL_BROKER_PLAINTEXT"
)

// settings is what a client is made of.
type settings struct {
	address     string
	tls         tlsFiles
	serverName  string // in the broker's certificate; empty: the host of the address
	plaintext   bool
	identity    string
	watch       bool
	timeout     time.Duration
	cacheSize   int
	idle        time.Duration
	silence     time.Duration
	logger      *slog.Logger
	dialOptions []grpc.DialOption
}

// An Option of [New].
type Option func(*settings)

// WithAddress says where the broker is: unix:///absolute/path, dns:///host:port or host:port. Without it
// CREDENTIAL_BROKER_ADDRESS says so, else [DefaultAddress].
func WithAddress(address string) Option { return func(s *settings) { s.address = address } }

// WithCAFile names the PEM file of the authorities that sign the broker's certificate, and switches TLS on. Without it
// CREDENTIAL_BROKER_CA_FILE says so.
func WithCAFile(path string) Option { return func(s *settings) { s.tls.authorities = path } }

// WithCertificateFiles names the PEM files of the client's own certificate chain and private key, for mTLS. Without it
// CREDENTIAL_BROKER_CERTIFICATE_FILE and CREDENTIAL_BROKER_PRIVATE_KEY_FILE say so.
func WithCertificateFiles(certificate, privateKey string) Option {
	return func(s *settings) { s.tls.certificate, s.tls.privateKey = certificate, privateKey }
}

// WithServerName gives the name in the broker's certificate where it is not the host of the address. Without it
// CREDENTIAL_BROKER_SERVER_NAME says so.
func WithServerName(name string) Option { return func(s *settings) { s.serverName = name } }

// WithPlaintext allows a broker on another host without TLS, as CREDENTIAL_BROKER_PLAINTEXT=1 does. Headers are secrets:
// only where the network itself encrypts.
func WithPlaintext() Option { return func(s *settings) { s.plaintext = true } }

// WithIdentity names the identity of requests that name none.
func WithIdentity(name string) Option { return func(s *settings) { s.identity = name } }

// WithoutWatch makes the client ask for what it needs instead of keeping a stream to the broker. It then learns of a
// revocation at the latest when what it holds ends, a few minutes at most.
func WithoutWatch() Option { return func(s *settings) { s.watch = false } }

// WithTimeout bounds each call to the broker: 10 s by default, which is also the longest that a call may take. A context
// with an earlier deadline ends a call earlier.
func WithTimeout(timeout time.Duration) Option { return func(s *settings) { s.timeout = timeout } }

// WithCacheSize bounds how many authorizations are kept, 1,000 by default. The least recently used goes first.
func WithCacheSize(count int) Option { return func(s *settings) { s.cacheSize = count } }

// WithIdle says after how long without use an authorization is no longer kept current, 5 minutes by default.
func WithIdle(after time.Duration) Option { return func(s *settings) { s.idle = after } }

// WithSilence says after how long without any message the stream to the broker is given up, 60 s by default. The broker
// sends a heartbeat every 20 s.
func WithSilence(after time.Duration) Option { return func(s *settings) { s.silence = after } }

// WithLogger says where it is logged that the broker is away or back, [slog.Default] otherwise.
func WithLogger(logger *slog.Logger) Option { return func(s *settings) { s.logger = logger } }

// WithDialOptions adds options of gRPC, such as a stats handler. They come last and win over the client's own.
func WithDialOptions(options ...grpc.DialOption) Option {
	return func(s *settings) { s.dialOptions = append(s.dialOptions, options...) }
}

// readSettings applies the options, then the environment, then the defaults, and checks what they come to.
func readSettings(options []Option, environment func(string) string) (settings, error) {
	s := settings{
		watch:     true,
		timeout:   10 * time.Second,
		cacheSize: 1000,
		idle:      5 * time.Minute,
		silence:   time.Minute,
	}
	for _, option := range options {
		option(&s)
	}
	for variable, setting := range map[string]*string{
		envAddress:     &s.address,
		envCA:          &s.tls.authorities,
		envCertificate: &s.tls.certificate,
		envPrivateKey:  &s.tls.privateKey,
		envServerName:  &s.serverName,
	} {
		if *setting == "" {
			*setting = environment(variable)
		}
	}
	if s.address == "" {
		s.address = DefaultAddress
	}
	if s.logger == nil {
		s.logger = slog.Default()
	}
	s.plaintext = s.plaintext || environment(envPlaintext) == "1"
	return s, s.check()
}

// check finds what cannot be meant.
func (s settings) check() error {
	place, err := parseAddress(s.address)
	switch {
	case err != nil:
		return err
	case (s.tls.certificate == "") != (s.tls.privateKey == ""):
		return errors.New("a certificate and its private key are given together or not at all")
	case s.tls.certificate != "" && s.tls.authorities == "":
		return errors.New("a certificate is given without the authorities that sign the broker's")
	case s.tls.authorities == "" && !s.plaintext && !place.private():
		return fmt.Errorf("broker address %q is on another host: name the authorities of its certificate, or allow plaintext", s.address)
	case s.timeout <= 0, s.cacheSize <= 0, s.idle <= 0, s.silence <= 0:
		return errors.New("timeout, cache size, idle and silence must be positive")
	}
	return nil
}
