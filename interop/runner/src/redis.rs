//! The part of Redis that the official suites need: a stub, or the real one where it
//! is installed.

use std::{
    collections::{BTreeMap, VecDeque},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use interop_testplan::resp::{self, Reply};
use tokio::{
    io::{AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    sync::{Mutex, Notify},
};

enum Value {
    Text(String),
    List(VecDeque<String>),
}

#[derive(Default)]
struct Store {
    values: Mutex<BTreeMap<String, Value>>,
    pushed: Notify,
}

/// A server. It ends when this is dropped.
pub(crate) struct Server {
    /// `HOST:PORT`
    pub(crate) address: String,
    real: Option<Child>,
    stub: Option<tokio::task::JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(stub) = &self.stub {
            stub.abort();
        }
    }
}

impl Server {
    /// Starts the real one if it is installed, else the stub.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let local = listener.local_addr()?;
        let address = local.to_string();
        let mut command = Command::new("redis-server");
        command.args(["--port", &local.port().to_string(), "--bind", "127.0.0.1", "--save", ""]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        if is_installed().await {
            drop(listener);
            let real = command.spawn()?;
            // A client tries until the server is up.
            resp::Client::connect(&address).await?;
            return Ok(Self { address, real: Some(real), stub: None });
        }
        let stub = tokio::spawn(accept(listener, Arc::default()));
        Ok(Self { address, real: None, stub: Some(stub) })
    }

    pub(crate) fn name(&self) -> &'static str {
        if self.real.is_some() { "redis" } else { "a stub of redis" }
    }
}

async fn is_installed() -> bool {
    let mut command = Command::new("redis-server");
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().await.is_ok_and(|status| status.success())
}

async fn accept(listener: TcpListener, store: Arc<Store>) {
    while let Ok((stream, _)) = listener.accept().await {
        let store = store.clone();
        tokio::spawn(async move {
            if let Err(error) = serve(stream, &store).await {
                eprintln!("redis stub: {error:#}");
            }
        });
    }
}

async fn serve(stream: TcpStream, store: &Store) -> anyhow::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = resp::read(&mut stream).await? {
        let Reply::Array(Some(words)) = request else { anyhow::bail!("not a request: {request:?}") };
        let words: Vec<&str> = words.iter().filter_map(Reply::text).collect();
        stream.write_all(store.answer(&words).await.encode().as_bytes()).await?;
    }
    Ok(())
}

impl Store {
    async fn answer(&self, words: &[&str]) -> Reply {
        let command = words.first().map(|word| word.to_ascii_uppercase()).unwrap_or_default();
        match (command.as_str(), words.get(1..).unwrap_or_default()) {
            ("PING", _) => Reply::Status("PONG".into()),
            ("SELECT" | "CLIENT", _) => Reply::Status("OK".into()),
            ("SET", [key, value, ..]) => {
                self.values.lock().await.insert((*key).to_owned(), Value::Text((*value).to_owned()));
                Reply::Status("OK".into())
            }
            ("GET", [key]) => match self.values.lock().await.get(*key) {
                Some(Value::Text(value)) => Reply::Bulk(Some(value.clone())),
                Some(Value::List(_)) => wrong_type(),
                None => Reply::Bulk(None),
            },
            ("DEL", keys) => {
                let mut values = self.values.lock().await;
                Reply::Integer(keys.iter().filter(|key| values.remove(**key).is_some()).count() as i64)
            }
            ("RPUSH", [key, new @ ..]) => {
                let mut values = self.values.lock().await;
                let value = values.entry((*key).to_owned()).or_insert_with(|| Value::List(VecDeque::new()));
                let Value::List(list) = value else { return wrong_type() };
                list.extend(new.iter().map(|value| (*value).to_owned()));
                self.pushed.notify_waiters();
                Reply::Integer(list.len() as i64)
            }
            ("BLPOP", [key, seconds]) => self.pop(key, seconds).await,
            (other, _) => Reply::Error(format!("ERR unknown command '{other}'")),
        }
    }

    async fn pop(&self, key: &str, seconds: &str) -> Reply {
        // 0 means no limit.
        let timeout = match seconds.parse() {
            Ok(0.0) => Duration::MAX,
            Ok(seconds) => Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX),
            Err(_) => return Reply::Error("ERR timeout is not a float".into()),
        };
        let wait = async {
            loop {
                let pushed = self.pushed.notified();
                tokio::pin!(pushed);
                // Registered before the look, so that no push in between is missed.
                pushed.as_mut().enable();
                match self.values.lock().await.get_mut(key) {
                    Some(Value::List(list)) => {
                        if let Some(value) = list.pop_front() {
                            return Reply::request(&[key, &value]);
                        }
                    }
                    Some(Value::Text(_)) => return wrong_type(),
                    None => {}
                }
                pushed.await;
            }
        };
        tokio::time::timeout(timeout, wait).await.unwrap_or(Reply::Array(None))
    }
}

fn wrong_type() -> Reply {
    Reply::Error("WRONGTYPE Operation against a key holding the wrong kind of value".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pop_waits_for_a_push_and_takes_the_oldest() {
        let store = Arc::new(Store::default());
        let waiting = tokio::spawn({
            let store = store.clone();
            async move { store.answer(&["BLPOP", "key", "10"]).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(store.answer(&["rpush", "key", "a", "b"]).await, Reply::Integer(2));
        assert_eq!(waiting.await.unwrap(), Reply::request(&["key", "a"]));
        assert_eq!(store.answer(&["BLPOP", "key", "0"]).await, Reply::request(&["key", "b"]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pop_of_nothing_ends_with_nothing() {
        assert_eq!(Store::default().answer(&["BLPOP", "key", "1"]).await, Reply::Array(None));
    }

    #[tokio::test]
    async fn a_value_is_of_one_kind() {
        let store = Store::default();
        store.answer(&["RPUSH", "list", "a"]).await;
        store.answer(&["SET", "text", "a"]).await;
        assert_eq!(store.answer(&["GET", "list"]).await, wrong_type());
        assert_eq!(store.answer(&["RPUSH", "text", "a"]).await, wrong_type());
        assert_eq!(store.answer(&["DEL", "text", "none"]).await, Reply::Integer(1));
        assert!(matches!(store.answer(&["FLUSHALL"]).await, Reply::Error(_)));
    }
}
