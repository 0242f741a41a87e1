//! What the records of all segments add up to.

use std::collections::VecDeque;

use super::format::{Head, Kind, decode_hard};
use super::terms::Terms;
use super::{EntryMeta, Place};
use crate::raft::{EntryKind, HardState, Index, Term};

/// The state after the records so far.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) hard: HardState,
    pub(super) snapshot: Option<(Index, Term)>,
    pub(super) terms: Terms,
    pub(super) entries: VecDeque<EntryMeta>,
    pub(super) places: VecDeque<Place>,
    /// Segments before this one hold nothing that a reset left alive.
    pub(super) dead_before: u32,
    /// Whether a Position was seen: before that nothing is known about where the log begins.
    is_placed: bool,
}

impl Replay {
    pub(super) fn new() -> Replay {
        Replay {
            hard: HardState::default(),
            snapshot: None,
            terms: Terms::new((Index(0), Term(0))),
            entries: VecDeque::new(),
            places: VecDeque::new(),
            dead_before: 0,
            is_placed: false,
        }
    }

    /// Takes in the next record, whose checksums are right.
    ///
    /// # Errors
    /// What does not fit to the records before it.
    pub(super) fn apply(
        &mut self,
        head: &Head,
        body: &[u8],
        place: Place,
    ) -> Result<(), &'static str> {
        let at = (head.index, head.term);
        match head.kind {
            Kind::Entry => {
                if !self.is_placed || head.index != self.terms.last().0.next() {
                    return Err("an entry that does not follow the one before it");
                }
                let kind = EntryKind::from_u8(head.flags).ok_or("an entry of unknown kind")?;
                let (index, term) = at;
                self.terms.push(term);
                self.entries.push_back(EntryMeta {
                    index,
                    term,
                    kind,
                    body_bytes: head.body_bytes,
                });
                self.places.push_back(place);
            }
            Kind::Hard => {
                self.hard = decode_hard(head, body).ok_or("a hard state of wrong length")?
            }
            Kind::Truncate => {
                if head.index.0 == 0 {
                    return Err("a truncation at index 0");
                }
                let keep = head.index.0.saturating_sub(self.terms.base().0.next().0) as usize;
                self.entries.truncate(keep);
                self.places.truncate(keep);
                self.terms.truncate(head.index, head.term);
            }
            Kind::SnapMark => self.snapshot = self.snapshot.max(Some(at)),
            Kind::Reset => {
                self.restart(at);
                self.snapshot = self.snapshot.max(Some(at));
                self.dead_before = place.segment;
            }
            Kind::Position if self.is_placed => {
                if self.terms.last() != at {
                    return Err("a segment that does not continue the one before it");
                }
            }
            Kind::Position => {
                self.restart(at);
                self.is_placed = true;
            }
        }
        Ok(())
    }

    fn restart(&mut self, base: (Index, Term)) {
        self.terms = Terms::new(base);
        self.entries.clear();
        self.places.clear();
    }
}
