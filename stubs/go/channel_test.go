package credentialbroker

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func TestServiceConfigIsTheShippedOne(t *testing.T) {
	shipped, err := os.ReadFile("../../protos/service_config.json")
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("outside the repository")
	}
	if err != nil || string(shipped) != serviceConfig {
		t.Errorf("service_config.json is not protos/service_config.json: %v", err)
	}
}

func TestVersionIsThatOfTheBroker(t *testing.T) {
	project, err := os.ReadFile("../../pyproject.toml")
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("outside the repository")
	}
	if err != nil || !strings.Contains(string(project), "\nversion = \""+Version+"\"\n") {
		t.Errorf("%s is not the version of pyproject.toml: %v", Version, err)
	}
}
