//! The simulated network, seen by what runs on it.

#[cfg(test)]
mod links;
#[cfg(test)]
mod quic;
#[cfg(test)]
mod rfc4787;
#[cfg(test)]
mod support;
#[cfg(test)]
mod topology;
