//! `quicraft cert`: the certificate authority of a cluster.
//!
//! In go subcommands, out come files (see [`crate::pki`]). What a script may want is printed to stdout (the cluster, the
//! path of a new certificate, the table of `show`), advice for a person to stderr.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::pki::{
    AUTHORITY_DAYS, Authority, Certificate, Error, Issue, LEAF_DAYS_DEFAULT, Role, Subject, Who,
};

/// What can be done with certificates.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum CertCommand {
    /// Start a cluster: make its certificate authority
    Init {
        /// Name of the cluster: a-z, 0-9 and '-'
        #[arg(long, default_value = "quicraft")]
        cluster: String,
        /// Where certificates are.
        #[command(flatten)]
        dir: Dir,
    },
    /// Make the certificate of a node
    Node {
        /// Name of the node, as in node.toml
        name: String,
        /// IP address or DNS name of the node; may be repeated
        #[arg(long = "host", value_name = "HOST")]
        hosts: Vec<String>,
        /// How to issue.
        #[command(flatten)]
        issue: IssueArgs,
        /// Where certificates are.
        #[command(flatten)]
        dir: Dir,
    },
    /// Make the certificate of a client (the command line uses the one called "client")
    Client {
        /// Name of the client
        #[arg(default_value = "client")]
        name: String,
        /// What it may do: readwrite, readonly or admin
        #[arg(long, default_value_t = Role::ReadWrite)]
        role: Role,
        /// How to issue.
        #[command(flatten)]
        issue: IssueArgs,
        /// Where certificates are.
        #[command(flatten)]
        dir: Dir,
    },
    /// Make a new certificate in the place of one that expires: same name, role, hosts and key
    Renew {
        /// Name of the node or client
        name: String,
        /// Days until the new certificate expires
        #[arg(long, default_value_t = LEAF_DAYS_DEFAULT)]
        days: u32,
        /// With a new private key too
        #[arg(long)]
        new_key: bool,
        /// Where certificates are.
        #[command(flatten)]
        dir: Dir,
    },
    /// Show whose certificates are there and how long they are valid
    Show {
        /// Certificates to show [default: all *.crt in the directory]
        files: Vec<PathBuf>,
        /// Where certificates are.
        #[command(flatten)]
        dir: Dir,
    },
}

/// Where certificates are.
#[derive(Clone, Debug, Args)]
pub(super) struct Dir {
    /// Directory of the certificates
    #[arg(long, default_value = "certs", value_name = "DIR")]
    pub dir: PathBuf,
}

/// How to issue.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct IssueArgs {
    /// Days until the certificate expires
    #[arg(long, default_value_t = LEAF_DAYS_DEFAULT)]
    pub days: u32,
    /// Replace the certificate and key of that name
    #[arg(long)]
    pub overwrite: bool,
}

impl From<IssueArgs> for Issue {
    fn from(args: IssueArgs) -> Issue {
        Issue { days: args.days, overwrite: args.overwrite }
    }
}

/// Runs a subcommand.
///
/// # Errors
/// [`Error`] if it cannot be done; after `show` the first of the certificates that could not be shown.
pub(super) fn run(command: CertCommand) -> Result<(), Error> {
    run_to(command, &mut io::stdout().lock(), &mut io::stderr().lock())
}

fn run_to(
    command: CertCommand,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> Result<(), Error> {
    match command {
        CertCommand::Init { cluster, dir: Dir { dir } } => {
            let authority = Authority::create(&dir, &cluster)?;
            say(stdout, authority.cluster())?;
            let dir = dir.display();
            say(
                stderr,
                &format!(
                    "Made the authority of cluster {} in {dir}, valid for {AUTHORITY_DAYS} days.\n\
                     Keep {dir}/ca.key safe and off the nodes: whoever has it can join the cluster.\n\
                     Next: `quicraft cert node NAME --host HOST` for each node, `quicraft cert client`.",
                    authority.cluster()
                ),
            )
        }
        CertCommand::Node { name, hosts, issue, dir: Dir { dir } } => {
            let path = Authority::load(&dir)?.issue_node(&name, &hosts, issue.into())?;
            say(stdout, &path.display().to_string())?;
            say(stderr, &format!("Copy ca.crt, {name}.crt and {name}.key to the node."))
        }
        CertCommand::Client { name, role, issue, dir: Dir { dir } } => {
            let path = Authority::load(&dir)?.issue_client(&name, role, issue.into())?;
            say(stdout, &path.display().to_string())?;
            say(stderr, &format!("A client needs ca.crt, {name}.crt and {name}.key."))
        }
        CertCommand::Renew { name, days, new_key, dir: Dir { dir } } => {
            let path = Authority::load(&dir)?.renew(&name, days, new_key)?;
            say(stdout, &path.display().to_string())?;
            let files = match new_key {
                true => format!("{name}.crt and {name}.key"),
                false => format!("{name}.crt"),
            };
            say(
                stderr,
                &format!(
                    "Copy {files} to where the old one is used. A node that runs takes it within seconds, or at once \
                     after SIGHUP."
                ),
            )
        }
        CertCommand::Show { files, dir: Dir { dir } } => {
            let files = if files.is_empty() { certificates_in(&dir)? } else { files };
            show(&files, stdout, stderr)
        }
    }
}

fn show(files: &[PathBuf], stdout: &mut dyn Write, stderr: &mut dyn Write) -> Result<(), Error> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["FILE", "WHO", "ROLE", "CLUSTER", "VALID UNTIL", "HOSTS"]);
    let mut first_error = None;
    for file in files {
        match read(file) {
            Ok(certificates) => {
                for certificate in certificates {
                    table.add_row(row(file, &certificate));
                }
            }
            Err(error) => {
                say(stderr, &format!("error: {error}"))?;
                first_error.get_or_insert(error);
            }
        }
    }
    let lines: Vec<_> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    say(stdout, &lines.join("\n"))?;
    first_error.map_or(Ok(()), Err)
}

fn row(file: &Path, certificate: &Certificate) -> [String; 6] {
    let (who, role, cluster) = match &certificate.subject {
        Subject::Authority { cluster } => ("authority".to_owned(), "-".to_owned(), cluster),
        Subject::Leaf(identity) => match &identity.who {
            Who::Node { name } => (format!("node {name}"), "-".to_owned(), &identity.cluster),
            Who::Client { name, role } => {
                (format!("client {name}"), role.to_string(), &identity.cluster)
            }
        },
    };
    let now = SystemTime::now();
    let mut valid = humantime::format_rfc3339_seconds(certificate.not_after).to_string();
    if now > certificate.not_after {
        valid.push_str(" EXPIRED");
    } else if now < certificate.not_before {
        valid.push_str(" NOT YET VALID");
    } else if let Ok(left) = certificate.not_after.duration_since(now) {
        valid.push_str(&format!(" ({} days left)", left.as_secs() / 86_400));
    }
    let hosts = match certificate.hosts.as_slice() {
        [] => "-".to_owned(),
        hosts => hosts.join(" "),
    };
    [file.display().to_string(), who, role, cluster.clone(), valid, hosts]
}

fn read(path: &Path) -> Result<Vec<Certificate>, Error> {
    let pem = fs::read(path).map_err(|source| io_error("read", path, source))?;
    let bad = || Error::Pem { path: path.to_owned(), what: "certificate" };
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|_| bad())?;
    if found.is_empty() {
        return Err(bad());
    }
    let at = |problem| Error::Certificate { path: path.to_owned(), problem };
    found.iter().map(|der| Certificate::parse(der).map_err(at)).collect()
}

fn certificates_in(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(|source| io_error("read", dir, source))? {
        let path = entry.map_err(|source| io_error("read", dir, source))?.path();
        if path.extension() == Some(OsStr::new("crt")) {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        let hint = "there are no certificates here yet, start with `quicraft cert init`".to_owned();
        return Err(Error::Missing { path: dir.join("ca.crt"), hint });
    }
    Ok(files)
}

fn say(to: &mut dyn Write, text: &str) -> Result<(), Error> {
    writeln!(to, "{text}").map_err(|source| io_error("write to", Path::new("the terminal"), source))
}

fn io_error(op: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io { op, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        command: CertCommand,
    }

    /// Runs a command line; gives stdout or the message.
    fn cert(dir: &Path, args: &[&str]) -> Result<String, String> {
        let dir = dir.to_str().unwrap();
        let args = [&["cert"], args, &["--dir", dir]].concat();
        let command = Cli::try_parse_from(args).map_err(|error| error.to_string())?.command;
        let mut stdout = Vec::new();
        run_to(command, &mut stdout, &mut Vec::new()).map_err(|error| error.to_string())?;
        Ok(String::from_utf8(stdout).unwrap())
    }

    #[test]
    fn a_cluster_takes_three_commands_and_show_lists_it() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("certs");
        let cluster = cert(&dir, &["init", "--cluster", "demo"]).unwrap();
        assert!(cluster.starts_with("demo-"), "{cluster}");
        cert(&dir, &["node", "n1", "--host", "127.0.0.1", "--host", "n1.example"]).unwrap();
        cert(&dir, &["client", "--role", "readonly"]).unwrap();
        let shown = cert(&dir, &["show"]).unwrap();
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines.len(), 4, "{shown}");
        assert!(lines[1].contains("ca.crt") && lines[1].contains("authority"), "{shown}");
        assert!(lines[2].contains("client client") && lines[2].contains("readonly"), "{shown}");
        assert!(lines[3].contains("node n1") && lines[3].contains("127.0.0.1"), "{shown}");
        assert!(lines[3].contains("n1.example") && !shown.contains("EXPIRED"), "{shown}");
        assert!(lines[3].contains(cluster.trim()), "{shown}");
    }

    #[test]
    fn a_second_init_and_a_taken_name_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        assert!(cert(dir, &["node", "n1"]).unwrap_err().contains("cert init"));
        cert(dir, &["init"]).unwrap();
        let again = cert(dir, &["init"]).unwrap_err();
        assert!(again.contains("ca.crt exists already"), "{again}");
        cert(dir, &["client", "alice"]).unwrap();
        assert!(cert(dir, &["node", "alice"]).unwrap_err().contains("--overwrite"));
        cert(dir, &["client", "alice", "--overwrite", "--role", "admin"]).unwrap();
        assert!(cert(dir, &["show"]).unwrap().contains("admin"));
    }

    #[test]
    fn a_renewed_certificate_keeps_who_it_is_of_and_the_old_files_stay() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        cert(dir, &["init"]).unwrap();
        cert(dir, &["node", "n1", "--host", "n1.example", "--days", "3"]).unwrap();
        cert(dir, &["client", "alice", "--role", "readonly", "--days", "3"]).unwrap();
        let file = |name: &str| fs::read(dir.join(name)).unwrap();
        let read_one = |name: &str| read(&dir.join(name)).unwrap().remove(0);
        let (old, old_pem, key) = (read_one("n1.crt"), file("n1.crt"), file("n1.key"));

        // The node has the key; the authority need not.
        fs::rename(dir.join("n1.key"), dir.join("elsewhere")).unwrap();
        cert(dir, &["renew", "n1", "--days", "90"]).unwrap();
        fs::rename(dir.join("elsewhere"), dir.join("n1.key")).unwrap();
        let renewed = read_one("n1.crt");
        assert_eq!((&renewed.subject, &renewed.hosts), (&old.subject, &old.hosts));
        assert!(renewed.not_after > old.not_after && renewed.serial != old.serial);
        assert!(renewed.is_for_servers && renewed.is_for_clients);
        assert_eq!(file("n1.crt.old"), old_pem);
        crate::pki::Credentials::load(dir, "n1").unwrap();

        cert(dir, &["renew", "n1", "--new-key"]).unwrap();
        assert_eq!(file("n1.key.old"), key);
        assert_ne!(file("n1.key"), key);
        crate::pki::Credentials::load(dir, "n1").unwrap();
        cert(dir, &["renew", "alice"]).unwrap();
        let shown = cert(dir, &["show"]).unwrap();
        assert!(shown.contains("readonly") && shown.contains("364 days left"), "{shown}");
        for name in ["ca", "nobody", "../n1"] {
            assert!(cert(dir, &["renew", name]).is_err(), "{name}");
        }
    }

    #[test]
    fn help_tells_what_each_command_does() {
        for (command, text) in [
            ("init", "Start a cluster"),
            ("node", "Make the certificate of a node"),
            ("client", "Make the certificate of a client"),
            ("show", "Show whose certificates"),
        ] {
            let help = Cli::try_parse_from(["cert", command, "--help"]).err().unwrap().to_string();
            assert!(help.starts_with(text), "{help}");
        }
    }

    #[test]
    fn show_names_what_cannot_be_read() {
        let temp = tempfile::tempdir().unwrap();
        assert!(cert(temp.path(), &["show"]).unwrap_err().contains("cert init"));
        fs::write(temp.path().join("x.crt"), "garbage").unwrap();
        assert!(cert(temp.path(), &["show"]).unwrap_err().contains("x.crt"));
    }
}
