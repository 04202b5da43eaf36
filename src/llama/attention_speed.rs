//! How long attention takes for each token that is looked at.
//!
//! It is what makes the tokens of a long text slower than those of a short one. The memory of several layers is looked at in
//! turn, as a model does: that of one may be in a cache.

use llama_cpp_sys_2 as sys;
use serde::{Deserialize, Serialize};

use super::kernels::{Computer, Graph, Tensors, median};
use super::{Error, KvType, KvTypes, backend};

/// The attention heads of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Heads that look.
    pub n: u64,
    /// Heads of keys and values; each serves `n / n_kv` of the others.
    pub n_kv: u64,
    /// Numbers of a key.
    pub key: u64,
    /// Numbers of a value.
    pub value: u64,
}

impl Heads {
    /// Returns the numbers that a token takes in the layer's K cache.
    pub fn k_values(&self) -> u64 {
        self.n_kv.saturating_mul(self.key)
    }

    /// Returns the numbers that a token takes in the layer's V cache.
    pub fn v_values(&self) -> u64 {
        self.n_kv.saturating_mul(self.value)
    }
}

impl KvTypes {
    /// Returns whether a KV cache of these types can hold such heads: their numbers are whole blocks.
    pub fn fit(self, heads: &Heads) -> bool {
        let fits = |ty: KvType, length: u64| length > 0 && (!ty.is_quantized() || length.is_multiple_of(32));
        fits(self.keys, heads.key) && fits(self.values, heads.value)
    }
}

/// Seconds of one layer's attention, for each token that is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AttentionTime {
    /// By each of many tokens that are read together.
    pub reading: f64,
    /// By one token that is written.
    pub writing: f64,
}

/// Tokens in the cache while one is written: what the larger number takes more is what is measured.
const WRITING: [u64; 2] = [512, 2048];

/// Tokens that are read together, and tokens in the cache with them. They are the last of these, and each looks at those before it.
const READ: u64 = 256;
const READING: [u64; 2] = [256, 1280];

/// Bytes of keys and values of all layers together that are looked at: more than most caches hold.
const BYTES: u64 = 64 << 20;

/// The most layers, however small they are.
const MOST_LAYERS: u64 = 32;

/// Measures attention in a model of `n_layers` layers that have such heads, with `threads` threads, in one fused step. Takes
/// some seconds for Yi-34B on two cores, and at most about 100 MB. Returns `None` if heads of this size cannot have such a KV
/// cache, or there is no memory.
///
/// # Errors
/// [`Error::Backend`] if llama.cpp cannot be started.
pub fn attention_time(
    heads: Heads,
    n_layers: u64,
    kv_types: KvTypes,
    threads: u32,
) -> Result<Option<AttentionTime>, Error> {
    backend::get()?;
    let is_small = [heads.n, heads.key, heads.value].iter().all(|n| (1..=4096).contains(n));
    let divides = heads.n_kv > 0 && heads.n.is_multiple_of(heads.n_kv);
    if !is_small || !divides || !kv_types.fit(&heads) {
        return Ok(None);
    }
    let values = heads.n_kv * (heads.key + heads.value);
    let layers = (BYTES / (values * 2 * WRITING[1]).max(1)).clamp(1, MOST_LAYERS.min(n_layers.max(1)));
    let measured = || {
        let computer = Computer::of_cpu(threads)?;
        // Seconds for each token that one token looks at in one layer.
        let slope = |n_tokens: u64, cached: [u64; 2], layers: u64| {
            let [few, many] = cached.map(|n_cached| attention(heads, kv_types, n_tokens, n_cached, layers));
            let [few, many] = median(&computer, [&few?, &many?])?;
            // Noise can make the shorter one the slower.
            Some((many - few).max(0.0) / ((cached[1] - cached[0]) * n_tokens * layers) as f64)
        };
        Some(AttentionTime { writing: slope(1, WRITING, layers)?, reading: slope(READ, READING, 1)? })
    };
    Ok(measured())
}

/// Describes attention by the last `n_tokens` of `n_cached` tokens, in `layers` layers one after the other.
fn attention(heads: Heads, kv_types: KvTypes, n_tokens: u64, n_cached: u64, layers: u64) -> Option<Graph> {
    let size = |n: u64| i64::try_from(n).ok();
    // Queries, the mask, and for each layer keys, values, three views and what comes out.
    let mut tensors = Tensors::new(2 + 6 * usize::try_from(layers).ok()?)?;
    let context = tensors.as_ptr();
    let (rows, cached) = (size(n_tokens)?, size(n_cached)?);
    let (n_heads, n_kv_heads) = (size(heads.n)?, size(heads.n_kv)?);
    let (key, value) = (size(heads.key)?, size(heads.value)?);
    let mut stored = Vec::new();
    // SAFETY: the context has room for these tensors and a graph. Rows are whole blocks of their types, the heads divide one
    // another, and the mask is contiguous, as is asserted.
    let (graph, queries, mask) = unsafe {
        let new = |ty, a, b, c| sys::ggml_new_tensor_3d(context, ty, a, b, c);
        let graph = sys::ggml_new_graph(context);
        let queries = new(sys::GGML_TYPE_F32, key, n_heads, rows);
        let mask = sys::ggml_new_tensor_2d(context, sys::GGML_TYPE_F16, cached, rows);
        for _ in 0..layers {
            let keys = new(kv_types.keys.number(), key, n_kv_heads, cached);
            let values = new(kv_types.values.number(), value, n_kv_heads, cached);
            stored.extend([(keys, kv_types.keys, heads.key), (values, kv_types.values, heads.value)]);
            let [q, k, v] = [queries, keys, values].map(|tensor| sys::ggml_permute(context, tensor, 0, 2, 1, 3));
            let scale = 1.0 / (heads.key as f32).sqrt();
            let out = sys::ggml_flash_attn_ext(context, q, k, v, mask, scale, 0.0, 0.0);
            sys::ggml_build_forward_expand(graph, out);
        }
        (graph, queries, mask)
    };
    // SAFETY: takes nothing, and returns a constant.
    tensors.allocate(unsafe { sys::ggml_backend_cpu_buffer_type() })?;
    // SAFETY: the tensors are of this context, have memory for as many numbers as are written, and so has everything in the
    // graph.
    unsafe {
        tensors.write(queries, &floats(heads.key * heads.n * n_tokens));
        tensors.write(mask, &causal(n_tokens, n_cached));
        let mut known: Vec<(KvType, u64, Vec<u8>)> = Vec::new();
        for (tensor, ty, length) in stored {
            let at = known.iter().position(|(other, n, _)| *other == ty && *n == length);
            let at = match at {
                Some(at) => at,
                None => {
                    known.push((ty, length, encoded(ty, length, heads.n_kv * n_cached)));
                    known.len() - 1
                }
            };
            tensors.write(tensor, &known[at].2);
        }
        Some(Graph::new(graph, tensors))
    }
}

/// Returns numbers between -1 and 1 in the machine's byte order. Time depends a little on them: a new maximum takes longer.
fn floats(n: u64) -> Vec<u8> {
    numbers(n).flat_map(f32::to_ne_bytes).collect()
}

fn numbers(n: u64) -> impl Iterator<Item = f32> {
    // The golden ratio's multiples are spread evenly.
    (0..n).map(|i| ((i as f64 * 0.618_033_988_749_895).fract() * 2.0 - 1.0) as f32)
}

/// Returns `rows` rows of `length` numbers as the KV cache stores them.
fn encoded(ty: KvType, length: u64, rows: u64) -> Vec<u8> {
    let numbers: Vec<f32> = numbers(length * rows).collect();
    let (length, rows) = (length as i64, rows as i64);
    // SAFETY: these return sizes of an existing type; all rows are whole blocks, and there is room for what is written.
    unsafe {
        let mut bytes = vec![0u8; sys::ggml_row_size(ty.number(), length) * rows as usize];
        let to = bytes.as_mut_ptr().cast();
        sys::ggml_quantize_chunk(ty.number(), numbers.as_ptr(), to, 0, rows, length, std::ptr::null());
        bytes
    }
}

/// Returns the mask of the last `n_tokens` of `n_cached` tokens, in 16-bit floats: 0 for those that a token looks at, which are
/// itself and those before it, and minus infinity for the others.
fn causal(n_tokens: u64, n_cached: u64) -> Vec<u8> {
    const HIDDEN: u16 = 0xFC00;
    let row = |i: u64| (0..n_cached).map(move |j| if j <= n_cached - n_tokens + i { 0 } else { HIDDEN });
    (0..n_tokens).flat_map(row).flat_map(u16::to_ne_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_takes_time_for_every_token_that_is_looked_at() {
        let heads = Heads { n: 8, n_kv: 2, key: 64, value: 64 };
        for kv_types in [KvType::F16.into(), KvTypes { keys: KvType::Q8_0, values: KvType::Q5_1 }] {
            let time = attention_time(heads, 4, kv_types, 2).unwrap().unwrap();
            // 16,384 products of two numbers, at 1 to 1,000 of them a nanosecond; one token may be held up by memory.
            assert!((1e-10..1e-5).contains(&time.reading), "{kv_types}: {time:?}");
            assert!((1e-10..1e-5).contains(&time.writing), "{kv_types}: {time:?}");
        }
    }

    #[test]
    fn a_token_looks_at_itself_and_at_those_before_it() {
        let mask: Vec<u16> = causal(2, 3).chunks(2).map(|two| u16::from_ne_bytes([two[0], two[1]])).collect();
        assert_eq!(mask, [0, 0, 0xFC00, 0, 0, 0]);
    }

    #[test]
    fn every_type_of_cache_can_be_measured() {
        let heads = Heads { n: 2, n_kv: 1, key: 32, value: 64 };
        for ty in KvType::ALL {
            assert!(attention_time(heads, 1, ty.into(), 1).unwrap().is_some(), "{ty:?}");
        }
    }

    #[test]
    fn heads_that_no_cache_can_hold_are_not_measured() {
        let heads = Heads { n: 8, n_kv: 2, key: 80, value: 80 };
        assert_eq!(attention_time(heads, 4, KvType::Q8_0.into(), 1).unwrap(), None);
        assert!(attention_time(heads, 4, KvType::F16.into(), 1).unwrap().is_some());
        for wrong in [Heads { n: 0, ..heads }, Heads { n_kv: 0, ..heads }, Heads { n_kv: 3, ..heads }] {
            assert_eq!(attention_time(wrong, 4, KvType::F16.into(), 1).unwrap(), None);
        }
        assert_eq!(attention_time(Heads { key: u64::MAX, ..heads }, 4, KvType::F16.into(), 1).unwrap(), None);
    }
}
