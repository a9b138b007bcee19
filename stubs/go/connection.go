package credentialbroker

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// errChanged is why a connection must not be used any longer.
var errChanged = errors.New("credential broker: the connection's authorization was replaced or withdrawn; dial anew")

// Connection belongs to a connection that lives longer than one call, such as a websocket or those of a pool. It gives
// the headers to dial with, and says when the connection must be closed and dialled anew. While it is open its
// authorization is kept current.
type Connection struct {
	cache         *cache
	entry         *entry // guarded by cache.mu
	authorization *Authorization
	once          sync.Once
	changed       chan struct{}
	err           error
}

// Connection returns the headers to dial with, and watches over them until Close.
func (c *Client) Connection(ctx context.Context, request Request) (*Connection, error) {
	authorization, err := c.Authorization(ctx, request)
	if err != nil {
		return nil, err
	}
	connection := &Connection{cache: &c.cache, authorization: authorization, changed: make(chan struct{})}
	c.cache.connect(connection)
	return connection, nil
}

// Authorization is what to dial with.
func (c *Connection) Authorization() *Authorization { return c.authorization }

// Changed is closed as soon as the connection must not be used any longer.
func (c *Connection) Changed() <-chan struct{} { return c.changed }

// Err says why Changed is closed: [ErrClosed] where the client was, else that the authorization was replaced by one of
// another connection tag, or withdrawn. It is nil before.
func (c *Connection) Err() error {
	select {
	case <-c.changed:
		return c.err
	default:
		return nil
	}
}

// Format shows the authorization without its headers, whatever the verb.
func (c *Connection) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "connection with %v", c.authorization)
}

// Close ends the watch over the connection. Closing twice is fine.
func (c *Connection) Close() error {
	c.cache.disconnect(c)
	return nil
}

func (c *Connection) end(why error) {
	c.once.Do(func() {
		c.err = why
		close(c.changed)
	})
}

// connect lets a connection know when what it is dialled with changes.
func (c *cache) connect(connection *Connection) {
	dialled := connection.Authorization()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		connection.end(ErrClosed)
		return
	}
	e := c.find(dialled.key)
	if e == nil || !e.holdsTag(dialled.ConnectionTag) { // it was replaced since it was asked for
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
