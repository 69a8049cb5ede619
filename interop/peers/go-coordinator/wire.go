// Frames of the control stream, docs/protocol.md §2 and §3.
package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/quic-go/quic-go/quicvarint"
)

const maxFrame = 16_384

// Types of frames; pairs and triples begin with the one that carries an IPv4 address.
const (
	typeObserved         = 0x9f81a6
	typeAdd              = 0x3d7e90
	typeMeNow4           = 0x3d7e92
	typeMeNow6           = 0x3d7e93
	typeRemove           = 0x3d7e94
	typeMeNow            = 0x3d7e95
	typeAnswer4          = 0x3d7e96
	typeAnswer6          = 0x3d7e97
	typeAnswer           = 0x3d7e98
	typeRejected         = 0x3d7e99
	typeRegister         = 0x3d7e9a
	typeRegistered       = 0x3d7e9b
	typeRegisterRejected = 0x3d7e9c
	typeRegisterAccepted = 0x3d7eaa
	typeAccepted         = 0x3d7eab
	typePrediction       = 0x3d7ea0
	typeMoved            = 0x3d7ea8
)

// Reason is the reason of a rejection, §2.2.
type Reason uint64

// Reasons that this coordinator gives.
const (
	NotConnected Reason = 1
	RateLimited  Reason = 2
	Expired      Reason = 4
	Full         Reason = 6
	Malformed    Reason = 7
)

const maxReason Reason = 8

var errMalformed = errors.New("malformed frame")

// A Candidate is an address at which a peer may be reached.
type Candidate struct {
	Sequence uint64
	Address  netip.AddrPort
	Kind     uint64
	Priority uint64
}

// A Registration is the part of REGISTER and PUNCH_ANSWER before the signature.
type Registration struct {
	Key        []byte
	Generation uint64
	Lifetime   uint64
	ProbeKey   [32]byte
}

// Frames. An invalid address is one that the frame does not carry.
type (
	Observed struct {
		Sequence uint64
		Address  netip.AddrPort
	}
	Add      struct{ Candidate Candidate }
	Remove   struct{ Sequence uint64 }
	Register struct {
		Registration    Registration
		Signature       []byte
		PublicSignature []byte
		// The registration is disclosed only to peers whose request the registered peer accepted.
		ToAccepted bool
		Report     []byte
	}
	Registered struct {
		Generation, Lifetime, Requests, Interval uint64
	}
	RegisterRejected struct {
		Generation uint64
		Reason     Reason
		RetryAfter uint64
	}
	MeNow struct {
		Observed   netip.AddrPort
		Session    [16]byte
		Round      uint64
		Initiator  []byte
		Responder  []byte
		Lifetime   uint64
		ProbeKey   [32]byte
		Candidates []Candidate
		Flight     [][]byte
		Signature  []byte
		Report     []byte
	}
	Answer struct {
		Observed     netip.AddrPort
		Session      [16]byte
		Round        uint64
		Registration Registration
		Signature    []byte
		Candidates   []Candidate
		Report       []byte
	}
	Rejected struct {
		Session    [16]byte
		Round      uint64
		Reason     Reason
		RetryAfter uint64
	}
	Accepted struct {
		Session [16]byte
		Round   uint64
	}
	Prediction struct {
		Peer          []byte
		Session       [16]byte
		Round         uint64
		Port, Step    uint16
		Authenticator [16]byte
	}
	Moved struct {
		Peer          []byte
		Session       [16]byte
		Sequence      uint64
		Candidates    []Candidate
		Authenticator [16]byte
	}
)

// A fields reads fields; after the first error it returns zeros.
type fields struct {
	rest []byte
	err  error
}

func (f *fields) fail() {
	f.err = errMalformed
	f.rest = nil
}

func (f *fields) take(n uint64) []byte {
	if f.err != nil || uint64(len(f.rest)) < n {
		f.fail()
		return nil
	}
	taken := f.rest[:n]
	f.rest = f.rest[n:]
	return taken
}

func (f *fields) number(most uint64) uint64 {
	if f.err != nil {
		return 0
	}
	n, size, err := quicvarint.Parse(f.rest)
	if err != nil || n > most {
		f.fail()
		return 0
	}
	f.rest = f.rest[size:]
	return n
}

const anyNumber = 1<<62 - 1
const below32 = 1<<32 - 1

func (f *fields) bytes(most uint64) []byte {
	n := f.number(most)
	if n == 0 {
		f.fail()
	}
	return f.take(n)
}

func (f *fields) word() uint16 {
	b := f.take(2)
	if len(b) < 2 {
		return 0
	}
	return uint16(b[0])<<8 | uint16(b[1])
}

func (f *fields) id() (id [16]byte)     { copy(id[:], f.take(16)); return id }
func (f *fields) key32() (key [32]byte) { copy(key[:], f.take(32)); return key }

func (f *fields) address(six bool) netip.AddrPort {
	size := uint64(4)
	if six {
		size = 16
	}
	ip, _ := netip.AddrFromSlice(f.take(size))
	port := f.word()
	if f.err == nil && (port == 0 || ip.Is4In6()) {
		f.fail()
	}
	return netip.AddrPortFrom(ip, port)
}

func (f *fields) candidate(six bool) Candidate {
	return Candidate{f.number(anyNumber), f.address(six), f.number(5), f.number(below32)}
}

func (f *fields) candidates() (list []Candidate) {
	for left := f.number(256); left > 0 && f.err == nil; left-- {
		family := f.number(6)
		if family != 4 && family != 6 {
			f.fail()
		}
		list = append(list, f.candidate(family == 6))
	}
	return list
}

func (f *fields) registration() (Registration, []byte) {
	r := Registration{f.bytes(1200), f.number(anyNumber), f.number(86_400), f.key32()}
	return r, f.bytes(1024)
}

// report reads the report at the end of a frame, if there is one.
func (f *fields) report() []byte {
	if f.err != nil || len(f.rest) == 0 {
		return nil
	}
	return f.bytes(64)
}

func (f *fields) reason() Reason {
	reason := Reason(f.number(uint64(maxReason)))
	if reason == 0 {
		f.fail()
	}
	return reason
}

// decode decodes type and payload of a frame, and returns nil for an unknown type.
func decode(frame []byte) (any, error) {
	f := &fields{rest: frame}
	kind := f.number(anyNumber)
	var decoded any
	switch kind {
	case typeObserved, typeObserved + 1:
		decoded = Observed{f.number(anyNumber), f.address(kind&1 == 1)}
	case typeAdd, typeAdd + 1:
		decoded = Add{f.candidate(kind == typeAdd+1)}
	case typeRemove:
		decoded = Remove{f.number(anyNumber)}
	case typeRegister, typeRegisterAccepted:
		r, signature := f.registration()
		decoded = Register{r, signature, f.bytes(1024), kind == typeRegisterAccepted, f.report()}
	case typeRegistered:
		decoded = Registered{f.number(anyNumber), f.number(86_400), f.number(below32), f.number(1_000_000)}
	case typeRegisterRejected:
		decoded = RegisterRejected{f.number(anyNumber), f.reason(), f.number(300_000)}
	case typeMeNow, typeMeNow4, typeMeNow6:
		decoded = f.meNow(kind)
	case typeAnswer, typeAnswer4, typeAnswer6:
		var a Answer
		if kind != typeAnswer {
			a.Observed = f.address(kind == typeAnswer6)
		}
		a.Session, a.Round = f.id(), f.number(below32)
		a.Registration, a.Signature = f.registration()
		a.Candidates, a.Report = f.candidates(), f.report()
		decoded = a
	case typeRejected:
		decoded = Rejected{f.id(), f.number(below32), f.reason(), f.number(300_000)}
	case typeAccepted:
		decoded = Accepted{f.id(), f.number(below32)}
	case typePrediction:
		decoded = Prediction{f.bytes(64), f.id(), f.number(below32), f.word(), f.word(), f.id()}
	case typeMoved:
		decoded = Moved{f.bytes(64), f.id(), f.number(below32), f.candidates(), f.id()}
	default:
		return nil, f.err
	}
	if f.err == nil && len(f.rest) > 0 {
		f.fail()
	}
	return decoded, f.err
}

func (f *fields) meNow(kind uint64) (m MeNow) {
	if kind != typeMeNow {
		m.Observed = f.address(kind == typeMeNow6)
	}
	m.Session, m.Round = f.id(), f.number(below32)
	m.Initiator, m.Responder = f.bytes(1200), f.bytes(64)
	m.Lifetime, m.ProbeKey, m.Candidates = f.number(300_000), f.key32(), f.candidates()
	count := f.number(2)
	if count == 0 {
		f.fail()
	}
	for ; count > 0; count-- {
		m.Flight = append(m.Flight, f.bytes(1500))
	}
	m.Signature, m.Report = f.bytes(1024), f.report()
	return m
}

// An encoder appends fields.
type encoder []byte

func (e *encoder) number(n uint64)  { *e = quicvarint.Append(*e, n) }
func (e *encoder) raw(b []byte)     { *e = append(*e, b...) }
func (e *encoder) word(word uint16) { *e = append(*e, byte(word>>8), byte(word)) }
func (e *encoder) bytes(b []byte)   { e.number(uint64(len(b))); e.raw(b) }
func (e *encoder) report(b []byte) {
	if len(b) > 0 {
		e.bytes(b)
	}
}

func (e *encoder) address(a netip.AddrPort) {
	e.raw(a.Addr().AsSlice())
	e.word(a.Port())
}

// typed appends the type for the family of an optional address, then the address.
func (e *encoder) typed(a netip.AddrPort, none, four, six uint64) {
	switch {
	case !a.IsValid():
		e.number(none)
		return
	case a.Addr().Is4():
		e.number(four)
	default:
		e.number(six)
	}
	e.address(a)
}

func familyBit(a netip.AddrPort) uint64 {
	if a.Addr().Is4() {
		return 0
	}
	return 1
}

func (e *encoder) candidate(c Candidate) {
	e.number(c.Sequence)
	e.address(c.Address)
	e.number(c.Kind)
	e.number(c.Priority)
}

func (e *encoder) candidates(list []Candidate) {
	e.number(uint64(len(list)))
	for _, c := range list {
		e.number(4 + 2*familyBit(c.Address))
		e.candidate(c)
	}
}

func (e *encoder) registration(r Registration) {
	e.bytes(r.Key)
	e.number(r.Generation)
	e.number(r.Lifetime)
	e.raw(r.ProbeKey[:])
}

func (e *encoder) request(m MeNow) {
	e.raw(m.Session[:])
	e.number(m.Round)
	e.bytes(m.Initiator)
	e.bytes(m.Responder)
	e.number(m.Lifetime)
	e.raw(m.ProbeKey[:])
	e.candidates(m.Candidates)
}

func (e *encoder) flight(m MeNow) {
	e.number(uint64(len(m.Flight)))
	for _, datagram := range m.Flight {
		e.bytes(datagram)
	}
}

// encode encodes a frame with its length.
func encode(frame any) []byte {
	var e encoder
	switch f := frame.(type) {
	case Observed:
		e.number(typeObserved + familyBit(f.Address))
		e.number(f.Sequence)
		e.address(f.Address)
	case Add:
		e.number(typeAdd + familyBit(f.Candidate.Address))
		e.candidate(f.Candidate)
	case Remove:
		e.number(typeRemove)
		e.number(f.Sequence)
	case Register:
		if f.ToAccepted {
			e.number(typeRegisterAccepted)
		} else {
			e.number(typeRegister)
		}
		e.registration(f.Registration)
		e.bytes(f.Signature)
		e.bytes(f.PublicSignature)
		e.report(f.Report)
	case Registered:
		for _, n := range []uint64{typeRegistered, f.Generation, f.Lifetime, f.Requests, f.Interval} {
			e.number(n)
		}
	case RegisterRejected:
		for _, n := range []uint64{typeRegisterRejected, f.Generation, uint64(f.Reason), f.RetryAfter} {
			e.number(n)
		}
	case MeNow:
		e.typed(f.Observed, typeMeNow, typeMeNow4, typeMeNow6)
		e.request(f)
		e.flight(f)
		e.bytes(f.Signature)
		e.report(f.Report)
	case Answer:
		e.typed(f.Observed, typeAnswer, typeAnswer4, typeAnswer6)
		e.raw(f.Session[:])
		e.number(f.Round)
		e.registration(f.Registration)
		e.bytes(f.Signature)
		e.candidates(f.Candidates)
		e.report(f.Report)
	case Rejected:
		e.number(typeRejected)
		e.raw(f.Session[:])
		for _, n := range []uint64{f.Round, uint64(f.Reason), f.RetryAfter} {
			e.number(n)
		}
	case Accepted:
		e.number(typeAccepted)
		e.raw(f.Session[:])
		e.number(f.Round)
	case Prediction:
		e.number(typePrediction)
		e.bytes(f.Peer)
		e.raw(f.Session[:])
		e.number(f.Round)
		e.word(f.Port)
		e.word(f.Step)
		e.raw(f.Authenticator[:])
	case Moved:
		e.number(typeMoved)
		e.bytes(f.Peer)
		e.raw(f.Session[:])
		e.number(f.Sequence)
		e.candidates(f.Candidates)
		e.raw(f.Authenticator[:])
	default:
		panic(fmt.Sprintf("no frame: %T", frame))
	}
	return append(quicvarint.Append(nil, uint64(len(e))), e...)
}

// readFrame reads type and payload of the next frame.
func readFrame(from quicvarint.Reader) ([]byte, error) {
	length, err := quicvarint.Read(from)
	if err != nil {
		return nil, err
	}
	if length > maxFrame {
		return nil, errMalformed
	}
	frame := make([]byte, length)
	_, err = io.ReadFull(from, frame)
	return frame, err
}
