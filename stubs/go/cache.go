package credentialbroker

import (
	"math"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	pb "credentialbroker.dev/stubs/go/credentialbroker/v1"
)

// restApart is the least time between two looks of a timer at its entry.
const restApart = 100 * time.Millisecond

// cache is what a client holds. It does no I/O.
type cache struct {
	clock clock
	size  int
	idle  time.Duration
	// watches says whether the next values of an entry come by themselves.
	watches func(*entry) bool
	// kept is told of an entry whose value was asked for, dropped of one that goes, refresh of one that is due and has
	// connections. The lock is held during the first two.
	kept, dropped, refresh func(*entry)

	entries sync.Map // of key to *entry; written with mu held, read without
	mu      sync.Mutex
	byID    map[string]*entry
	ids     uint64
	changes uint64 // so far: a question notes how many, and its answer may be older than those that came since
	gone    gone
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
// the question is to be asked again. A rejection is followed on the stream by a withdrawal of its own, and perhaps by the
// better value itself, before it is answered.
func (c *cache) keep(answer *Authorization, a ask, since uint64) *Authorization {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.find(a.key)
	if e == nil {
		if c.gone.of(a.key).since(since, a) {
			return nil
		}
		if e = c.insert(a.key); e == nil {
			return answer
		}
		c.set(e, answer)
		c.kept(e)
	} else if newer := e.newer(a, since); newer != nil {
		now := c.clock.now()
		if given := e.give(a, now); given != nil {
			return given
		}
		if e.taken.since(since, a) || a.target != "" && newer.ConnectionTag != answer.ConnectionTag {
			return nil // also where the origin was allowed to another credential
		}
		if newer.lifetime.serves(now, a.minValidity) {
			answer = newer
		}
	} else if e.taken.since(since, a) {
		return nil
	} else {
		c.set(e, answer)
		c.kept(e)
	}
	if a.target != "" {
		e.allow(a.target)
	}
	return answer
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
	e := &entry{
		key: k, id: strconv.FormatUint(c.ids, 10), taken: c.gone.of(k), retry: backoff{first: retryFirst, most: retryMost},
	}
	e.used.Store(int64(c.clock.now()))
	e.timer = time.AfterFunc(time.Duration(math.MaxInt64), func() { c.rest(e) })
	c.entries.Store(k, e)
	c.byID[e.id] = e
	return e
}

// evict drops the entry that was not used for longest.
func (c *cache) evict() {
	var oldest *entry
	for _, e := range c.byID {
		if oldest == nil || e.before(oldest) {
			oldest = e
		}
	}
	c.remove(oldest)
}

// set replaces a value.
func (c *cache) set(e *entry, value *Authorization) {
	c.changes++
	e.changed = c.changes
	e.ended = false
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
// What a stream brings that is not current any more may be older than what the next one took back. That is looked at with
// the lock held, for which a value may have waited.
func (c *cache) push(id string, answer *pb.Authorization, current func() bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.clock.now()
	switch e := c.byID[id]; {
	case e == nil || !current(): // dropped while it was on its way, or late
	case c.isIdle(e, now):
		c.remove(e)
	case e.ended: // it may be from before that
	default:
		c.set(e, newAuthorization(e.key, answer, c.clock, now))
	}
}

// withdraw takes back the value that the stream brought for an entry.
func (c *cache) withdraw(id string, reason pb.WithdrawalReason) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.byID[id]; e != nil {
		c.takeBack(e, reason == pb.WithdrawalReason_WITHDRAWAL_REASON_CREDENTIAL_REJECTED)
	}
}

// endTask takes back what is held of a thread, in every scope, and lets no answer be given that was asked for before.
func (c *cache) endTask(identity, thread string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.byID {
		if e.key.identity == identity && e.key.thread == thread {
			c.takeBack(e, false)
			e.ended = true
		}
	}
	c.changes++
	c.gone.add(everyScope(identity, thread), taken{c.changes, c.changes})
}

// takeBack drops the value of an entry, which stays subscribed: a better one may follow.
func (c *cache) takeBack(e *entry, rejected bool) {
	c.changes++
	e.changed, e.taken.withdrawn = c.changes, c.changes
	if !rejected {
		e.taken.revoked = c.changes
	}
	e.origins.Store(nil)
	e.held.Store(nil)
	e.endConnections(errChanged)
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
		drops := e.changed <= since
		if a.rejected != "" { // a report that was not understood says nothing of what is held
			drops = held != nil && held.Revision == a.rejected && err.Code != codes.InvalidArgument
		}
		if drops {
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
		c.gone.add(e.key, e.taken)
	}
	e.endConnections(errChanged)
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
		ask = len(e.connections) > 0 && held != nil && e.wants(held, now, c.watches(e))
		c.arm(e)
	}
	c.mu.Unlock()
	if ask {
		c.refresh(e)
	}
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
		at = max(time.Duration(e.lookAt.Load()), held.lifetime.asks(c.watches(e)))
	}
	e.timer.Reset(max(at-now, restApart))
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

// close drops everything.
func (c *cache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, e := range c.byID {
		e.endConnections(ErrClosed)
		c.remove(e)
	}
}
