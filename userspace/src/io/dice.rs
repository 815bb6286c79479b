//! The kernel's random numbers, for the engine's waits.

use arpwarden_engine::Dice;

/// Draws from getrandom(2).
#[derive(Debug, Default)]
pub struct KernelDice;

impl Dice for KernelDice {
    fn below(&mut self, bound: u64) -> u64 {
        let mut bytes = [0_u8; 8];
        // SAFETY: the pointer and the length describe `bytes`, which outlives the call.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        // getrandom(2): up to 256 bytes come whole once the pool is ready; before that this call waits. If it is
        // not there at all, waits lose their jitter and nothing else.
        let drawn = if got == 8 { u64::from_ne_bytes(bytes) } else { u64::MAX / 2 };
        // Multiply and shift: no wait is long enough for the bias of 2^-32 to show.
        ((u128::from(drawn) * u128::from(bound)) >> 64) as u64
    }
}
