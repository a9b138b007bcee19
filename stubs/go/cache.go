package credentialbroker

import (
	"math"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

const (
	// mostOrigins is how many origins are remembered with an entry.
	mostOrigins = 8
	// useGrain is how exactly the last use is known: a busy entry is not written to at each use by every processor.
	useGrain = 10 * time.Microsecond
	// restApart is the least time between two looks of a timer at its entry.
	restApart = 100 * time.Millisecond
)

// entry is what is kept under one key. What a use of a held value touches is atomic; the rest is guarded by cache.mu.
type entry struct {
	key     key
	id      string                        // of its subscription
	held    atomic.Pointer[Authorization] // nil once it was withdrawn
	origins atomic.Pointer[[]string]      // that the broker allowed
	used    atomic.Int64                  // when, on the clock
	lookAt  atomic.Int64                  // no use before then begins a refresh

	changed     uint64 // the number of its last change
	taken       taken
	retry       backoff
	timer       *time.Timer // sees to an entry that is not used
	connections map[*Connection]struct{}
}

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

func (e *entry) allows(origin string) bool {
	if known := e.origins.Load(); known != nil {
		for _, one := range *known {
			if one == origin {
				return true
			}
		}
	}
	return false
}

// allowsWith says whether what is held may be sent to an origin. Looked at once more afterwards, because the origins are
// those of the value: both may just have been replaced.
func (e *entry) allowsWith(held *Authorization, origin string) bool {
	return e.allows(origin) && e.held.Load() == held
}

// cache is what a client holds. It does no I/O.
type cache struct {
	clock clock
	size  int
	idle  time.Duration
	// watching says whether the stream is up.
	watching func() bool
	// kept and dropped are told of entries that come and go, refresh of one that is due and has connections. The lock is
	// held during the first two.
	kept, dropped, refresh func(*entry)

	entries sync.Map // of key to *entry; written with mu held, read without
	mu      sync.Mutex
	byID    map[string]*entry
	ids     uint64
	changes uint64
	gone    map[key]taken // of entries that are no more, for answers that are still on their way; at most `size`
	closed  bool
}

// find returns the entry of a key, or nil.
func (c *cache) find(k key) *entry {
	if found, ok := c.entries.Load(k); ok {
		return found.(*entry)
	}
	return nil
}

// changeCount is the number of the last change, for keep and failed.
func (c *cache) changeCount() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changes
}

// keep holds an answer to a question that was asked after change number `since`, and returns what to give for it. What the
// stream brought in the meantime is newer: a value stays and is given, and after a withdrawal there is nothing to give, and
// the question is to be asked again.
func (c *cache) keep(answer *Authorization, a ask, since uint64) *Authorization {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.find(a.key)
	switch {
	case e == nil && c.gone[a.key].since(since, a):
		return nil
	case e == nil:
		if e = c.insert(a.key); e == nil {
			return answer
		}
		c.set(e, answer)
		c.kept(e)
	case e.accepts(a, since):
		c.set(e, answer)
	default:
		now := c.clock.now()
		if given := e.give(a, now); given != nil {
			return given
		}
		held := e.held.Load()
		if held == nil || e.taken.since(since, a) || a.target != "" && held.ConnectionTag != answer.ConnectionTag {
			return nil // also where the origin was allowed to another credential
		}
		if held.lifetime.serves(now, a.minValidity) {
			answer = held
		}
	}
	if a.target != "" && !e.allows(a.target) {
		known := []string{a.target}
		if before := e.origins.Load(); before != nil {
			known = append(known, *before...)
		}
		known = known[:min(len(known), mostOrigins)]
		e.origins.Store(&known)
	}
	return answer
}

// accepts says whether an answer is newer than what is held. A rejection is followed on the stream by a withdrawal, and
// perhaps by the better value itself, before it is answered.
func (e *entry) accepts(a ask, since uint64) bool {
	if e.changed <= since {
		return true
	}
	held := e.held.Load()
	return a.rejected != "" && !e.taken.since(since, a) && (held == nil || held.Revision == a.rejected)
}

// insert makes an entry, in the place of the least recently used one where there are as many as may be. It returns nil
// once closed.
func (c *cache) insert(k key) *entry {
	if c.closed {
		return nil
	}
	if len(c.byID) >= c.size {
		c.evict()
	}
	c.ids++
	e := &entry{key: k, id: strconv.FormatUint(c.ids, 10), retry: backoff{first: retryFirst, most: retryMost}}
	e.used.Store(int64(c.clock.now()))
	e.timer = time.AfterFunc(time.Duration(math.MaxInt64), func() { c.rest(e) })
	c.entries.Store(k, e)
	c.byID[e.id] = e
	return e
}

// evict drops the entry that was not used for longest. A connection uses its entry all the time.
func (c *cache) evict() {
	var oldest *entry
	for _, e := range c.byID {
		if oldest == nil || e.before(oldest) {
			oldest = e
		}
	}
	c.remove(oldest)
}

// before says whether an entry goes before another.
func (e *entry) before(other *entry) bool {
	if connected := len(e.connections) > 0; connected != (len(other.connections) > 0) {
		return !connected
	}
	return e.used.Load() < other.used.Load()
}

// set replaces a value.
func (c *cache) set(e *entry, value *Authorization) {
	c.changes++
	e.changed = c.changes
	e.retry.reset()
	e.lookAt.Store(int64(value.lifetime.due))
	if before := e.held.Load(); before != nil && before.ConnectionTag != value.ConnectionTag {
		e.origins.Store(nil) // they were allowed to another credential, and go before that may be given
	}
	e.held.Store(value)
	for connection := range e.connections {
		if connection.Authorization().ConnectionTag != value.ConnectionTag {
			connection.end(errChanged)
		}
	}
	c.arm(e)
}

// push holds a value that the stream brought. It is when the one before is due: an entry that nobody uses goes instead.
func (c *cache) push(id string, answer *pb.Authorization) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byID[id]
	if e == nil {
		return // dropped while it was on its way
	}
	now := c.clock.now()
	if c.isIdle(e, now) {
		c.remove(e)
		return
	}
	c.set(e, newAuthorization(e.key, answer, c.clock, now))
}

// withdraw drops the value of an entry, which stays subscribed: a better one may follow.
func (c *cache) withdraw(id string, reason pb.WithdrawalReason) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byID[id]
	if e == nil {
		return
	}
	c.changes++
	e.changed, e.taken.withdrawn = c.changes, c.changes
	e.origins.Store(nil)
	if reason != pb.WithdrawalReason_WITHDRAWAL_REASON_CREDENTIAL_REJECTED {
		e.taken.revoked = c.changes
	}
	e.held.Store(nil)
	for connection := range e.connections {
		connection.end(errChanged)
	}
	c.arm(e)
}

// failed notes that a question was not answered. A refusal drops the entry, unless something newer came meanwhile or the
// question was a special one, and that of a report only what was reported; after anything else a refresh waits.
func (c *cache) failed(a ask, err *Error, since uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.find(a.key)
	switch {
	case e == nil || !a.plain() && a.rejected == "":
	case refuses(err.Code):
		held := e.held.Load()
		ours := a.rejected == "" || held != nil && held.Revision == a.rejected && err.Code != codes.InvalidArgument
		if ours && e.accepts(a, since) {
			c.changes++
			e.taken = taken{c.changes, c.changes}
			c.remove(e)
		}
	case a.plain():
		e.lookAt.Store(int64(c.clock.now() + e.retry.next(err.RetryDelay)))
		c.arm(e)
	}
}

// remove drops an entry.
func (c *cache) remove(e *entry) {
	e.timer.Stop()
	e.held.Store(nil)
	if e.taken.withdrawn > 0 {
		if len(c.gone) >= c.size {
			clear(c.gone)
		}
		c.gone[e.key] = e.taken
	}
	for connection := range e.connections {
		connection.end(errChanged)
	}
	c.entries.Delete(e.key)
	delete(c.byID, e.id)
	c.dropped(e)
}

// isIdle says whether nobody used an entry for long.
func (c *cache) isIdle(e *entry, now time.Duration) bool {
	return len(e.connections) == 0 && now-time.Duration(e.used.Load()) >= c.idle
}

// rest looks after an entry when its timer fires: it is idle and due, or has connections and is due.
func (c *cache) rest(e *entry) {
	c.mu.Lock()
	now := c.clock.now()
	held := e.held.Load()
	gone := c.byID[e.id] != e
	due := held == nil || now >= held.lifetime.due
	ask := false
	switch {
	case gone:
	case due && c.isIdle(e, now):
		c.remove(e)
	default:
		ask = len(e.connections) > 0 && held != nil && e.wants(held, now, c.watching())
		c.arm(e)
	}
	c.mu.Unlock()
	if ask {
		c.refresh(e)
	}
}

// wants says whether a use now begins a refresh.
func (e *entry) wants(held *Authorization, now time.Duration, watching bool) bool {
	return int64(now) >= e.lookAt.Load() && now >= held.lifetime.asks(watching)
}

// arm sets when rest looks next.
func (c *cache) arm(e *entry) {
	now := c.clock.now()
	held := e.held.Load()
	at := time.Duration(e.used.Load()) + c.idle
	switch {
	case held == nil && len(e.connections) > 0:
		at = now + c.idle
	case held == nil:
	case len(e.connections) == 0:
		at = max(at, held.lifetime.due)
	case now < held.lifetime.due:
		at = held.lifetime.due
	default:
		at = max(time.Duration(e.lookAt.Load()), held.lifetime.asks(c.watching()))
	}
	e.timer.Reset(max(at-now, restApart))
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

// each calls f with all entries, and the revision of those whose value is current for now.
func (c *cache) each(f func(e *entry, revision string)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.clock.now()
	for _, e := range c.byID {
		revision := ""
		if held := e.held.Load(); held != nil && now < held.lifetime.due {
			revision = held.Revision
		}
		f(e, revision)
	}
}

// holds counts what may be given now, and says in how long the first of it ends.
func (c *cache) holds() (count int, firstEnd time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.byID {
		if held := e.held.Load(); held != nil && held.ExpiresIn() > 0 {
			if left := held.ExpiresIn(); count == 0 || left < firstEnd {
				firstEnd = left
			}
			count++
		}
	}
	return count, firstEnd
}

// connect lets a connection know when what it was dialled with changes.
func (c *cache) connect(connection *Connection) {
	dialled := connection.Authorization()
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.find(dialled.key)
	if e == nil {
		connection.end(errChanged)
		return
	}
	if held := e.held.Load(); held == nil || held.ConnectionTag != dialled.ConnectionTag {
		connection.end(errChanged)
		return
	}
	if e.connections == nil {
		e.connections = map[*Connection]struct{}{}
	}
	e.connections[connection] = struct{}{}
	connection.entry = e
	c.arm(e)
}

// disconnect forgets a connection, which was a use of its entry until now.
func (c *cache) disconnect(connection *Connection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := connection.entry; e != nil {
		delete(e.connections, connection)
		e.used.Store(int64(c.clock.now()))
		if c.byID[e.id] == e {
			c.arm(e)
		}
	}
}

// close drops everything.
func (c *cache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, e := range c.byID {
		for connection := range e.connections {
			connection.end(ErrClosed)
		}
		c.remove(e)
	}
}
