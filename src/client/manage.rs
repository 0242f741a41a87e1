//! Changes of the cluster itself: who takes part, who leads. For administrators, and for nodes that join.
//!
//! Each change is sent until it is answered, to whoever leads; sending it twice does it once.

use tokio::time::{Instant, timeout_at};

use super::retry::{self, Answer, Attempts, Request};
use super::routes::To;
use super::{Client, Error, unexpected};
use crate::proto::client::Manage;
use crate::proto::frame::FrameKind;

impl Client {
    /// Changes the cluster; returns the id of the member that it was about, once the change is committed. A transfer of
    /// leadership returns when it has begun.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the reason if the cluster refuses, [`Error::Denied`] for a certificate without the role
    /// of an administrator, [`Error::Unknown`] or [`Error::Timeout`] if it may or may not have happened.
    pub async fn manage(&self, manage: &Manage) -> Result<u64, Error> {
        let deadline = Instant::now() + self.timeout;
        let encode = |body: &mut Vec<u8>| crate::proto::encode(manage, body);
        let request =
            Request { kind: FrameKind::Manage, to: To::Leader, bytes: 0, encode: &encode };
        let mut attempts = Attempts::default();
        let inner = &self.inner;
        let asked = retry::ask(&inner.routes, &inner.scout, &request, &mut attempts);
        match timeout_at(deadline, asked).await {
            Ok(Ok(answered)) => match answered.first {
                Answer::Managed(id) => Ok(id),
                _ => Err(unexpected(answered.node_id, "a change of the cluster")),
            },
            Ok(Err(_)) if attempts.unresolved => Err(Error::Unknown),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Timeout {
                may_have_happened: attempts.may_have_happened(),
                last: attempts.last,
            }),
        }
    }
}
