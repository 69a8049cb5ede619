//! The demultiplexer on arbitrary received buffers, against a plain model of it.

use quinn::udp::RecvMeta;

use super::{
    cid::CID_LEN,
    demux::{Kind, destination_cid, is_probe, sort},
};

fn classify(datagram: &[u8]) -> Kind<u8> {
    if is_probe(datagram) {
        return Kind::Probe;
    }
    match destination_cid(datagram, CID_LEN) {
        Some((cid, long)) => match cid.first() {
            Some(flow @ 0..=3) => Kind::Session(*flow),
            Some(4) if long => Kind::UnroutedInitial,
            _ => Kind::Other,
        },
        None => Kind::Other,
    }
}

/// The first two bytes are the stride, as receive offload reports it; the rest is the buffer.
pub(crate) fn run(bytes: &[u8]) {
    let Some((head, data)) = bytes.split_first_chunk::<2>() else { return };
    let stride = usize::from(u16::from_be_bytes(*head));
    let mut buffer = data.to_vec();
    let mut meta = RecvMeta { len: data.len(), stride, ..RecvMeta::default() };
    let mut taken: Vec<(Kind<u8>, Vec<u8>, usize)> = Vec::new();
    sort(&mut buffer, &mut meta, classify, |kind, run, stride| taken.push((kind, run.to_vec(), stride)));

    let datagrams = |data: &[u8], stride: usize| -> Vec<Vec<u8>> {
        data.chunks(stride.max(1)).map(<[u8]>::to_vec).collect()
    };
    let whole = if stride == 0 { data.len() } else { stride };
    let came = datagrams(data, whole);
    let of = |wanted: Kind<u8>| -> Vec<Vec<u8>> {
        came.iter().filter(|datagram| classify(datagram) == wanted).cloned().collect()
    };
    let left = buffer.get(..meta.len).unwrap_or_default();
    assert_eq!(datagrams(left, meta.stride), of(Kind::Other));
    for kind in [
        Kind::Probe,
        Kind::UnroutedInitial,
        Kind::Session(0),
        Kind::Session(1),
        Kind::Session(2),
        Kind::Session(3),
    ] {
        let runs = taken.iter().filter(|(taken, ..)| *taken == kind);
        let went: Vec<_> = runs.flat_map(|(_, run, stride)| datagrams(run, *stride)).collect();
        assert_eq!(went, of(kind));
    }
}
