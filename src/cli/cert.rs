//! `quicraft cert`: the certificates of a secure cluster.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::pki::authority::Authority;
use crate::pki::{Error, Identity, Role};

#[derive(Args)]
pub(super) struct CertArgs {
    /// Directory of the certificates
    #[arg(long, env = "QUICRAFT_CERTS", default_value = "certs", global = true)]
    certs: PathBuf,
    #[command(subcommand)]
    command: CertCommand,
}

#[derive(Subcommand)]
enum CertCommand {
    /// Make the certificate authority of a new cluster
    Init {
        /// The cluster's name; random digits are added
        #[arg(long, default_value = "quicraft")]
        cluster: String,
    },
    /// Make a node's certificate and key
    Node {
        name: String,
        /// Host name or address under which the node is reached; may be repeated
        #[arg(long = "host")]
        hosts: Vec<String>,
        /// Days until it expires
        #[arg(long, default_value_t = LEAF_DAYS)]
        days: u32,
    },
    /// Make a client's certificate and key
    Client {
        name: String,
        /// What the client may do
        #[arg(long, value_enum, default_value_t = Role::ReadWrite)]
        role: Role,
        /// Days until it expires
        #[arg(long, default_value_t = LEAF_DAYS)]
        days: u32,
    },
    /// Show who the certificates are for and how long
    Show,
}

pub(super) fn run(args: CertArgs) -> ExitCode {
    match carry_out(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quicraft: {error}");
            ExitCode::from(4)
        }
    }
}

fn carry_out(args: &CertArgs) -> Result<(), Error> {
    let dir = &args.certs;
    match &args.command {
        CertCommand::Init { cluster } => {
            println!("{}", Authority::create(dir, cluster)?.cluster());
            Ok(())
        }
        CertCommand::Node { name, hosts, days } => {
            Authority::load(dir)?.issue_node(name, hosts, *days)
        }
        CertCommand::Client { name, role, days } => {
            Authority::load(dir)?.issue_client(name, *role, *days)
        }
        CertCommand::Show => show(dir),
    }
}

/// One line per certificate in the directory.
fn show(dir: &Path) -> Result<(), Error> {
    let io = |source| Error::Io { path: dir.to_owned(), source };
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir)
        .map_err(io)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|suffix| suffix == "crt"))
        .collect();
    paths.sort();
    for path in paths {
        println!("{}  {}", path.display(), describe(&path));
    }
    Ok(())
}

fn describe(path: &Path) -> String {
    let Ok(der) = CertificateDer::from_pem_file(path) else {
        return "holds no certificate".to_owned();
    };
    let Ok((_, certificate)) = X509Certificate::from_der(&der) else {
        return "cannot be read".to_owned();
    };
    let who = match Identity::of_certificate(&der) {
        Ok(identity) => identity.to_string(),
        Err(_) if certificate.is_ca() => format!("authority ({})", certificate.subject()),
        Err(reason) => reason,
    };
    let validity = certificate.validity();
    let expired = if validity.is_valid() { "" } else { " EXPIRED" };
    format!("{who}  until {}{expired}", validity.not_after)
}

/// How long a node's or client's certificate is good.
pub(super) const LEAF_DAYS: u32 = 365;
