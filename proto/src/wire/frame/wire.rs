//! Reading and writing the fields that frames are made of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use bytes::{BufMut, Bytes, BytesMut};

/// The largest value of a variable-length integer (RFC 9000 §16).
pub const VARINT_MAX: u64 = (1 << 62) - 1;

/// Fault of bytes that should be a frame. The control stream cannot continue after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The length in front of a frame is above [`MAX_FRAME_LEN`](super::MAX_FRAME_LEN).
    #[error("frame: {length} bytes announced, at most {max} are allowed", max = super::MAX_FRAME_LEN)]
    FrameTooLong {
        /// Bytes announced.
        length: u64,
    },
    /// The frame ends before or within a field.
    #[error("{field}: the frame ends within it")]
    Truncated {
        /// The field.
        field: &'static str,
    },
    /// A number, a length or a count is above its cap.
    #[error("{field}: {found} is above {max}")]
    AboveCap {
        /// The field.
        field: &'static str,
        /// The value found.
        found: u64,
        /// The largest value allowed.
        max: u64,
    },
    /// A field has a forbidden value.
    #[error("{field}: {cause}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// The rule that it breaks.
        cause: &'static str,
    },
    /// Bytes follow the last field of a known frame.
    #[error("frame of type {frame_type:#x}: {count} bytes follow its last field")]
    TrailingBytes {
        /// The type of the frame.
        frame_type: u64,
        /// Number of elements.
        count: usize,
    },
}

/// Writes a variable-length integer in its shortest form (RFC 9000 §16). A larger value is written
/// as [`VARINT_MAX`].
pub(crate) fn put_varint(out: &mut BytesMut, value: u64) {
    match value {
        0..=0x3f => out.put_uint(value, 1),
        0x40..=0x3fff => out.put_uint(0x4000 | value, 2),
        0x4000..=0x3fff_ffff => out.put_uint(0x8000_0000 | value, 4),
        _ => out.put_u64(0xc000_0000_0000_0000 | value.min(VARINT_MAX)),
    }
}

/// Writes the length and as many of `bytes` as `max` allows.
pub(crate) fn put_bytes(out: &mut BytesMut, bytes: &[u8], max: usize) {
    let bytes = bytes.get(..max).unwrap_or(bytes);
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

/// Writes address and port. An IPv4-mapped IPv6 address is written as IPv4, as [`is_v6`] says.
pub(super) fn put_address(out: &mut BytesMut, address: SocketAddr) {
    put_ip(out, address.ip());
    out.put_u16(address.port());
}

/// Writes an IP address. An IPv4-mapped IPv6 address is written as IPv4.
pub(super) fn put_ip(out: &mut BytesMut, ip: IpAddr) {
    match ip.to_canonical() {
        IpAddr::V4(ip) => out.put_slice(&ip.octets()),
        IpAddr::V6(ip) => out.put_slice(&ip.octets()),
    }
}

/// Returns true if [`put_address`] writes an IPv6 address.
pub(super) fn is_v6(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_ipv6()
}

/// The variable-length integer that `bytes` begins with and its length in bytes; `None` if more are
/// needed.
pub(super) fn peek_varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let length = 1_usize << (first >> 6);
    let rest = bytes.get(1..length)?;
    let value = rest.iter().fold(u64::from(first & 0x3f), |value, byte| value << 8 | u64::from(*byte));
    Some((value, length))
}

/// Reader of the fields of one frame.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }

    fn take(&mut self, field: &'static str, count: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(DecodeError::Truncated { field })?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Truncated { field })?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn varint(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        let (value, length) = peek_varint(self.rest).ok_or(DecodeError::Truncated { field })?;
        self.take(field, length)?;
        Ok(value)
    }

    pub(super) fn varint_up_to(&mut self, field: &'static str, max: u64) -> Result<u64, DecodeError> {
        let found = self.varint(field)?;
        if found > max { Err(DecodeError::AboveCap { field, found, max }) } else { Ok(found) }
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        let found = self.varint(field)?;
        u32::try_from(found).map_err(|_| DecodeError::AboveCap { field, found, max: u32::MAX.into() })
    }

    /// Reads a length and that number of bytes, 1 to `max`. The bytes are copied, so that a kept
    /// field does not hold the whole stream buffer.
    pub(super) fn bytes(&mut self, field: &'static str, max: usize) -> Result<Bytes, DecodeError> {
        let length = self.varint_up_to(field, max as u64)?;
        if length == 0 {
            return Err(DecodeError::Invalid { field, cause: "it is empty" });
        }
        let length = usize::try_from(length).map_err(|_| DecodeError::Truncated { field })?;
        Ok(Bytes::copy_from_slice(self.take(field, length)?))
    }

    /// An IP address.
    pub(super) fn ip(&mut self, field: &'static str, v6: bool) -> Result<IpAddr, DecodeError> {
        if !v6 {
            return Ok(IpAddr::V4(Ipv4Addr::from(self.array::<4>(field)?)));
        }
        let ip = Ipv6Addr::from(self.array::<16>(field)?);
        match ip.to_ipv4_mapped() {
            Some(_) => Err(DecodeError::Invalid { field, cause: "an IPv4-mapped IPv6 address" }),
            None => Ok(IpAddr::V6(ip)),
        }
    }

    /// An address and a port.
    pub(super) fn address(&mut self, field: &'static str, v6: bool) -> Result<SocketAddr, DecodeError> {
        let ip = self.ip(field, v6)?;
        match u16::from_be_bytes(self.array(field)?) {
            0 => Err(DecodeError::Invalid { field, cause: "port 0" }),
            port => Ok(SocketAddr::new(ip, port)),
        }
    }
}

/// `address` as every codec of `core` gives it: IPv4 where it is IPv4-mapped, and no flow or scope.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// `address` in the 18 bytes of a probe: IPv6 or IPv4-mapped IPv6 address, port.
pub(crate) fn mapped(address: SocketAddr) -> SocketAddrV6 {
    match canonical(address) {
        SocketAddr::V4(v4) => SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0),
        SocketAddr::V6(v6) => v6,
    }
}
