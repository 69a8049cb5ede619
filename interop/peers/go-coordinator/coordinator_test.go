package main

import (
	"net/netip"
	"testing"
	"time"
)

func TestScopesAreThoseOfTheDocument(t *testing.T) {
	for text, want := range map[string]bool{
		"8.8.8.8": true, "203.0.113.1": true, "2001:db8::1": true, "2606:4700::1": true, "64:ff9b::808:808": true,
		"10.0.0.1": false, "100.64.0.1": false, "198.18.0.1": false, "127.0.0.1": false, "fd00::1": false,
		"64:ff9b::a00:1": false, "2002:a00:1::1": false, "::1": false, "fe80::1": false, "2001:2::1": false,
	} {
		if got := isGlobal(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s is global: %v", text, got)
		}
	}
}

func TestPrivateCandidatesAreDisclosedOnlyWithinANetwork(t *testing.T) {
	for _, c := range []struct {
		initiator, responder string
		want                 bool
	}{
		{"203.0.113.1:1", "203.0.113.1:2", true},
		{"203.0.113.1:1", "203.0.113.2:1", false},
		{"[2001:db8::1]:1", "[2001:db8::2]:1", true},
		{"[2001:db8::1]:1", "[2001:db8:0:1::1]:1", false},
		{"203.0.113.1:1", "[2001:db8::1]:1", false},
		{"10.0.0.1:1", "192.168.0.1:1", true},
		{"10.0.0.1:1", "203.0.113.1:1", false},
	} {
		a, b := netip.MustParseAddrPort(c.initiator), netip.MustParseAddrPort(c.responder)
		if got := maySeeAll(a, b); got != c.want {
			t.Errorf("%s and %s: %v", a, b, got)
		}
	}
	if maySeeAll(netip.AddrPort{}, netip.MustParseAddrPort("10.0.0.1:1")) {
		t.Error("a relayed initiator gets private candidates")
	}
}

func TestABucketSaysWhenItHasATokenAgain(t *testing.T) {
	b, now := bucket{}, time.Unix(0, 0)
	for range 10 {
		if wait := b.take(now, pairRate); wait != 0 {
			t.Fatalf("it waits for %v", wait)
		}
	}
	wait := b.take(now, pairRate)
	if wait != 500*time.Millisecond {
		t.Errorf("it waits for %v, not for half a second", wait)
	}
	if wait := b.take(now.Add(wait), pairRate); wait != 0 {
		t.Errorf("after that time it waits for %v", wait)
	}
}
