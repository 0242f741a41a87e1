//! What a local cluster needs, made where it is missing: certificates, configurations, data directories.

use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};

use super::super::ClientFile;
use super::super::cert::LEAF_DAYS;
use super::ClusterArgs;
use crate::config::{self, Overrides};
use crate::pki::Role;
use crate::pki::authority::Authority;
use crate::server;

/// Where everything of a local cluster is.
pub(super) struct Layout {
    data: PathBuf,
    /// The nodes, by name.
    pub(super) names: Vec<String>,
}

impl Layout {
    /// Finds the cluster that is there, or makes one.
    pub(super) fn prepare(args: &ClusterArgs) -> Result<Layout, String> {
        let data = args.data.clone();
        let there =
            (1..=NODES_MAX).take_while(|&n| data.join(format!("n{n}.toml")).exists()).count();
        let count = match (there, args.nodes) {
            (0, wanted) => wanted.unwrap_or(3),
            (there, Some(wanted)) if wanted != there => {
                return Err(format!(
                    "the cluster in {} has {there} nodes, not {wanted}: leave out -n, or choose \
                     another directory with --data and --certs",
                    data.display()
                ));
            }
            (there, _) => there,
        };
        if !(1..=NODES_MAX).contains(&count) {
            return Err(format!("a cluster has 1 to {NODES_MAX} nodes here, not {count}"));
        }
        let names = (1..=count).map(|number| format!("n{number}")).collect();
        let layout = Layout { data, names };
        if there == 0 {
            layout.make(args)?;
        }
        Ok(layout)
    }

    pub(super) fn config(&self, name: &str) -> PathBuf {
        self.data.join(format!("{name}.toml"))
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.data.join(format!("{name}.log"))
    }

    fn make(&self, args: &ClusterArgs) -> Result<(), String> {
        let last = args.base_port.checked_add(PEER_PORTS_ABOVE + NODES_MAX as u16);
        last.ok_or_else(|| format!("ports {} and above do not exist", args.base_port))?;
        let ports: Vec<(u16, u16)> = (0..self.names.len() as u16)
            .map(|n| (args.base_port + n, args.base_port + n + PEER_PORTS_ABOVE))
            .collect();
        for port in ports.iter().flat_map(|&(client, peer)| [client, peer]) {
            UdpSocket::bind(("127.0.0.1", port)).map_err(|error| {
                format!("port {port} cannot be used: {error}; choose others with --base-port")
            })?;
        }
        self.make_certificates(&args.certs)?;
        let endpoints = ports.iter().map(|(client, _)| format!("127.0.0.1:{client}")).collect();
        let text = toml::to_string(&ClientFile { endpoints }).map_err(|e| e.to_string())?;
        write(&args.certs.join("client.toml"), &text)?;
        fs::create_dir_all(&self.data).map_err(|e| format!("{}: {e}", self.data.display()))?;
        // Data directories first: a configuration means that its node has been made.
        for (place, name) in self.names.iter().enumerate() {
            let path = self.config(name);
            let unfinished = path.with_extension("toml.new");
            write(&unfinished, &self.toml(name, place, &ports, &args.certs))?;
            let settings =
                config::load(&unfinished, &Overrides::default()).map_err(|e| e.to_string())?;
            match server::init(&settings) {
                Ok(()) | Err(server::Error::Data(crate::node::Error::NotEmpty(_))) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        for name in &self.names {
            let path = self.config(name);
            fs::rename(path.with_extension("toml.new"), &path)
                .map_err(|e| format!("{}: {e}", path.display()))?;
        }
        Ok(())
    }

    fn make_certificates(&self, certs: &Path) -> Result<(), String> {
        let text = |error: crate::pki::Error| error.to_string();
        let authority = if certs.join("ca.crt").exists() {
            Authority::load(certs).map_err(text)?
        } else {
            Authority::create(certs, "local").map_err(text)?
        };
        let hosts = ["127.0.0.1".to_owned(), "::1".to_owned(), "localhost".to_owned()];
        for name in &self.names {
            if !certs.join(format!("{name}.crt")).exists() {
                authority.issue_node(name, &hosts, LEAF_DAYS).map_err(text)?;
            }
        }
        if !certs.join("client.crt").exists() {
            authority.issue_client("client", Role::Admin, LEAF_DAYS).map_err(text)?;
        }
        Ok(())
    }

    fn toml(&self, name: &str, place: usize, ports: &[(u16, u16)], certs: &Path) -> String {
        let (client, peer) = ports[place];
        let mut text = format!(
            "# Made by `quicraft cluster`.\n\
             name = \"{name}\"\n\
             data = {:?}\n\
             certs = {:?}\n\
             peer_listen = \"127.0.0.1:{peer}\"\n\
             client_listen = \"127.0.0.1:{client}\"\n",
            self.data.join(name),
            certs,
        );
        for (id, (member, (client, peer))) in (1..).zip(self.names.iter().zip(ports)) {
            text.push_str(&format!(
                "\n[[members]]\nid = {id}\nname = \"{member}\"\npeer = \"127.0.0.1:{peer}\"\n\
                 client = \"127.0.0.1:{client}\"\n"
            ));
        }
        text
    }
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

const NODES_MAX: usize = 7;
/// Ports for peers are this far above those for clients.
const PEER_PORTS_ABOVE: u16 = 100;
