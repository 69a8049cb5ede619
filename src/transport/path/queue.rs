//! Queue of the datagrams that the bindings' sockets received for the session endpoint.

use std::{
    collections::VecDeque,
    io::IoSliceMut,
    net::SocketAddr,
    sync::Mutex,
    task::{Context, Poll},
};

use futures::task::AtomicWaker;
use quinn::udp::{EcnCodepoint, RecvMeta};

use super::lock;

/// Bytes that may wait. As much as the socket buffer that is asked of the kernel: it has the same
/// work to do.
const LIMIT: usize = 4 << 20;
/// Charged for each batch in addition to its bytes, so that many small batches count too.
const OVERHEAD: usize = 128;
/// Buffers kept for the next batches.
const SPARE: usize = 32;

/// Datagrams from one virtual address, all of one length except the last.
struct Batch {
    from: SocketAddr,
    ecn: Option<EcnCodepoint>,
    stride: usize,
    data: Vec<u8>,
    /// Leading bytes that were delivered.
    taken: usize,
}

#[derive(Default)]
struct Inner {
    batches: VecDeque<Batch>,
    bytes: usize,
    spare: Vec<Vec<u8>>,
}

/// A bounded queue with one reader, the session endpoint's driver.
#[derive(Default)]
pub(super) struct ReceiveQueue {
    inner: Mutex<Inner>,
    reader: AtomicWaker,
}

impl ReceiveQueue {
    /// Appends a copy of a run of datagrams; `false` if there was no room. [`wake`](Self::wake) the
    /// reader afterwards.
    pub(super) fn push(
        &self,
        from: SocketAddr,
        data: &[u8],
        stride: usize,
        ecn: Option<EcnCodepoint>,
    ) -> bool {
        let mut inner = lock(&self.inner);
        if inner.bytes.saturating_add(data.len() + OVERHEAD) > LIMIT {
            return false;
        }
        inner.append(from, data, stride, ecn);
        true
    }

    /// As [`push`](Self::push), beyond the limit: for datagrams that cannot come a second time. The
    /// caller bounds it.
    pub(super) fn inject(&self, from: SocketAddr, datagram: &[u8]) {
        lock(&self.inner).append(from, datagram, datagram.len(), None);
    }

    /// Wakes the reader.
    pub(super) fn wake(&self) {
        self.reader.wake();
    }

    /// Fills `bufs` and `meta` as `AsyncUdpSocket::poll_recv` does, and returns how many were
    /// filled.
    pub(super) fn poll(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<usize> {
        let read = lock(&self.inner).read(bufs, meta);
        if read > 0 {
            return Poll::Ready(read);
        }
        self.reader.register(cx.waker());
        // Something may have come between the look and the registration.
        match lock(&self.inner).read(bufs, meta) {
            0 => Poll::Pending,
            read => Poll::Ready(read),
        }
    }
}

impl Inner {
    fn append(&mut self, from: SocketAddr, data: &[u8], stride: usize, ecn: Option<EcnCodepoint>) {
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.extend_from_slice(data);
        self.bytes += data.len() + OVERHEAD;
        self.batches.push_back(Batch { from, ecn, stride: stride.max(1), data: copy, taken: 0 });
    }

    fn read(&mut self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let mut filled = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let Some(len) = self.read_one(buf, meta) else { break };
            meta.len = len;
            filled += 1;
        }
        filled
    }

    /// Delivers as many whole datagrams of the oldest batch as `buf` holds.
    fn read_one(&mut self, buf: &mut [u8], meta: &mut RecvMeta) -> Option<usize> {
        loop {
            let batch = self.batches.front_mut()?;
            let rest = batch.data.get(batch.taken..).unwrap_or_default();
            // A datagram that does not fit at all is longer than the endpoint lets its peers send.
            let len =
                if rest.len() <= buf.len() { rest.len() } else { buf.len() / batch.stride * batch.stride };
            if let (Some(to), Some(from), true) = (buf.get_mut(..len), rest.get(..len), len > 0) {
                to.copy_from_slice(from);
                batch.taken += len;
                *meta = RecvMeta {
                    addr: batch.from,
                    len,
                    stride: batch.stride.min(len),
                    ecn: batch.ecn,
                    dst_ip: None,
                };
                if batch.taken == batch.data.len() {
                    self.retire();
                }
                return Some(len);
            }
            self.retire();
        }
    }

    /// Drops the oldest batch and keeps its buffer.
    fn retire(&mut self) {
        if let Some(Batch { mut data, .. }) = self.batches.pop_front() {
            self.bytes -= data.len() + OVERHEAD;
            if self.spare.len() < SPARE {
                data.clear();
                self.spare.push(data);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::task::noop_waker;

    use super::*;

    fn from(n: u16) -> SocketAddr {
        SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 9], n))
    }

    fn read(queue: &ReceiveQueue, slots: usize, size: usize) -> Vec<(SocketAddr, usize, Vec<u8>)> {
        let mut data = vec![vec![0; size]; slots];
        let mut bufs: Vec<_> = data.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
        let mut meta = vec![RecvMeta::default(); slots];
        match queue.poll(&mut Context::from_waker(&noop_waker()), &mut bufs, &mut meta) {
            Poll::Ready(n) => {
                meta.iter().zip(data).take(n).map(|(m, d)| (m.addr, m.stride, d[..m.len].to_vec())).collect()
            }
            Poll::Pending => Vec::new(),
        }
    }

    #[test]
    fn several_batches_come_in_one_call() {
        let queue = ReceiveQueue::default();
        assert!(queue.push(from(1), &[1; 25], 10, None));
        assert!(queue.push(from(2), &[2; 5], 5, None));
        let expected = [(from(1), 10, vec![1; 25]), (from(2), 5, vec![2; 5])];
        assert_eq!(read(&queue, 4, 30), expected);
        assert_eq!(read(&queue, 4, 30), []);
        assert_eq!(lock(&queue.inner).bytes, 0);
    }

    #[test]
    fn a_batch_is_cut_between_datagrams() {
        let queue = ReceiveQueue::default();
        queue.push(from(1), &[1; 25], 10, None);
        assert_eq!(read(&queue, 1, 24), [(from(1), 10, vec![1; 20])]);
        assert_eq!(read(&queue, 1, 24), [(from(1), 5, vec![1; 5])]);
    }

    #[test]
    fn a_datagram_too_long_for_the_reader_is_skipped() {
        let queue = ReceiveQueue::default();
        queue.push(from(1), &[1; 25], 25, None);
        queue.push(from(2), &[2; 3], 3, None);
        assert_eq!(read(&queue, 2, 20), [(from(2), 3, vec![2; 3])]);
    }

    #[test]
    fn a_full_queue_refuses_and_recovers() {
        let queue = ReceiveQueue::default();
        let datagram = vec![7; 60_000];
        let fitted = (0..1000).take_while(|_| queue.push(from(1), &datagram, 60_000, None)).count();
        assert_eq!(fitted, LIMIT / (60_000 + OVERHEAD));
        queue.inject(from(2), &[2; 3]);
        assert_eq!(read(&queue, 1, 60_000).len(), 1);
        assert!(queue.push(from(1), &datagram, 60_000, None));
        let rest = read(&queue, 1000, 60_000);
        assert!(rest.contains(&(from(2), 3, vec![2; 3])));
        assert_eq!(lock(&queue.inner).bytes, 0);
        assert_eq!(lock(&queue.inner).spare.len(), SPARE);
    }
}
