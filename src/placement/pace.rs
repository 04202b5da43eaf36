//! How fast a model will be, from what parts of it took.

use serde::{Deserialize, Serialize};

use super::{Demand, Placement};
use crate::llama::AttentionTime;

/// How long the parts of a model take on this machine, in seconds, in a context with so many tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// Tokens before those that were written, in the mean.
    pub written_at: f64,
    /// What is in no layer, while one token is written.
    pub fixed_writing: f64,
    /// A layer, while one token is written.
    pub layer_writing: f64,
    /// Tokens of the prompt that was read.
    pub read_at: f64,
    /// What is done once a prompt: the logits of its last token.
    pub once: f64,
    /// What is in no layer, or not in all, for each token of a prompt.
    pub fixed_reading: f64,
    /// A layer, for each token of a prompt.
    pub layer_reading: f64,
    /// What attention took of that.
    pub attention: AttentionTime,
}

impl Pace {
    /// No token takes less than this part of what was measured, however few others it looks at: attention and all else were
    /// measured apart, each with an error.
    const LEAST: f64 = 0.25;

    /// Returns the tokens a second that a model of `n_layers` layers writes after `depth` others.
    pub fn writing(&self, n_layers: u32, depth: f64, attention: AttentionTime) -> f64 {
        let n_layers = f64::from(n_layers);
        let measured = self.fixed_writing + n_layers * self.layer_writing;
        let more = n_layers * (attention.writing * depth - self.attention.writing * self.written_at);
        1.0 / (measured + more).max(measured * Self::LEAST)
    }

    /// Returns the tokens a second at which a prompt of `n_tokens` is read into an empty context. A token looks at those before
    /// it: half of them in the mean.
    pub fn reading(&self, n_layers: u32, n_tokens: f64, attention: AttentionTime) -> f64 {
        let n_layers = f64::from(n_layers);
        let measured = self.fixed_reading + n_layers * self.layer_reading;
        let more = n_layers * (attention.reading * n_tokens - self.attention.reading * self.read_at) / 2.0;
        n_tokens / (self.once + n_tokens * (measured + more).max(measured * Self::LEAST))
    }
}

/// Returns the most tokens a second that can be written into a context of which the part `fill` is full, where main memory is
/// read with `bandwidth` bytes a second, and devices take no time: each token reads all weights, and the keys and values of the
/// others.
pub fn most_writing(demand: &Demand, placed: &Placement, fill: f64, bandwidth: f64) -> f64 {
    let n_layers = demand.parts.layers.len();
    let on_host = (n_layers + 1).saturating_sub(placed.n_on_devices as usize);
    let kv: u64 = demand.kv.iter().take(on_host).sum();
    let weights: u64 = demand.parts.layers.iter().take(on_host).sum();
    let output = match on_host > n_layers {
        // The embedding is read whole where it is the output.
        true => demand.parts.output,
        false => 0,
    };
    bandwidth / ((weights + output) as f64 + kv as f64 * fill).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::{Parts, Room, place};

    const PACE: Pace = Pace {
        written_at: 100.0,
        fixed_writing: 0.01,
        layer_writing: 0.002,
        read_at: 200.0,
        once: 0.05,
        fixed_reading: 0.0001,
        layer_reading: 0.0005,
        attention: AttentionTime { reading: 1e-6, writing: 2e-6 },
    };

    #[test]
    fn a_model_is_as_fast_as_its_parts_together() {
        let attention = PACE.attention;
        // 10 ms, and 20 layers of 2 ms and 1,000 tokens more at 2 us.
        assert!((PACE.writing(20, 1100.0, attention) - 1.0 / (0.01 + 20.0 * 0.004)).abs() < 1e-9);
        // 50 ms, and 1,000 tokens of 0.1 ms and 20 layers of 0.5 ms and 400 tokens more at 1 us.
        let seconds = 0.05 + 1000.0 * (0.0001 + 20.0 * 0.0009);
        assert!((PACE.reading(20, 1000.0, attention) - 1000.0 / seconds).abs() < 1e-9);
        // 50 ms, of which attention takes 4; half of that in another type.
        let faster = AttentionTime { reading: 0.5e-6, writing: 1e-6 };
        assert!((PACE.writing(20, 100.0, faster) - 1.0 / (0.05 - 0.002)).abs() < 1e-9);
        // Attention that takes longer than all.
        let pace = Pace { attention: AttentionTime { reading: 1e-3, writing: 2e-3 }, ..PACE };
        assert!((pace.writing(20, 0.0, attention) - 1.0 / (0.25 * 0.05)).abs() < 1e-9);
        assert!((pace.reading(20, 10.0, attention) - 10.0 / (0.05 + 10.0 * 0.25 * 0.0101)).abs() < 1e-9);
    }

    #[test]
    fn memory_sets_a_limit_to_what_is_in_it() {
        let parts = Parts { input: 500, layers: vec![100; 8], output: 200, is_tied: false };
        let demand = Demand { parts, kv: vec![50; 8], compute: 0, program: 0 };
        let placed = |devices: Vec<u64>| place(&demand, &Room::new(10_000, &devices)).unwrap();
        let most = |devices, fill| most_writing(&demand, &placed(devices), fill, 1000.0);
        // The embedding is looked up.
        assert_eq!(most(vec![], 0.0), 1000.0 / 1000.0);
        assert_eq!(most(vec![], 0.5), 1000.0 / 1200.0);
        // The output and four layers of 150 are elsewhere.
        assert_eq!(most(vec![850], 1.0), 1000.0 / 600.0);
    }
}
