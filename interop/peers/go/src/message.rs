//! The few messages of the daemon's control protocol that are needed, in protobuf's wire format.
//!
//! Requests and responses are preceded by their length as a varint. Field numbers are those of
//! go-libp2p-daemon's `p2pd.proto`.

use anyhow::{Context, bail};
use libp2p::{Multiaddr, PeerId, StreamProtocol};

const IDENTIFY: u64 = 0;
const CONNECT: u64 = 1;
const STREAM_OPEN: u64 = 2;
const STREAM_HANDLER: u64 = 3;
const LIST_PEERS: u64 = 5;
const DISCONNECT: u64 = 7;

/// A message under construction.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn varint(mut self, field: u64, value: u64) -> Self {
        self.push(field << 3);
        self.push(value);
        self
    }

    fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.push(field << 3 | 2);
        self.push(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    fn push(&mut self, value: u64) {
        let mut buffer = unsigned_varint::encode::u64_buffer();
        self.0.extend_from_slice(unsigned_varint::encode::u64(value, &mut buffer));
    }
}

fn request(kind: u64, field: u64, body: Writer) -> Vec<u8> {
    Writer::default().varint(1, kind).bytes(field, &body.0).0
}

pub(crate) fn identify() -> Vec<u8> {
    Writer::default().varint(1, IDENTIFY).0
}

pub(crate) fn list_peers() -> Vec<u8> {
    Writer::default().varint(1, LIST_PEERS).0
}

pub(crate) fn connect(peer: PeerId, address: &Multiaddr, seconds: u64) -> Vec<u8> {
    let body = Writer::default().bytes(1, &peer.to_bytes()).bytes(2, address.as_ref()).varint(3, seconds);
    request(CONNECT, 2, body)
}

pub(crate) fn open(peer: PeerId, protocol: &StreamProtocol, seconds: u64) -> Vec<u8> {
    let body = Writer::default().bytes(1, &peer.to_bytes());
    request(STREAM_OPEN, 3, body.bytes(2, protocol.as_ref().as_bytes()).varint(3, seconds))
}

pub(crate) fn handle(socket: &Multiaddr, protocols: &[StreamProtocol]) -> Vec<u8> {
    let body = Writer::default().bytes(1, socket.as_ref());
    let named = protocols.iter().fold(body, |body, protocol| body.bytes(2, protocol.as_ref().as_bytes()));
    request(STREAM_HANDLER, 4, named.varint(3, 0))
}

pub(crate) fn disconnect(peer: PeerId) -> Vec<u8> {
    request(DISCONNECT, 7, Writer::default().bytes(1, &peer.to_bytes()))
}

/// Fields of a received message, in order.
struct Fields<'a>(&'a [u8]);

/// A field's number, and its value: bytes, or for a number none.
type Field<'a> = (u64, Option<&'a [u8]>, u64);

impl<'a> Fields<'a> {
    fn next(&mut self) -> anyhow::Result<Option<Field<'a>>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let (key, rest) = unsigned_varint::decode::u64(self.0)?;
        let (value, rest) = unsigned_varint::decode::u64(rest)?;
        let (bytes, rest) = match key & 7 {
            0 => (None, rest),
            2 => {
                let (bytes, rest) = rest.split_at_checked(value as usize).context("a field is cut off")?;
                (Some(bytes), rest)
            }
            kind => bail!("a field of wire type {kind}"),
        };
        self.0 = rest;
        Ok(Some((key >> 3, bytes, value)))
    }
}

/// Answer of the daemon.
#[derive(Debug, Default)]
pub(crate) struct Response {
    /// From `identify`.
    pub(crate) identity: Option<(PeerId, Vec<Multiaddr>)>,
    /// From `list_peers`.
    pub(crate) peers: Vec<PeerId>,
}

impl Response {
    pub(crate) fn decode(message: &[u8]) -> anyhow::Result<Self> {
        let mut response = Self::default();
        let (mut failed, mut reason) = (false, "no reason given".to_owned());
        let mut fields = Fields(message);
        while let Some(field) = fields.next()? {
            match field {
                (1, None, kind) => failed = kind != 0,
                (2, Some(error), _) => {
                    if let Some((1, Some(text), _)) = Fields(error).next()? {
                        reason = String::from_utf8_lossy(text).into_owned();
                    }
                }
                (4, Some(identity), _) => response.identity = Some(peer_info(identity)?),
                (6, Some(peer), _) => response.peers.push(peer_info(peer)?.0),
                _ => {}
            }
        }
        if failed {
            bail!("the daemon: {reason}");
        }
        Ok(response)
    }
}

fn peer_info(message: &[u8]) -> anyhow::Result<(PeerId, Vec<Multiaddr>)> {
    let (mut peer, mut addresses) = (None, Vec::new());
    let mut fields = Fields(message);
    while let Some(field) = fields.next()? {
        match field {
            (1, Some(id), _) => peer = Some(PeerId::from_bytes(id)?),
            (2, Some(address), _) => addresses.push(Multiaddr::try_from(address.to_vec())?),
            _ => {}
        }
    }
    Ok((peer.context("a peer without identity")?, addresses))
}

/// Returns the peer that opened a stream, and the protocol.
pub(crate) fn stream_info(message: &[u8]) -> anyhow::Result<(PeerId, StreamProtocol)> {
    let (mut peer, mut protocol) = (None, None);
    let mut fields = Fields(message);
    while let Some(field) = fields.next()? {
        match field {
            (1, Some(id), _) => peer = Some(PeerId::from_bytes(id)?),
            (3, Some(name), _) => {
                let name = String::from_utf8(name.to_vec())?;
                protocol = Some(StreamProtocol::try_from_owned(name)?);
            }
            _ => {}
        }
    }
    Ok((peer.context("a stream of nobody")?, protocol.context("a stream for nothing")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_as_protobuf_writes_it() {
        let peer = PeerId::from_bytes(&[0, 1, 9]).unwrap();
        assert_eq!(disconnect(peer), [8, 7, 0x3a, 5, 0x0a, 3, 0, 1, 9]);
        assert_eq!(list_peers(), [8, 5]);
    }

    #[test]
    fn an_error_is_told_with_its_reason() {
        let error = Response::decode(&[8, 1, 0x12, 4, 0x0a, 2, b'n', b'o']).unwrap_err();
        assert_eq!(error.to_string(), "the daemon: no");
    }

    #[test]
    fn peers_are_read_and_what_is_cut_off_is_an_error() {
        let message = [8, 0, 0x32, 5, 0x0a, 3, 0, 1, 9];
        assert_eq!(Response::decode(&message).unwrap().peers, [PeerId::from_bytes(&[0, 1, 9]).unwrap()]);
        for end in [1, 3, 4, 8] {
            assert!(Response::decode(&message[..end]).is_err(), "{end}");
        }
    }
}
