package credentialbroker

import (
	"context"
	"errors"
	"net"
	"time"

	"google.golang.org/grpc/resolver"
)

// resolveApart is the least time between two look-ups of the broker's name that brought addresses.
const resolveApart = 5 * time.Second

// dnsResolver resolves the names of one client. gRPC's own waits 30 s before it looks a name up again, a figure of the
// whole process; a broker that moved would be away for as long.
type dnsResolver struct{}

// Scheme implements resolver.Builder.
func (dnsResolver) Scheme() string { return "dns" }

// Build implements resolver.Builder.
func (dnsResolver) Build(target resolver.Target, channel resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	host, port, err := net.SplitHostPort(target.Endpoint())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &resolving{host: host, port: port, channel: channel, again: make(chan struct{}, 1), cancel: cancel, done: make(chan struct{})}
	go r.run(ctx)
	return r, nil
}

// resolving keeps the addresses of one name current.
type resolving struct {
	host, port string
	channel    resolver.ClientConn
	again      chan struct{}
	cancel     context.CancelFunc
	done       chan struct{}
}

func (r *resolving) run(ctx context.Context) {
	defer close(r.done)
	retry := backoff{first: retryFirst, most: resolveApart}
	for {
		began := time.Now()
		var wait time.Duration
		if err := r.resolve(ctx); err != nil {
			wait = retry.next(0)
		} else {
			retry.reset()
			select {
			case <-r.again:
			case <-ctx.Done():
				return
			}
			wait = resolveApart - time.Since(began)
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}

// resolve looks the name up and tells the channel what came of it.
func (r *resolving) resolve(ctx context.Context) error {
	hosts, err := net.DefaultResolver.LookupHost(ctx, r.host)
	if err == nil && len(hosts) == 0 {
		err = errors.New("no address")
	}
	if err != nil {
		r.channel.ReportError(err)
		return err
	}
	state := resolver.State{Addresses: make([]resolver.Address, len(hosts))}
	for i, host := range hosts {
		state.Addresses[i].Addr = net.JoinHostPort(host, r.port)
	}
	return r.channel.UpdateState(state)
}

// ResolveNow implements resolver.Resolver. gRPC calls it when a connection is lost or cannot be made.
func (r *resolving) ResolveNow(resolver.ResolveNowOptions) {
	select {
	case r.again <- struct{}{}:
	default:
	}
}

// Close implements resolver.Resolver.
func (r *resolving) Close() {
	r.cancel()
	<-r.done
}
