//! What goes over the wire in a handshake, read by an independent program: tshark, where it is installed.
//!
//! Initial packets are protected with keys that everybody can derive (RFC 9001 §5.2), so that the ClientHello can be
//! read without any secret of ours.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, bail, ensure};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

/// The fields that are printed of each packet, in this order.
const FIELDS: [&str; 4] = [
    "quic.fixed_bit",
    "quic.version",
    "tls.handshake.extensions_alpn_str",
    "tls.handshake.extensions_server_name",
];
/// How long tshark may take to start capturing, and to pass on what it has captured.
const START: Duration = Duration::from_secs(20);
/// How long nothing must come before the capture is taken for complete.
const LINGER: Duration = Duration::from_millis(500);

/// A capture of a dialer's QUIC packets on the loopback interface.
pub(crate) struct Capture {
    child: Child,
}

/// Whether there is a tshark.
pub(crate) async fn is_possible() -> bool {
    let mut command = Command::new("tshark");
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().await.is_ok_and(|status| status.success())
}

impl Capture {
    /// Captures what is sent to a UDP port: what a dialer sends. Others may grease the fixed bit (RFC 9287).
    pub(crate) async fn start(port: u16) -> anyhow::Result<Self> {
        let mut command = Command::new("tshark");
        command.args(["-l", "-n", "-i", "lo", "-f", &format!("udp dst port {port}")]);
        command.args(["-d", &format!("udp.port=={port},quic"), "-T", "fields", "-E", "separator=|"]);
        for field in FIELDS {
            command.args(["-e", field]);
        }
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("tshark")?;
        let mut errors = BufReader::new(child.stderr.take().context("no standard error")?).lines();
        let capturing = async {
            while let Some(line) = errors.next_line().await? {
                if line.contains("Capture started") {
                    return anyhow::Ok(());
                }
            }
            bail!("tshark ended")
        };
        tokio::time::timeout(START, capturing).await.context("tshark does not capture")??;
        // It must never wait for somebody to read this.
        tokio::spawn(async move { while let Ok(Some(_)) = errors.next_line().await {} });
        Ok(Self { child })
    }

    /// Ends the capture and judges it; `fixed_bit` is whether every packet must have it.
    pub(crate) async fn finish(mut self, fixed_bit: bool) -> anyhow::Result<String> {
        let mut output = BufReader::new(self.child.stdout.take().context("no standard output")?).lines();
        let mut text = String::new();
        let mut has_hello = false;
        loop {
            // First until there is a ClientHello, then for as long as something comes.
            let patience = if has_hello { LINGER } else { START };
            match tokio::time::timeout(patience, output.next_line()).await {
                Ok(line) => {
                    let line = line?.context("tshark ended")?;
                    has_hello |= line.contains("libp2p");
                    text += &line;
                    text.push('\n');
                }
                Err(_) => break,
            }
        }
        self.child.start_kill()?;
        self.child.wait().await?;
        judge(&text, fixed_bit)
    }
}

/// Reads what tshark printed: a line a datagram, in each the fields, in each the values of the packets that it held.
fn judge(text: &str, fixed_bit: bool) -> anyhow::Result<String> {
    let mut packets = 0;
    let mut protocols = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split('|').collect();
        let [fixed, versions, alpn, name] = fields[..] else { bail!("{} fields in {line}", fields.len()) };
        for bit in values(fixed) {
            packets += 1;
            ensure!(!fixed_bit || matches!(bit, "1" | "True"), "a packet without the fixed bit");
        }
        for version in values(versions) {
            ensure!(version == "0x00000001", "version {version}");
        }
        ensure!(name.is_empty(), "the ClientHello names a server: {name}");
        protocols.extend(values(alpn).map(str::to_owned));
    }
    ensure!(packets > 0, "no packet was captured");
    ensure!(protocols == ["libp2p-raw", "libp2p"], "the ClientHello offers {protocols:?}");
    Ok(format!("{packets} packets of version 1, ALPN {}", protocols.join(", ")))
}

fn values(field: &str) -> impl Iterator<Item = &str> {
    field.split(',').filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_of_ours_offers_both_kinds_of_key_and_names_no_server() {
        let text = "1|0x00000001|libp2p-raw,libp2p|\n1,1,1|0x00000001,0x00000001||\n1|||\n";
        assert_eq!(judge(text, true).unwrap(), "5 packets of version 1, ALPN libp2p-raw, libp2p");
        assert!(judge("1|0x00000001|libp2p|\n", true).is_err());
    }

    #[test]
    fn what_must_not_be_on_the_wire_is_an_error() {
        let greased = "0|0x00000001|libp2p-raw,libp2p|\n";
        let named = "1|0x00000001|libp2p-raw,libp2p|l\n";
        let draft = "1|0x6b3343cf|libp2p-raw,libp2p|\n";
        for text in ["", greased, named, draft, "1|1\n"] {
            assert!(judge(text, true).is_err(), "{text:?}");
        }
        assert!(judge(greased, false).is_ok());
    }
}
