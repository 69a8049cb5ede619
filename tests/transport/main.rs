//! The transport alone: the promises of libp2p-quic, and the additional promises of this transport.

#[cfg(test)]
mod closing;
#[cfg(test)]
mod connections;
#[cfg(test)]
mod floods;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod interfaces;
#[cfg(test)]
mod moving;
#[cfg(test)]
mod parity;
#[cfg(test)]
mod punch;
#[cfg(test)]
mod routes;
#[cfg(test)]
mod settings;
#[cfg(test)]
mod sockets;
#[cfg(test)]
mod stats;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod support;
#[cfg(test)]
mod wrapped;
#[cfg(test)]
mod zones;
