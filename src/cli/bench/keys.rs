//! Which key an operation takes, and which value it writes.
//!
//! In: a number of keys and their length. Out: `bench/` and hexadecimal digits, scattered over the whole
//! range by a bijection, so that neighbours in number are no neighbours in order. Always: different numbers
//! give different keys; the same seed gives the same choices.

/// All keys of the tool begin with this.
pub(super) const PREFIX: &str = "bench/";

/// The keys of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys {
    count: u64,
    digits: usize,
    filler: usize,
}

impl Keys {
    /// Keys of `bytes` bytes; the error is for the user.
    pub(super) fn new(count: u64, bytes: usize) -> Result<Keys, String> {
        let room = bytes.saturating_sub(PREFIX.len());
        let digits = room.min(DIGITS_MAX);
        let max = crate::proto::limits::KEY_BYTES_MAX;
        if bytes > max {
            return Err(format!("--key-size must be at most {max}"));
        }
        if digits < DIGITS_MAX && count > 1 << (4 * digits) {
            return Err(format!(
                "--key-size must be more for {count} keys: {} go to \"{PREFIX}\", the rest are \
                 hexadecimal digits",
                PREFIX.len()
            ));
        }
        Ok(Keys { count, digits, filler: room - digits })
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The key with this number.
    pub(super) fn key(&self, number: u64) -> String {
        // Multiplying by an odd number is a bijection on the low bits.
        let scattered = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let shown = if self.digits < DIGITS_MAX {
            scattered & ((1 << (4 * self.digits)) - 1)
        } else {
            scattered
        };
        format!(
            "{PREFIX}{shown:0digits$x}{:0<filler$}",
            "",
            digits = self.digits,
            filler = self.filler
        )
    }
}

/// How keys are chosen.
#[derive(Clone, Debug)]
pub(super) enum Pick {
    Uniform { count: u64 },
    Zipf { count: u64, zeta: f64, eta: f64 },
}

impl Pick {
    /// All alike.
    pub(super) fn uniform(count: u64) -> Pick {
        Pick::Uniform { count }
    }

    /// The generator of YCSB (Gray et al., *Quickly Generating Billion-Record Synthetic Databases*, 1994).
    pub(super) fn zipf(count: u64) -> Pick {
        let zeta: f64 = (1..=count).map(|rank| (rank as f64).powf(-THETA)).sum();
        let zeta_two = 1.0 + 0.5_f64.powf(THETA);
        let eta = (1.0 - (2.0 / count as f64).powf(1.0 - THETA)) / (1.0 - zeta_two / zeta);
        Pick::Zipf { count, zeta, eta }
    }

    /// The number of the next key.
    pub(super) fn next(&self, dice: &mut Dice) -> u64 {
        match *self {
            Pick::Uniform { count } => dice.below(count),
            Pick::Zipf { count, zeta, eta } => {
                let u = dice.fraction();
                let at = u * zeta;
                if at < 1.0 {
                    return 0;
                }
                if at < 1.0 + 0.5_f64.powf(THETA) {
                    return 1.min(count - 1);
                }
                let rank = count as f64 * (eta * u - eta + 1.0).powf(1.0 / (1.0 - THETA));
                (rank as u64).min(count - 1)
            }
        }
    }
}

/// Random numbers from a seed (splitmix64).
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    /// Different seeds give different numbers.
    pub(super) fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `count`, all alike.
    pub(super) fn below(&mut self, count: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(count)) >> 64) as u64
    }

    /// From 0 up to, without, 1.
    pub(super) fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Fills a value with bytes that do not compress.
    pub(super) fn fill(&mut self, value: &mut [u8]) {
        for chunk in value.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

/// All bits of a number.
const DIGITS_MAX: usize = 16;
const THETA: f64 = 0.99;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn keys_differ_and_have_their_length() {
        for bytes in [9, 16, 22, 40] {
            let keys = Keys::new(4096, bytes).unwrap();
            let all: BTreeSet<_> = (0..4096).map(|number| keys.key(number)).collect();
            assert_eq!(all.len(), 4096, "{bytes}");
            assert!(all.iter().all(|key| key.len() == bytes && key.starts_with(PREFIX)));
        }
    }

    #[test]
    fn too_short_keys_are_refused() {
        assert!(Keys::new(16, 7).is_ok());
        assert!(Keys::new(17, 7).unwrap_err().contains("--key-size"));
        assert!(Keys::new(2, 3).is_err());
        assert!(Keys::new(1, 5000).is_err());
    }

    #[test]
    fn zipf_prefers_the_first_keys_and_stays_in_range() {
        let (pick, mut dice) = (Pick::zipf(1000), Dice::new(7));
        let mut seen = [0_u32; 1000];
        (0..100_000).for_each(|_| seen[pick.next(&mut dice) as usize] += 1);
        // 1 / zeta(1000, 0.99) is 0.13.
        assert!((11_000..15_000).contains(&seen[0]), "{}", seen[0]);
        assert!(seen[0] > seen[1] && seen[1] > seen[20] && seen[20] > seen[900]);
    }

    #[test]
    fn uniform_takes_every_key() {
        let (pick, mut dice) = (Pick::uniform(100), Dice::new(7));
        let seen: BTreeSet<_> = (0..2000).map(|_| pick.next(&mut dice)).collect();
        assert_eq!(seen.len(), 100);
    }
}
