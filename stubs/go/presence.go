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
	// failing says whether no connection to the broker can be made.
	failing func() bool

	mu   sync.Mutex
	away bool
	last *Error
}

// failed notes an error, and that the broker is away if that is what it means.
func (p *presence) failed(err *Error) {
	p.note(err, err.unreached() || err.ReasonText == "" && p.failing()) // a call that waits for a connection ends with its time
}

// lost notes what ended the stream. Whatever it is, the broker is away, unless that was a word of its own.
func (p *presence) lost(err *Error) { p.note(err, err.ReasonText == "") }

func (p *presence) note(err *Error, unreached bool) {
	p.mu.Lock()
	p.last = err
	lost := unreached && !p.away
	p.away = p.away || lost
	p.mu.Unlock()
	if lost {
		count, firstEnd := p.holds()
		p.logger.Warn("credential broker: the broker is away; what is held is served until it ends",
			"held", count, "first_ends_in", firstEnd.Round(time.Millisecond), "error", err)
	} else if !unreached && err.ReasonText != "" {
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
