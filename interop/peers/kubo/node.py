"""Kubo, commanded by lines: each holds a JSON array of a command and its arguments, each answer is JSON.

`Library` is Kubo in this process. The wheel's library has no command line and no RPC interface; what it exports is what
can be asked. `Daemon` is Kubo's own program, asked over its RPC interface.
"""

import base64
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

TEXT = ["GetNodeID", "GetNodeMultiAddrs", "ListPeersIDs", "P2PListListeners"]


def configure(repository, identity, peer, address):
    """One identity, one address, and nobody to talk to but those that dial or are dialed."""
    path = os.path.join(repository, "config")
    with open(path) as file:
        config = json.load(file)
    with open(identity, "rb") as file:
        key = base64.b64encode(file.read()).decode()
    config["Identity"] = {"PeerID": peer, "PrivKey": key}
    config["Addresses"] = {"Swarm": [address] if address else [], "API": None, "Gateway": None}
    config["Bootstrap"] = []
    config["Discovery"] = {"MDNS": {"Enabled": False}}
    config["AutoNAT"] = {"ServiceMode": "disabled"}
    config["Reprovider"] = {"Interval": "0"}
    config["Experimental"]["Libp2pStreamMounting"] = True
    config["Swarm"].update(
        DisableNatPortMap=True,
        EnableHolePunching=False,
        RelayClient={"Enabled": False},
        RelayService={"Enabled": False},
    )
    with open(path, "w") as file:
        json.dump(config, file)


class Library:
    def __init__(self, library, repository, identity, peer, address):
        self.library = ctypes.CDLL(library)
        for name in TEXT:
            getattr(self.library, name).restype = ctypes.c_char_p
        self.repository = repository.encode()
        self.stopped = False
        self.must("CreateRepo", 1)
        configure(repository, identity, peer, address)
        self.must("RunNode", 1)

    def must(self, name, wanted, *arguments):
        result = getattr(self.library, name)(self.repository, *(word.encode() for word in arguments))
        if result != wanted:
            raise RuntimeError(f"{name} returned {result}")

    def text(self, name):
        return getattr(self.library, name)(self.repository).decode()

    def connect(self, address):
        self.must("ConnectToPeer", 0, address)

    def listen(self, protocol, target):
        """Every stream of a protocol becomes a connection to a TCP address."""
        self.must("P2PListen", 1, protocol, target)

    def forward(self, protocol, address, peer):
        """Every connection to a TCP address becomes a stream of a protocol; returns the port that it has."""
        if not self.ports(protocol):
            self.must("P2PForward", 1, protocol, address, peer)
        return self.ports(protocol)[0]

    def ports(self, protocol):
        forwards = json.loads(self.text("P2PListListeners"))["Forwards"]
        return [int(forward["ListenAddress"].split("/")[4]) for forward in forwards if forward["Protocol"] == protocol]

    def identity(self):
        return self.text("GetNodeID")

    def addresses(self):
        return json.loads(self.text("GetNodeMultiAddrs"))

    def peers(self):
        # Whatever is asked of a node that has stopped starts it again.
        return [] if self.stopped else json.loads(self.text("ListPeersIDs"))

    def stop(self):
        """Closes every connection: the library has nothing that closes one."""
        if not self.stopped:
            self.stopped = True
            self.must("CleanupNode", 0)


def configure_daemon(repository, identity, peer, address):
    """As `configure`, in the words of a current Kubo. Nothing is fetched or announced, and the node has no DHT."""
    path = os.path.join(repository, "config")
    with open(path) as file:
        config = json.load(file)
    with open(identity, "rb") as file:
        key = base64.b64encode(file.read()).decode()
    config["Identity"] = {"PeerID": peer, "PrivKey": key}
    config["Addresses"] = {
        "Swarm": [address] if address else [],
        "API": "/ip4/127.0.0.1/tcp/0",
        "Gateway": None,
    }
    config["Bootstrap"] = []
    config["Discovery"] = {"MDNS": {"Enabled": False}}
    config["Routing"] = {"Type": "none"}
    config["AutoNAT"] = {"ServiceMode": "disabled"}
    config["AutoTLS"] = {"Enabled": False}
    config["Provide"] = {"Enabled": False}
    config["Version"] = {"SwarmCheckEnabled": False}
    config["Experimental"]["Libp2pStreamMounting"] = True
    config["Swarm"].update(
        DisableNatPortMap=True,
        EnableHolePunching=False,
        RelayClient={"Enabled": False},
        RelayService={"Enabled": False},
    )
    with open(path, "w") as file:
        json.dump(config, file)


def die_with_parent():
    """The daemon ends with this process, however that ends."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


class Daemon:
    def __init__(self, program, repository, identity, peer, address):
        self.stopped = False
        environment = dict(os.environ, IPFS_PATH=repository, IPFS_TELEMETRY="off")
        # A new repository takes no defaults from the network.
        command = [program, "init", "--empty-repo", "--algorithm=ed25519", "--profile=autoconf-off"]
        subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
        configure_daemon(repository, identity, peer, address)
        self.process = subprocess.Popen(
            [program, "daemon"], env=environment, stdout=sys.stderr, preexec_fn=die_with_parent
        )
        # The daemon writes the address of its RPC interface here once it is up.
        path = os.path.join(repository, "api")
        while not os.path.exists(path) or not (text := open(path).read()):
            if self.process.poll() is not None:
                raise RuntimeError("the daemon ended")
            time.sleep(0.02)
        _, _, host, _, port = text.strip().split("/")
        self.interface = f"http://{host}:{port}/api/v0/"

    def call(self, name, *arguments, **options):
        query = [("arg", word) for word in arguments] + list(options.items())
        request = urllib.request.Request(f"{self.interface}{name}?{urllib.parse.urlencode(query)}", method="POST")
        try:
            with urllib.request.urlopen(request) as answer:
                # Some commands answer with one object a line.
                return [json.loads(line) for line in answer.read().splitlines() if line]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{name}: {error.read().decode()}") from error
        except (urllib.error.URLError, ConnectionError) as error:
            raise RuntimeError(f"{name}: {error}") from error

    def connect(self, address):
        self.call("swarm/connect", address)

    def listen(self, protocol, target):
        """Every stream of a protocol becomes a connection to a TCP address."""
        self.call("p2p/listen", protocol, target)

    def forward(self, protocol, address, peer):
        """Every connection to a TCP address becomes a stream of a protocol; returns the port that it has."""
        if not self.ports(protocol):
            self.call("p2p/forward", protocol, address, f"/p2p/{peer}")
        return self.ports(protocol)[0]

    def ports(self, protocol):
        listeners = self.call("p2p/ls")[0]["Listeners"] or []
        return [int(each["ListenAddress"].split("/")[4]) for each in listeners if each["Protocol"] == protocol]

    def ping(self, peer):
        """Kubo's own ping; returns the shortest of three round-trip times in nanoseconds."""
        answers = self.call("ping", peer, count=3)
        times = [answer["Time"] for answer in answers if answer["Success"] and answer["Time"] > 0]
        if len(times) < 3:
            raise RuntimeError(f"ping: {answers}")
        return min(times)

    def identity(self):
        return self.call("id")[0]["ID"]

    def addresses(self):
        # Kubo lists /p2p-circuit, too.
        return [each for each in self.call("swarm/addrs/listen")[0]["Strings"] if each.endswith("/quic-v1")]

    def peers(self):
        return [] if self.stopped else [each["Peer"] for each in self.call("swarm/peers")[0]["Peers"] or []]

    def stop(self):
        if not self.stopped:
            self.stopped = True
            self.process.terminate()
            self.process.wait()


def main():
    # What the library prints itself must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    kind, *words = sys.argv[1:]
    node = {"library": Library, "daemon": Daemon}[kind](*words)
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        try:
            answer = {"ok": getattr(node, command)(*arguments)}
        except RuntimeError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers, flush=True)
    node.stop()


main()
