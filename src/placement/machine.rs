//! The memory of this machine, and whether a model fits in it.

use std::fmt;

use super::{ContextSize, Estimate, Shape};

/// The memory of a machine, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// All memory, or what this process is allowed to use.
    pub total: u64,
    /// Memory that is free, or held by caches that can be dropped.
    pub available: u64,
}

impl Machine {
    /// Returns the memory of this machine; `None` if the system does not say.
    pub fn this() -> Option<Self> {
        let mut system = sysinfo::System::new().ok()?;
        system.refresh_memory();
        let mut machine = Self { total: system.total_memory(), available: system.available_memory() };
        // In a container the machine's memory is not ours to use.
        if let Some(limits) = system.cgroup_limits() {
            if limits.total_memory > 0 {
                machine.total = machine.total.min(limits.total_memory);
            }
            machine.available = machine.available.min(limits.free_memory);
        }
        (machine.total > 0).then_some(machine)
    }

    /// Checks that a model of this shape, with a context of this size, runs here without reading its weights from disk
    /// for every token. Other models already take `beside` bytes.
    ///
    /// # Errors
    /// If it does not fit. The error says what it needs, and what would fit.
    pub fn check(&self, shape: &Shape, context: &ContextSize, gpu_layers: u64, beside: u64) -> Result<(), NoRoom> {
        let needs = |context: &ContextSize| shape.estimate(context).on_host(gpu_layers, shape.n_layers);
        let wanted = needs(context);
        let room = self.total.saturating_sub(beside);
        if wanted.total() <= room {
            return Ok(());
        }
        let n_ctx = context.n_ctx;
        let fits = (9..32)
            .rev()
            .map(|power| 1u32 << power)
            .find(|&smaller| smaller < n_ctx && needs(&ContextSize { n_ctx: smaller, ..*context }).total() <= room);
        Err(NoRoom { needs: wanted, has: self.total, beside, n_ctx, fits })
    }
}

impl Machine {
    /// Bytes that the system and small programs need, whatever else runs.
    pub const RESERVE: u64 = 2 << 30;

    /// Returns what is there for a model if all large programs are closed.
    pub fn at_best(&self) -> u64 {
        self.total.saturating_sub(Self::RESERVE).max(self.available)
    }
}

/// Returns the bytes of main memory that this process takes now; `None` if the system does not say.
pub fn program_bytes() -> Option<u64> {
    use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};
    let process = sysinfo::get_current_pid().ok()?;
    let mut system = System::new().ok()?;
    let kind = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[process]), true, kind);
    system.process(process).map(sysinfo::Process::memory).filter(|bytes| *bytes > 0)
}

/// A model that does not fit in memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct NoRoom {
    /// What the model and its context need.
    pub needs: Estimate,
    /// Memory of the machine, in bytes.
    pub has: u64,
    /// Bytes that another model takes of it already.
    pub beside: u64,
    /// Tokens of context that the estimate is for.
    pub n_ctx: u32,
    /// The largest context that fits, as a power of two of at least 512 tokens; `None` if there is none.
    pub fits: Option<u32>,
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gb = |bytes: u64| format!("{:.1}", bytes as f64 / 1e9);
        let Estimate { weights, kv_cache, compute } = self.needs;
        write!(
            f,
            "the model needs about {} GB (weights {}, KV cache {} for {} tokens, working memory {}); this machine has \
             {} GB",
            gb(self.needs.total()),
            gb(weights),
            gb(kv_cache),
            self.n_ctx,
            gb(compute),
            gb(self.has),
        )?;
        if self.beside > 0 {
            write!(f, ", of which the other model takes {}", gb(self.beside))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::{FlashAttention, KvTypes};

    fn context(n_ctx: u32) -> ContextSize {
        let (kv_types, flash_attention) = (KvTypes::default(), FlashAttention::Auto);
        ContextSize { n_ctx, n_batch: 512, n_rows: 1, kv_types, flash_attention }
    }

    #[test]
    fn a_model_larger_than_the_machine_is_refused_with_what_would_fit() {
        let machine = |gb: u64| Machine { total: gb * 1_000_000_000, available: 0 };
        let context = context(32_768);
        assert!(machine(32).check(&Shape::of_yi_34b(), &context, 0, 0).is_ok());
        let refused = machine(24).check(&Shape::of_yi_34b(), &context, 0, 0).unwrap_err();
        assert_eq!(refused.fits, Some(8192));
        let text = refused.to_string();
        assert!(text.contains("needs about 28.9 GB (weights 20.7, KV cache 8.1 for 32768 tokens"), "{text}");
        assert!(text.ends_with("this machine has 24.0 GB"), "{text}");
        let refused = machine(16).check(&Shape::of_yi_34b(), &context, 0, 0).unwrap_err();
        assert_eq!(refused.fits, None);
    }

    #[test]
    fn a_second_model_has_what_the_first_one_leaves() {
        let machine = Machine { total: 32_000_000_000, available: 0 };
        assert!(machine.check(&Shape::of_yi_34b(), &context(4096), 0, 8_000_000_000).is_ok());
        let refused = machine.check(&Shape::of_yi_34b(), &context(4096), 0, 16_000_000_000).unwrap_err().to_string();
        assert!(refused.ends_with("this machine has 32.0 GB, of which the other model takes 16.0"), "{refused}");
    }

    #[test]
    fn layers_on_a_gpu_are_not_counted() {
        let machine = Machine { total: 8_000_000_000, available: 0 };
        let fits = |gpu_layers| machine.check(&Shape::of_yi_34b(), &context(4096), gpu_layers, 0).is_ok();
        assert!(!fits(0) && !fits(30));
        assert!(fits(45) && fits(u64::MAX));
    }

    #[test]
    fn this_machine_has_memory() {
        let machine = Machine::this().expect("the system says how much memory there is");
        assert!(machine.total > 100_000_000 && machine.available <= machine.total, "{machine:?}");
        assert!(machine.at_best() >= machine.available && machine.at_best() <= machine.total, "{machine:?}");
        let before = program_bytes().expect("the system says how much memory a process takes");
        let more = std::hint::black_box(vec![1u8; 64 << 20]);
        let after = program_bytes().unwrap();
        // Other tests give some back meanwhile.
        assert!(before > 1 << 20 && after + (32 << 20) > before + more.len() as u64, "{before} {after}");
    }
}
