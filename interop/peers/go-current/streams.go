package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
)

const (
	echo      protocol.ID = "/interop/echo/1.0.0"
	halfClose protocol.ID = "/interop/half-close/1.0.0"
	reset     protocol.ID = "/interop/reset/1.0.0"
	closing   protocol.ID = "/interop/close/1.0.0"

	large   = 1 << 20
	small   = 64 << 10
	streams = 16

	idle    = 16 * time.Second
	notice  = 5 * time.Second
	timeout = 30 * time.Second
	poll    = 20 * time.Millisecond
)

// serve answers what every peer answers; ping go-libp2p answers itself.
func serve(node host.Host) {
	handle := func(name protocol.ID, handler func(network.Stream) error) {
		node.SetStreamHandler(name, func(stream network.Stream) {
			if err := handler(stream); err != nil {
				fmt.Fprintf(os.Stderr, "a stream ended early: %v\n", err)
				_ = stream.Reset()
			}
		})
	}
	handle(echo, func(stream network.Stream) error {
		if _, err := io.Copy(stream, stream); err != nil {
			return err
		}
		return stream.Close()
	})
	handle(halfClose, func(stream network.Stream) error {
		count, err := io.Copy(io.Discard, stream)
		if err != nil {
			return err
		}
		if err := binary.Write(stream, binary.BigEndian, uint64(count)); err != nil {
			return err
		}
		return stream.Close()
	})
	handle(reset, func(stream network.Stream) error {
		if _, err := io.ReadFull(stream, make([]byte, 1)); err != nil {
			return err
		}
		return stream.Reset()
	})
	handle(closing, func(stream network.Stream) error {
		if _, err := io.ReadFull(stream, make([]byte, 1)); err != nil {
			return err
		}
		return node.Network().ClosePeer(stream.Conn().RemotePeer())
	})
}

type dialer struct {
	node   host.Host
	remote peer.ID
}

func (d dialer) attempt(feature string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	switch feature {
	case "ping":
		return d.ping(ctx)
	case "identify":
		return d.identify()
	case "echo":
		begin := time.Now()
		return took(begin, d.exchange(ctx, large))
	case "streams":
		return d.many(ctx)
	case "half-close":
		return d.halfClose(ctx)
	case "reset":
		return d.reset(ctx)
	case "keep-alive":
		time.Sleep(idle)
		if !d.isConnected() {
			return "", errors.New("the connection was closed")
		}
		return d.ping(ctx)
	case "close-by-dialer":
		if err := d.node.Network().ClosePeer(d.remote); err != nil {
			return "", err
		}
		return d.gone()
	case "close-by-listener":
		stream, err := d.open(ctx, closing)
		if err != nil {
			return "", err
		}
		if _, err := stream.Write([]byte{1}); err != nil {
			return "", err
		}
		return d.gone()
	default:
		return "", fmt.Errorf("%s is no feature", feature)
	}
}

// open opens a stream that does not outlive the attempt.
func (d dialer) open(ctx context.Context, name protocol.ID) (network.Stream, error) {
	stream, err := d.node.NewStream(ctx, d.remote, name)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := stream.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	return stream, nil
}

func (d dialer) ping(ctx context.Context) (string, error) {
	pings, stop := context.WithCancel(ctx)
	defer stop()
	results := ping.Ping(pings, d.node, d.remote)
	best := time.Duration(0)
	for range 3 {
		result, ok := <-results
		if !ok {
			return "", errors.New("pings ended")
		}
		if result.Error != nil {
			return "", result.Error
		}
		if best == 0 || result.RTT < best {
			best = result.RTT
		}
	}
	return best.String(), nil
}

func (d dialer) identify() (string, error) {
	for end := time.Now().Add(notice); time.Now().Before(end); time.Sleep(poll) {
		known, err := d.node.Peerstore().GetProtocols(d.remote)
		if err != nil {
			return "", err
		}
		if slices.Contains(known, protocol.ID(ping.ID)) {
			return "ping is among its protocols", nil
		}
	}
	return "", errors.New("identify told nothing")
}

// exchange sends a pattern and reads it back, both at once.
func (d dialer) exchange(ctx context.Context, length int) error {
	stream, err := d.open(ctx, echo)
	if err != nil {
		return err
	}
	return swap(stream, length)
}

func swap(stream network.Stream, length int) error {
	sent := make([]byte, length)
	for i := range sent {
		sent[i] = byte(i ^ i>>8)
	}
	written := make(chan error, 1)
	go func() {
		_, err := stream.Write(sent)
		written <- err
	}()
	received := make([]byte, length)
	if _, err := io.ReadFull(stream, received); err != nil {
		return err
	}
	if err := <-written; err != nil {
		return err
	}
	if !bytes.Equal(received, sent) {
		return errors.New("other bytes came back")
	}
	return stream.Close()
}

// many has all streams open before the first is used.
func (d dialer) many(ctx context.Context) (string, error) {
	var open []network.Stream
	for range streams {
		stream, err := d.open(ctx, echo)
		if err != nil {
			return "", err
		}
		open = append(open, stream)
	}
	failures := make([]error, len(open))
	var all sync.WaitGroup
	for i, stream := range open {
		all.Add(1)
		go func() {
			defer all.Done()
			failures[i] = swap(stream, small)
		}()
	}
	all.Wait()
	return fmt.Sprintf("%d streams", streams), errors.Join(failures...)
}

func (d dialer) halfClose(ctx context.Context) (string, error) {
	stream, err := d.open(ctx, halfClose)
	if err != nil {
		return "", err
	}
	if _, err := stream.Write(make([]byte, small)); err != nil {
		return "", err
	}
	if err := stream.CloseWrite(); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(stream)
	if err != nil {
		return "", err
	}
	if !bytes.Equal(answer, binary.BigEndian.AppendUint64(nil, small)) {
		return "", fmt.Errorf("the answer is %v", answer)
	}
	return "all was read, then answered", stream.Close()
}

func (d dialer) reset(ctx context.Context) (string, error) {
	theirs, err := d.open(ctx, reset)
	if err != nil {
		return "", err
	}
	if _, err := theirs.Write([]byte{1}); err != nil {
		return "", err
	}
	if err := theirs.SetReadDeadline(time.Now().Add(notice)); err != nil {
		return "", err
	}
	count, err := theirs.Read(make([]byte, 1))
	switch {
	case count > 0:
		return "", errors.New("a byte came back")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "", errors.New("the reset went unnoticed")
	}
	found := "reading ended"
	if !errors.Is(err, io.EOF) {
		found = "reading failed"
	}
	ours, err := d.open(ctx, echo)
	if err != nil {
		return "", err
	}
	if _, err := ours.Write(make([]byte, small)); err != nil {
		return "", err
	}
	if err := ours.Reset(); err != nil {
		return "", err
	}
	return found, d.exchange(ctx, small)
}

func (d dialer) isConnected() bool {
	return d.node.Network().Connectedness(d.remote) == network.Connected
}

func (d dialer) gone() (string, error) {
	begin := time.Now()
	for ; time.Since(begin) < notice; time.Sleep(poll) {
		if !d.isConnected() {
			return took(begin, nil)
		}
	}
	return "", errors.New("the connection is still there")
}

func took(begin time.Time, err error) (string, error) {
	return fmt.Sprintf("%d ms", time.Since(begin).Milliseconds()), err
}
