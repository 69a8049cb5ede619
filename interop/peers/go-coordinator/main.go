// A coordinator on go-libp2p, written from docs/protocol.md alone.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	quictransport "github.com/libp2p/go-libp2p/p2p/transport/quic"
)

// The two names of the control stream, §2.
const (
	protocolName    = "/libp2p-punch/1.0.0"
	coordinatorName = "/libp2p-punch/coordinator/1.0.0"
)

func run() error {
	flags := flag.NewFlagSet("go-coordinator", flag.ContinueOnError)
	listen := flags.String("listen", "/ip4/0.0.0.0/udp/4001/quic-v1", "address to listen on")
	if err := flags.Parse(os.Args[1:]); err != nil {
		return err
	}
	node, err := libp2p.New(
		libp2p.Transport(quictransport.NewTransport),
		libp2p.ListenAddrStrings(*listen),
		libp2p.ResourceManager(&network.NullResourceManager{}),
		libp2p.DisableRelay(),
	)
	if err != nil {
		return err
	}
	coordinator := newCoordinator()
	node.SetStreamHandler(protocolName, coordinator.serve)
	node.SetStreamHandler(coordinatorName, coordinator.serve)
	for _, address := range node.Addrs() {
		line, _ := json.Marshal(map[string]string{
			"event": "listening", "address": fmt.Sprintf("%s/p2p/%s", address, node.ID()),
		})
		fmt.Println(string(line))
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	<-stop
	return node.Close()
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
