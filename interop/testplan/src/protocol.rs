//! The stream protocols that peers speak with each other, besides ping and identify.

use libp2p::{StreamProtocol, swarm::InvalidProtocol};

/// libp2p's ping: 32 bytes, sent back.
pub const PING: StreamProtocol = StreamProtocol::new("/ipfs/ping/1.0.0");

/// The listener sends back what it reads, as it arrives, until the dialer's half ends; then it ends
/// its own.
pub const ECHO: StreamProtocol = StreamProtocol::new("/interop/echo/1.0.0");

/// The listener reads until the dialer's half ends, and only then answers with the number of bytes
/// that it read, as a 64-bit big-endian integer, and ends its half.
pub const HALF_CLOSE: StreamProtocol = StreamProtocol::new("/interop/half-close/1.0.0");

/// The listener reads one byte and then abandons the stream in whatever way its implementation
/// calls a reset.
pub const RESET: StreamProtocol = StreamProtocol::new("/interop/reset/1.0.0");

/// The listener reads one byte and then closes the connection.
pub const CLOSE: StreamProtocol = StreamProtocol::new("/interop/close/1.0.0");

/// libp2p's perf: a 64-bit big-endian number of bytes wanted back, the upload, end; that many bytes
/// back, end.
pub const PERF: StreamProtocol = StreamProtocol::new("/perf/1.0.0");

/// Prefix of the protocols that Kubo mounts. Kubo forwards these and no others, and serves ping
/// itself.
const MOUNTED: &str = "/x";

/// The name of a protocol as Kubo mounts it.
///
/// # Errors
///
/// None that is expected: names begin with a slash, and so does this.
pub fn mounted(protocol: &StreamProtocol) -> Result<StreamProtocol, InvalidProtocol> {
    StreamProtocol::try_from_owned(format!("{MOUNTED}{protocol}"))
}

/// The name of a protocol without what [`mounted`] puts before it.
pub fn unmounted(protocol: &StreamProtocol) -> &str {
    let name = protocol.as_ref();
    name.strip_prefix(MOUNTED).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mounted_protocol_is_served_as_what_it_is() {
        let mounted = mounted(&ECHO).unwrap();
        assert_eq!(mounted.as_ref(), "/x/interop/echo/1.0.0");
        assert_eq!(unmounted(&mounted), ECHO.as_ref());
        assert_eq!(unmounted(&ECHO), ECHO.as_ref());
    }
}
