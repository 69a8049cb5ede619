//! Gateways that grant port mappings: `miniupnpd` in the boxes of the lab.

use std::{
    env, fs,
    io::Write,
    net::{Ipv4Addr, UdpSocket},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use super::{
    Site,
    error::{Error, Result},
};

const DAEMON: &str = "miniupnpd";
/// Daemons that this process has started.
static DAEMONS: AtomicUsize = AtomicUsize::new(0);
/// UDP port of NAT-PMP and PCP (RFC 6886 §3.1).
const NAT_PMP_PORT: u16 = 5351;
/// Requests until the daemon answers, and the time for each.
const ATTEMPTS: usize = 600;
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(100);

/// Chains that the daemon fills with rules, in front of those of the box.
const CHAINS: &str = "table inet upnp {
 chain filter_miniupnpd { }
 chain prerouting_miniupnpd { }
 chain postrouting_miniupnpd { }
 chain forward {
  type filter hook forward priority filter - 10; policy accept;
  jump filter_miniupnpd
 }
 chain prerouting {
  type nat hook prerouting priority dstnat - 1; policy accept;
  jump prerouting_miniupnpd
 }
 chain postrouting {
  type nat hook postrouting priority srcnat - 1; policy accept;
  jump postrouting_miniupnpd
 }
}
";

const SETTINGS: &str = "ext_ifname=wan
listening_ip=lan
port=0
enable_natpmp=yes
enable_upnp=yes
secure_mode=yes
upnp_table_name=upnp
upnp_nat_table_name=upnp
upnp_forward_chain=filter_miniupnpd
upnp_nat_chain=prerouting_miniupnpd
upnp_nat_postrouting_chain=postrouting_miniupnpd
uuid=00000000-0000-0000-0000-000000000001
allow 1024-65535 192.168.0.0/16 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
";

/// Returns the reason why no gateway can grant port mappings here: the end of a sentence that
/// begins with "the gateway".
pub fn port_mapping_obstacle() -> Option<String> {
    let mut version = Command::new(DAEMON);
    version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    version.status().err().map(|error| format!("needs the program {DAEMON}: {error}"))
}

/// A daemon that grants port mappings by UPnP, NAT-PMP and PCP. Stopped on drop.
pub struct PortMappingDaemon {
    child: Child,
    pid_file: PathBuf,
}

impl PortMappingDaemon {
    /// Starts the daemon in the box of a site from the third on: it serves no box whose own address
    /// is in a prefix for documentation, as those of the first two are.
    pub fn start(site: &Site) -> Result<Self> {
        let [only] = &site.boxes[..] else {
            return Err(Error::new("cannot start a gateway", "the site has no box, or two"));
        };
        only.nft(CHAINS)?;
        // The daemon refuses to start where the file of another one exists.
        let number = DAEMONS.fetch_add(1, Ordering::Relaxed);
        let pid_file = env::temp_dir().join(format!("{DAEMON}-{}-{number}", std::process::id()));
        let mut child = only
            .command(DAEMON)
            .args(["-d", "-f", "/dev/stdin", "-P"])
            .arg(&pid_file)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| Error::new(format!("cannot run {DAEMON}"), error))?;
        let settings = child.stdin.take().map(|mut stdin| stdin.write_all(SETTINGS.as_bytes()));
        let daemon = Self { child, pid_file };
        settings.transpose().map_err(|error| Error::new(format!("cannot configure {DAEMON}"), error))?;
        let gateway = site.gateway;
        match site.host.inside(|| answers(gateway))? {
            Ok(true) => Ok(daemon),
            Ok(false) => Err(Error::new(format!("{DAEMON} does not answer"), gateway)),
            Err(error) => Err(Error::new(format!("cannot ask {DAEMON}"), error)),
        }
    }
}

impl Drop for PortMappingDaemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.pid_file);
    }
}

/// Returns true once the gateway tells its external address (RFC 6886 §3.2).
fn answers(gateway: Ipv4Addr) -> std::io::Result<bool> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(ATTEMPT_TIMEOUT))?;
    socket.connect((gateway, NAT_PMP_PORT))?;
    for _ in 0..ATTEMPTS {
        let mut answer = [0; 16];
        // An error says that nobody listens yet.
        let asked = socket.send(&[0, 0]).and_then(|_| socket.recv(&mut answer));
        match asked {
            Ok(12) if answer[1] == 128 && answer[3] == 0 => return Ok(true),
            _ => std::thread::sleep(ATTEMPT_TIMEOUT / 10),
        }
    }
    Ok(false)
}
