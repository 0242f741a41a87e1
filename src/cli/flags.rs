//! What every command that talks to a cluster takes, and how it becomes a connection.
//!
//! In: flags, else `QUICRAFT_*` variables, else `<certs>/client.toml` (written by `quicraft cluster`), else
//! one node on this machine. Out: a [`Client`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Deserialize;

use super::failure::Failure;
use super::output::Format;
use crate::client::{Client, Options};

/// How to reach the cluster.
#[derive(Clone, Debug, Args)]
pub(super) struct ClientFlags {
    /// Nodes to ask; one that answers is enough [default: those of DIR/client.toml, else 127.0.0.1:7001]
    #[arg(long, env = "QUICRAFT_ENDPOINTS", value_name = "HOST:PORT,…", value_delimiter = ',')]
    pub(super) endpoints: Vec<String>,
    /// Directory with ca.crt, client.crt and client.key
    #[arg(long, env = "QUICRAFT_CERTS", value_name = "DIR", default_value = "certs")]
    pub(super) certs: PathBuf,
    /// How long one operation may take, like 500ms or 5s
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    pub(super) timeout: Duration,
    /// How results are written
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Format::Text)]
    pub(super) output: Format,
}

impl ClientFlags {
    /// Connects to the cluster.
    ///
    /// # Errors
    /// [`Failure`] with the exit code that fits.
    pub(super) async fn connect(&self) -> Result<Client, Failure> {
        Ok(Client::connect(self.options()?).await?)
    }

    /// What the flags say.
    ///
    /// # Errors
    /// [`Failure`] for endpoints that are none.
    pub(super) fn options(&self) -> Result<Options, Failure> {
        Ok(Options {
            endpoints: self.endpoints()?,
            certs: self.certs.clone(),
            name: "client".into(),
            timeout: self.timeout,
        })
    }

    fn endpoints(&self) -> Result<Vec<String>, Failure> {
        let given: Vec<_> = self.endpoints.iter().map(|one| one.trim().to_owned()).collect();
        let given: Vec<_> = given.into_iter().filter(|one| !one.is_empty()).collect();
        let endpoints = match given.is_empty() {
            true => from_file(&self.certs.join("client.toml"))?,
            false => given,
        };
        for endpoint in &endpoints {
            check_endpoint(endpoint)?;
        }
        Ok(endpoints)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientFile {
    endpoints: Vec<String>,
}

fn from_file(path: &Path) -> Result<Vec<String>, Failure> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Options::default().endpoints);
        }
        Err(error) => {
            return Err(Failure::usage(format!("cannot read {}: {error}", path.display())));
        }
    };
    let file: ClientFile = toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
        Failure::usage(format!("{}, line {line}: {}", path.display(), error.message()))
    })?;
    if file.endpoints.is_empty() {
        return Err(Failure::usage(format!("{}: endpoints is empty", path.display())));
    }
    Ok(file.endpoints)
}

fn check_endpoint(endpoint: &str) -> Result<(), Failure> {
    let port = endpoint.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    match port.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(1..)) => Ok(()),
        Some(_) | None => Err(Failure::usage(format!(
            "{endpoint:?} is no endpoint: it must be HOST:PORT, like 127.0.0.1:7001"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_have_a_host_and_a_port() {
        for good in ["127.0.0.1:7001", "[::1]:7001", "db.example:1"] {
            assert!(check_endpoint(good).is_ok(), "{good}");
        }
        for bad in ["", "localhost", ":7001", "host:", "host:0", "host:65536", "host:x"] {
            assert!(check_endpoint(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_file_gives_endpoints_and_errors_name_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.toml");
        assert_eq!(from_file(&path).unwrap(), ["127.0.0.1:7001"]);
        fs::write(&path, "endpoints = [\"a:1\", \"b:2\"]\n").unwrap();
        assert_eq!(from_file(&path).unwrap(), ["a:1", "b:2"]);
        fs::write(&path, "# comment\nendpoint = []\n").unwrap();
        let error = from_file(&path).unwrap_err().to_string();
        assert!(error.contains("client.toml, line 2: unknown field"), "{error}");
    }
}
