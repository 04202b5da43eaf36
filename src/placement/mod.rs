//! How much memory a model and its context take, and how much there is.
//!
//! ```text
//! weights    the bytes of all tensors
//! KV cache   context x layers x (K heads x K length + V heads x V length) x bytes a value
//! compute    batch x (3 x ffn + 5 x hidden + 16) x 4    what a layer holds at most, and the batch's ids and positions
//!            + batch x context x 2                      the mask of what each token may look at
//!            + batch x context x (heads + 0.5) x 4      without flash attention: every head's scores, a wider mask
//!            + rows x vocabulary x 4 x 2                the logits, computed and handed out
//! ```
//!
//! For two layers of Yi-34B's width on a CPU, with 4096 tokens of context and 512 in a batch, llama.cpp takes 194 MiB
//! with flash attention and 544 MiB without; this says 194 and 646. What a layer holds was found by measuring: a single
//! layer takes half as much, because llama.cpp drops from the last layer all rows that no logits are asked of.

use crate::gguf::{Array, Gguf, Metadata, Value};
use crate::llama::{FlashAttention, KvType, NoRoom, SessionOptions};

/// The numbers of a model that its memory follows from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of all tensors.
    pub weight_bytes: u64,
    /// Layers.
    pub n_layers: u64,
    /// Values that a token leaves in the K caches of all layers.
    pub k_values: u64,
    /// Values that a token leaves in the V caches of all layers.
    pub v_values: u64,
    /// Attention heads of the layer that has most.
    pub n_heads: u64,
    /// Width of the hidden state.
    pub n_embd: u64,
    /// Width of the widest feed-forward layer.
    pub n_ff: u64,
    /// Tokens in the vocabulary.
    pub n_vocab: u64,
    /// Tokens the model was trained on at a time; `None` where the file does not say.
    pub n_ctx_train: Option<u32>,
}

impl Shape {
    /// The shape of the model in `gguf`. What the file does not say counts as 0: the estimate is for a person, and
    /// llama.cpp tells afterwards what is missing.
    pub fn of(gguf: &Gguf) -> Self {
        let metadata = gguf.metadata();
        let arch = metadata.str("general.architecture").unwrap_or("llama");
        let get = |key: &str| metadata.get(&format!("{arch}.{key}"));
        let number = |key: &str| get(key).and_then(Value::as_u64);
        // No model has more; a number from a file is not to make a loop that does not end.
        let n_layers = number("block_count").unwrap_or(0).min(10_000);
        let n_embd = number("embedding_length").unwrap_or(0);
        let of_layer = |value: Option<&Value>, layer: u64| -> Option<u64> {
            match value? {
                Value::Array(array) => element(array, usize::try_from(layer).ok()?),
                value => value.as_u64(),
            }
        };
        let (heads, kv_heads) = (get("attention.head_count"), get("attention.head_count_kv"));
        let (k_length, v_length) = (number("attention.key_length"), number("attention.value_length"));
        let feed_forward = get("feed_forward_length");
        let (mut k_values, mut v_values, mut n_ff, mut n_heads) = (0u64, 0u64, 0u64, 0u64);
        for layer in 0..n_layers {
            let heads = of_layer(heads, layer).unwrap_or(1).max(1);
            let kv_heads = of_layer(kv_heads, layer).unwrap_or(heads);
            let length = n_embd / heads;
            k_values = k_values.saturating_add(kv_heads.saturating_mul(k_length.unwrap_or(length)));
            v_values = v_values.saturating_add(kv_heads.saturating_mul(v_length.unwrap_or(length)));
            n_heads = n_heads.max(heads);
            n_ff = n_ff.max(of_layer(feed_forward, layer).unwrap_or(0));
        }
        let weight_bytes =
            gguf.tensors().iter().map(|tensor| tensor.n_bytes().unwrap_or(0)).fold(0u64, u64::saturating_add);
        Self {
            weight_bytes,
            n_layers,
            k_values,
            v_values,
            n_heads,
            n_embd,
            n_ff,
            n_vocab: n_vocab(metadata, arch),
            n_ctx_train: number("context_length").and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0),
        }
    }

    /// Bytes that a token leaves in the KV cache.
    pub fn kv_bytes_a_token(&self, kv_type: KvType) -> u64 {
        self.k_values.saturating_add(self.v_values).saturating_mul(kv_type.bytes_of_32()) / 32
    }

    /// What a session with these options needs, in bytes.
    pub fn estimate(&self, options: &SessionOptions) -> Estimate {
        let n_ctx = u64::from(options.n_ctx_for(self.n_ctx_train)).next_multiple_of(256);
        let batch = u64::from(options.n_batch);
        let values = |n: u64, ty: KvType| n.saturating_mul(n_ctx) / 32 * ty.bytes_of_32();
        let widest = self.n_ff.saturating_mul(3).saturating_add(self.n_embd.saturating_mul(5)).saturating_add(16);
        let attention = match options.flash_attention {
            FlashAttention::Off => self.n_heads.saturating_mul(4).saturating_add(4),
            FlashAttention::Auto | FlashAttention::On => 2,
        };
        let layer = widest.saturating_mul(4).saturating_add(n_ctx.saturating_mul(attention));
        let logits = u64::from(options.rows).saturating_mul(self.n_vocab).saturating_mul(8);
        Estimate {
            weights: self.weight_bytes,
            kv_cache: values(self.k_values, options.kv_type).saturating_add(values(self.v_values, options.kv_type)),
            compute: batch.saturating_mul(layer).saturating_add(logits),
        }
    }
}

fn n_vocab(metadata: &Metadata, arch: &str) -> u64 {
    let listed = match metadata.get("tokenizer.ggml.tokens").and_then(Value::as_array) {
        Some(Array::String(tokens)) => Some(tokens.len() as u64),
        _ => None,
    };
    listed.or_else(|| metadata.u64(&format!("{arch}.vocab_size"))).unwrap_or(0)
}

/// An element of an array of integers.
fn element(array: &Array, i: usize) -> Option<u64> {
    match array {
        Array::U32(v) => v.get(i).map(|n| u64::from(*n)),
        Array::I32(v) => v.get(i).and_then(|n| u64::try_from(*n).ok()),
        Array::U64(v) => v.get(i).copied(),
        Array::I64(v) => v.get(i).and_then(|n| u64::try_from(*n).ok()),
        Array::U16(v) => v.get(i).map(|n| u64::from(*n)),
        Array::U8(v) => v.get(i).map(|n| u64::from(*n)),
        _ => None,
    }
}

/// Memory in bytes, by what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// The model's tensors.
    pub weights: u64,
    /// What the model remembers of the tokens in its context.
    pub kv_cache: u64,
    /// Intermediate results.
    pub compute: u64,
}

impl Estimate {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv_cache).saturating_add(self.compute)
    }

    /// What stays in main memory when `gpu_layers` of `n_layers`, counting the output layer as one, lie on a GPU.
    pub(super) fn on_host(&self, gpu_layers: u64, n_layers: u64) -> Self {
        let all = n_layers.saturating_add(1);
        let here = all.saturating_sub(gpu_layers);
        let share = |bytes: u64| (u128::from(bytes) * u128::from(here) / u128::from(all)) as u64;
        Self { weights: share(self.weights), kv_cache: share(self.kv_cache), compute: self.compute }
    }
}

/// The memory of a machine, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// What there is, or what this process is allowed.
    pub total: u64,
    /// What is free, or held by caches that give it back.
    pub available: u64,
}

impl Machine {
    /// This machine; `None` where the system does not tell.
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

    /// Whether a model of this shape runs here without reading its weights from disk for every token, beside what takes
    /// `beside` bytes already.
    ///
    /// # Errors
    /// Where it does not, with what is needed.
    pub fn check(&self, shape: &Shape, options: &SessionOptions, gpu_layers: u64, beside: u64) -> Result<(), NoRoom> {
        let needs = |options: &SessionOptions| shape.estimate(options).on_host(gpu_layers, shape.n_layers);
        let wanted = needs(options);
        let room = self.total.saturating_sub(beside);
        if wanted.total() <= room {
            return Ok(());
        }
        let n_ctx = options.n_ctx_for(shape.n_ctx_train);
        let fits = (9..32).rev().map(|power| 1u32 << power).find(|&smaller| {
            let options = SessionOptions { n_ctx: Some(smaller), ..options.clone() };
            smaller < n_ctx && needs(&options).total() <= room
        });
        Err(NoRoom { needs: wanted, has: self.total, beside, n_ctx, fits })
    }
}

#[cfg(test)]
impl Shape {
    /// Yi-34B at Q4_K_M.
    pub(crate) fn of_yi_34b() -> Self {
        Self {
            weight_bytes: 20_658_000_000,
            n_layers: 60,
            k_values: 60 * 8 * 128,
            v_values: 60 * 8 * 128,
            n_heads: 56,
            n_embd: 7168,
            n_ff: 20_480,
            n_vocab: 64_000,
            n_ctx_train: Some(4096),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kv_cache_of_yi_34b_takes_240_kib_a_token() {
        let estimate = |n_ctx, kv_type| {
            Shape::of_yi_34b().estimate(&SessionOptions { n_ctx: Some(n_ctx), kv_type, ..SessionOptions::default() })
        };
        assert_eq!(estimate(4096, KvType::F16).kv_cache, 4096 * 240 * 1024);
        assert_eq!(estimate(4096, KvType::F32).kv_cache, 4096 * 480 * 1024);
        assert_eq!(estimate(4096, KvType::Q8_0).kv_cache, 4096 * 240 * 1024 * 34 / 64);
        // llama.cpp makes contexts in steps of 256.
        assert_eq!(estimate(100, KvType::F16).kv_cache, 256 * 240 * 1024);
    }

    #[test]
    fn working_memory_is_not_less_than_llama_cpp_takes() {
        let compute = |flash_attention, n_ctx| {
            let options = SessionOptions { n_ctx: Some(n_ctx), flash_attention, ..SessionOptions::default() };
            Shape::of_yi_34b().estimate(&options).compute as f64 / f64::from(1 << 20)
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
    fn a_model_larger_than_the_machine_is_refused_with_what_would_fit() {
        let machine = |gb: u64| Machine { total: gb * 1_000_000_000, available: 0 };
        let options = SessionOptions { n_ctx: Some(32_768), ..SessionOptions::default() };
        assert!(machine(32).check(&Shape::of_yi_34b(), &options, 0, 0).is_ok());
        let refused = machine(24).check(&Shape::of_yi_34b(), &options, 0, 0).unwrap_err();
        assert_eq!(refused.fits, Some(8192));
        let text = refused.to_string();
        assert!(text.contains("needs about 28.9 GB (weights 20.7, KV cache 8.1 for 32768 tokens"), "{text}");
        assert!(text.contains("this machine has 24.0 GB. Try --ctx 8192"), "{text}");
        let refused = machine(16).check(&Shape::of_yi_34b(), &options, 0, 0).unwrap_err();
        assert_eq!(refused.fits, None);
        assert!(refused.to_string().contains("Try a smaller quantization"), "{refused}");
    }

    #[test]
    fn a_second_model_has_what_the_first_one_leaves() {
        let machine = Machine { total: 32_000_000_000, available: 0 };
        let options = SessionOptions::default();
        assert!(machine.check(&Shape::of_yi_34b(), &options, 0, 8_000_000_000).is_ok());
        let refused = machine.check(&Shape::of_yi_34b(), &options, 0, 16_000_000_000).unwrap_err().to_string();
        assert!(refused.contains("this machine has 32.0 GB, of which the other model takes 16.0"), "{refused}");
    }

    #[test]
    fn layers_on_a_gpu_are_not_counted() {
        let machine = Machine { total: 8_000_000_000, available: 0 };
        let options = SessionOptions::default();
        assert!(machine.check(&Shape::of_yi_34b(), &options, 0, 0).is_err());
        assert!(machine.check(&Shape::of_yi_34b(), &options, 30, 0).is_err());
        assert!(machine.check(&Shape::of_yi_34b(), &options, 45, 0).is_ok());
        assert!(machine.check(&Shape::of_yi_34b(), &options, u64::MAX, 0).is_ok());
    }

    #[test]
    fn numbers_without_measure_do_not_overflow() {
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
        let options = SessionOptions { n_ctx: Some(u32::MAX), ..SessionOptions::default() };
        assert_eq!(shape.estimate(&options).total(), u64::MAX);
        assert!(Machine { total: 1, available: 1 }.check(&shape, &options, 0, 0).is_err());
    }

    #[test]
    fn this_machine_has_memory() {
        let machine = Machine::this().expect("the system says how much memory there is");
        assert!(machine.total > 100_000_000 && machine.available <= machine.total, "{machine:?}");
    }
}
