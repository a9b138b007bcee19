package credentialbroker

import (
	"strconv"
	"testing"
)

func TestGoneIsBoundedAndForgetsNothingThatMatters(t *testing.T) {
	var g gone
	lost := key{"i", "s", "first"}
	g.add(lost, taken{1, 1})
	for n := range uint64(3 * mostGone) {
		g.add(key{"i", "s", strconv.FormatUint(n, 10)}, taken{n + 2, 0})
		if len(g.keys) > mostGone {
			t.Fatalf("%d are remembered", len(g.keys))
		}
	}
	plain, report := ask{key: lost}, ask{key: lost, rejected: "r"}
	if !g.of(lost).since(0, plain) || !g.of(lost).since(0, report) {
		t.Error("an answer that was taken back is taken for one that was not")
	}
	if last := uint64(3*mostGone + 1); g.of(lost).since(last, plain) || g.of(lost).since(1, report) {
		t.Error("an answer that was asked for later is taken for one that was taken back")
	}
}

func TestEndOfATaskIsThatOfItsThreadAndIdentity(t *testing.T) {
	var g gone
	g.add(everyScope("i", "t"), taken{5, 5})
	for of, want := range map[key]bool{{"i", "s", "t"}: true, {"i", "x", "t"}: true, {"j", "s", "t"}: false, {"i", "s", "x"}: false} {
		if got := g.of(of).since(4, ask{key: of}); got != want {
			t.Errorf("%v: %v", of, got)
		}
	}
}
