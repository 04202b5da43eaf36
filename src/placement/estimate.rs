//! How much memory a model and a context need.
//!
//! ```text
//! weights    the bytes of all tensors
//! KV cache   context x layers x (K heads x K length + V heads x V length) x bytes a value
//! compute    batch x (3 x ffn + 5 x hidden + 16) x 4    what a layer holds at most, and the batch's ids and positions
//!            + batch x context x 2                      the mask of what each token may look at
//!            + batch x context x (heads + 0.5) x 4      without flash attention: every head's scores, a wider mask
//!            + rows x vocabulary x 4 x 2                the logits, computed and copied
//! ```
//!
//! For two layers of Yi-34B's width on a CPU, with 4096 tokens of context and 512 in a batch, llama.cpp takes 194 MiB
//! with flash attention and 544 MiB without; this estimates 194 and 646. What a layer holds was measured. A model of one
//! layer takes half as much, because llama.cpp drops from the last layer all rows whose logits are not wanted.

use super::Shape;
use crate::llama::{FlashAttention, KvType, KvTypes};

/// The numbers of a context that determine its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextSize {
    /// Number of tokens that it holds.
    pub n_ctx: u32,
    /// Tokens evaluated at a time.
    pub n_batch: u32,
    /// Rows of logits that one evaluation returns.
    pub n_rows: u32,
    /// How the KV cache stores its keys and values.
    pub kv_types: KvTypes,
    /// Whether attention is computed in one fused step.
    pub flash_attention: FlashAttention,
}

impl Shape {
    /// Returns the bytes that the model needs with a context of this size.
    pub fn estimate(&self, context: &ContextSize) -> Estimate {
        let n_ctx = u64::from(context.n_ctx).next_multiple_of(256);
        let batch = u64::from(context.n_batch);
        let values = |n: u64, ty: KvType| n.saturating_mul(n_ctx) / 32 * ty.bytes_of_32();
        let widest = self.n_ff.saturating_mul(3).saturating_add(self.n_embd.saturating_mul(5)).saturating_add(16);
        let attention = match context.flash_attention {
            FlashAttention::Off => self.n_heads.saturating_mul(4).saturating_add(4),
            FlashAttention::Auto | FlashAttention::On => 2,
        };
        let layer = widest.saturating_mul(4).saturating_add(n_ctx.saturating_mul(attention));
        let logits = u64::from(context.n_rows).saturating_mul(self.n_vocab).saturating_mul(8);
        Estimate {
            weights: self.weight_bytes,
            kv_cache: values(self.k_values, context.kv_types.keys)
                .saturating_add(values(self.v_values, context.kv_types.values)),
            compute: batch.saturating_mul(layer).saturating_add(logits),
        }
    }
}

impl Shape {
    /// Returns the part of `bytes` of its weights that stays in main memory if `gpu_layers` layers are on a GPU.
    pub fn share_on_host(&self, bytes: u64, gpu_layers: u64) -> u64 {
        share_on_host(bytes, gpu_layers, self.n_layers)
    }
}

/// Memory in bytes, by what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// The model's tensors.
    pub weights: u64,
    /// Keys and values of the tokens in the context.
    pub kv_cache: u64,
    /// Intermediate results.
    pub compute: u64,
}

impl Estimate {
    /// Returns the sum.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv_cache).saturating_add(self.compute)
    }

    /// Returns the part that stays in main memory if `gpu_layers` layers are on a GPU. The output layer counts as one
    /// more layer.
    pub fn on_host(&self, gpu_layers: u64, n_layers: u64) -> Self {
        let share = |bytes| share_on_host(bytes, gpu_layers, n_layers);
        Self { weights: share(self.weights), kv_cache: share(self.kv_cache), compute: self.compute }
    }
}

/// Returns what is left in main memory of `bytes` that all layers share, the output layer as one of them.
fn share_on_host(bytes: u64, gpu_layers: u64, n_layers: u64) -> u64 {
    let all = n_layers.saturating_add(1);
    (u128::from(bytes) * u128::from(all.saturating_sub(gpu_layers)) / u128::from(all)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(n_ctx: u32) -> ContextSize {
        let (kv_types, flash_attention) = (KvTypes::default(), FlashAttention::Auto);
        ContextSize { n_ctx, n_batch: 512, n_rows: 1, kv_types, flash_attention }
    }

    #[test]
    fn the_kv_cache_of_yi_34b_takes_240_kib_a_token() {
        let estimate =
            |n_ctx, kv_types: KvTypes| Shape::of_yi_34b().estimate(&ContextSize { kv_types, ..context(n_ctx) });
        assert_eq!(estimate(4096, KvType::F16.into()).kv_cache, 4096 * 240 * 1024);
        assert_eq!(estimate(4096, KvType::F32.into()).kv_cache, 4096 * 480 * 1024);
        assert_eq!(estimate(4096, KvType::Q8_0.into()).kv_cache, 4096 * 240 * 1024 * 34 / 64);
        let apart = KvTypes { keys: KvType::Q8_0, values: KvType::Q4_0 };
        assert_eq!(estimate(4096, apart).kv_cache, 4096 * 120 * 1024 * (34 + 18) / 64);
        // llama.cpp makes contexts in steps of 256.
        assert_eq!(estimate(100, KvType::F16.into()).kv_cache, 256 * 240 * 1024);
    }

    #[test]
    fn working_memory_is_not_less_than_llama_cpp_takes() {
        let compute = |flash_attention, n_ctx| {
            let context = ContextSize { flash_attention, ..context(n_ctx) };
            Shape::of_yi_34b().estimate(&context).compute as f64 / f64::from(1 << 20)
        };
        // In MiB: llama.cpp's compute and output buffers for two layers of Yi-34B's width on a CPU, in batches of 512.
        for (flash_attention, n_ctx, measured) in [
            (FlashAttention::Auto, 512, 190.52 + 0.24),
            (FlashAttention::Auto, 4096, 194.02 + 0.24),
            (FlashAttention::Auto, 16_384, 206.02 + 0.24),
            (FlashAttention::Auto, 32_768, 222.02 + 0.24),
            (FlashAttention::Off, 512, 195.01 + 0.24),
            (FlashAttention::Off, 4096, 544.01 + 0.24),
            (FlashAttention::Off, 16_384, 1912.01 + 0.24),
            (FlashAttention::Off, 32_768, 3736.01 + 0.24),
        ] {
            let estimate = compute(flash_attention, n_ctx);
            let told = format!("{flash_attention:?} {n_ctx}: {estimate} for {measured}");
            assert!(estimate >= measured && estimate < measured * 1.3, "{told}");
        }
    }

    #[test]
    fn numbers_out_of_proportion_do_not_overflow() {
        let shape = Shape {
            weight_bytes: u64::MAX,
            n_layers: u64::MAX,
            k_values: u64::MAX,
            v_values: u64::MAX,
            n_heads: u64::MAX,
            n_embd: u64::MAX,
            n_ff: u64::MAX,
            n_vocab: u64::MAX,
            n_ctx_train: Some(u32::MAX),
        };
        let context = context(u32::MAX);
        assert_eq!(shape.estimate(&context).total(), u64::MAX);
        let machine = crate::placement::Machine { total: 1, available: 1 };
        assert!(machine.check(&shape, &context, 0, 0).is_err());
    }
}
