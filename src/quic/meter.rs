//! Bytes that are held for others: counted where they come and go, with limits at which their owners wait.
//!
//! **In and out:** a queue or a reader adds what it holds and removes what it has given on. A [`Meter`] may be a part of
//! another: a principal's of the node's.
//!
//! **Always:** counting costs an addition for each of the two. Nothing is refused here: who finds a meter full waits for
//! [`Meter::room`]. The limit of the whole binds only those who hold more than a sixteenth of their own limit, so that a
//! few who hold much never stop the many who hold little.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// See the module.
#[derive(Debug)]
pub struct Meter {
    bytes: AtomicUsize,
    bytes_max: usize,
    whole: Option<Arc<Meter>>,
    /// Rung when there is room again.
    room: Notify,
    /// Who waits for it.
    waiting: AtomicUsize,
    /// Bytes that were removed since it was rung.
    freed: AtomicUsize,
    /// Somebody goes on although it is full.
    exceeds: AtomicBool,
}

impl Meter {
    /// A meter of its own.
    pub fn new(bytes_max: usize) -> Arc<Meter> {
        Arc::new(Meter::with(bytes_max, None))
    }

    /// A meter whose bytes count in `whole` as well.
    pub fn part_of(whole: &Arc<Meter>, bytes_max: usize) -> Arc<Meter> {
        Arc::new(Meter::with(bytes_max, Some(Arc::clone(whole))))
    }

    fn with(bytes_max: usize, whole: Option<Arc<Meter>>) -> Meter {
        Meter {
            bytes: AtomicUsize::new(0),
            bytes_max,
            whole,
            room: Notify::new(),
            waiting: AtomicUsize::new(0),
            freed: AtomicUsize::new(0),
            exceeds: AtomicBool::new(false),
        }
    }

    /// Bytes that are held now.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// So many more are held.
    pub fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Some(whole) = &self.whole {
            whole.add(bytes);
        }
    }

    /// So many fewer are held.
    pub fn remove(&self, bytes: usize) {
        let before = self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "{bytes} bytes are given back of {before}");
        if self.waiting.load(Ordering::Relaxed) > 0 {
            // Not at each byte: everybody who waits looks again.
            let freed = self.freed.fetch_add(bytes, Ordering::Relaxed) + bytes;
            if freed >= self.bytes_max / STEPS {
                self.ring();
            }
        }
        if let Some(whole) = &self.whole {
            whole.remove(bytes);
        }
    }

    /// Lets those who wait look again.
    pub fn ring(&self) {
        self.freed.store(0, Ordering::Relaxed);
        self.room.notify_waiters();
    }

    /// Bytes that may still be added before somebody must wait.
    pub fn room_bytes(&self) -> usize {
        let held = self.bytes();
        let own = self.bytes_max.saturating_sub(held);
        let little = (self.bytes_max / STEPS).saturating_sub(held);
        self.whole.as_ref().map_or(own, |whole| own.min(whole.room_bytes().max(little)))
    }

    /// Whether whoever wants to add must wait.
    pub fn is_full(&self) -> bool {
        self.full().is_some()
    }

    /// The meter that is full.
    fn full(&self) -> Option<&Meter> {
        let held = self.bytes();
        if held >= self.bytes_max {
            return Some(self);
        }
        self.whole.as_deref().filter(|_| held >= self.bytes_max / STEPS).and_then(Meter::full)
    }

    /// Waits until it is not full.
    pub async fn room(&self) {
        while let Some(full) = self.full() {
            let mut rung = std::pin::pin!(full.room.notified());
            rung.as_mut().enable();
            if !self.is_full() {
                return;
            }
            let _waiting = Waiting::new(&full.waiting);
            rung.await;
        }
    }

    /// The right to go on although it is full, for one at a time: without it, all who have a part of something would wait
    /// for each other.
    pub fn exceed(self: &Arc<Meter>) -> Option<Exceeding> {
        let full = match self.full() {
            Some(full) if !std::ptr::eq(full, &**self) => self.whole.as_ref()?,
            Some(_) | None => self,
        };
        let was = full.exceeds.swap(true, Ordering::Relaxed);
        (!was).then(|| Exceeding { meter: Arc::clone(full) })
    }
}

/// Someone goes on although a meter is full, until it is dropped.
#[derive(Debug)]
pub struct Exceeding {
    meter: Arc<Meter>,
}

impl Drop for Exceeding {
    fn drop(&mut self) {
        self.meter.exceeds.store(false, Ordering::Relaxed);
        self.meter.ring();
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl Waiting<'_> {
    fn new(waiting: &AtomicUsize) -> Waiting<'_> {
        waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A part of a limit that is worth waking those who wait, and that is little.
const STEPS: usize = 16;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[test]
    fn a_part_counts_in_the_whole_and_little_is_never_stopped_by_others() {
        let node = Meter::new(1000);
        let (greedy, modest) = (Meter::part_of(&node, 1600), Meter::part_of(&node, 1600));
        greedy.add(1000);
        assert_eq!(node.bytes(), 1000);
        assert!(greedy.is_full() && !modest.is_full());
        assert_eq!((greedy.room_bytes(), modest.room_bytes()), (0, 100));
        modest.add(100);
        assert!(modest.is_full(), "it holds as much as anybody may when the whole is full");
        greedy.remove(500);
        assert!(!modest.is_full() && !greedy.is_full());
        assert_eq!(greedy.room_bytes(), 400);
    }

    #[tokio::test]
    async fn who_waits_goes_on_when_enough_was_given_back() {
        let node = Meter::new(1600);
        let own = Meter::part_of(&node, 3200);
        own.add(1600);
        let waiting = tokio::spawn({
            let own = Arc::clone(&own);
            async move { own.room().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        own.remove(100);
        timeout(Duration::from_secs(5), waiting).await.expect("it goes on").expect("it ends");
        assert_eq!(node.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn one_at_a_time_goes_on_although_it_is_full() {
        let own = Meter::part_of(&Meter::new(4000), 1000);
        own.add(1000);
        let first = own.exceed().expect("nobody does yet");
        assert!(own.exceed().is_none());
        drop(first);
        assert!(own.exceed().is_some());
    }
}
