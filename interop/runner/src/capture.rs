//! Handshakes on the wire, as an independent program reads them: tshark, where it is installed.
//!
//! Initial packets are protected with keys that everybody can derive (RFC 9001 §5.2), so that the
//! ClientHello can be read without any secret. We give none away; py-libp2p does if it is asked, so
//! that all of a handshake can be read.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::probe;

/// The fields that are printed of each datagram, in this order.
const FIELDS: [&str; 8] = [
    "udp.dstport",
    "quic.fixed_bit",
    "quic.version",
    "tls.handshake.extension.type",
    "tls.handshake.extensions_alpn_str",
    "tls.handshake.extensions_server_name",
    "x509af.extension.id",
    "tls.handshake.certificate",
];
/// Extensions that our ClientHello does not have: a server's name, and the certificate types of RFC
/// 7250.
const UNWANTED: [&str; 3] = ["0", "19", "20"];
/// The extension that has the identity in a libp2p certificate (libp2p TLS specification).
const IDENTITY: &str = "1.3.6.1.4.1.53594.1.1";
/// Time for tshark to start, and to pass on the datagrams that it has captured.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// Silence after which the capture counts as complete.
const COMPLETE_AFTER: Duration = Duration::from_millis(500);

/// Reason of a skipped check.
pub(crate) const NO_TSHARK: &str = "tshark is not installed";

/// Directory for the files of a capture, removed on drop.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let directory = env::temp_dir().join(format!("interop-wire-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        Ok(Self(directory))
    }

    /// Returns the file to which listeners write the secrets of their handshakes, if they can.
    /// Other programs that know this variable do so, too.
    pub(crate) fn secrets(&self) -> PathBuf {
        self.0.join("secrets")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A remaining file lies in the directory for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Form in which both sides present their identities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IdentityForm {
    /// In libp2p certificates.
    Certificate,
    /// Raw Ed25519 keys.
    RawKey,
}

impl IdentityForm {
    /// The protocol that the server chooses with it.
    fn protocol(self) -> &'static str {
        match self {
            Self::Certificate => "libp2p",
            Self::RawKey => "libp2p-raw",
        }
    }

    /// Returns true if a message with these extension ids and certificates (in hex) has the form.
    fn is_in(self, extensions: &str, certificates: &str) -> bool {
        match self {
            Self::Certificate => values(extensions).any(|extension| extension == IDENTITY),
            // A prefix and the 32 bytes of a key, and nothing else.
            Self::RawKey => values(certificates).any(|certificate| {
                let key = certificate.strip_prefix(&probe::hex(&probe::SPKI));
                key.is_some_and(|key| key.len() == 2 * 32)
            }),
        }
    }
}

/// Properties that the capture must have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Requirements {
    /// The listener's port. Datagrams to it are ours, or those of a probe with the same offers.
    pub(crate) port: u16,
    /// Every packet of ours must have the fixed bit. Others may grease it (RFC 9287).
    pub(crate) fixed_bit: bool,
    /// Encrypted part of the handshake, if one side writes its secrets down.
    pub(crate) presented: Option<IdentityForm>,
}

/// A capture of a connection's QUIC packets on the loopback interface.
pub(crate) struct Capture {
    child: Child,
    wanted: Requirements,
    _scratch: Scratch,
}

/// Returns true if tshark is installed.
pub(crate) async fn is_possible() -> bool {
    let mut command = Command::new("tshark");
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().await.is_ok_and(|status| status.success())
}

impl Capture {
    /// Captures the datagrams to and from the port.
    pub(crate) async fn start(wanted: Requirements, scratch: Scratch) -> anyhow::Result<Self> {
        let port = wanted.port;
        let mut command = Command::new("tshark");
        command.args(["-l", "-n", "-i", "lo", "-f", &format!("udp port {port}")]);
        command.args(["-d", &format!("udp.port=={port},quic"), "-T", "fields", "-E", "separator=|"]);
        if wanted.presented.is_some() {
            command.args(["-o", &format!("tls.keylog_file:{}", path(&scratch.secrets())?)]);
        }
        for field in FIELDS {
            command.args(["-e", field]);
        }
        // Where it keeps what it has captured, and leaves it when it is killed.
        command.env("TMPDIR", path(&scratch.0)?);
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
        tokio::time::timeout(START_TIMEOUT, capturing).await.context("tshark does not capture")??;
        // A full pipe would stop tshark.
        tokio::spawn(async move { while let Ok(Some(_)) = errors.next_line().await {} });
        Ok(Self { child, wanted, _scratch: scratch })
    }

    /// Ends the capture and judges it.
    pub(crate) async fn finish(mut self) -> anyhow::Result<String> {
        let mut output = BufReader::new(self.child.stdout.take().context("no standard output")?).lines();
        let mut text = String::new();
        let mut has_hello = false;
        loop {
            // First until there is a ClientHello, then while datagrams come.
            let patience = if has_hello { COMPLETE_AFTER } else { START_TIMEOUT };
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
        judge(&text, self.wanted)
    }
}

fn path(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path that is not text")
}

/// Reads what tshark printed: a line a datagram, in each the fields, in each the values of the
/// packets that it held.
fn judge(text: &str, wanted: Requirements) -> anyhow::Result<String> {
    let port = wanted.port.to_string();
    let mut packets = 0;
    // Our offers, and the choices of the other side where these can be read.
    let (mut offered, mut chosen) = (Vec::new(), Vec::new());
    let (mut dialer_named, mut listener_named) = (false, false);
    for line in text.lines() {
        let fields: Vec<&str> = line.split('|').collect();
        let [to, fixed, versions, extensions, alpn, name, certified, certificates] = fields[..] else {
            bail!("{} fields in {line}", fields.len())
        };
        for version in values(versions) {
            ensure!(version == "0x00000001", "version {version}");
        }
        let has_identity = wanted.presented.is_some_and(|presented| presented.is_in(certified, certificates));
        if to != port {
            listener_named |= has_identity;
            chosen.extend(values(alpn).map(str::to_owned));
            continue;
        }
        dialer_named |= has_identity;
        for bit in values(fixed) {
            packets += 1;
            ensure!(!wanted.fixed_bit || matches!(bit, "1" | "True"), "a packet without the fixed bit");
        }
        if let Some(unwanted) = values(extensions).find(|extension| UNWANTED.contains(extension)) {
            bail!("the ClientHello has extension {unwanted}");
        }
        ensure!(name.is_empty(), "the ClientHello names a server: {name}");
        offered.extend(values(alpn).map(str::to_owned));
    }
    ensure!(packets > 0, "no packet was captured");
    ensure!(offered == ["libp2p-raw", "libp2p"], "the ClientHello offers {offered:?}");
    let mut seen = format!("{packets} packets of version 1, ALPN {}", offered.join(", "));
    if let Some(presented) = wanted.presented {
        ensure!(chosen == [presented.protocol()], "the server chose {chosen:?}");
        ensure!(dialer_named && listener_named, "one side does not present its identity: {presented:?}");
        seen += &format!("; {} chosen, {presented:?} on both sides", presented.protocol());
    }
    Ok(seen)
}

fn values(field: &str) -> impl Iterator<Item = &str> {
    field.split(',').filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Requirements = Requirements { port: 7, fixed_bit: true, presented: None };
    const HELLO: &str = "7|1|0x00000001|51,16|libp2p-raw,libp2p|||\n";

    #[test]
    fn a_handshake_of_ours_offers_both_kinds_of_key_and_names_no_server() {
        // The other side may set the fixed bit or not.
        let text = format!(
            "{HELLO}9|0,0|0x00000001,0x00000001|||||\n7|1,1,1|0x00000001,0x00000001|||||\n7|1||||||\n"
        );
        assert_eq!(judge(&text, WANTED).unwrap(), "5 packets of version 1, ALPN libp2p-raw, libp2p");
        assert!(judge("7|1|0x00000001|51,16|libp2p|||\n", WANTED).is_err());
    }

    #[test]
    fn what_must_not_be_on_the_wire_is_an_error() {
        let greased = HELLO.replacen("|1|", "|0|", 1);
        let named = "7|1|0x00000001|51,16|libp2p-raw,libp2p|l||\n";
        let typed = HELLO.replace("51,16", "51,20,16");
        let draft = HELLO.replace("0x00000001", "0x6b3343cf");
        for text in ["", &greased, named, &typed, &draft, "7|1\n"] {
            assert!(judge(text, WANTED).is_err(), "{text:?}");
        }
        assert!(judge(&greased, Requirements { fixed_bit: false, ..WANTED }).is_ok());
    }

    #[test]
    fn raw_keys_are_44_bytes_and_chosen_by_their_own_protocol() {
        let wanted = Requirements { presented: Some(IdentityForm::RawKey), ..WANTED };
        let key = probe::hex(&[&probe::SPKI[..], &[7; 32]].concat());
        let theirs = format!("9|1|0x00000001|16|libp2p-raw|||{key}\n");
        let ours = format!("7|1||||||{key}\n");
        assert!(judge(&[HELLO, &theirs, &ours].concat(), wanted).is_ok());
        for text in [theirs.replace("libp2p-raw", "libp2p"), theirs.replace(&key, &key[2..]), theirs + "00"] {
            assert!(judge(&[HELLO, &text, &ours].concat(), wanted).is_err(), "{text}");
        }
    }

    #[test]
    fn both_sides_certify_who_they_are_where_that_can_be_read() {
        let wanted = Requirements { presented: Some(IdentityForm::Certificate), ..WANTED };
        let theirs = format!("9|1|0x00000001|16|libp2p||{IDENTITY}|30\n");
        let ours = format!("7|1|||||2.5.29.15,{IDENTITY}|30\n");
        assert!(judge(&[HELLO, &theirs, &ours].concat(), wanted).is_ok());
        for text in [[HELLO, &theirs].concat(), [HELLO, &ours].concat(), HELLO.to_owned()] {
            assert!(judge(&text, wanted).is_err(), "{text}");
        }
    }
}
