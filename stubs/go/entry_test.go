package credentialbroker

import "testing"

func TestOriginsAreThoseOfTheValueThatIsHeld(t *testing.T) {
	var e entry
	before, held := &Authorization{}, &Authorization{}
	e.held.Store(held)
	e.allow("https://backend.example:443")
	if !e.allowsWith(held, "https://backend.example:443") || e.allowsWith(held, "https://another.example:443") {
		t.Error("what is held goes elsewhere, or not where it was allowed")
	}
	if e.allowsWith(before, "https://backend.example:443") {
		t.Error("what was held before goes where its successor was allowed")
	}
}
