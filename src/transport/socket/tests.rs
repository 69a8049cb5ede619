//! Tests of sockets that the system takes away.

use std::task::Waker;

use super::{super::socket_budget::SocketBudget, *};

/// Sockets that return what the script says, one script a socket.
#[derive(Debug, Default)]
struct Scripted {
    scripts: Mutex<VecDeque<Vec<io::Result<usize>>>>,
    bound: Mutex<Vec<SocketAddr>>,
}

#[derive(Debug)]
struct Script(Mutex<VecDeque<io::Result<usize>>>, SocketAddr);

impl Network for Scripted {
    fn bind(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        self.bound.lock().unwrap().push(address);
        let script = self.scripts.lock().unwrap().pop_front().unwrap_or_default();
        let local = SocketAddr::new(address.ip(), if address.port() == 0 { 50_000 } else { address.port() });
        Ok(UdpSocket::new(Arc::new(Script(Mutex::new(script.into()), local))))
    }

    fn interfaces(&self) -> io::Result<crate::io::Interfaces> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn source_for(&self, _: std::net::IpAddr) -> io::Result<std::net::IpAddr> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl AsyncUdpSocket for Script {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        unreachable!("nothing is sent")
    }

    fn try_send(&self, _: &Transmit<'_>) -> io::Result<()> {
        Err(io::ErrorKind::ConnectionAborted.into())
    }

    fn poll_recv(
        &self,
        _: &mut Context<'_>,
        _: &mut [IoSliceMut<'_>],
        _: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().unwrap().pop_front().map_or(Poll::Pending, Poll::Ready)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.1)
    }
}

fn socket(scripts: Vec<Vec<io::Result<usize>>>) -> (Arc<Scripted>, Arc<Socket>) {
    let network = Arc::new(Scripted { scripts: Mutex::new(scripts.into()), ..Scripted::default() });
    let (shared, runtime): (Arc<dyn Network>, Arc<dyn Runtime>) =
        (network.clone(), Arc::new(quinn::TokioRuntime));
    let place = Arc::new(SocketBudget::new(None)).take();
    (network, Socket::bind(&shared, &runtime, "192.0.2.1:0".parse().unwrap(), place).unwrap())
}

fn receive(socket: &Socket) -> Poll<io::Result<usize>> {
    socket.poll_recv(&mut Context::from_waker(Waker::noop()), &mut [], &mut [])
}

fn news(socket: &Socket) -> Vec<SocketNews> {
    let mut cx = Context::from_waker(Waker::noop());
    std::iter::from_fn(|| match socket.poll_news(&mut cx) {
        Poll::Ready(news) => Some(news),
        Poll::Pending => None,
    })
    .collect()
}

fn error(kind: io::ErrorKind) -> io::Result<usize> {
    Err(kind.into())
}

#[tokio::test(start_paused = true)]
async fn errors_that_others_can_cause_replace_nothing() {
    let refused = || error(io::ErrorKind::ConnectionRefused);
    let (network, socket) = socket(vec![vec![refused(), refused(), Ok(3)]]);
    assert!(matches!(receive(&socket), Poll::Ready(Ok(3))));
    assert!(receive(&socket).is_pending());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(network.bound.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_endless_run_of_them_means_that_the_socket_is_broken() {
    let (network, socket) = socket(vec![(0..10_000).map(|_| error(io::ErrorKind::NetworkDown)).collect()]);
    for _ in 0..100 {
        assert!(receive(&socket).is_pending());
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(network.bound.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_failed_is_replaced_at_the_same_port_and_quinn_never_hears_of_it() {
    let (network, socket) = socket(vec![vec![error(io::ErrorKind::BrokenPipe)], vec![Ok(7)]]);
    assert!(receive(&socket).is_pending());
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(matches!(receive(&socket), Poll::Ready(Ok(7))));
    let bound: Vec<u16> = network.bound.lock().unwrap().iter().map(SocketAddr::port).collect();
    assert_eq!(bound, [0, 50_000]);
    let news = news(&socket);
    let [SocketNews::Failed(_), SocketNews::Replaced(replacement)] = news.as_slice() else {
        panic!("{news:?}")
    };
    assert!(replacement.keeps_mappings());
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_only_sending_shows_is_noticed() {
    let (network, socket) = socket(vec![]);
    let destination = "192.0.2.2:1".parse().unwrap();
    let transmit = Transmit { destination, ecn: None, contents: b"x", segment_size: None, src_ip: None };
    socket.try_send(&transmit).unwrap_err();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(network.bound.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn sockets_that_fail_one_after_the_other_are_reported_once_and_replaced_ever_less_often() {
    let dead = || vec![error(io::ErrorKind::NotConnected)];
    let (network, socket) = socket((0..10_000).map(|_| dead()).collect());
    let mut reports = 0;
    for _ in 0..600 {
        assert!(receive(&socket).is_pending());
        tokio::time::sleep(Duration::from_millis(100)).await;
        reports += news(&socket).iter().filter(|news| matches!(news, SocketNews::Failed(_))).count();
    }
    let bound = network.bound.lock().unwrap().len();
    assert!((5..20).contains(&bound), "{bound} sockets in a minute");
    assert!((1..=4).contains(&reports), "{reports} reports");
}
