//! What the clients saw: latencies and errors.
//!
//! Latencies are kept in HDR histograms, in microseconds with three digits, so that no percentile is an
//! average of averages. One tally per thread; they are added up in the end.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    latencies: Histogram<u64>,
    errors: BTreeMap<String, u64>,
}

impl Default for Tally {
    fn default() -> Tally {
        let latencies = Histogram::new_with_bounds(1, LATENCY_MAX_US, 3)
            .expect("these bounds and digits are allowed");
        Tally { latencies, errors: BTreeMap::new() }
    }
}

impl Tally {
    /// One operation that succeeded.
    pub(super) fn success(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.latencies.saturating_record(micros.max(1));
    }

    /// One that did not; errors that say the same are counted together.
    pub(super) fn error(&mut self, error: &str) {
        let is_new = !self.errors.contains_key(error);
        let name = if is_new && self.errors.len() >= ERRORS_MAX { "other errors" } else { error };
        *self.errors.entry(name.to_owned()).or_default() += 1;
    }

    /// Takes in another tally.
    pub(super) fn add(&mut self, other: &Tally) {
        self.latencies.add(&other.latencies).expect("all tallies have the same bounds");
        for (error, count) in &other.errors {
            *self.errors.entry(error.clone()).or_default() += count;
        }
    }

    /// Operations that succeeded.
    pub(super) fn operations(&self) -> u64 {
        self.latencies.len()
    }

    /// The latency below which this share of operations stayed, in milliseconds.
    pub(super) fn percentile_ms(&self, percent: f64) -> f64 {
        self.latencies.value_at_percentile(percent) as f64 / 1000.0
    }

    /// The mean latency in milliseconds.
    pub(super) fn mean_ms(&self) -> f64 {
        self.latencies.mean() / 1000.0
    }

    /// What went wrong, and how often.
    pub(super) fn errors(&self) -> &BTreeMap<String, u64> {
        &self.errors
    }
}

/// Longer ones count as this long; no operation lasts longer than its timeout.
const LATENCY_MAX_US: u64 = 600_000_000;
/// Kinds of errors that are told apart.
const ERRORS_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_add_up() {
        let (mut one, mut two) = (Tally::default(), Tally::default());
        (1..=100).for_each(|ms| one.success(Duration::from_millis(ms)));
        two.success(Duration::from_secs(3600));
        two.error("busy");
        one.error("busy");
        one.add(&two);
        assert_eq!(one.operations(), 101);
        assert_eq!(one.errors()["busy"], 2);
        assert!((49.0..53.0).contains(&one.percentile_ms(50.0)), "{}", one.percentile_ms(50.0));
        assert!(one.percentile_ms(100.0) >= 599_000.0);
    }
}
