package credentialbroker

// taken holds the numbers of the last changes that took a value back.
type taken struct {
	withdrawn uint64 // for any reason
	revoked   uint64 // for another than a rejection, which a better value follows
}

// since says whether the answer to a question that was asked after change number `number` may have been taken back.
func (t taken) since(number uint64, a ask) bool {
	if a.rejected != "" {
		return t.revoked > number
	}
	return t.withdrawn > number
}

// or is whichever of two was later.
func (t taken) or(other taken) taken {
	return taken{max(t.withdrawn, other.withdrawn), max(t.revoked, other.revoked)}
}

// mostGone is how many keys are remembered that have no entry any more.
const mostGone = 1000

// gone remembers what was taken back of keys without an entry, for the answers that are still on their way to them.
type gone struct {
	keys      map[key]taken
	forgotten taken // the latest of those that were forgotten, which stands for each key: rather one more question
}

// everyScope is what the end of a task takes back: a key that no entry has, because each has a scope.
func everyScope(identity, thread string) key { return key{identity: identity, thread: thread} }

// of is what was taken back of a key.
func (g *gone) of(k key) taken {
	return g.forgotten.or(g.keys[k]).or(g.keys[everyScope(k.identity, k.thread)])
}

// add remembers a key, or all scopes of a thread.
func (g *gone) add(k key, t taken) {
	if len(g.keys) >= mostGone {
		for _, one := range g.keys {
			g.forgotten = g.forgotten.or(one)
		}
		clear(g.keys)
	}
	if g.keys == nil {
		g.keys = map[key]taken{}
	}
	g.keys[k] = t
}
