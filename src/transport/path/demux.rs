//! Demultiplexer: takes the datagrams of sessions out of a received buffer, in place.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use quinn::udp::RecvMeta;

/// RFC 9000 §17.2: the longest connection ID of QUIC version 1, in bytes.
const MAX_CID_LEN: usize = 20;

/// Kind of a datagram; `F` names the virtual connection of a QUIC packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind<F> {
    /// Not ours: it stays where it is.
    Other,
    /// One of our probes.
    Probe,
    /// A QUIC packet of a virtual connection.
    Session(F),
    /// A first flight of a virtual connection, but on a path that is not the virtual connection's:
    /// dropped.
    UnroutedInitial,
}

/// Returns true if the first byte of a datagram is that of a probe.
///
/// RFC 9443 §2 assigns 4 to 15 to no protocol: STUN is 0 to 3, ZRTP 16 to 19, DTLS 20 to 63, TURN
/// channels 64 to 79. Incoming QUIC has its fixed bit (0x40) set, as no endpoint of ours announces
/// grease_quic_bit (RFC 9287 §3).
pub(super) fn is_probe(datagram: &[u8]) -> bool {
    matches!(datagram.first(), Some(4..=15))
}

/// Returns the destination connection ID of a QUIC packet, and true if its header is long.
///
/// RFC 8999 §5: these fields are in the same place in every version. A short header does not
/// contain the length of its ID; `short` is the length of the IDs that we issue.
pub(super) fn destination_cid(datagram: &[u8], short: usize) -> Option<(&[u8], bool)> {
    let first = *datagram.first()?;
    if first & 0x40 == 0 {
        None
    } else if first & 0x80 == 0 {
        Some((datagram.get(1..1 + short)?, false))
    } else {
        let len = usize::from(*datagram.get(5)?);
        if len > MAX_CID_LEN {
            return None;
        }
        Some((datagram.get(6..6 + len)?, true))
    }
}

/// Takes the datagrams that `classify` does not call [`Kind::Other`] out of one received buffer.
///
/// A buffer holds one datagram or, after GRO, several: all `meta.stride` bytes long but the last.
/// The remaining datagrams move to the front in their order, and `meta` describes them; `meta.len`
/// 0 means that none is left. The others go to `take` in their order: probes individually,
/// consecutive packets of one virtual connection as one run with the same stride.
pub(super) fn sort<F: Copy + PartialEq>(
    buffer: &mut [u8],
    meta: &mut RecvMeta,
    mut classify: impl FnMut(&[u8]) -> Kind<F>,
    mut take: impl FnMut(Kind<F>, &[u8], usize),
) {
    let len = meta.len.min(buffer.len());
    let Some(data) = buffer.get_mut(..len) else { return };
    if meta.stride == 0 {
        // A stride of 0 in a buffer with content can only mean one datagram; quinn would split the
        // buffer without end.
        meta.stride = len;
    }
    let stride = meta.stride.max(1);
    let (mut at, mut kept) = (0usize, 0usize);
    let mut run: Option<(Kind<F>, usize)> = None;
    while let Some(datagram) = data.get(at..len.min(at.saturating_add(stride))).filter(|d| !d.is_empty()) {
        let kind = classify(datagram);
        let end = at + datagram.len();
        if let Some((running, start)) = run
            && (running != kind || running == Kind::Probe)
        {
            hand_over(data, running, start..at, stride, &mut take);
            run = None;
        }
        if kind == Kind::Other {
            // `kept <= at`, and the runs before `at` have been handed over: nothing needed is
            // overwritten.
            if kept < at {
                data.copy_within(at..end, kept);
            }
            kept += end - at;
        } else if run.is_none() {
            run = Some((kind, at));
        }
        at = end;
    }
    if let Some((running, start)) = run {
        hand_over(data, running, start..at, stride, &mut take);
    }
    if kept < meta.len {
        meta.len = kept;
        meta.stride = stride.min(kept);
    }
}

fn hand_over<F>(
    data: &[u8],
    kind: Kind<F>,
    range: std::ops::Range<usize>,
    stride: usize,
    take: &mut impl FnMut(Kind<F>, &[u8], usize),
) {
    if let Some(run) = data.get(range) {
        take(kind, run, stride.min(run.len()));
    }
}

/// Returns the canonical form of an address, for comparisons of paths. IPv4-mapped becomes IPv4,
/// and the flow label is omitted. A zone is kept only where it belongs to the address (RFC 4007
/// §6).
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    let SocketAddr::V6(v6) = address else { return address };
    match v6.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), v6.port()),
        IpAddr::V6(ip) => {
            let zone = if ip.is_unicast_link_local() { v6.scope_id() } else { 0 };
            SocketAddr::V6(SocketAddrV6::new(ip, v6.port(), 0, zone))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The first byte of a test datagram is its kind: 4 is a probe, 64 + n a packet of virtual
    /// connection n, anything else stays.
    fn classify(datagram: &[u8]) -> Kind<u8> {
        match datagram.first() {
            Some(4) => Kind::Probe,
            Some(flow @ 64..=67) => Kind::Session(*flow),
            _ => Kind::Other,
        }
    }

    fn run(buffer: &mut [u8], meta: &mut RecvMeta) -> Vec<(Kind<u8>, Vec<u8>, usize)> {
        let mut taken = Vec::new();
        sort(buffer, meta, classify, |kind, run, stride| taken.push((kind, run.to_vec(), stride)));
        taken
    }

    fn meta(len: usize, stride: usize) -> RecvMeta {
        RecvMeta { len, stride, ..RecvMeta::default() }
    }

    proptest! {
        #[test]
        fn every_datagram_comes_out_once_and_in_order(
            kinds in prop::collection::vec(prop::sample::select(vec![4u8, 64, 65, 128, 200]), 1..12),
            stride in 2usize..40,
            last in 1usize..40,
        ) {
            let last = last.min(stride);
            let mut segments: Vec<Vec<u8>> = kinds.iter().enumerate().map(|(i, kind)| {
                let mut segment = vec![i as u8; stride];
                segment[0] = *kind;
                segment
            }).collect();
            segments.last_mut().unwrap().truncate(last);
            let mut buffer = segments.concat();
            let len = buffer.len();
            buffer.extend([0xee; 7]); // beyond `len`: never looked at
            let mut meta = meta(len, stride);
            let taken = run(&mut buffer, &mut meta);

            let of = |wanted: Kind<u8>| -> Vec<Vec<u8>> {
                segments.iter().filter(|s| classify(s) == wanted).cloned().collect()
            };
            let chunks = |data: &[u8], stride: usize| -> Vec<Vec<u8>> {
                data.chunks(stride.max(1)).map(<[u8]>::to_vec).collect()
            };
            prop_assert_eq!(chunks(&buffer[..meta.len], meta.stride), of(Kind::Other));
            for wanted in [Kind::Probe, Kind::Session(64), Kind::Session(65)] {
                let out: Vec<_> = taken.iter().filter(|(kind, ..)| *kind == wanted)
                    .flat_map(|(_, data, stride)| chunks(data, *stride)).collect();
                prop_assert_eq!(out, of(wanted));
            }
            for (kind, data, stride) in &taken {
                prop_assert!(*kind != Kind::Probe || data.len() == *stride, "probes come one by one");
            }
        }

        #[test]
        fn parsing_never_panics(datagram in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some((cid, long)) = destination_cid(&datagram, 8) {
                prop_assert_eq!(long, datagram[0] & 0x80 != 0);
                prop_assert!(cid.len() <= 20);
            }
        }
    }

    #[test]
    fn a_buffer_without_ours_is_left_alone() {
        let mut buffer = [200; 100];
        let mut meta = meta(100, 30);
        assert!(run(&mut buffer, &mut meta).is_empty());
        assert_eq!((meta.len, meta.stride), (100, 30));
    }

    #[test]
    fn a_stride_of_nothing_is_that_of_one_datagram() {
        let mut buffer = [200; 24];
        let mut meta = meta(24, 0);
        assert!(run(&mut buffer, &mut meta).is_empty());
        assert_eq!((meta.len, meta.stride), (24, 24));
    }

    #[test]
    fn an_empty_datagram_stays() {
        let mut meta = meta(0, 0);
        assert!(run(&mut [], &mut meta).is_empty());
        assert_eq!((meta.len, meta.stride), (0, 0));
    }

    #[test]
    fn destination_ids_are_read_from_both_headers() {
        let mut long = vec![0xc3, 0, 0, 0, 1, 3, 7, 8, 9];
        assert_eq!(destination_cid(&long, 8), Some((&[7u8, 8, 9][..], true)));
        long[5] = 21;
        assert_eq!(destination_cid(&long, 8), None);
        long[5] = 4;
        assert_eq!(destination_cid(&long, 8), None, "cut short");
        assert_eq!(destination_cid(&[0x40, 1, 2, 3], 2), Some((&[1u8, 2][..], false)));
        assert_eq!(destination_cid(&[0x40, 1], 2), None);
        assert_eq!(destination_cid(&[0x00, 1, 2], 2), None, "no fixed bit");
    }

    #[test]
    fn addresses_have_one_form() {
        let canonical = |address: &str| canonical(address.parse().unwrap()).to_string();
        assert_eq!(canonical("[::ffff:192.0.2.1]:7"), "192.0.2.1:7");
        assert_eq!(canonical("192.0.2.1:7"), "192.0.2.1:7");
        assert_eq!(canonical("[2001:db8::1%5]:7"), "[2001:db8::1]:7");
        assert_eq!(canonical("[fe80::1%5]:7"), "[fe80::1%5]:7");
    }
}
