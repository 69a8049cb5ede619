//! The gateway of the operating system's network: `netdev` finds it, `crab_nat` speaks PCP and
//! NAT-PMP, and `igd-next` UPnP.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, SocketAddrV4},
    num::NonZeroU16,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crab_nat::{
    InternetProtocol, PortMapping, PortMappingOptions, PortMappingType, TimeoutConfig, natpmp, pcp,
};
use futures::{FutureExt, future::BoxFuture};
use igd_next::{AddPortError, PortMappingProtocol, SearchOptions, aio::tokio as igd};
use tokio::time::timeout;

use super::{Gateway, Gateways, Grant, Protocol, Request, RequestError, is_from};

/// Times of the datagrams of a request: 250 ms, doubling, five in all, within 8 s.
const DATAGRAMS: TimeoutConfig = TimeoutConfig {
    initial_timeout: Duration::from_millis(250),
    max_retries: 4,
    max_retry_timeout: Some(Duration::from_secs(4)),
};
/// Time for a gateway to answer a search.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a gateway to answer all HTTP requests of a mapping.
const HTTP_TIMEOUT: Duration = Duration::from_secs(5);
/// Name of the mappings in the lists of gateways.
const DESCRIPTION: &str = "libp2p-punch";

type UpnpGateway = igd_next::aio::Gateway<igd::Tokio>;

/// A mapping that may have to be renewed or deleted.
#[derive(Clone)]
enum Known {
    Datagrams(PortMapping),
    Upnp { gateway: UpnpGateway, external_port: u16 },
}

type Table = Arc<Mutex<BTreeMap<Request, Known>>>;

/// The default gateway of the network of the operating system.
#[derive(Clone, Default)]
pub struct OsGateways {
    known: Table,
}

impl Gateways for OsGateways {
    fn find(&self) -> BoxFuture<'static, Option<Gateway>> {
        // Reads tables of the system, which may take milliseconds.
        async { tokio::task::spawn_blocking(find).await.unwrap_or_default() }.boxed()
    }

    fn map(&self, request: Request, lifetime: Duration) -> BoxFuture<'static, Result<Grant, RequestError>> {
        let known = self.known.clone();
        async move {
            let before = table(&known).get(&request).cloned();
            let result = match (request.protocol, before) {
                (Protocol::Upnp, before) => map_by_upnp(request, lifetime, before).await,
                (_, Some(Known::Datagrams(mapping))) => renew(mapping).await,
                (Protocol::Pcp, _) => map_by_pcp(request, lifetime).await,
                (Protocol::NatPmp, _) => map_by_nat_pmp(request, lifetime).await,
            };
            let (grant, mapping) =
                result.map_err(|cause| RequestError { protocol: request.protocol, cause })?;
            table(&known).insert(request, mapping);
            Ok(grant)
        }
        .boxed()
    }

    fn unmap(&self, request: Request) -> BoxFuture<'static, ()> {
        let known = table(&self.known).remove(&request);
        async move {
            match known {
                Some(Known::Datagrams(mapping)) => {
                    if let Err((error, _)) = mapping.try_drop().await {
                        tracing::debug!(%error, port = request.port, "a port mapping was not deleted");
                    }
                }
                Some(Known::Upnp { gateway, external_port }) => {
                    let deletion = gateway.remove_port(PortMappingProtocol::UDP, external_port);
                    match timeout(HTTP_TIMEOUT, deletion).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => {
                            tracing::debug!(%error, port = request.port, "a port mapping was not deleted");
                        }
                        Err(_) => tracing::debug!(port = request.port, "the gateway does not answer"),
                    }
                }
                None => {}
            }
        }
        .boxed()
    }
}

fn table(known: &Table) -> std::sync::MutexGuard<'_, BTreeMap<Request, Known>> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

fn find() -> Option<Gateway> {
    let interface = netdev::get_default_interface().ok()?;
    let address = *interface.gateway.as_ref()?.ipv4.first()?;
    let networks = || interface.ipv4.iter();
    let network = networks().find(|network| network.contains(&address)).or(networks().next())?;
    Some(Gateway { address, local: network.addr() })
}

type Granted = Result<(Grant, Known), String>;

fn port_of(request: Request) -> Result<NonZeroU16, String> {
    NonZeroU16::new(request.port).ok_or_else(|| "no socket has port 0".to_owned())
}

fn options(lifetime: Duration, port: NonZeroU16) -> PortMappingOptions {
    PortMappingOptions {
        external_port: Some(port),
        lifetime_seconds: u32::try_from(lifetime.as_secs()).ok(),
        timeout_config: Some(DATAGRAMS),
    }
}

async fn map_by_pcp(request: Request, lifetime: Duration) -> Granted {
    let port = port_of(request)?;
    let Gateway { address, local } = request.gateway;
    let base = pcp::BaseMapRequest::new(address.into(), local.into(), InternetProtocol::Udp, port);
    let mapping = pcp::port_mapping(base, None, None, options(lifetime, port)).await;
    granted(mapping.map_err(|error| error.to_string())?).await
}

async fn map_by_nat_pmp(request: Request, lifetime: Duration) -> Granted {
    let port = port_of(request)?;
    let gateway = request.gateway.address.into();
    let mapping = natpmp::port_mapping(gateway, InternetProtocol::Udp, port, options(lifetime, port)).await;
    granted(mapping.map_err(|error| error.to_string())?).await
}

async fn renew(mut mapping: PortMapping) -> Granted {
    mapping.renew().await.map_err(|error| error.to_string())?;
    granted(mapping).await
}

async fn granted(mapping: PortMapping) -> Granted {
    let ip = match mapping.mapping_type() {
        PortMappingType::NatPmp => natpmp::external_address(mapping.gateway(), Some(DATAGRAMS))
            .await
            .map_err(|error| error.to_string())?,
        PortMappingType::Pcp { external_ip, .. } => match external_ip.to_canonical() {
            IpAddr::V4(ip) => ip,
            IpAddr::V6(ip) => return Err(format!("{ip} is no external address of IPv4")),
        },
    };
    let external = SocketAddrV4::new(ip, mapping.external_port().get());
    let lifetime = Duration::from_secs(mapping.lifetime().into());
    Ok((Grant { external, lifetime }, Known::Datagrams(mapping)))
}

async fn map_by_upnp(request: Request, lifetime: Duration, before: Option<Known>) -> Granted {
    let (gateway, wanted) = match before {
        Some(Known::Upnp { gateway, external_port }) => (gateway, external_port),
        _ => (find_upnp(request.gateway).await?, request.port),
    };
    let mapping = async {
        let (external_port, lifetime) = add_port(&gateway, request, wanted, lifetime).await?;
        let ip = gateway.get_external_ip().await.map_err(|error| error.to_string())?;
        let IpAddr::V4(ip) = ip else { return Err(format!("{ip} is no external address of IPv4")) };
        Ok((external_port, Grant { external: SocketAddrV4::new(ip, external_port), lifetime }))
    };
    let no_answer = |_| "the gateway does not answer".to_owned();
    let (external_port, grant) = timeout(HTTP_TIMEOUT, mapping).await.map_err(no_answer)??;
    Ok((grant, Known::Upnp { gateway, external_port }))
}

/// Finds the UPnP service of the gateway. Other hosts of the network may offer one, too; it is not
/// used.
async fn find_upnp(gateway: Gateway) -> Result<UpnpGateway, String> {
    let search = SearchOptions {
        bind_addr: SocketAddr::new(gateway.local.into(), 0),
        timeout: Some(SEARCH_TIMEOUT),
        ..SearchOptions::default()
    };
    let found = igd::search_gateway(search).await.map_err(|error| error.to_string())?;
    match is_from(gateway, found.addr.ip()) {
        true => Ok(found),
        false => Err(format!("{} offers UPnP, and is not the gateway", found.addr)),
    }
}

/// Asks for the external port `wanted`, or else for any. Some gateways know permanent mappings
/// alone.
async fn add_port(
    gateway: &UpnpGateway,
    request: Request,
    wanted: u16,
    lifetime: Duration,
) -> Result<(u16, Duration), String> {
    let local = SocketAddr::new(request.gateway.local.into(), request.port);
    let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
    let udp = PortMappingProtocol::UDP;
    match gateway.add_port(udp, wanted, local, seconds, DESCRIPTION).await {
        Ok(()) => Ok((wanted, lifetime)),
        Err(AddPortError::OnlyPermanentLeasesSupported) => {
            let added = gateway.add_port(udp, wanted, local, 0, DESCRIPTION).await;
            added.map(|()| (wanted, Duration::ZERO)).map_err(|error| error.to_string())
        }
        Err(AddPortError::PortInUse) => {
            let added = gateway.add_any_port(udp, local, seconds, DESCRIPTION).await;
            added.map(|port| (port, lifetime)).map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    }
}
