// go-libp2p as a library behind this repository's interoperability contract; see interop/testplan/src/lib.rs.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
)

// Keys are the types of identity keys, and the bits of those that have a choice.
var keys = map[string][2]int{
	"ed25519":   {crypto.Ed25519, 0},
	"secp256k1": {crypto.Secp256k1, 0},
	"ecdsa":     {crypto.ECDSA, 0},
	"rsa":       {crypto.RSA, 2048},
}

// say writes a line of the contract.
func say(event string, fields map[string]any) {
	line := map[string]any{"event": event}
	for name, value := range fields {
		line[name] = value
	}
	// Maps of strings and booleans can always be encoded.
	text, _ := json.Marshal(line)
	fmt.Println(string(text))
}

func start(key string, listen ...string) (host.Host, error) {
	kind, known := keys[key]
	if !known {
		return nil, fmt.Errorf("%s is no type of key", key)
	}
	private, _, err := crypto.GenerateKeyPair(kind[0], kind[1])
	if err != nil {
		return nil, err
	}
	options := []libp2p.Option{
		libp2p.Identity(private),
		libp2p.Transport(quic.NewTransport),
		libp2p.ResourceManager(&network.NullResourceManager{}),
		libp2p.DisableRelay(),
	}
	if len(listen) == 0 {
		options = append(options, libp2p.NoListenAddrs)
	} else {
		options = append(options, libp2p.ListenAddrStrings(listen...))
	}
	node, err := libp2p.New(options...)
	if err != nil {
		return nil, err
	}
	serve(node)
	return node, nil
}

// report says who comes, who goes, and who says what it is.
func report(node host.Host) error {
	identified, err := node.EventBus().Subscribe(new(event.EvtPeerIdentificationCompleted))
	if err != nil {
		return err
	}
	go func() {
		for happened := range identified.Out() {
			if told, ok := happened.(event.EvtPeerIdentificationCompleted); ok {
				say("identified", map[string]any{"peer": told.Peer.String(), "agent": told.AgentVersion})
			}
		}
	}()
	node.Network().Notify(&network.NotifyBundle{
		ConnectedF: func(_ network.Network, conn network.Conn) {
			say("connected", map[string]any{"peer": conn.RemotePeer().String()})
		},
		DisconnectedF: func(all network.Network, conn network.Conn) {
			if all.Connectedness(conn.RemotePeer()) != network.Connected {
				say("closed", map[string]any{"peer": conn.RemotePeer().String()})
			}
		},
	})
	return nil
}

func listen(key, address string) error {
	node, err := start(key, address)
	if err != nil {
		return err
	}
	if err := report(node); err != nil {
		return err
	}
	if len(node.Addrs()) == 0 {
		return errors.New("it listens nowhere")
	}
	say("listening", map[string]any{"address": fmt.Sprintf("%s/p2p/%s", node.Addrs()[0], node.ID())})
	// Standard input ends when whoever started us wants us to stop.
	if _, err := io.Copy(io.Discard, bufio.NewReader(os.Stdin)); err != nil {
		return err
	}
	return node.Close()
}

func dial(key string, words []string) error {
	if len(words) == 0 {
		return errors.New("no address")
	}
	remote, err := peer.AddrInfoFromString(words[0])
	if err != nil {
		return err
	}
	node, err := start(key)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	if err := node.Connect(ctx, *remote); err != nil {
		return err
	}
	say("connected", map[string]any{"peer": remote.ID.String()})
	dialer := dialer{node, remote.ID}
	for _, feature := range words[1:] {
		detail, err := dialer.attempt(feature)
		if err != nil {
			detail = err.Error()
		}
		say("feature", map[string]any{"feature": feature, "ok": err == nil, "detail": detail})
	}
	return node.Close()
}

func run() error {
	if len(os.Args) < 2 {
		return errors.New("listen or dial?")
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ContinueOnError)
	key := flags.String("key", "ed25519", "the type of the identity key")
	address := flags.String("address", "/ip4/127.0.0.1/udp/0/quic-v1", "where to listen")
	if err := flags.Parse(os.Args[2:]); err != nil {
		return err
	}
	switch os.Args[1] {
	case "listen":
		return listen(*key, *address)
	case "dial":
		return dial(*key, flags.Args())
	default:
		return fmt.Errorf("%s is no command", os.Args[1])
	}
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
