//! Agents together: sessions from the wish to connect to the connection or the failure, in virtual time.

mod abuse;
mod coordination;
mod harness;
mod inputs;
mod report;
mod sessions;
