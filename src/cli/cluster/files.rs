//! What a local cluster needs on disk: certificates, a configuration for each node, and the client's list of addresses.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::{ClusterArgs, Error, NODES_MAX};
use crate::config::Config;
use crate::node;
use crate::pki::{Authority, Issue, Role};
use crate::server::{self, Member};

/// From a node's client port to its peer port.
pub(super) const PEER_PORT_OFFSET: u16 = 100;
const NODES_DEFAULT: u16 = 3;
const BASE_PORT_DEFAULT: u16 = 7001;
/// The name of a local cluster, before its random part.
const CLUSTER_NAME: &str = "local";
/// The name in the certificate that the command line uses unless told otherwise.
const CLIENT_NAME: &str = "client";
/// Nodes of a supervisor that was killed need about this long to stop and free their ports.
const PORT_PATIENCE: Duration = Duration::from_secs(5);

/// The nodes to run.
pub(super) struct Plan {
    pub(super) data: PathBuf,
    pub(super) certs: PathBuf,
    pub(super) nodes: Vec<Planned>,
}

/// One node to run.
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) config: PathBuf,
    pub(super) listen: [SocketAddr; 2],
}

/// Makes what is missing, and checks that the ports are free.
pub(super) fn prepare(args: &ClusterArgs) -> Result<Plan, Error> {
    let old = existing_members(&args.data)?;
    if let Some(members) = &old {
        check_asked(args, members)?;
    }
    let members = old.clone().unwrap_or_else(|| new_members(args));
    make_certificates(args, &members, old.is_some())?;
    let mut nodes = Vec::with_capacity(members.len());
    for member in &members {
        nodes.push(plan_node(args, &members, member)?);
    }
    let patience = if old.is_some() { PORT_PATIENCE } else { Duration::ZERO };
    for node in &nodes {
        check_ports(node, old.is_some(), Instant::now() + patience)?;
    }
    let client = args.certs.join("client.toml");
    if old.is_none() || !exists(&client)? {
        write_whole(&client, &client_text(&members))?;
    }
    Ok(Plan { data: args.data.clone(), certs: args.certs.clone(), nodes })
}

/// Creates a directory that only its owner may enter, if it is not there.
pub(super) fn make_directory(path: &Path) -> Result<(), Error> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path).map_err(Error::io("make the directory", path))
}

/// The members of the cluster whose configurations are in `data`: what the first one of them says.
fn existing_members(data: &Path) -> Result<Option<Vec<Member>>, Error> {
    for i in 1..=NODES_MAX {
        let path = config_path(data, &format!("n{i}"));
        if exists(&path)? {
            return Ok(Some(Config::load(&path, |_| None, &[], None)?.settings.members));
        }
    }
    Ok(None)
}

/// Refuses to run an existing cluster as another one than it is.
fn check_asked(args: &ClusterArgs, members: &[Member]) -> Result<(), Error> {
    let other = |is, asked| Err(Error::Other { data: args.data.clone(), is, asked });
    if let Some(n) = args.n.filter(|n| usize::from(*n) != members.len()) {
        return other(format!("with -n {}", members.len()), format!("-n {n}"));
    }
    let first = members.first().map(|member| member.client_address.as_str()).unwrap_or_default();
    let port = first.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
    match (args.base_port, port) {
        (Some(asked), Some(is)) if asked != is => {
            other(format!("with --base-port {is}"), format!("--base-port {asked}"))
        }
        _ => Ok(()),
    }
}

fn new_members(args: &ClusterArgs) -> Vec<Member> {
    let base = args.base_port.unwrap_or(BASE_PORT_DEFAULT);
    let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)).to_string();
    (0..args.n.unwrap_or(NODES_DEFAULT))
        .map(|i| Member {
            id: u64::from(i) + 1,
            name: format!("n{}", i + 1),
            peer_address: address(base + PEER_PORT_OFFSET + i),
            client_address: address(base + i),
        })
        .collect()
}

fn make_certificates(args: &ClusterArgs, members: &[Member], old: bool) -> Result<(), Error> {
    let has = |name: &str| exists(&args.certs.join(name));
    let mut missing = Vec::new();
    for name in members.iter().map(|member| member.name.as_str()).chain([CLIENT_NAME]) {
        if !has(&format!("{name}.crt"))? {
            missing.push(name);
        }
    }
    let has_authority = has("ca.crt")?;
    if has_authority && missing.is_empty() {
        return Ok(());
    }
    if old && !has_authority {
        let ca = args.certs.join("ca.crt");
        return Err(Error::NoAuthority { ca, data: args.data.clone() });
    }
    let authority = if has_authority {
        Authority::load(&args.certs)?
    } else {
        Authority::create(&args.certs, CLUSTER_NAME)?
    };
    for name in missing {
        if name == CLIENT_NAME {
            // Whoever runs the cluster may change it.
            authority.issue_client(name, Role::Admin, Issue::default())?;
        } else {
            let hosts = ["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string()];
            authority.issue_node(name, &hosts, Issue::default())?;
        }
    }
    Ok(())
}

/// Reads a node's configuration, which is made first if it is missing.
fn plan_node(args: &ClusterArgs, members: &[Member], member: &Member) -> Result<Planned, Error> {
    let config = config_path(&args.data, &member.name);
    if !exists(&config)? {
        // The data directory first: a configuration means that its node has been made, and is never made again.
        let text = config_text(args, members, member);
        match server::init(&Config::parse(&config, &text)?.settings) {
            Ok(()) | Err(server::Error::Data(node::Error::NotEmpty(_))) => {}
            Err(error) => return Err(Error::Server(Box::new(error))),
        }
        write_whole(&config, &text)?;
    }
    let settings = Config::load(&config, |_| None, &[], None)?.settings;
    let listen = [settings.client_listen, settings.peer_listen];
    Ok(Planned { name: member.name.clone(), config, listen })
}

fn config_path(data: &Path, name: &str) -> PathBuf {
    data.join(format!("{name}.toml"))
}

fn config_text(args: &ClusterArgs, members: &[Member], member: &Member) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let path = |path: &Path| quoted(&path.to_string_lossy());
    let mut text = format!(
        "# Node {name} of a local cluster, made by `quicraft cluster`. All keys: see the sample node.toml.\n\
         name = {}\ndata = {}\ncerts = {}\npeer_listen = {}\nclient_listen = {}\n",
        quoted(&member.name),
        path(&args.data.join(&member.name)),
        path(&args.certs),
        quoted(&member.peer_address),
        quoted(&member.client_address),
        name = member.name,
    );
    for member in members {
        text.push_str(&format!(
            "\n[[members]]\nid = {}\nname = {}\npeer = {}\nclient = {}\n",
            member.id,
            quoted(&member.name),
            quoted(&member.peer_address),
            quoted(&member.client_address),
        ));
    }
    text
}

fn client_text(members: &[Member]) -> String {
    let endpoints: Vec<_> =
        members.iter().map(|member| format!("\"{}\"", member.client_address)).collect();
    format!(
        "# Where the cluster's nodes listen for clients, made by `quicraft cluster`.\nendpoints = [{}]\n",
        endpoints.join(", ")
    )
}

/// Writes a file that appears whole or not at all.
fn write_whole(path: &Path, text: &str) -> Result<(), Error> {
    let new = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = fs::File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(Error::io("write", path))
}

fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(Error::io("look for", path))
}

fn check_ports(node: &Planned, old: bool, deadline: Instant) -> Result<(), Error> {
    for address in node.listen {
        while let Err(source) = UdpSocket::bind(address) {
            if source.kind() != ErrorKind::AddrInUse {
                let path = PathBuf::from(address.to_string());
                return Err(Error::Io { action: "listen at", path, source });
            }
            if Instant::now() >= deadline {
                let hint = if old {
                    format!("end what uses it, or change it in {}", node.config.display())
                } else {
                    "give other ports with --base-port".to_owned()
                };
                return Err(Error::Port { port: address.port(), hint });
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}
