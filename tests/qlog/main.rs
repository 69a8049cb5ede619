//! Traces of connections. There is nothing to test without the feature.
#![cfg(feature = "qlog")]

#[cfg(test)]
mod traces;
