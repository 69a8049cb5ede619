//! The stream protocols that peers speak with each other, besides ping and identify.

use libp2p::StreamProtocol;

/// libp2p's ping: 32 bytes, sent back.
pub const PING: StreamProtocol = StreamProtocol::new("/ipfs/ping/1.0.0");

/// The listener sends back what it reads, as it arrives, until the dialer's half ends; then it ends its own.
pub const ECHO: StreamProtocol = StreamProtocol::new("/interop/echo/1.0.0");

/// The listener reads until the dialer's half ends, and only then answers with the number of bytes that it read, as a
/// 64-bit big-endian integer, and ends its half.
pub const HALF_CLOSE: StreamProtocol = StreamProtocol::new("/interop/half-close/1.0.0");

/// The listener reads one byte and then abandons the stream in whatever way its implementation calls a reset.
pub const RESET: StreamProtocol = StreamProtocol::new("/interop/reset/1.0.0");

/// The listener reads one byte and then closes the connection.
pub const CLOSE: StreamProtocol = StreamProtocol::new("/interop/close/1.0.0");

/// libp2p's perf: a 64-bit big-endian number of bytes wanted back, the upload, end; that many bytes back, end.
pub const PERF: StreamProtocol = StreamProtocol::new("/perf/1.0.0");
