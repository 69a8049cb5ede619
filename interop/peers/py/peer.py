"""py-libp2p behind this repository's interoperability contract; see interop/testplan/src/lib.rs.

Reads and writes go through NetStream only, as an application's would.
"""

import argparse
import json
import logging
import os
import sys
import time

import multiaddr
import trio

from aioquic.quic.configuration import QuicConfiguration
from libp2p import new_host
from libp2p.crypto import ecc, ed25519, rsa, secp256k1
from libp2p.crypto.keys import KeyPair
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr

PING = TProtocol("/ipfs/ping/1.0.0")
ECHO = TProtocol("/interop/echo/1.0.0")
HALF_CLOSE = TProtocol("/interop/half-close/1.0.0")
RESET = TProtocol("/interop/reset/1.0.0")
CLOSE = TProtocol("/interop/close/1.0.0")

LARGE = 1 << 20
SMALL = 64 << 10
STREAMS = 16
IDLE = 16
NOTICE = 5
TIMEOUT = 30

KEYS = {
    "ed25519": ed25519.create_new_key_pair,
    "secp256k1": secp256k1.create_new_key_pair,
    "rsa": rsa.create_new_key_pair,
    "ecdsa": lambda: ecc.create_new_key_pair("P-256"),
}


def log_secrets(file):
    """For whoever reads the wire. aioquic can do it, py-libp2p has no option for it."""
    init = QuicConfiguration.__init__

    def with_log(self, *args, **kwargs):
        init(self, *args, **{"secrets_log_file": file, **kwargs})

    QuicConfiguration.__init__ = with_log


def say(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)


async def read_some(stream):
    """What is there; nothing at the end.

    Data that arrives together with the end, between two looks of QUICStream.read, is reported as the end; it is still
    there at the next read.
    """
    for _ in range(2):
        try:
            return await stream.read(SMALL)
        except Exception as error:
            if "EOF" not in type(error).__name__:
                raise
    return b""


async def read_exactly(stream, count):
    data = b""
    while len(data) < count:
        part = await read_some(stream)
        if not part:
            raise RuntimeError(f"ended after {len(data)} of {count} bytes")
        data += part
    return data


def guarded(handler):
    """An exception in a handler would end the whole host; a stream that ends early is no reason for that."""

    async def handle(stream):
        try:
            await handler(stream)
        except Exception as error:
            print(f"{handler.__name__}: {type(error).__name__}: {error}", file=sys.stderr)

    return handle


class Listener:
    """What a listener does with the streams that come in."""

    def __init__(self, host):
        self.host = host
        for protocol, handler in [
            (ECHO, self.echo),
            (HALF_CLOSE, self.half_close),
            (RESET, self.reset),
            (CLOSE, self.close),
        ]:
            host.set_stream_handler(protocol, guarded(handler))

    async def echo(self, stream):
        while data := await read_some(stream):
            await stream.write(data)
        await stream.close()

    async def half_close(self, stream):
        count = 0
        while data := await read_some(stream):
            count += len(data)
        await stream.write(count.to_bytes(8, "big"))
        await stream.close()

    async def reset(self, stream):
        await read_exactly(stream, 1)
        await stream.reset()

    async def close(self, stream):
        await read_exactly(stream, 1)
        await self.host.get_network().close_peer(stream.muxed_conn.peer_id)

    async def watch(self):
        known = set()
        while True:
            now = set(self.host.get_network().connections)
            for peer in now - known:
                say("connected", peer=str(peer))
            for peer in known - now:
                say("closed", peer=str(peer))
            known = now
            await trio.sleep(0.05)


class Dialer:
    """What a dialer tries."""

    def __init__(self, host, peer: ID):
        self.host = host
        self.peer = peer

    async def open(self, protocol):
        return await self.host.new_stream(self.peer, [protocol])

    async def attempt(self, feature):
        method = getattr(self, feature.replace("-", "_"))
        try:
            with trio.fail_after(TIMEOUT):
                detail = await method()
            say("feature", feature=feature, ok=True, detail=str(detail or ""))
        except Exception as error:
            say("feature", feature=feature, ok=False, detail=f"{type(error).__name__}: {error}")

    async def ping(self):
        stream = await self.open(PING)
        for _ in range(3):
            start = time.monotonic()
            payload = bytes(range(32))
            await stream.write(payload)
            if await read_exactly(stream, 32) != payload:
                raise RuntimeError("other bytes came back")
        await stream.close()
        return f"{(time.monotonic() - start) * 1000:.2f} ms"

    async def identify(self):
        with trio.fail_after(TIMEOUT):
            while True:
                try:
                    if PING in self.host.get_peerstore().get_protocols(self.peer):
                        return "ping is among its protocols"
                except Exception:
                    pass  # nothing is known of the peer yet
                await trio.sleep(0.05)

    async def exchange(self, stream, length):
        sent = bytes((i ^ (i >> 8)) & 255 for i in range(length))
        received = b""

        async def write():
            for start in range(0, length, SMALL):
                await stream.write(sent[start : start + SMALL])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            received = await read_exactly(stream, length)
        if received != sent:
            raise RuntimeError("other bytes came back")
        await stream.close()

    async def echo(self):
        start = time.monotonic()
        await self.exchange(await self.open(ECHO), LARGE)
        return f"{(time.monotonic() - start) * 1000:.0f} ms"

    async def streams(self):
        streams = [await self.open(ECHO) for _ in range(STREAMS)]
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(self.exchange, stream, SMALL)
        return f"{STREAMS} streams"

    async def half_close(self):
        stream = await self.open(HALF_CLOSE)
        await stream.write(bytes(SMALL))
        await stream.close_write()
        # Not up to the end: where both halves have ended, QUICStream.read calls the end a reset.
        answer = await read_exactly(stream, 8)
        if answer != SMALL.to_bytes(8, "big"):
            raise RuntimeError(f"the answer is {answer!r}")

    async def reset(self):
        stream = await self.open(RESET)
        await stream.write(b"\1")
        with trio.fail_after(NOTICE):
            try:
                if await read_some(stream):
                    raise RuntimeError("a byte came back")
                noticed = "reading ended"
            except trio.TooSlowError:
                raise
            except RuntimeError:
                raise
            except Exception as error:
                noticed = type(error).__name__
        ours = await self.open(ECHO)
        await ours.write(bytes(SMALL))
        await ours.reset()
        await self.exchange(await self.open(ECHO), SMALL)
        return noticed

    async def keep_alive(self):
        with trio.move_on_after(IDLE):
            while self.peer in self.host.get_network().connections:
                await trio.sleep(0.1)
            raise RuntimeError("the connection was closed")
        return await self.ping()

    async def close_by_dialer(self):
        await self.host.get_network().close_peer(self.peer)
        return await self.gone()

    async def close_by_listener(self):
        stream = await self.open(CLOSE)
        await stream.write(b"\1")
        return await self.gone()

    async def gone(self):
        start = time.monotonic()
        with trio.fail_after(NOTICE):
            while self.peer in self.host.get_network().connections:
                await trio.sleep(0.01)
        return f"after {(time.monotonic() - start) * 1000:.0f} ms"


async def listen(args):
    address = multiaddr.Multiaddr(args.address)
    host = make_host(KEYS[args.key](), [address])
    async with host.run(listen_addrs=[address]):
        listener = Listener(host)
        say("listening", address=str(host.get_addrs()[0]))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.watch)
            await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()


async def dial(args):
    host = make_host(KEYS[args.key](), None)
    async with host.run(listen_addrs=[]):
        Listener(host)
        info = info_from_p2p_addr(multiaddr.Multiaddr(args.address))
        with trio.fail_after(15):
            await host.connect(info)
        say("connected", peer=str(info.peer_id))
        dialer = Dialer(host, info.peer_id)
        for feature in args.features:
            await dialer.attempt(feature)


def make_host(key_pair: KeyPair, listen_addrs):
    return new_host(key_pair=key_pair, listen_addrs=listen_addrs, enable_quic=True, enable_tcp=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in [("listen", listen), ("dial", dial)]:
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("--key", choices=KEYS, default="ed25519")
        if function is listen:
            command.add_argument("--address", default="/ip4/127.0.0.1/udp/0/quic-v1")
        else:
            command.add_argument("address")
            command.add_argument("features", nargs="*")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if name := os.environ.get("SSLKEYLOGFILE"):
        log_secrets(open(name, "a"))
    trio.run(args.function, args)


if __name__ == "__main__":
    main()
