//! A new certificate in the place of one that expires.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::SubjectPublicKeyInfo;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authority::{check_leaf_name, make, new_key, replace_file, sync_dir};
use super::credentials::{read, read_certificates};
use super::{Authority, Certificate, Error, Problem, node_dns_name};

impl Authority {
    /// Replaces `NAME.crt` by a certificate of the same identity, role and hosts that is valid for `days` from now. The
    /// key stays, unless `with_new_key`; with the key that stays, `NAME.key` need not be here. The old files are kept as
    /// `NAME.crt.old` and `NAME.key.old`. Returns the path of the certificate.
    ///
    /// # Errors
    /// [`Error`] if there is no such certificate of this cluster, or the files cannot be written.
    pub fn renew(&self, name: &str, days: u32, with_new_key: bool) -> Result<PathBuf, Error> {
        check_leaf_name(name)?;
        let path = self.dir.join(format!("{name}.crt"));
        let hint =
            format!("make one with `quicraft cert node {name}` or `quicraft cert client {name}`");
        let der = read_certificates(&path, &hint)?.swap_remove(0);
        let at = |problem| Error::Certificate { path: path.clone(), problem };
        let old = Certificate::parse(&der).map_err(at)?;
        let identity = old.identity().map_err(at)?;
        if identity.cluster != self.cluster() || identity.name() != name {
            let authority = self.dir.join("ca.crt");
            return Err(Error::Foreign { path, authority });
        }
        let mut names = old.hosts.clone();
        let own = node_dns_name(self.cluster(), name);
        if identity.is_node() && !names.contains(&own) {
            names.insert(0, own);
        }
        let key_path = self.dir.join(format!("{name}.key"));
        let certificate = if with_new_key {
            let key = new_key()?;
            let certificate = self.sign(identity, names, days, &key)?;
            keep(&key_path, 0o600)?;
            keep(&path, 0o644)?;
            replace_file(&key_path, 0o600, key.serialize_pem().as_bytes())?;
            certificate
        } else {
            let (_, x509) = X509Certificate::from_der(&der).map_err(|_| at(Problem::Encoding))?;
            let key = SubjectPublicKeyInfo::from_der(x509.public_key().raw).map_err(make)?;
            let certificate = self.sign(identity, names, days, &key)?;
            keep(&path, 0o644)?;
            certificate
        };
        replace_file(&path, 0o644, certificate.as_bytes())?;
        sync_dir(&self.dir)?;
        Ok(path)
    }
}

/// A copy of a file beside it, if there is one.
fn keep(path: &Path, mode: u32) -> Result<(), Error> {
    if fs::exists(path).unwrap_or(true) {
        let mut old = path.as_os_str().to_owned();
        old.push(".old");
        replace_file(Path::new(&old), mode, &read(path, "it was there a moment ago")?)?;
    }
    Ok(())
}
