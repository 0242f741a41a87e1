//! The node's certificates while it runs: read again when their files change or on SIGHUP, and shown to people before they
//! expire.
//!
//! **Always:** what cannot be used changes nothing: the old certificates stay in use, and one line says why.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quinn::Endpoint;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::setup::load_credentials;
use super::{Error, Settings};
use crate::pki::{Certificate, Credentials, Stamp, Subject};
use crate::proto::client::CertificateStatus;
use crate::quic::{self, Keyring, PortKind};

/// Watches the files of a running node; ends with its owner.
pub(super) struct Watch(JoinHandle<()>);

impl Watch {
    /// Begins to watch. The files were as `seen` when what is in the keyring was read.
    pub(super) fn start(
        settings: &Settings,
        keyring: Keyring,
        seen: Stamp,
        endpoints: [(PortKind, Endpoint); 2],
    ) -> Watch {
        let settings = Arc::new(settings.clone());
        let watcher = Watcher { settings, keyring, endpoints, seen, changing: None, told: None };
        Watch(tokio::spawn(watcher.run()))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Watcher {
    settings: Arc<Settings>,
    keyring: Keyring,
    endpoints: [(PortKind, Endpoint); 2],
    /// The files that were read last, whether they could be used or not.
    seen: Stamp,
    /// Files that had changed at the last look: somebody may still be writing.
    changing: Option<Stamp>,
    /// The last reason why they could not be used.
    told: Option<String>,
}

impl Watcher {
    async fn run(mut self) {
        let mut hangups = signal(SignalKind::hangup()).ok();
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut warn_at = Instant::now();
        let mut is_over = false;
        loop {
            tokio::select! {
                _ = looks.tick() => {
                    let found = Stamp::of(&self.settings.certs, &self.settings.name);
                    if found == self.seen {
                        self.changing = None;
                    } else if self.changing.as_ref() == Some(&found) {
                        self.reload().await;
                    } else {
                        self.changing = Some(found);
                    }
                }
                () = next(&mut hangups) => {
                    tracing::info!("SIGHUP: reads the certificates again");
                    self.told = None;
                    self.reload().await;
                }
            }
            let was_over = std::mem::replace(&mut is_over, self.is_over());
            if Instant::now() >= warn_at || is_over && !was_over {
                warn_at = Instant::now() + WARN_EVERY;
                warn(&self.keyring.current());
            }
        }
    }

    /// Whether the node's own certificate has expired.
    fn is_over(&self) -> bool {
        SystemTime::now() > self.keyring.current().not_after()
    }

    /// Takes what the files hold now, or says once why not.
    async fn reload(&mut self) {
        self.seen = Stamp::of(&self.settings.certs, &self.settings.name);
        self.changing = None;
        let settings = Arc::clone(&self.settings);
        // The node's thread does not wait for a disk.
        let loaded = tokio::task::spawn_blocking(move || load_credentials(&settings)).await;
        let Ok(loaded) = loaded else { return };
        match loaded.map_err(|error| error.to_string()).and_then(|new| self.take(new)) {
            Ok(()) => self.told = None,
            Err(why) if self.told.as_ref() == Some(&why) => {}
            Err(why) => {
                tracing::warn!("the certificates are not reloaded, the old ones stay: {why}");
                self.told = Some(why);
            }
        }
    }

    fn take(&self, new: Credentials) -> Result<(), String> {
        let old = self.keyring.current();
        let (ours, theirs) = (&old.identity().cluster, &new.identity().cluster);
        if ours != theirs {
            return Err(format!("they are of cluster {theirs}, and this node is of {ours}"));
        }
        if old.are(&new) {
            tracing::info!("the certificates are the same as before");
            return Ok(());
        }
        for (kind, endpoint) in &self.endpoints {
            let reloaded = quic::reload(endpoint, *kind, &new);
            reloaded.map_err(|error| error.to_string())?;
        }
        let days = days_left(new.not_after());
        tracing::info!("new certificates are in use: that of this node expires in {days} days");
        warn(&new);
        self.keyring.replace(new);
        Ok(())
    }
}

async fn next(hangups: &mut Option<Signal>) {
    let heard = match hangups {
        Some(hangups) => hangups.recv().await,
        None => None,
    };
    if heard.is_none() {
        std::future::pending().await
    }
}

/// A line for each certificate that expires soon.
fn warn(credentials: &Credentials) {
    for (name, certificate) in certificates(credentials) {
        let (left, until) = (days_left(certificate.not_after), rfc3339(certificate.not_after));
        let (whose, what) = match &certificate.subject {
            Subject::Authority { .. } => (
                "the certificate of the cluster's authority".to_owned(),
                "make a new authority".to_owned(),
            ),
            Subject::Leaf(_) => {
                ("this node's certificate".to_owned(), format!("quicraft cert renew {name}"))
            }
        };
        if SystemTime::now() > certificate.not_after {
            tracing::error!("{whose} has expired: no new connection comes about ({what})");
        } else if left <= WARN_DAYS {
            tracing::warn!("{whose} expires in {left} days, at {until} ({what})");
        }
    }
}

/// What `status` tells of the certificates.
pub(super) fn status(credentials: &Credentials) -> Vec<CertificateStatus> {
    let each = certificates(credentials).map(|(name, certificate)| {
        let since_1970 = certificate.not_after.duration_since(SystemTime::UNIX_EPOCH);
        CertificateStatus {
            name,
            not_after_s: since_1970.map_or(0, |moment| moment.as_secs()),
            days_left: days_left(certificate.not_after),
        }
    });
    each.collect()
}

/// The node's certificate and those of the authorities, each with the name of its file.
fn certificates(credentials: &Credentials) -> impl Iterator<Item = (String, &Certificate)> {
    let own = (credentials.identity().name().to_owned(), credentials.certificate());
    let authorities = credentials.authorities().iter().map(|ca| ("ca".to_owned(), ca));
    std::iter::once(own).chain(authorities)
}

/// Whole days until then; below zero after it.
fn days_left(moment: SystemTime) -> i64 {
    let days = |time: Duration| i64::try_from(time.as_secs() / 86_400).unwrap_or(i64::MAX);
    match moment.duration_since(SystemTime::now()) {
        Ok(left) => days(left),
        Err(over) => -1 - days(over.duration()),
    }
}

fn rfc3339(moment: SystemTime) -> String {
    humantime::format_rfc3339_seconds(moment).to_string()
}

/// The credentials of a node that starts, and how their files were just before.
///
/// # Errors
/// As [`load_credentials`].
pub(super) fn load(settings: &Settings) -> Result<(Keyring, Stamp), Error> {
    let seen = Stamp::of(&settings.certs, &settings.name);
    Ok((Keyring::new(load_credentials(settings)?), seen))
}

/// Three system calls each time; a change counts when it is two looks old.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const WARN_EVERY: Duration = Duration::from_secs(86_400);
/// From so many days before the end people are warned.
const WARN_DAYS: i64 = 30;
