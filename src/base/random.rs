//! Random numbers that are the same for the same seed on every machine.

use std::hash::{BuildHasher, Hasher};

/// xoshiro256++ by Blackman and Vigna, seeded by SplitMix64 as its authors advise.
///
/// Source: <https://prng.di.unimi.it/xoshiro256plusplus.c>, <https://prng.di.unimi.it/splitmix64.c>
#[derive(Clone, Debug)]
pub struct Random {
    state: [u64; 4],
}

impl Random {
    /// Returns the generator for `seed`.
    pub fn new(seed: u64) -> Self {
        let mut split_mix = seed;
        Self { state: std::array::from_fn(|_| next_split_mix(&mut split_mix)) }
    }

    /// Returns the next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// Returns the next number from 0 up to, but not including, 1, in steps of 2^-53.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

fn next_split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Returns a random seed. It is below 2^32, so that a person can type it again.
pub(crate) fn new_seed() -> u64 {
    // The standard library keys every `RandomState` from the system's randomness.
    let bits = std::collections::hash_map::RandomState::new().build_hasher().finish();
    bits & u64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_mix_gives_the_published_numbers() {
        let mut state = 1_234_567;
        let first: Vec<u64> = (0..5).map(|_| next_split_mix(&mut state)).collect();
        let published = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!(first, published);
    }

    #[test]
    fn xoshiro_gives_the_published_numbers() {
        let mut random = Random { state: [1, 2, 3, 4] };
        let first: Vec<u64> = (0..6).map(|_| random.next_u64()).collect();
        let published = [
            41_943_041,
            58_720_359,
            3_588_806_011_781_223,
            3_591_011_842_654_386,
            9_228_616_714_210_784_205,
            9_973_669_472_204_895_162,
        ];
        assert_eq!(first, published);
    }

    #[test]
    fn units_stay_below_one_and_fill_the_range() {
        let mut random = Random::new(7);
        let (mut low, mut high, mut sum) = (1.0f64, 0.0f64, 0.0);
        for _ in 0..100_000 {
            let u = random.unit();
            assert!((0.0..1.0).contains(&u));
            (low, high, sum) = (low.min(u), high.max(u), sum + u);
        }
        assert!(low < 1e-3 && high > 0.999 && (sum / 100_000.0 - 0.5).abs() < 0.01);
    }

    #[test]
    fn picked_seeds_can_be_typed_and_differ() {
        let (a, b, c) = (new_seed(), new_seed(), new_seed());
        assert!(a <= u64::from(u32::MAX));
        assert!(a != b || b != c);
    }
}
