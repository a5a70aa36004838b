//! A random number generator (xoshiro256++) that never changes, so that a seed means the same in every version of every
//! crate.
#![allow(clippy::cast_precision_loss, reason = "a share of 2^53 is exact")]

use std::ops::Range;

/// The state of a generator.
#[derive(Clone, Debug)]
pub struct Rng([u64; 4]);

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// Creates the generator of a stream: the same seed gives unrelated sequences for different streams.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut state = seed ^ stream.wrapping_mul(0xd6e8_feb8_6659_fd93);
        Self([(); 4].map(|()| split_mix(&mut state)))
    }

    /// Returns the next number.
    pub fn number(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Fills a buffer.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.number().to_be_bytes()[..chunk.len()]);
        }
    }

    /// Returns a number from 0 to below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.between(0..n as u64)).unwrap_or(0)
    }

    /// Returns a number of this range.
    pub fn between(&mut self, range: Range<u64>) -> u64 {
        let width = u128::from(range.end.saturating_sub(range.start).max(1));
        range.start + u64::try_from((u128::from(self.number()) * width) >> 64).unwrap_or(0)
    }

    /// Returns a number from -`most` to `most`.
    pub fn signed(&mut self, most: u64) -> i64 {
        self.between(0..2 * most + 1).cast_signed() - most.cast_signed()
    }

    /// Returns `true` with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        const STEPS: f64 = (1_u64 << 53) as f64;
        ((self.number() >> 11) as f64) < probability * STEPS
    }

    /// Returns one of these values.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}
