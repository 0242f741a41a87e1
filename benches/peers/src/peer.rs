//! The systems that are compared, through their usual Rust clients: one connection of each kind, and what is done on
//! it.

use anyhow::{Context, Result, bail};
use etcd_client::{GetOptions, KvClient};
use quicraft::client::{Client, Options, ScanRequest};
use redis::aio::MultiplexedConnection;

use crate::servers::Running;

/// A system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    Quicraft,
    Etcd,
    Redis,
}

impl Peer {
    pub const ALL: [Peer; 3] = [Peer::Quicraft, Peer::Etcd, Peer::Redis];

    pub fn name(self) -> &'static str {
        match self {
            Peer::Quicraft => "quicraft",
            Peer::Etcd => "etcd",
            Peer::Redis => "redis",
        }
    }

    /// Whether it does this work at all.
    pub fn can(self, work: Work) -> bool {
        !(self == Peer::Redis && work == Work::Scan)
    }
}

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    Put,
    Get,
    /// A get that the leader answers by its lease; of the others, what they do for any get.
    LeaseGet,
    Scan,
}

impl Work {
    pub fn name(self) -> &'static str {
        match self {
            Work::Put => "put",
            Work::Get => "get",
            Work::LeaseGet => "get by lease",
            Work::Scan => "scan",
        }
    }
}

/// Rows of a scan.
pub const ROWS: usize = 100;

/// A connection; clones share it.
#[derive(Clone)]
pub enum Connection {
    Quicraft(Client),
    Etcd(Box<KvClient>),
    Redis(MultiplexedConnection),
}

impl Connection {
    /// Connects to what runs. All connections to etcd lead to its leader: no node has to pass a request on.
    pub async fn open(running: &Running) -> Result<Connection> {
        Ok(match running.peer {
            Peer::Quicraft => {
                let options = Options {
                    endpoints: running.addresses.clone(),
                    certs: running.dir.join("certs"),
                    ..Options::default()
                };
                Connection::Quicraft(Client::connect(options).await?)
            }
            Peer::Etcd => {
                let leader = etcd_leader(&running.addresses).await?;
                let client = etcd_client::Client::connect([leader], None).await?;
                Connection::Etcd(Box::new(client.kv_client()))
            }
            Peer::Redis => {
                let client = redis::Client::open(format!("redis://{}", running.addresses[0]))?;
                Connection::Redis(client.get_multiplexed_async_connection().await?)
            }
        })
    }

    pub async fn put(&mut self, key: &str, value: &[u8]) -> Result<()> {
        match self {
            Connection::Quicraft(client) => {
                client.put(key, value).await?;
            }
            Connection::Etcd(client) => {
                client.put(key, value, None).await?;
            }
            Connection::Redis(client) => {
                redis::cmd("SET").arg(key).arg(value).query_async::<()>(client).await?;
            }
        }
        Ok(())
    }

    pub async fn get(&mut self, key: &str) -> Result<()> {
        let found = match self {
            Connection::Quicraft(client) => client.get(key).await?.map(|value| value.bytes.len()),
            Connection::Etcd(client) => {
                client.get(key, None).await?.kvs().first().map(|row| row.value().len())
            }
            Connection::Redis(client) => {
                let value: Option<Vec<u8>> = redis::cmd("GET").arg(key).query_async(client).await?;
                value.map(|value| value.len())
            }
        };
        found.map(drop).with_context(|| format!("{key} is not there"))
    }

    pub async fn scan(&mut self, from: &str) -> Result<()> {
        match self {
            Connection::Quicraft(client) => {
                let request =
                    ScanRequest { from: from.into(), limit: ROWS as u64, ..ScanRequest::default() };
                client.scan(request).await?.finish().await?;
            }
            Connection::Etcd(client) => {
                let options = GetOptions::new().with_from_key().with_limit(ROWS as i64);
                client.get(from, Some(options)).await?;
            }
            Connection::Redis(_) => bail!("Redis has no ordered keys"),
        }
        Ok(())
    }
}

async fn etcd_leader(addresses: &[String]) -> Result<String> {
    for address in addresses {
        let mut client = etcd_client::Client::connect([address.clone()], None).await?;
        let status = client.status().await?;
        if status.header().map(|header| header.member_id()) == Some(status.leader()) {
            return Ok(address.clone());
        }
    }
    bail!("etcd has no leader")
}
