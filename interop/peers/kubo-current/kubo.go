//go:build tools

// Kubo's program in the version of go.mod; the driver in interop/peers/kubo speaks to it.
package main

import _ "github.com/ipfs/kubo/cmd/ipfs"
