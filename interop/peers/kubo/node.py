"""Kubo, in this process, commanded by lines: each holds a JSON array of a command and its arguments, each answer is JSON.

The wheel's library has no command line and no RPC interface; what it exports is what can be asked.
"""

import base64
import ctypes
import json
import os
import sys

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


class Node:
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


def main():
    # What the library prints itself must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    node = Node(*sys.argv[1:])
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        try:
            answer = {"ok": getattr(node, command)(*arguments)}
        except RuntimeError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers, flush=True)
    node.stop()


main()
