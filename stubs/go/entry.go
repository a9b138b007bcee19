package credentialbroker

import (
	"math"
	"slices"
	"sync/atomic"
	"time"
)

const (
	// mostOrigins is how many origins are remembered with an entry.
	mostOrigins = 8
	// useGrain is how exactly the last use is known: a busy entry is not written to at each use by every processor.
	useGrain = 10 * time.Microsecond
)

// entry is what is kept under one key. What a use of a held value touches is atomic; the rest is guarded by cache.mu.
type entry struct {
	key     key
	id      string                        // of its subscription
	held    atomic.Pointer[Authorization] // nil once it was withdrawn
	origins atomic.Pointer[[]string]      // that the broker allowed
	used    atomic.Int64                  // when, on the clock
	lookAt  atomic.Int64                  // no use before then begins a refresh
	watched atomic.Bool                   // whether the stream, when it is up, brings the next values

	changed     uint64 // the number of its last change
	taken       taken
	ended       bool // its task, since it was last asked for: what the stream brings may be older
	retry       backoff
	timer       *time.Timer // sees to an entry that is not used
	connections map[*Connection]struct{}
}

// give returns what is held if it serves the question, and notes the use.
func (e *entry) give(a ask, now time.Duration) *Authorization {
	held := e.held.Load()
	if held == nil || !held.lifetime.serves(now, a.minValidity) || a.target != "" && !e.allowsWith(held, a.target) {
		return nil
	}
	if used := time.Duration(e.used.Load()); now-used > useGrain {
		e.used.Store(int64(now))
	}
	return held
}

// allows says whether the broker allowed an origin.
func (e *entry) allows(origin string) bool {
	known := e.origins.Load()
	return known != nil && slices.Contains(*known, origin)
}

// allowsWith says whether what is held may be sent to an origin. Looked at once more afterwards, because the origins are
// those of the value: both may just have been replaced.
func (e *entry) allowsWith(held *Authorization, origin string) bool {
	return e.allows(origin) && e.held.Load() == held
}

// allow remembers an origin that the broker allowed.
func (e *entry) allow(origin string) {
	if e.allows(origin) {
		return
	}
	known := []string{origin}
	if before := e.origins.Load(); before != nil {
		known = append(known, *before...)
	}
	known = known[:min(len(known), mostOrigins)]
	e.origins.Store(&known)
}

// wants says whether a use now begins a refresh.
func (e *entry) wants(held *Authorization, now time.Duration, watching bool) bool {
	return int64(now) >= e.lookAt.Load() && now >= held.lifetime.asks(watching)
}

// claim says whether a refresh is to begin now, and keeps further uses from beginning one until it was answered.
func (e *entry) claim(now time.Duration, watching bool) bool {
	held := e.held.Load()
	if held == nil || !e.wants(held, now, watching) {
		return false
	}
	e.lookAt.Store(math.MaxInt64)
	return true
}

// newer returns the value that came after change number `since`, unless it is the one that was rejected.
func (e *entry) newer(a ask, since uint64) *Authorization {
	held := e.held.Load()
	if held == nil || e.changed <= since || a.rejected != "" && held.Revision == a.rejected {
		return nil
	}
	return held
}

// holdsTag says whether a connection of that tag may be used on.
func (e *entry) holdsTag(tag string) bool {
	held := e.held.Load()
	return held != nil && held.ConnectionTag == tag
}

// before says whether an entry goes before another where there is no room. A connection uses its entry all the time.
func (e *entry) before(other *entry) bool {
	if connected := len(e.connections) > 0; connected != (len(other.connections) > 0) {
		return !connected
	}
	return e.used.Load() < other.used.Load()
}

// endConnections tells all connections that what they were dialled with must not be used any longer.
func (e *entry) endConnections(why error) {
	for connection := range e.connections {
		connection.end(why)
	}
}
