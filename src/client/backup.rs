//! Takes a backup: a snapshot of the whole cluster, as it is at a moment after the question.
//!
//! In: nothing. Out: the bytes of a snapshot file, in order, at the caller's pace. Always: they come from one node and
//! are of one revision; when that node is lost on the way it breaks off with [`Error::ScanBroken`] and is begun again
//! by the caller. Left out: checking the bytes, which `quicraft snapshot save` does when it has them all.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::Error;
use super::retry::{Answer, Answered};
use super::scan::broken;
use crate::quic::FrameReader;

/// The bytes of a snapshot, as they come. Dropping it stops the transfer.
#[derive(Debug)]
pub struct SnapshotStream {
    reader: FrameReader,
    waiting: VecDeque<Answer>,
    begun: Option<(u64, u64)>,
    got: u64,
    patience: Duration,
    node_id: u64,
}

impl SnapshotStream {
    pub(super) fn new(answered: Answered, patience: Duration) -> Result<SnapshotStream, Error> {
        let reader = answered.rest.ok_or_else(|| broken("it has no stream"))?;
        let waiting = std::iter::once(answered.first).chain(answered.more).collect();
        let node_id = answered.node_id;
        Ok(SnapshotStream { reader, waiting, begun: None, got: 0, patience, node_id })
    }

    /// Waits until the node has made the snapshot; gives its revision and its length in bytes.
    ///
    /// # Errors
    /// As [`SnapshotStream::next`].
    pub async fn begin(&mut self) -> Result<(u64, u64), Error> {
        loop {
            if let Some(begun) = self.begun {
                return Ok(begun);
            }
            match self.answer().await? {
                Answer::Saving => {}
                Answer::SnapshotBegins { index, bytes } => self.begun = Some((index, bytes)),
                other => return Err(self.unexpected(&other)),
            }
        }
    }

    /// The next bytes; `None` when all are here.
    ///
    /// # Errors
    /// [`Error::ScanBroken`] if the node is lost on the way or sends nothing for the client's timeout.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let (_, bytes) = self.begin().await?;
        if self.got == bytes {
            return Ok(None);
        }
        match self.answer().await? {
            Answer::SnapshotChunk(chunk) if self.got + chunk.len() as u64 <= bytes => {
                self.got += chunk.len() as u64;
                Ok(Some(chunk))
            }
            other => Err(self.unexpected(&other)),
        }
    }

    async fn answer(&mut self) -> Result<Answer, Error> {
        loop {
            if let Some(answer) = self.waiting.pop_front() {
                return Ok(answer);
            }
            let read = timeout(self.patience, super::transport::read(&mut self.reader)).await;
            let frames = match read {
                Ok(Ok(Some(frames))) => frames,
                Ok(Ok(None)) => return Err(broken("the snapshot is cut off")),
                Ok(Err(reason)) => return Err(broken(&reason)),
                Err(_) => return Err(broken("no more of the snapshot came in time")),
            };
            for frame in frames {
                let answer = Answer::from_frame(&frame);
                self.waiting.push_back(answer.map_err(|what| broken(&what.to_string()))?);
            }
        }
    }

    fn unexpected(&self, answer: &Answer) -> Error {
        match answer {
            Answer::Refused(refusal) => Error::from_refusal(refusal)
                .unwrap_or_else(|| broken(&super::retry::refusal_text(refusal))),
            _ => Error::Protocol {
                node_id: self.node_id,
                what: "no snapshot in answer to a save".into(),
            },
        }
    }
}
