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
