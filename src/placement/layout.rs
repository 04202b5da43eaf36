//! Whether there is room for the second layout of a model's weights.

use super::Machine;

/// Whether to use llama.cpp's second layout for CPUs, whose memory the system cannot take back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repack {
    /// Where there is room for it.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never: weights are used as they are in the mapped file.
    Off,
}

/// How a model's weights are laid out in memory, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayoutChoice {
    /// Bytes of weights for which this CPU has a second layout.
    pub repacked: u64,
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
    pub fn new(wish: Repack, repacked: u64, needs: u64, machine: Option<&Machine>, beside: u64) -> Self {
        // Some of what other models take is taken already, and some will be read from their files. The system does not say
        // how much.
        let available = machine.map(|machine| machine.available.min(machine.total.saturating_sub(beside)));
        let fits = available.is_none_or(|available| needs.saturating_add(Self::RESERVE) <= available);
        let used = repacked > 0
            && match wish {
                Repack::Auto => fits,
                Repack::On => true,
                Repack::Off => false,
            };
        Self { repacked, used, needs, available }
    }

    /// Returns whether the file has no room in the system's cache beside the copies.
    pub fn crowds_out_the_file(&self) -> bool {
        self.used && self.available.is_some_and(|available| self.needs.saturating_add(self.repacked) > available)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    fn choice(wish: Repack, gb: u64, beside: u64) -> LayoutChoice {
        let machine = Machine { total: 64 * GB, available: gb * GB };
        LayoutChoice::new(wish, 16 * GB, 22 * GB, Some(&machine), beside * GB)
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
        assert!(LayoutChoice::new(Repack::Auto, GB, GB, None, 0).used);
        // There is none of a model in 16 bits.
        assert!(!LayoutChoice::new(Repack::On, 0, GB, None, 0).used);
    }

    #[test]
    fn the_file_stays_cached_where_there_is_room_for_both() {
        assert!(choice(Repack::Auto, 24, 0).crowds_out_the_file());
        assert!(!choice(Repack::Auto, 40, 0).crowds_out_the_file());
        assert!(!choice(Repack::Off, 8, 0).crowds_out_the_file());
    }
}
