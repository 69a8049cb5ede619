package main

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/quic-go/quic-go/quicvarint"
)

const document = "../../../docs/protocol.md"

// A vector has its values by key; a key may have several.
type vector map[string][]string

// vectors reads the vectors of the document.
func vectors(t *testing.T) (found []vector) {
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range strings.Split(string(text), "```vector\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		v, last := vector{}, ""
		for _, line := range strings.Split(strings.TrimRight(block, "\n"), "\n") {
			if strings.HasPrefix(line, " ") {
				values := v[last]
				values[len(values)-1] += strings.TrimSpace(line)
				continue
			}
			key, value, ok := strings.Cut(line, " = ")
			if !ok {
				t.Fatalf("no line of a vector: %q", line)
			}
			v[key] = append(v[key], value)
			last = key
		}
		found = append(found, v)
	}
	return found
}

// A builder makes the values of a vector into frames.
type builder struct {
	t *testing.T
	v vector
}

func (b builder) text(key string) string {
	b.t.Helper()
	if len(b.v[key]) != 1 {
		b.t.Fatalf("the vector has %d values of %s", len(b.v[key]), key)
	}
	return b.v[key][0]
}

func (b builder) hex(key string) []byte {
	b.t.Helper()
	value, err := hex.DecodeString(b.text(key))
	if err != nil {
		b.t.Fatal(err)
	}
	return value
}

func (b builder) number(key string) uint64 {
	b.t.Helper()
	value, err := strconv.ParseUint(b.text(key), 10, 64)
	if err != nil {
		b.t.Fatal(err)
	}
	return value
}

func (b builder) address(text string) netip.AddrPort {
	b.t.Helper()
	if text == "none" {
		return netip.AddrPort{}
	}
	address, err := netip.ParseAddrPort(text)
	if err != nil {
		b.t.Fatal(err)
	}
	return address
}

func (b builder) candidates() (list []Candidate) {
	b.t.Helper()
	kinds := map[string]uint64{
		"Host": 0, "ServerReflexive": 1, "PeerReflexive": 2, "Predicted": 3, "PortMapped": 4, "Relayed": 5,
	}
	// The document writes `candidate = SEQUENCE KIND PRIORITY ADDRESS`.
	for _, line := range b.v["candidate"] {
		words := strings.Fields(line)
		if len(words) != 4 {
			b.t.Fatalf("no candidate: %q", line)
		}
		sequence, err1 := strconv.ParseUint(words[0], 10, 64)
		priority, err2 := strconv.ParseUint(words[2], 10, 64)
		kind, known := kinds[words[1]]
		if err1 != nil || err2 != nil || !known {
			b.t.Fatalf("no candidate: %q", line)
		}
		list = append(list, Candidate{sequence, b.address(words[3]), kind, priority})
	}
	return list
}

func (b builder) reason() Reason {
	b.t.Helper()
	names := []string{
		"", "NotConnected", "RateLimited", "NotWilling", "Expired", "Unsupported", "Full", "Malformed", "Superseded",
	}
	for code, name := range names {
		if name == b.text("reason") {
			return Reason(code)
		}
	}
	b.t.Fatalf("no reason: %s", b.text("reason"))
	return 0
}

// key returns the secret of `seed`, and its public key as a message.
func (b builder) key() (ed25519.PrivateKey, []byte) {
	b.t.Helper()
	secret := ed25519.NewKeyFromSeed(b.hex("seed"))
	public, err := crypto.UnmarshalEd25519PublicKey(secret.Public().(ed25519.PublicKey))
	if err != nil {
		b.t.Fatal(err)
	}
	message, err := crypto.MarshalPublicKey(public)
	if err != nil {
		b.t.Fatal(err)
	}
	return secret, message
}

func (b builder) registration() Registration {
	_, public := b.key()
	r := Registration{Key: public, Generation: b.number("generation"), Lifetime: b.number("lifetime-s")}
	copy(r.ProbeKey[:], b.hex("probe-key"))
	return r
}

func (b builder) session() (id [16]byte) { copy(id[:], b.hex("session")); return id }

func (b builder) meNow() MeNow {
	secret, public := b.key()
	m := MeNow{
		Session: b.session(), Round: b.number("round"), Initiator: public, Responder: b.hex("responder-peer-id"),
		Lifetime: b.number("lifetime-ms"), Candidates: b.candidates(),
	}
	copy(m.ProbeKey[:], b.hex("probe-key"))
	for _, datagram := range b.v["datagram"] {
		bytes, err := hex.DecodeString(datagram)
		if err != nil {
			b.t.Fatal(err)
		}
		m.Flight = append(m.Flight, bytes)
	}
	m.Signature = ed25519.Sign(secret, signedRequest(m))
	return m
}

// frame builds the frame of a vector, or nil for a type that a coordinator without observers and
// filtering tests skips.
func (b builder) frame() any {
	switch b.text("frame") {
	case "OBSERVED_ADDRESS":
		return Observed{b.number("sequence"), b.address(b.text("address"))}
	case "ADD_ADDRESS":
		return Add{b.candidates()[0]}
	case "REMOVE_ADDRESS":
		return Remove{b.number("sequence")}
	case "REGISTER":
		secret, _ := b.key()
		r := Register{Registration: b.registration(), ToAccepted: b.text("disclosure") == "accepted"}
		r.Signature = ed25519.Sign(secret, signedRegistration(r.Registration, b.candidates(), nil))
		var global []Candidate
		for _, candidate := range b.candidates() {
			if isGlobal(candidate.Address.Addr()) {
				global = append(global, candidate)
			}
		}
		r.PublicSignature = ed25519.Sign(secret, signedRegistration(r.Registration, global, nil))
		return r
	case "REGISTERED":
		return Registered{
			b.number("generation"), b.number("lifetime-s"), b.number("requests-at-once"), b.number("request-interval-us"),
		}
	case "REGISTER_REJECTED":
		return RegisterRejected{b.number("generation"), b.reason(), b.number("retry-after-ms")}
	case "PUNCH_ME_NOW":
		m := b.meNow()
		m.Observed = b.address(b.text("observed"))
		return m
	case "PUNCH_ANSWER":
		secret, _ := b.key()
		r := b.registration()
		return Answer{
			Observed: b.address(b.text("observed")), Session: b.session(), Round: b.number("round"), Registration: r,
			Signature:  ed25519.Sign(secret, signedRegistration(r, b.candidates(), nil)),
			Candidates: b.candidates(),
		}
	case "PUNCH_ACCEPTED":
		return Accepted{b.session(), b.number("round")}
	case "PUNCH_REJECTED":
		return Rejected{b.session(), b.number("round"), b.reason(), b.number("retry-after-ms")}
	case "PORT_PREDICTION":
		p := Prediction{
			Peer: b.hex("peer"), Session: b.session(), Round: b.number("round"),
			Port: uint16(b.number("port")), Step: uint16(b.number("step")),
		}
		copy(p.Authenticator[:], b.hex("authenticator"))
		return p
	case "PUNCH_MOVED":
		m := Moved{
			Peer: b.hex("peer"), Session: b.session(), Sequence: b.number("sequence"), Candidates: b.candidates(),
		}
		copy(m.Authenticator[:], b.hex("authenticator"))
		return m
	}
	return nil
}

func TestEveryFrameOfACoordinatorIsEncodedAsInTheDocument(t *testing.T) {
	encoded := map[string]int{}
	for _, v := range vectors(t) {
		if v["frame"] == nil {
			continue
		}
		b := builder{t, v}
		name, want := b.text("frame"), b.hex("bytes")
		raw, err := readFrame(quicReader(want))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		decoded, err := decode(raw)
		if err != nil {
			t.Errorf("%s is not decoded: %v", name, err)
			continue
		}
		frame := b.frame()
		if frame == nil {
			if decoded != nil {
				t.Errorf("%s has no case in this test", name)
			}
			continue
		}
		encoded[name]++
		if got := encode(frame); !bytes.Equal(got, want) {
			t.Errorf("%s is\n%x and should be\n%x", name, got, want)
		}
		if decoded == nil {
			t.Errorf("%s is skipped", name)
		} else if again := encode(decoded); !bytes.Equal(again, want) {
			t.Errorf("%s becomes\n%x and was\n%x", name, again, want)
		}
		for cut := 0; cut < len(raw); cut++ {
			// A report is optional, so no prefix of these vectors is a frame.
			if part, err := decode(raw[:cut]); err == nil && part != nil {
				t.Errorf("%s cut to %d bytes is accepted", name, cut)
			}
		}
		// One more byte is one that ends within a field, or comes after the last field.
		if part, err := decode(append(bytes.Clone(raw), 9)); err == nil && part != nil {
			t.Errorf("%s with one more byte is accepted", name)
		}
	}
	if len(encoded) != 12 {
		t.Errorf("vectors of %d frames, not of 12: %v", len(encoded), encoded)
	}
}

func TestSignedBytesAndSignaturesAreThoseOfTheDocument(t *testing.T) {
	checked := 0
	for _, v := range vectors(t) {
		if v["signature"] == nil {
			continue
		}
		b := builder{t, v}
		secret, _ := b.key()
		var signed []byte
		switch b.text("signature") {
		case "punch-me-now":
			signed = signedRequest(b.meNow())
		case "registration":
			signed = signedRegistration(b.registration(), b.candidates(), nil)
		default:
			t.Fatalf("no signature: %s", b.text("signature"))
		}
		if !bytes.Equal(signed, b.hex("signed")) {
			t.Errorf("%s signs\n%x", b.text("signature"), signed)
		}
		if !bytes.Equal(ed25519.Sign(secret, signed), b.hex("bytes")) {
			t.Errorf("%s has another signature", b.text("signature"))
		}
		checked++
	}
	if checked != 2 {
		t.Errorf("%d signatures, not 2", checked)
	}
}

func TestAFrameThatIsTooLongIsRefusedBeforeItIsRead(t *testing.T) {
	// The length 16,385 as four bytes, and nothing after it.
	if _, err := readFrame(quicReader([]byte{0x80, 0x00, 0x40, 0x01})); err != errMalformed {
		t.Errorf("the error is %v", err)
	}
}

func TestPort0AndIPv4InIPv6AreRefused(t *testing.T) {
	for _, address := range []string{"[2001:db8::1]:0", "[::ffff:192.0.2.1]:1"} {
		frame, err := readFrame(quicReader(encode(Observed{1, netip.MustParseAddrPort(address)})))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decode(frame); err == nil {
			t.Errorf("%s is accepted", address)
		}
	}
}
func quicReader(b []byte) quicvarint.Reader { return quicvarint.NewReader(bytes.NewReader(b)) }
