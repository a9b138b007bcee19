package credentialbroker

import (
	"testing"
)

func TestEnvironment(t *testing.T) {
	environment := map[string]string{
		envAddress:     "broker.example:1",
		envCA:          "ca.pem",
		envCertificate: "certificate.pem",
		envPrivateKey:  "key.pem",
		envServerName:  "name",
	}
	read := func(variable string) string { return environment[variable] }

	s, err := readSettings(nil, read)
	if err != nil || s.address != "broker.example:1" || s.tls != (tlsFiles{"ca.pem", "certificate.pem", "key.pem"}) || s.serverName != "name" {
		t.Errorf("from the environment: %+v, %v", s, err)
	}

	s, err = readSettings([]Option{
		WithAddress("127.0.0.1:2"), WithCAFile("a"), WithCertificateFiles("b", "c"), WithServerName("d"),
	}, read)
	if err != nil || s.address != "127.0.0.1:2" || s.tls != (tlsFiles{"a", "b", "c"}) || s.serverName != "d" {
		t.Errorf("options must win: %+v, %v", s, err)
	}
}

func TestDefaultAddress(t *testing.T) {
	s, err := readSettings(nil, func(string) string { return "" })
	if err != nil || s.address != "dns:///127.0.0.1:50051" {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestSettingsThatCannotBeMeant(t *testing.T) {
	far := WithAddress("broker.example:1")
	for name, test := range map[string]struct {
		options   []Option
		plaintext string
		good      bool
	}{
		"plaintext to another host":             {[]Option{far}, "", false},
		"allowed by option":                     {[]Option{far, WithPlaintext()}, "", true},
		"allowed by the environment":            {[]Option{far}, "1", true},
		"not allowed by other words":            {[]Option{far}, "true", false},
		"TLS":                                   {[]Option{far, WithCAFile("ca")}, "", true},
		"certificate without key":               {[]Option{WithCAFile("ca"), WithCertificateFiles("a", "")}, "", false},
		"key without certificate":               {[]Option{WithCAFile("ca"), WithCertificateFiles("", "a")}, "", false},
		"certificate and key, no authorities":   {[]Option{WithCertificateFiles("a", "b")}, "", false},
		"no such size":                          {[]Option{WithCacheSize(0)}, "", false},
		"no such time":                          {[]Option{WithTimeout(-1)}, "", false},
		"an address of none of the three forms": {[]Option{WithAddress("http://x")}, "", false},
	} {
		_, err := readSettings(test.options, func(variable string) string {
			if variable == envPlaintext {
				return test.plaintext
			}
			return ""
		})
		if (err == nil) != test.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}
