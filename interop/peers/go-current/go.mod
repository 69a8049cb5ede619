module interop-peer-go-current

go 1.24.0

require github.com/libp2p/go-libp2p v0.48.0
