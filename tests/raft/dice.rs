//! The choices of a random run: what may happen, how often, and the generator that draws it.

/// The generator of the test's own choices (splitmix64), apart from the core's.
#[derive(Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// One thing that happens.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    Deliver,
    Drop,
    Double,
    Tick,
    Persist,
    Propose,
    Read,
    Ship,
    LoseShipment,
    Compact,
    Crash,
    CrashLeader,
    Restart,
    Partition,
    Isolate,
    Heal,
    Transfer,
    Unreachable,
}

/// How often each thing happens in a run.
pub(crate) fn weights(dice: &mut Dice) -> Vec<(Act, usize)> {
    let rare = |dice: &mut Dice| dice.pick(&[0, 1, 4]);
    vec![
        (Act::Deliver, 400),
        (Act::Drop, dice.pick(&[0, 5, 40])),
        (Act::Double, dice.pick(&[0, 5, 40])),
        (Act::Tick, dice.pick(&[100, 300])),
        (Act::Persist, dice.pick(&[40, 200])),
        (Act::Propose, dice.pick(&[10, 60])),
        (Act::Read, 20),
        (Act::Ship, dice.pick(&[2, 20])),
        (Act::LoseShipment, rare(dice)),
        (Act::Compact, dice.pick(&[0, 5, 30])),
        (Act::Crash, rare(dice)),
        (Act::CrashLeader, dice.pick(&[0, 2, 8])),
        (Act::Restart, dice.pick(&[10, 40])),
        (Act::Partition, rare(dice)),
        (Act::Isolate, rare(dice)),
        (Act::Heal, dice.pick(&[2, 8])),
        (Act::Transfer, rare(dice)),
        (Act::Unreachable, rare(dice)),
    ]
}
