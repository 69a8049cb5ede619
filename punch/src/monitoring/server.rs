//! HTTP server for metrics and health checks.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{Monitor, exposition::Format};

/// Connections at once. A server scrapes over one; the others are for its replicas and for probes.
const MAX_CONNECTIONS: usize = 16;
/// Time for the head of a request, and between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest life of a connection, however slowly its client reads.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
/// Pause after a failure to accept, such as a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Server of `/metrics`, `/healthz` and `/readyz`. Its connections end when it is dropped.
pub(crate) struct MetricsServer {
    listener: TcpListener,
    monitor: Monitor,
}

impl MetricsServer {
    /// Begins to listen.
    pub(crate) async fn bind(address: SocketAddr, monitor: Monitor) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await?, monitor })
    }

    /// Returns the address at which it listens.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves for ever.
    pub(crate) async fn serve(self) -> Infallible {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            // The semaphore is never closed; without a place, connections wait in the backlog.
            let Ok(place) = places.clone().acquire_owned().await else { continue };
            while connections.try_join_next().is_some() {}
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    connections.spawn(serve_connection(stream, self.monitor.clone(), place));
                }
                Err(error) => {
                    tracing::debug!(%error, "no connection for metrics was accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, monitor: Monitor, place: OwnedSemaphorePermit) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(&request, &monitor);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    // A client that breaks off has ended its own scrape.
    if let Ok(Err(error)) = timeout(CONNECTION_TIMEOUT, connection).await {
        tracing::debug!(%error, "a connection for metrics failed");
    }
    drop(place);
}

fn respond<B>(request: &Request<B>, monitor: &Monitor) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are served\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/metrics" => {
            let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
            let format = Format::of_accept(accept);
            let mut response = text(StatusCode::OK, format.scrape(&monitor.registry));
            let content_type = HeaderValue::from_static(format.content_type());
            response.headers_mut().insert(CONTENT_TYPE, content_type);
            response
        }
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => match monitor.readiness.obstacle() {
            None => text(StatusCode::OK, "ready\n"),
            Some(obstacle) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{obstacle}\n")),
        },
        _ => text(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n"),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
