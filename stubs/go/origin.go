package credentialbroker

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
)

// origin is what must be equal for headers to be sent: the scheme, the host and the port.
type origin struct{ scheme, host, port string }

// String writes the origin with its port, whatever that is.
func (o origin) String() string { return o.scheme + "://" + net.JoinHostPort(o.host, o.port) }

// parseOrigin takes the origin of a URL.
func parseOrigin(text string) (origin, error) {
	parsed, err := url.Parse(text)
	if err != nil {
		return origin{}, err
	}
	return originOf(parsed)
}

// originOf takes the origin of a URL that was parsed.
func originOf(u *url.URL) (origin, error) {
	o := origin{scheme: strings.ToLower(u.Scheme), host: strings.ToLower(u.Hostname()), port: u.Port()}
	switch {
	case o.host == "":
		return origin{}, errors.New("it has no host")
	case o.scheme == "https" && o.port == "":
		o.port = "443"
	case o.scheme == "http" && o.port == "":
		o.port = "80"
	case o.scheme != "https" && o.scheme != "http":
		return origin{}, fmt.Errorf("%q is neither https nor http", u.Scheme)
	}
	return o, nil
}
