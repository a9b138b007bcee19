package credentialbroker

import (
	"strings"
	"testing"
)

func TestAddressForms(t *testing.T) {
	for _, test := range []struct {
		text, target string
		private      bool
	}{
		{"unix:///run/broker.sock", "unix:///run/broker.sock", true},
		{"dns:///127.0.0.1:50051", "dns:///127.0.0.1:50051", true},
		{"127.8.9.10:1", "dns:///127.8.9.10:1", true},
		{"LocalHost:50051", "dns:///LocalHost:50051", true},
		{"[::1]:50051", "dns:///[::1]:50051", true},
		{"broker.example:50051", "dns:///broker.example:50051", false},
		{"dns:///10.0.0.1:65535", "dns:///10.0.0.1:65535", false},
		{"[::ffff:127.0.0.1]:1", "dns:///[::ffff:127.0.0.1]:1", false},
		{"localhost.example:1", "dns:///localhost.example:1", false},
	} {
		parsed, err := parseAddress(test.text)
		if err != nil || parsed.target() != test.target || parsed.private() != test.private {
			t.Errorf("%s: %s, private %v, %v; want %s, %v", test.text, parsed.target(), parsed.private(), err, test.target, test.private)
		}
	}
}

func TestOtherAddressesRefused(t *testing.T) {
	for _, text := range []string{
		"", "unix:relative", "unix://relative/path", "unix:///", "http://127.0.0.1:1", "127.0.0.1", ":1", "host:", "host:0",
		"host:65536", "host:port", "host:+1", "dns://1.1.1.1/host:1", "ipv4:127.0.0.1:1", "dns:///host:1/path", "a b:1", "[a:b]:1", "user@host:1",
	} {
		_, err := parseAddress(text)
		if err == nil {
			t.Errorf("%q is taken", text)
		} else if !strings.Contains(err.Error(), "unix:///absolute/path, dns:///host:port or host:port") {
			t.Errorf("%q: the message does not name the forms: %v", text, err)
		}
	}
}
