// Signed bytes, docs/protocol.md §4.
package main

import "crypto/sha256"

func signedRequest(m MeNow) []byte {
	e := encoder("libp2p-punch/1.0.0 punch-me-now")
	e.request(m)
	var flight encoder
	flight.flight(m)
	sum := sha256.Sum256(flight)
	e.raw(sum[:])
	e.report(m.Report)
	return e
}

// signedRegistration takes the candidates in the order of their sequence numbers.
func signedRegistration(r Registration, candidates []Candidate, report []byte) []byte {
	e := encoder("libp2p-punch/1.0.0 registration")
	e.registration(r)
	e.candidates(candidates)
	e.report(report)
	return e
}
