//! Endpoints together: sessions from the wish to connect to the connection or the failure, in
//! virtual time.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test is a caller")]

#[cfg(test)]
mod abuse;
#[cfg(test)]
mod assisting;
#[cfg(test)]
mod coordination;
#[cfg(test)]
mod early_packets;
#[cfg(test)]
mod failures;
#[cfg(test)]
mod filtering;
#[cfg(test)]
mod gates;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod inputs;
#[cfg(test)]
mod load;
#[cfg(test)]
mod lookups;
#[cfg(test)]
mod moving;
#[cfg(test)]
mod renewing;
#[cfg(test)]
mod report;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod searching;
#[cfg(test)]
mod sessions;
