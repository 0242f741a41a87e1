//! A node that joins a cluster of the harness.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};

use quicraft::pki::{Authority, Issue};

use super::{Cluster, QUICRAFT, free_ports, until, without_variables};

/// A node beside those of the harness.
pub struct Joiner<'a> {
    cluster: &'a Cluster,
    name: &'static str,
    child: Option<Child>,
    /// Where clients and nodes reach it.
    pub ports: (u16, u16),
}

impl<'a> Joiner<'a> {
    /// Makes its certificate and a configuration that knows only itself.
    pub fn prepare(cluster: &'a Cluster, name: &'static str) -> Joiner<'a> {
        let authority = Authority::load(&cluster.path("certs")).unwrap();
        authority.issue_node(name, &["127.0.0.1".to_owned()], Issue::default()).unwrap();
        let mut joiner = Joiner { cluster, name, child: None, ports: (0, 0) };
        joiner.configure(free_ports(1)[0]);
        joiner
    }

    /// Writes its configuration, with these ports for clients and nodes.
    pub fn configure(&mut self, (client, peer): (u16, u16)) {
        let name = self.name;
        let text = format!(
            "name = \"{name}\"\ndata = \"data/{name}\"\ncerts = \"certs\"\nsegment = \"4MiB\"\n\
             client_listen = \"127.0.0.1:{client}\"\npeer_listen = \"127.0.0.1:{peer}\"\n"
        );
        fs::write(self.cluster.path(&format!("{name}.toml")), text).unwrap();
        self.ports = (client, peer);
    }

    /// The command that runs it.
    pub fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(QUICRAFT);
        without_variables(&mut command);
        command.args(["node", "--config", &format!("{}.toml", self.name)]).args(flags);
        command.current_dir(self.cluster.path("")).stdin(Stdio::null());
        command
    }

    /// Starts it.
    pub fn spawn(&mut self, flags: &[&str]) {
        let log = self.cluster.path(&format!("{}.log", self.name));
        let log = File::options().create(true).append(true).open(log).unwrap();
        self.child = Some(self.command(flags).stderr(log).spawn().unwrap());
    }

    /// Ends it with signal 9.
    pub fn kill9(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits until it ends by itself, and gives its exit code and what it wrote.
    pub async fn end(&mut self) -> (Option<i32>, String) {
        let child = self.child.as_mut().unwrap();
        let status = until("the node ends", async || child.try_wait().unwrap()).await;
        self.child = None;
        let log = self.cluster.path(&format!("{}.log", self.name));
        (status.code(), fs::read_to_string(log).unwrap())
    }
}

impl Drop for Joiner<'_> {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.cluster.path(&format!("{}.log", self.name));
            eprintln!("--- {}\n{}", self.name, fs::read_to_string(log).unwrap_or_default());
        }
    }
}
