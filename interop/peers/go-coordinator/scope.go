// Scopes of addresses, docs/protocol.md §8.
package main

import "net/netip"

// special lists the prefixes that are not global. The documentation prefixes count as global.
var special = func() (prefixes []netip.Prefix) {
	for _, text := range []string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
		"192.0.0.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4",
		"::/96", "::ffff:0:0/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "5f00::/16", "fc00::/7",
		"fe80::/10", "fec0::/10", "ff00::/8",
	} {
		prefixes = append(prefixes, netip.MustParsePrefix(text))
	}
	return prefixes
}()

// embedded returns the IPv4 addresses inside a NAT64, 6to4 or Teredo address.
func embedded(address netip.Addr) []netip.Addr {
	if !address.Is6() {
		return nil
	}
	b := address.As16()
	v4 := func(at int, flip byte) netip.Addr {
		return netip.AddrFrom4([4]byte{b[at] ^ flip, b[at+1] ^ flip, b[at+2] ^ flip, b[at+3] ^ flip})
	}
	switch {
	case netip.MustParsePrefix("64:ff9b::/96").Contains(address):
		return []netip.Addr{v4(12, 0)}
	case netip.MustParsePrefix("2002::/16").Contains(address):
		return []netip.Addr{v4(2, 0)}
	case netip.MustParsePrefix("2001::/32").Contains(address):
		return []netip.Addr{v4(4, 0), v4(12, 0xff)}
	}
	return nil
}

func isGlobal(address netip.Addr) bool {
	if inside := embedded(address); inside != nil {
		for _, ip := range inside {
			if !isGlobal(ip) {
				return false
			}
		}
		return true
	}
	for _, prefix := range special {
		if prefix.Contains(address) {
			return false
		}
	}
	return true
}
