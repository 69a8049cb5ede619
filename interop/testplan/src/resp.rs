//! The few commands of Redis by which the official suites give the listener's address to the
//! dialer.
//!
//! [`Client`] is what a test program needs; [`Reply`] and [`read`] serve both ends, so that a stub
//! can be built of them.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

/// No reply that is of use here is longer.
const MAX_LENGTH: usize = 64 << 10;
/// Nor has any more parts.
const MAX_PARTS: usize = 64;
/// Number and interval of the attempts to reach a server that has not started yet.
const RETRIES: (usize, Duration) = (40, Duration::from_millis(250));

/// A value of the protocol RESP2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`
    Status(String),
    /// `-ERR …`
    Error(String),
    /// `:1`
    Integer(i64),
    /// `$3` and three bytes, or nothing
    Bulk(Option<String>),
    /// `*2` and two values, or nothing
    Array(Option<Vec<Reply>>),
}

impl Reply {
    /// The text of a string of either kind.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Status(text) | Self::Bulk(Some(text)) => Some(text),
            _ => None,
        }
    }

    /// Returns the bytes on the wire.
    pub fn encode(&self) -> String {
        match self {
            Self::Status(text) => format!("+{text}\r\n"),
            Self::Error(text) => format!("-{text}\r\n"),
            Self::Integer(number) => format!(":{number}\r\n"),
            Self::Bulk(None) => "$-1\r\n".into(),
            Self::Bulk(Some(text)) => format!("${}\r\n{text}\r\n", text.len()),
            Self::Array(None) => "*-1\r\n".into(),
            Self::Array(Some(parts)) => {
                let count = parts.len();
                let parts: String = parts.iter().map(Self::encode).collect::<Vec<_>>().concat();
                format!("*{count}\r\n{parts}")
            }
        }
    }

    /// A request.
    pub fn request(words: &[&str]) -> Self {
        Self::Array(Some(words.iter().map(|word| Self::Bulk(Some((*word).to_owned()))).collect()))
    }
}

/// Reads one value; `None` at the end of the stream.
///
/// # Errors
///
/// If the input is not RESP2, or larger than any expected value.
pub async fn read(from: &mut (impl AsyncBufRead + Unpin + Send)) -> anyhow::Result<Option<Reply>> {
    let Some((kind, rest)) = line(from).await? else { return Ok(None) };
    Ok(Some(match kind {
        b'*' => {
            let Some(count) = length(&rest, MAX_PARTS)? else { return Ok(Some(Reply::Array(None))) };
            let mut parts = Vec::new();
            for _ in 0..count {
                let (kind, rest) = line(from).await?.context("an array ended early")?;
                parts.push(scalar(from, kind, rest).await?);
            }
            Reply::Array(Some(parts))
        }
        _ => scalar(from, kind, rest).await?,
    }))
}

async fn scalar(
    from: &mut (impl AsyncBufRead + Unpin + Send),
    kind: u8,
    rest: String,
) -> anyhow::Result<Reply> {
    Ok(match kind {
        b'+' => Reply::Status(rest),
        b'-' => Reply::Error(rest),
        b':' => Reply::Integer(rest.parse()?),
        b'$' => {
            let Some(length) = length(&rest, MAX_LENGTH)? else { return Ok(Reply::Bulk(None)) };
            let mut bytes = vec![0; length + 2];
            from.read_exact(&mut bytes).await?;
            bytes.truncate(length);
            Reply::Bulk(Some(String::from_utf8(bytes)?))
        }
        other => bail!("a value of kind {other}"),
    })
}

async fn line(from: &mut (impl AsyncBufRead + Unpin + Send)) -> anyhow::Result<Option<(u8, String)>> {
    let mut line = String::new();
    if from.take(MAX_LENGTH as u64).read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let text = line.trim_end();
    let kind = *text.as_bytes().first().context("an empty line")?;
    Ok(Some((kind, text.get(1..).context("a line that is not text")?.to_owned())))
}

/// Returns `None` for -1, which means no value.
fn length(text: &str, max: usize) -> anyhow::Result<Option<usize>> {
    if text == "-1" {
        return Ok(None);
    }
    let length = text.parse()?;
    ensure!(length <= max, "a length of {length}");
    Ok(Some(length))
}

/// A connection to a Redis server.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects to `HOST[:PORT]`, and tries for some seconds: the suites start everything at once.
    ///
    /// # Errors
    ///
    /// If the server does not come up.
    pub async fn connect(address: &str) -> anyhow::Result<Self> {
        let address = if address.contains(':') { address.to_owned() } else { format!("{address}:6379") };
        let (count, pause) = RETRIES;
        for _ in 0..count {
            if let Ok(stream) = TcpStream::connect(&address).await {
                return Ok(Self { stream: BufReader::new(stream) });
            }
            tokio::time::sleep(pause).await;
        }
        bail!("no redis at {address}")
    }

    async fn call(&mut self, words: &[&str]) -> anyhow::Result<Reply> {
        self.stream.write_all(Reply::request(words).encode().as_bytes()).await?;
        match read(&mut self.stream).await?.context("redis has hung up")? {
            Reply::Error(error) => bail!("redis: {error}"),
            reply => Ok(reply),
        }
    }

    /// Puts `value` at the end of a list.
    ///
    /// # Errors
    ///
    /// If the server reports one.
    pub async fn push(&mut self, key: &str, value: &str) -> anyhow::Result<()> {
        self.call(&["RPUSH", key, value]).await.map(drop)
    }

    /// Waits for the first value of a list and takes it.
    ///
    /// # Errors
    ///
    /// If there is none within `timeout`.
    pub async fn pop(&mut self, key: &str, timeout: Duration) -> anyhow::Result<String> {
        let seconds = timeout.as_secs().max(1).to_string();
        let Reply::Array(Some(parts)) = self.call(&["BLPOP", key, &seconds]).await? else {
            bail!("nothing in {key} after {seconds} s");
        };
        Ok(parts.get(1).and_then(Reply::text).context("a pair of key and value")?.to_owned())
    }

    /// Sets a value.
    ///
    /// # Errors
    ///
    /// If the server reports one.
    pub async fn set(&mut self, key: &str, value: &str) -> anyhow::Result<()> {
        self.call(&["SET", key, value]).await.map(drop)
    }

    /// Waits for a value to be set.
    ///
    /// # Errors
    ///
    /// If there is none within `timeout`.
    pub async fn get(&mut self, key: &str, timeout: Duration) -> anyhow::Result<String> {
        let poll = async {
            loop {
                if let Some(value) = self.call(&["GET", key]).await?.text() {
                    return anyhow::Ok(value.to_owned());
                }
                tokio::time::sleep(RETRIES.1).await;
            }
        };
        let found = tokio::time::timeout(timeout, poll).await;
        found.with_context(|| format!("nothing in {key} after {timeout:?}"))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_encoded_is_read_back() {
        for reply in [
            Reply::Status("OK".into()),
            Reply::Error("ERR no".into()),
            Reply::Integer(-3),
            Reply::Bulk(None),
            Reply::Bulk(Some("a\r\nb".into())),
            Reply::Array(None),
            Reply::request(&["BLPOP", "key", "10"]),
        ] {
            let encoded = reply.encode();
            assert_eq!(read(&mut encoded.as_bytes()).await.unwrap(), Some(reply));
        }
    }

    #[tokio::test]
    async fn what_is_no_reply_is_an_error_and_never_a_panic() {
        for garbage in ["\r\n", "x\r\n", "$99999999\r\n", "*9999\r\n", "$5\r\nab", "*2\r\n:1\r\n", "$x\r\n"] {
            assert!(read(&mut garbage.as_bytes()).await.is_err(), "{garbage:?}");
        }
        assert_eq!(read(&mut &b""[..]).await.unwrap(), None);
    }
}
