package credentialbroker

import (
	"fmt"
	"net"
	"net/netip"
	"path"
	"strconv"
	"strings"
)

// DefaultAddress is where a broker on the same machine listens.
const DefaultAddress = "dns:///127.0.0.1:50051"

// address is where the broker is: a Unix socket, or a host and port.
type address struct {
	socket     string // absolute path; empty for host and port
	host, port string
}

// parseAddress reads the three forms that an address may have.
func parseAddress(text string) (address, error) {
	refuse := func(why string) (address, error) {
		return address{}, fmt.Errorf("broker address %q: %s; write unix:///absolute/path, dns:///host:port or host:port", text, why)
	}
	if socket, ok := strings.CutPrefix(text, "unix://"); ok {
		if !path.IsAbs(socket) || strings.HasSuffix(socket, "/") {
			return refuse("the path of a socket must be absolute")
		}
		return address{socket: socket}, nil
	}
	host, port, err := net.SplitHostPort(strings.TrimPrefix(text, "dns:///"))
	if err != nil {
		return refuse("not a host and a port")
	}
	if host == "" || strings.ContainsAny(host, "/@?#% \t\r\n") {
		return refuse("no host that can be looked up")
	}
	if _, err := netip.ParseAddr(host); err != nil && strings.Contains(host, ":") {
		return refuse("no host that can be looked up")
	}
	if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 {
		return refuse("the port must be a number from 1 to 65535")
	}
	return address{host: host, port: port}, nil
}

// target is the address as gRPC takes it.
func (a address) target() string {
	if a.socket != "" {
		return "unix://" + a.socket
	}
	return "dns:///" + net.JoinHostPort(a.host, a.port)
}

// private says whether nothing that is sent there leaves the machine, so that it needs no TLS.
func (a address) private() bool {
	if a.socket != "" || strings.EqualFold(a.host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(a.host)
	return err == nil && (ip.Is4() && ip.IsLoopback() || ip == netip.IPv6Loopback())
}
