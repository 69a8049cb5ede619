//! `punch id` and `punch keys`: the PeerId of a key file.

use libp2p::identity::Keypair;
use serde_json::json;

use crate::{
    args::KeyFile,
    exit::{Exit, Failure},
    key,
    output::print,
};

/// Prints the PeerId of a key file that exists.
pub(crate) fn show(arguments: &KeyFile) -> Result<Exit, Failure> {
    print_peer(&key::show(&arguments.file)?, arguments)
}

/// Creates a key file, and prints its PeerId.
pub(crate) fn make(arguments: &KeyFile) -> Result<Exit, Failure> {
    print_peer(&key::make(&arguments.file)?, arguments)
}

fn print_peer(key: &Keypair, arguments: &KeyFile) -> Result<Exit, Failure> {
    let peer = key.public().to_peer_id().to_string();
    let object = json!({ "event": "key", "peer": peer, "file": arguments.file.display().to_string() });
    print(&if arguments.json { object.to_string() } else { peer }).map(|()| Exit::Success)
}
