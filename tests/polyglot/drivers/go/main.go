// Driver does what the conformance suite tells it, with the Go client. Its protocol stands in tests/polyglot/README.md.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"
)

// command is one line of input. What a command does not use is left at zero.
type command struct {
	ID int    `json:"id"`
	Do string `json:"do"`

	Client     string `json:"client"`
	Connection string `json:"connection"`
	Traffic    string `json:"traffic"`

	Address         string   `json:"address"`
	Watch           *bool    `json:"watch"`
	CAFile          string   `json:"ca_file"`
	CertificateFile string   `json:"certificate_file"`
	PrivateKeyFile  string   `json:"private_key_file"`
	ServerName      string   `json:"server_name"`
	Plaintext       bool     `json:"plaintext"`
	CacheSize       *int     `json:"cache_size"`
	Idle            *seconds `json:"idle_seconds"`
	Silence         *seconds `json:"silence_seconds"`
	Env             bool     `json:"env"`

	Scope       string   `json:"scope"`
	Thread      string   `json:"thread"`
	Threads     []string `json:"threads"`
	Identity    string   `json:"identity"`
	TargetURL   string   `json:"target_url"`
	MinValidity seconds  `json:"min_validity"`
	Timeout     *seconds `json:"timeout"`
	Count       int      `json:"count"`
	Seconds     seconds  `json:"seconds"`
	Held        int      `json:"held"`
	Detail      string   `json:"detail"`
	Wait        seconds  `json:"wait"`
	Rate        float64  `json:"rate"`
	Workers     int      `json:"workers"`

	Adapter         string            `json:"adapter"`
	Origin          string            `json:"origin"`
	URL             string            `json:"url"`
	Method          string            `json:"method"`
	Body            *string           `json:"body"`
	StreamBody      bool              `json:"stream_body"`
	Headers         map[string]string `json:"headers"`
	FollowRedirects bool              `json:"follow_redirects"`
	Target          string            `json:"target"`
}

type seconds float64

func (s seconds) duration() time.Duration { return time.Duration(float64(s) * float64(time.Second)) }

type object = map[string]any

func main() {
	d := newDriver()
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	var output sync.Mutex
	var running sync.WaitGroup
	for lines.Scan() {
		var c command
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			fmt.Fprintln(os.Stderr, "driver:", err)
			os.Exit(2)
		}
		running.Go(func() {
			answer := object{"id": c.ID}
			if ok, err := d.do(c); err != nil {
				answer["error"] = describeError(err)
			} else {
				answer["ok"] = ok
			}
			line, err := json.Marshal(answer)
			if err != nil {
				panic(err)
			}
			output.Lock()
			defer output.Unlock()
			fmt.Println(string(line))
		})
	}
	d.closeAll()
	running.Wait()
}
