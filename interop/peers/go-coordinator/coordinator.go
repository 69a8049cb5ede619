// The coordinator of docs/protocol.md §7, without observers (§7.6) and filtering tests (§7.8).
package main

import (
	"bufio"
	"bytes"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/quicvarint"
)

// Caps of §9.
const (
	maxAnnounced     = 16
	maxRegistrations = 10_000
	maxLifetime      = 3_600
	maxPeers         = 65_536
	requestsAtOnce   = 200
	requestInterval  = 10 * time.Millisecond
	rememberSession  = 10 * time.Second
	maxSessions      = 65_536
	requestBacklog   = 512 << 10
	otherBacklog     = 64 << 10
	stallTimeout     = 10 * time.Second
	lookInterval     = time.Second
)

// A bucket is a token bucket.
type bucket struct {
	tokens float64
	at     time.Time
}

type rate struct{ burst, perSecond float64 }

var (
	registerRate = rate{10, 1}
	requestRate  = rate{requestsAtOnce, float64(time.Second / requestInterval)}
	pairRate     = rate{10, 2}
)

// take takes a token, or returns the time until there is one.
func (b *bucket) take(now time.Time, r rate) time.Duration {
	if b.at.IsZero() {
		b.tokens = r.burst
	} else {
		b.tokens = math.Min(r.burst, b.tokens+now.Sub(b.at).Seconds()*r.perSecond)
	}
	b.at = now
	if b.tokens >= 1 {
		b.tokens--
		return 0
	}
	return time.Duration((1 - b.tokens) / r.perSecond * float64(time.Second))
}

type limitKey struct {
	from, to peer.ID
	kind     *rate
}

type sessionKey struct {
	session   [16]byte
	responder peer.ID
}

type session struct {
	initiator *client
	round     uint64
	until     time.Time
	// The initiator gets its answer once the responder has accepted the request.
	owesAnswer bool
}

type registered struct {
	client     *client
	frame      Register
	candidates []Candidate
	expires    time.Time
}

// A Coordinator introduces peers to each other.
type Coordinator struct {
	mu            sync.Mutex
	clients       map[network.Conn]*client
	registrations map[peer.ID]*registered
	sessions      map[sessionKey]session
	limits        map[limitKey]*bucket
}

func newCoordinator() *Coordinator {
	return &Coordinator{
		clients:       map[network.Conn]*client{},
		registrations: map[peer.ID]*registered{},
		sessions:      map[sessionKey]session{},
		limits:        map[limitKey]*bucket{},
	}
}

// A client is a control stream of a peer.
type client struct {
	peer       peer.ID
	stream     network.Stream
	out        chan []byte
	backlog    [2]int // bytes of PUNCH_ME_NOW, of all other frames
	end        chan struct{}
	once       sync.Once
	announced  map[uint64]Candidate
	observed   netip.AddrPort
	sequence   uint64
	generation uint64
	hasOne     bool
}

// serve reads a control stream to its end.
func (c *Coordinator) serve(stream network.Stream) {
	conn := stream.Conn()
	me := &client{
		peer: conn.RemotePeer(), stream: stream, out: make(chan []byte, 4096), end: make(chan struct{}),
		announced: map[uint64]Candidate{},
	}
	c.mu.Lock()
	if _, taken := c.clients[conn]; taken || len(c.clients) >= maxPeers {
		c.mu.Unlock()
		_ = stream.Reset()
		return
	}
	c.clients[conn] = me
	c.look(me)
	c.mu.Unlock()
	go c.write(me)
	go c.watch(me)
	defer func() {
		me.close()
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.clients, conn)
		if r := c.registrations[me.peer]; r != nil && r.client == me {
			delete(c.registrations, me.peer)
		}
	}()
	reader := quicvarint.NewReader(bufio.NewReader(stream))
	for {
		frame, err := readFrame(reader)
		if err != nil {
			return
		}
		decoded, err := decode(frame)
		if err != nil {
			return
		}
		c.mu.Lock()
		c.take(me, decoded, time.Now())
		c.mu.Unlock()
	}
}

func (me *client) close() {
	me.once.Do(func() {
		close(me.end)
		_ = me.stream.Reset()
	})
}

// write sends what waits for a stream.
func (c *Coordinator) write(me *client) {
	for {
		select {
		case <-me.end:
			return
		case frame := <-me.out:
			_ = me.stream.SetWriteDeadline(time.Now().Add(stallTimeout))
			if _, err := me.stream.Write(frame); err != nil {
				me.close()
				return
			}
			c.mu.Lock()
			me.backlog[backlogOf(frame)] -= len(frame)
			c.mu.Unlock()
		}
	}
}

// watch looks for a new address of the peer.
func (c *Coordinator) watch(me *client) {
	ticker := time.NewTicker(lookInterval)
	defer ticker.Stop()
	for {
		select {
		case <-me.end:
			return
		case <-ticker.C:
			c.mu.Lock()
			c.look(me)
			c.mu.Unlock()
		}
	}
}

// look reports the address at which a peer is seen, if it is another than before.
func (c *Coordinator) look(me *client) {
	seen := observe(me.stream.Conn())
	if seen == me.observed || !seen.IsValid() {
		me.observed = seen
		return
	}
	me.observed = seen
	me.sequence++
	me.send(Observed{me.sequence, seen})
}

// observe returns the source of a peer's packets, or nothing if it is relayed or not on UDP.
func observe(conn network.Conn) netip.AddrPort {
	address := conn.RemoteMultiaddr()
	if _, err := address.ValueForProtocol(ma.P_CIRCUIT); err == nil {
		return netip.AddrPort{}
	}
	// The multiaddress is that of the beginning; quic-go follows a peer that moves.
	var moved *quic.Conn
	if conn.As(&moved) {
		if udp, err := netip.ParseAddrPort(moved.RemoteAddr().String()); err == nil {
			return netip.AddrPortFrom(udp.Addr().Unmap().WithZone(""), udp.Port())
		}
	}
	return netip.AddrPort{}
}

func backlogOf(frame []byte) int {
	f := &fields{rest: frame}
	f.number(anyNumber)
	switch f.number(anyNumber) {
	case typeMeNow, typeMeNow4, typeMeNow6:
		return 0
	}
	return 1
}

// send queues a frame. It returns false for a request that does not fit; other frames that do not
// fit end the stream.
func (me *client) send(frame any) bool {
	encoded := encode(frame)
	which := backlogOf(encoded)
	cap := [2]int{requestBacklog, otherBacklog}[which]
	if me.backlog[which]+len(encoded) <= cap {
		select {
		case me.out <- encoded:
			me.backlog[which] += len(encoded)
			return true
		default:
		}
	}
	if which == 1 {
		me.close()
	}
	return false
}

// limit takes a token of a peer, or returns the time until there is one.
func (c *Coordinator) limit(now time.Time, kind *rate, from, to peer.ID) time.Duration {
	key := limitKey{from, to, kind}
	b := c.limits[key]
	if b == nil {
		if len(c.limits) >= 4*maxPeers {
			for other, old := range c.limits {
				full := other.kind.burst / other.kind.perSecond
				if now.Sub(old.at).Seconds() > full {
					delete(c.limits, other)
				}
			}
			if len(c.limits) >= 4*maxPeers {
				return time.Second
			}
		}
		b = &bucket{}
		c.limits[key] = b
	}
	return b.take(now, *kind)
}

// milliseconds rounds a time up, for a field of at most 300,000.
func milliseconds(d time.Duration) uint64 {
	return uint64(min((d+time.Millisecond-1)/time.Millisecond, 300_000))
}

// take acts on a frame of a peer.
func (c *Coordinator) take(me *client, frame any, now time.Time) {
	switch f := frame.(type) {
	case Add:
		if _, replaces := me.announced[f.Candidate.Sequence]; replaces || len(me.announced) < maxAnnounced {
			me.announced[f.Candidate.Sequence] = f.Candidate
		}
	case Remove:
		delete(me.announced, f.Sequence)
	case Register:
		c.register(me, f, now)
	case MeNow:
		c.request(me, f, now)
	case Rejected:
		key := sessionKey{f.Session, me.peer}
		if s, known := c.sessions[key]; known && s.round == f.Round && now.Before(s.until) {
			s.initiator.send(f)
		}
	case Accepted:
		key := sessionKey{f.Session, me.peer}
		s, known := c.sessions[key]
		if known && s.owesAnswer && s.round == f.Round && now.Before(s.until) {
			s.owesAnswer = false
			c.sessions[key] = s
			if target := c.registrations[me.peer]; target != nil {
				answer(s.initiator, target, f.Session, f.Round)
			}
		}
	case Prediction:
		c.forward(me, f.Peer, f.Session, now, func() any { f.Peer = []byte(me.peer); return f })
	case Moved:
		c.forward(me, f.Peer, f.Session, now, func() any { f.Peer = []byte(me.peer); return f })
	}
}

// isKeyOf says whether a public key is that of a peer.
func isKeyOf(key []byte, id peer.ID) bool {
	public, err := crypto.UnmarshalPublicKey(key)
	return err == nil && id.MatchesPublicKey(public)
}

func (c *Coordinator) register(me *client, f Register, now time.Time) {
	reject := func(reason Reason, after time.Duration) {
		me.send(RegisterRejected{f.Registration.Generation, reason, milliseconds(after)})
	}
	if f.Registration.Lifetime == 0 {
		c.withdraw(me, f.Registration)
		return
	}
	if wait := c.limit(now, &registerRate, me.peer, ""); wait > 0 {
		reject(RateLimited, wait)
		return
	}
	if !isKeyOf(f.Registration.Key, me.peer) || me.hasOne && f.Registration.Generation <= me.generation {
		reject(Malformed, 0)
		return
	}
	if _, again := c.registrations[me.peer]; !again && len(c.registrations) >= maxRegistrations {
		for id, other := range c.registrations {
			if now.After(other.expires) {
				delete(c.registrations, id)
			}
		}
		if len(c.registrations) >= maxRegistrations {
			reject(Full, 0)
			return
		}
	}
	me.hasOne, me.generation = true, f.Registration.Generation
	lifetime := min(f.Registration.Lifetime, maxLifetime)
	candidates := make([]Candidate, 0, len(me.announced))
	for _, candidate := range me.announced {
		candidates = append(candidates, candidate)
	}
	slices.SortFunc(candidates, func(a, b Candidate) int {
		if a.Sequence < b.Sequence {
			return -1
		}
		return 1
	})
	expires := now.Add(time.Duration(lifetime) * time.Second)
	c.registrations[me.peer] = &registered{me, f, candidates, expires}
	me.send(Registered{
		f.Registration.Generation, lifetime, requestsAtOnce, uint64(requestInterval / time.Microsecond),
	})
}

// withdraw ends the registration of a peer that asks for it. There is no answer.
func (c *Coordinator) withdraw(me *client, withdrawal Registration) {
	r := c.registrations[me.peer]
	if r != nil && r.client == me && isKeyOf(withdrawal.Key, me.peer) && withdrawal.Generation > me.generation {
		delete(c.registrations, me.peer)
	}
}

func (c *Coordinator) request(me *client, f MeNow, now time.Time) {
	reject := func(reason Reason, after time.Duration) {
		me.send(Rejected{f.Session, f.Round, reason, milliseconds(after)})
	}
	responder := peer.ID(f.Responder)
	if wait := c.limit(now, &requestRate, me.peer, ""); wait > 0 {
		reject(RateLimited, wait)
		return
	}
	if f.Lifetime == 0 {
		reject(Expired, 0)
		return
	}
	key := sessionKey{f.Session, responder}
	before, known := c.sessions[key]
	isTaken := known && now.Before(before.until) && before.initiator.peer != me.peer
	if isTaken || !isKeyOf(f.Initiator, me.peer) {
		reject(Malformed, 0)
		return
	}
	target := c.registrations[responder]
	if target == nil || now.After(target.expires) || responder == me.peer {
		reject(NotConnected, 0)
		return
	}
	if wait := c.limit(now, &pairRate, me.peer, responder); wait > 0 {
		reject(RateLimited, wait)
		return
	}
	c.look(me)
	c.look(target.client)
	// Whatever the initiator sent there is replaced.
	f.Observed = me.observed
	if !target.client.send(f) {
		reject(RateLimited, 0)
		return
	}
	c.remember(key, session{me, f.Round, now.Add(rememberSession), target.frame.ToAccepted}, now)
	if !target.frame.ToAccepted {
		answer(me, target, f.Session, f.Round)
	}
}

// answer answers the request of an initiator with the registration of the responder.
func answer(initiator *client, target *registered, session [16]byte, round uint64) {
	answer := Answer{
		Observed: target.client.observed, Session: session, Round: round,
		Registration: target.frame.Registration, Signature: target.frame.Signature,
		Candidates: target.candidates, Report: target.frame.Report,
	}
	if !maySeeAll(initiator.observed, target.client.observed) {
		answer.Signature, answer.Candidates = target.frame.PublicSignature, nil
		for _, candidate := range target.candidates {
			if isGlobal(candidate.Address.Addr()) {
				answer.Candidates = append(answer.Candidates, candidate)
			}
		}
	}
	initiator.send(answer)
}

// remember keeps where the frames of a session go.
func (c *Coordinator) remember(key sessionKey, of session, now time.Time) {
	if len(c.sessions) >= maxSessions {
		for other, s := range c.sessions {
			if now.After(s.until) {
				delete(c.sessions, other)
			}
		}
		if len(c.sessions) >= maxSessions {
			return
		}
	}
	c.sessions[key] = of
}

// forward takes a frame from one peer of a session to the other.
func (c *Coordinator) forward(me *client, to []byte, id [16]byte, now time.Time, frame func() any) {
	if c.limit(now, &requestRate, me.peer, "") > 0 {
		return
	}
	receiver := peer.ID(to)
	if s, known := c.sessions[sessionKey{id, me.peer}]; known && s.initiator.peer == receiver && now.Before(s.until) {
		s.initiator.send(frame())
	} else if r := c.registrations[receiver]; r != nil && now.Before(r.expires) {
		r.client.send(frame())
	}
}

// maySeeAll says whether an initiator gets candidates that are not global, §7.3.
func maySeeAll(initiator, responder netip.AddrPort) bool {
	a, b := initiator.Addr(), responder.Addr()
	if !a.IsValid() || !b.IsValid() {
		return false
	}
	if a.Is4() != b.Is4() {
		return !isGlobal(a) && !isGlobal(b)
	}
	if a.Is4() && a == b {
		return true
	}
	if a.Is6() {
		x, y := a.As16(), b.As16()
		if bytes.Equal(x[:8], y[:8]) {
			return true
		}
	}
	return !isGlobal(a) && !isGlobal(b)
}
