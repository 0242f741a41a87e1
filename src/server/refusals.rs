//! One line in the log for each refused node and reason, and a count of what was refused since: who comes again and again
//! fills no log.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What was refused lately, by what is said of it.
#[derive(Default)]
pub(super) struct Refusals {
    lately: Mutex<BTreeMap<String, (Instant, u64)>>,
}

impl Refusals {
    /// What to log of a refusal: nothing if the same was logged within the last minute.
    pub(super) fn line(&self, text: String, now: Instant) -> Option<String> {
        let mut lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((since, count)) = lately.get_mut(&text) {
            if now.duration_since(*since) < QUIET {
                *count += 1;
                return None;
            }
            let times = std::mem::take(count);
            *since = now;
            return Some(match times {
                0 => text,
                times => format!("{text} (and {times} times more since this was said last)"),
            });
        }
        if lately.len() >= TEXTS_MAX {
            lately.retain(|_, (since, _)| now.duration_since(*since) < QUIET);
        }
        // Whoever is beyond that is refused without a word.
        if lately.len() < TEXTS_MAX {
            lately.insert(text.clone(), (now, 0));
            return Some(text);
        }
        None
    }
}

/// The same is said once in this time.
const QUIET: Duration = Duration::from_secs(60);
/// Texts that are remembered: names of certificates times reasons.
const TEXTS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_a_minute_with_a_count() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        let say = |text: &str, seconds| {
            refusals.line(text.to_owned(), start + Duration::from_secs(seconds))
        };
        assert_eq!(say("n9", 0).as_deref(), Some("n9"));
        assert_eq!(say("n9", 1), None);
        assert_eq!(say("n9", 59), None);
        assert_eq!(say("n8", 59).as_deref(), Some("n8"));
        let again = say("n9", 61).unwrap();
        assert!(again.contains("2 times more"), "{again}");
        assert_eq!(say("n9", 122).as_deref(), Some("n9"));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        for number in 0..10_000 {
            refusals.line(number.to_string(), now);
        }
        assert!(refusals.lately.lock().unwrap().len() <= TEXTS_MAX);
        assert!(refusals.line("later".to_owned(), now + QUIET).is_some());
    }
}
