package credentialbroker

import (
	"log/slog"
	"sync"
	"time"
)

// presence says, once for each change, that the broker is away or back.
type presence struct {
	logger *slog.Logger
	holds  func() (count int, firstEnd time.Duration)

	mu   sync.Mutex
	away bool
	last *Error
}

// failed notes an error, and that the broker is away if that is what it means.
func (p *presence) failed(err *Error) {
	p.mu.Lock()
	p.last = err
	lost := err.unreached() && !p.away
	p.away = p.away || lost
	p.mu.Unlock()
	if lost {
		count, firstEnd := p.holds()
		p.logger.Warn("credential broker: the broker is away; what is held is served until it ends",
			"held", count, "first_ends_in", firstEnd.Round(time.Millisecond), "error", err)
	} else if !err.unreached() && err.ReasonText != "" {
		p.answered() // a refusal comes from a broker that is there
	}
}

// answered notes that the broker answered.
func (p *presence) answered() {
	p.mu.Lock()
	back := p.away
	p.away = false
	p.mu.Unlock()
	if back {
		p.logger.Info("credential broker: the broker is back")
	}
}

// lastError is the last one that was noted, or nil.
func (p *presence) lastError() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last == nil {
		return nil
	}
	return p.last
}
