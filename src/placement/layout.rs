//! Whether the second layout of a model's weights is faster, and whether there is room for it.

use super::Machine;
use crate::llama::LayoutTimes;

/// Whether to use llama.cpp's second layout for CPUs, whose memory the system cannot take back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repack {
    /// Where it is faster, and there is room for it.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never: weights are used as they are in the mapped file.
    Off,
}

/// How many times as fast a model's weights are multiplied in the second layout as they are from the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayoutGain {
    /// While a prompt is read.
    pub reading: f64,
    /// While tokens are written.
    pub writing: f64,
}

impl LayoutGain {
    /// The least gain for which weights are copied. Below it, measurements are not certain enough, and loading takes longer
    /// than most answers can win back.
    pub const LEAST: f64 = 1.1;

    /// Returns the gain of a model with so many bytes of each type; `None` if there are none.
    pub fn of(types: &[(u64, LayoutTimes)]) -> Option<Self> {
        let sum = |time: fn(&LayoutTimes) -> f64| -> f64 {
            types.iter().map(|(bytes, times)| *bytes as f64 * time(times)).sum()
        };
        let reading = sum(|times| times.from_file.reading) / sum(|times| times.copied.reading);
        let writing = sum(|times| times.from_file.writing) / sum(|times| times.copied.writing);
        let known = |gain: f64| gain.is_finite() && gain > 0.0;
        (known(reading) && known(writing)).then_some(Self { reading, writing })
    }

    /// Returns one number for both: reading and writing take about as long where prompts are long and answers short.
    pub fn overall(&self) -> f64 {
        (self.reading * self.writing).sqrt()
    }

    /// Returns whether it is worth the copies.
    pub fn pays(&self) -> bool {
        self.overall() >= Self::LEAST
    }
}

/// How a model's weights are laid out in memory, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayoutChoice {
    /// Bytes of weights for which this CPU has a second layout.
    pub repacked: u64,
    /// What it gains; `None` if that is not known.
    pub gain: Option<LayoutGain>,
    /// Whether it is used.
    pub used: bool,
    /// Bytes that the model and its context take.
    pub needs: u64,
    /// Bytes of memory that other programs do not need; `None` if the system does not say.
    pub available: Option<u64>,
}

impl LayoutChoice {
    /// Bytes of memory that the second layout leaves to other programs, which may need them later.
    pub const RESERVE: u64 = 1 << 30;

    /// Chooses for a model and a context that take `needs` bytes of main memory, `repacked` of which have a second
    /// layout, in addition to models that take `beside` bytes.
    pub fn new(
        wish: Repack,
        repacked: u64,
        gain: Option<LayoutGain>,
        needs: u64,
        machine: Option<&Machine>,
        beside: u64,
    ) -> Self {
        // Some of what other models take is taken already, and some will be read from their files. The system does not say
        // how much.
        let available = machine.map(|machine| machine.available.min(machine.total.saturating_sub(beside)));
        let fits = available.is_none_or(|available| needs.saturating_add(Self::RESERVE) <= available);
        let used = repacked > 0
            && match wish {
                Repack::Auto => fits && gain.is_none_or(|gain| gain.pays()),
                Repack::On => true,
                Repack::Off => false,
            };
        Self { repacked, gain, used, needs, available }
    }

    /// Returns whether a second layout that pays is not used because there is no room for it.
    pub fn lacks_room(&self) -> bool {
        !self.used && self.repacked > 0 && self.gain.is_none_or(|gain| gain.pays()) && self.available.is_some()
    }

    /// Returns whether the file has no room in the system's cache beside the copies.
    pub fn crowds_out_the_file(&self) -> bool {
        self.used && self.available.is_some_and(|available| self.needs.saturating_add(self.repacked) > available)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::WeightTime;

    const GB: u64 = 1_000_000_000;

    fn choice(wish: Repack, gb: u64, beside: u64) -> LayoutChoice {
        let machine = Machine { total: 64 * GB, available: gb * GB };
        LayoutChoice::new(wish, 16 * GB, None, 22 * GB, Some(&machine), beside * GB)
    }

    fn times(from_file: (f64, f64), copied: (f64, f64)) -> LayoutTimes {
        let time = |(reading, writing)| WeightTime { reading, writing };
        LayoutTimes { from_file: time(from_file), copied: time(copied) }
    }

    #[test]
    fn the_gain_of_a_model_is_that_of_all_its_bytes() {
        // Three quarters of the bytes take half the time, and one quarter takes twice the time.
        let gain = LayoutGain::of(&[(3, times((8.0, 2.0), (4.0, 1.0))), (1, times((8.0, 2.0), (16.0, 4.0)))]).unwrap();
        assert_eq!((gain.reading, gain.writing), (32.0 / 28.0, 8.0 / 7.0));
        assert!((gain.overall() - 8.0 / 7.0).abs() < 1e-12 && gain.pays());
        // What is won in reading is lost in writing.
        let even = LayoutGain::of(&[(1, times((2.0, 1.0), (1.0, 2.0)))]).unwrap();
        assert_eq!((even.reading, even.writing, even.overall(), even.pays()), (2.0, 0.5, 1.0, false));
        assert_eq!(LayoutGain::of(&[]), None);
        // A file of measurements may hold any numbers.
        assert_eq!(LayoutGain::of(&[(1, times((1.0, 1.0), (0.0, 1.0)))]), None);
        assert_eq!(LayoutGain::of(&[(1, times((f64::NAN, 1.0), (1.0, 1.0)))]), None);
        assert_eq!(LayoutGain::of(&[(1, times((-1.0, 1.0), (1.0, 1.0)))]), None);
    }

    #[test]
    fn a_layout_that_is_not_faster_is_used_only_where_asked_for() {
        let machine = Machine { total: 64 * GB, available: 64 * GB };
        let choice = |wish, factor: f64, available| {
            let gain = LayoutGain { reading: factor, writing: factor };
            LayoutChoice::new(wish, 16 * GB, Some(gain), 22 * GB, Some(&Machine { available, ..machine }), 0)
        };
        assert!(choice(Repack::Auto, 1.2, 64 * GB).used);
        assert!(!choice(Repack::Auto, 1.05, 64 * GB).used && !choice(Repack::Auto, 1.05, 64 * GB).lacks_room());
        assert!(choice(Repack::On, 0.5, 64 * GB).used);
        assert!(!choice(Repack::Off, 2.0, 64 * GB).used);
        // Only where it would have paid does the lack of room matter.
        assert!(choice(Repack::Auto, 1.2, 22 * GB).lacks_room());
        assert!(!choice(Repack::Auto, 1.05, 22 * GB).lacks_room());
    }

    #[test]
    fn the_second_layout_is_used_where_there_is_room() {
        assert!(choice(Repack::Auto, 24, 0).used);
        // Not a byte would be left to a browser.
        assert!(!choice(Repack::Auto, 22, 0).used);
        assert!(!choice(Repack::Auto, 64, 42).used);
        assert!(choice(Repack::On, 8, 0).used);
        assert!(!choice(Repack::Off, 64, 0).used);
        // Where the system says nothing, as llama.cpp does.
        assert!(LayoutChoice::new(Repack::Auto, GB, None, GB, None, 0).used);
        // There is none of a model in 16 bits.
        assert!(!LayoutChoice::new(Repack::On, 0, None, GB, None, 0).used);
    }

    #[test]
    fn the_file_stays_cached_where_there_is_room_for_both() {
        assert!(choice(Repack::Auto, 24, 0).crowds_out_the_file());
        assert!(!choice(Repack::Auto, 40, 0).crowds_out_the_file());
        assert!(!choice(Repack::Off, 8, 0).crowds_out_the_file());
    }
}
