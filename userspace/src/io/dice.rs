//! The kernel's random numbers, for the engine's waits.

use arpwarden_engine::Dice;

/// Numbers drawn in one call: 256 bytes, the most that getrandom(2) gives as a whole whatever signals come.
const AT_ONCE: usize = 256 / size_of::<u64>();

/// Draws from getrandom(2), some at once: a claim of many addresses takes three numbers for each.
#[derive(Debug, Default)]
pub struct KernelDice {
    drawn: [u64; AT_ONCE],
    /// How many of them, at the start, are still to be used.
    left: usize,
}

impl KernelDice {
    fn draw(&mut self) -> u64 {
        if self.left == 0 {
            // SAFETY: the pointer and the length describe the numbers, which outlive the call; any bytes are a number.
            let got = unsafe { libc::getrandom(self.drawn.as_mut_ptr().cast(), size_of_val(&self.drawn), 0) };
            // Once the pool is ready they come whole; before that this call waits. If it is not there at all, waits lose
            // their jitter and nothing else.
            if usize::try_from(got) != Ok(size_of_val(&self.drawn)) {
                return u64::MAX / 2;
            }
            self.left = AT_ONCE;
        }
        self.left -= 1;
        self.drawn[self.left]
    }
}

impl Dice for KernelDice {
    fn below(&mut self, bound: u64) -> u64 {
        // Multiply and shift: no wait is long enough for the bias of 2^-32 to show.
        ((u128::from(self.draw()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_number_is_below_its_bound_and_none_comes_twice() {
        let mut dice = KernelDice::default();
        let drawn: BTreeSet<u64> = (0..10 * AT_ONCE).map(|_| dice.below(u64::MAX)).collect();
        assert_eq!(drawn.len(), 10 * AT_ONCE);
        assert!((0..1_000).all(|bound| dice.below(bound) < bound.max(1)));
    }
}
