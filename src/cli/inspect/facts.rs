//! What there is to say of a GGUF model, before it becomes text or JSON.

use std::ops::RangeInclusive;

use crate::arch::Role;
use crate::gguf::{Gguf, Metadata, TensorInfo, TensorType};

/// What a person wants to know first.
pub struct Summary<'a> {
    pub name: Option<&'a str>,
    pub architecture: Option<&'a str>,
    /// What `general.file_type` stands for, such as `Q4_K_M`.
    pub file_type: Option<&'static str>,
    pub n_parameters: u64,
    pub tensor_bytes: u64,
    /// Scales included; `None` for a file without tensors.
    pub bits_per_weight: Option<f64>,
    pub types: Vec<TypeShare>,
    pub n_tokens: Option<usize>,
    pub shape: ModelShape,
}

/// The tensors of one type.
pub struct TypeShare {
    pub ty: TensorType,
    pub n_tensors: u64,
    pub n_weights: u64,
    pub n_bytes: u64,
}

/// The sizes that most architectures share; those that the file does not give as one number are `None`.
#[derive(Debug, Default, PartialEq)]
pub struct ModelShape {
    pub layers: Option<u64>,
    pub hidden: Option<u64>,
    pub feed_forward: Option<u64>,
    pub heads: Option<u64>,
    pub kv_heads: Option<u64>,
    pub context: Option<u64>,
    /// Bytes that a token takes in the cache of keys and values, at two bytes a number.
    pub kv_bytes_per_token: Option<u64>,
}

impl<'a> Summary<'a> {
    pub fn of(gguf: &'a Gguf) -> Self {
        let metadata = gguf.metadata();
        let (n_parameters, tensor_bytes) = (gguf.n_parameters(), gguf.tensor_bytes());
        Self {
            name: metadata.str("general.name"),
            architecture: metadata.str("general.architecture"),
            file_type: metadata.u64("general.file_type").and_then(file_type),
            n_parameters,
            tensor_bytes,
            bits_per_weight: (n_parameters > 0).then(|| tensor_bytes as f64 * 8.0 / n_parameters as f64),
            types: type_shares(gguf.tensors()),
            n_tokens: metadata.get("tokenizer.ggml.tokens").and_then(|v| v.as_array()).map(|tokens| tokens.len()),
            shape: ModelShape::of(metadata),
        }
    }
}

impl ModelShape {
    fn of(metadata: &Metadata) -> Self {
        let Some(architecture) = metadata.str("general.architecture") else {
            return Self::default();
        };
        let get = |key: &str| metadata.u64(&format!("{architecture}.{key}"));
        let (layers, hidden, heads) = (get("block_count"), get("embedding_length"), get("attention.head_count"));
        // Left out where every head has its own; given as an array where layers differ.
        let kv_key = format!("{architecture}.attention.head_count_kv");
        let kv_heads = if metadata.get(&kv_key).is_some() { metadata.u64(&kv_key) } else { heads };

        let head_len = || hidden?.checked_div(heads?);
        let kv_bytes_per_token = || {
            let key_len = get("attention.key_length").or_else(head_len)?;
            let value_len = get("attention.value_length").or_else(head_len)?;
            let numbers = layers?.checked_mul(kv_heads?)?.checked_mul(key_len.checked_add(value_len)?)?;
            numbers.checked_mul(2)
        };
        Self {
            layers,
            hidden,
            feed_forward: get("feed_forward_length"),
            heads,
            kv_heads,
            context: get("context_length"),
            kv_bytes_per_token: kv_bytes_per_token(),
        }
    }
}

/// The types of the tensors, that with the most bytes first.
fn type_shares(tensors: &[TensorInfo]) -> Vec<TypeShare> {
    let mut shares: Vec<TypeShare> = vec![];
    for info in tensors {
        // Both are known: the file was checked when it was opened.
        let (weights, bytes) = (info.n_elements().unwrap_or(0), info.n_bytes().unwrap_or(0));
        match shares.iter_mut().find(|share| share.ty == info.ty) {
            Some(share) => {
                share.n_tensors += 1;
                share.n_weights += weights;
                share.n_bytes += bytes;
            }
            None => shares.push(TypeShare { ty: info.ty, n_tensors: 1, n_weights: weights, n_bytes: bytes }),
        }
    }
    shares.sort_by_key(|share| std::cmp::Reverse(share.n_bytes));
    shares
}

/// What a number in `general.file_type` stands for.
///
/// Source: `enum llama_ftype` in llama.cpp's `llama.h`.
pub fn file_type(id: u64) -> Option<&'static str> {
    Some(match id {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        19 => "IQ2_XXS",
        20 => "IQ2_XS",
        21 => "Q2_K_S",
        22 => "IQ3_XS",
        23 => "IQ3_XXS",
        24 => "IQ1_S",
        25 => "IQ4_NL",
        26 => "IQ3_S",
        27 => "IQ3_M",
        28 => "IQ2_S",
        29 => "IQ2_M",
        30 => "IQ4_XS",
        31 => "IQ1_M",
        32 => "BF16",
        36 => "TQ1_0",
        37 => "TQ2_0",
        38 => "MXFP4_MOE",
        39 => "NVFP4",
        40 => "Q1_0",
        41 => "Q2_0",
        _ => return None,
    })
}

/// Tensors that are alike: the same but for their layer.
#[derive(Debug, PartialEq)]
pub struct Group<'a> {
    /// The name, with `*` for the layer.
    pub name: String,
    pub dims: &'a [u64],
    pub ty: TensorType,
    pub layers: Vec<u32>,
    pub n_tensors: u64,
    /// Of all of them.
    pub n_bytes: u64,
}

/// Puts tensors that are alike together, in the order in which their names first come; those that share a name and
/// differ in type or shape follow one another.
pub fn groups(tensors: &[TensorInfo]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group> = vec![];
    // From the name to the groups that have it. A few dozen names, however many tensors there are in a real model; a
    // map, so that a million names in a hostile one do not cost a million searches of a million.
    let mut named = std::collections::HashMap::<String, (usize, Vec<usize>)>::new();
    for info in tensors {
        let layer = Role::of(&info.name).1;
        let name = match layer {
            Some(layer) => info.name.replacen(&format!("blk.{layer}."), "blk.*.", 1),
            None => info.name.clone(),
        };
        let rank = named.len();
        let (_, with_name) = named.entry(name.clone()).or_insert((rank, vec![]));
        let alike = with_name.iter().copied().find(|&at| groups[at].dims == info.dims && groups[at].ty == info.ty);
        let at = alike.unwrap_or_else(|| {
            with_name.push(groups.len());
            groups.push(Group { name, dims: &info.dims, ty: info.ty, layers: vec![], n_tensors: 0, n_bytes: 0 });
            groups.len() - 1
        });
        let group = &mut groups[at];
        group.layers.extend(layer);
        group.n_tensors += 1;
        group.n_bytes += info.n_bytes().unwrap_or(0);
    }
    groups.iter_mut().for_each(|group| group.layers.sort_unstable());
    groups.sort_by_cached_key(|group| named.get(&group.name).map(|(rank, _)| *rank));
    groups
}

/// Layers as people write them: `0-6, 9-51 by 3, 53-59`. `layers` are in ascending order.
pub fn layer_list(layers: &[u32]) -> String {
    let mut words = vec![];
    let mut rest = layers;
    while let Some((run, step, after)) = next_run(rest) {
        words.push(match (run.start() == run.end(), step) {
            (true, _) => run.start().to_string(),
            (false, 1) => format!("{}-{}", run.start(), run.end()),
            (false, _) => format!("{}-{} by {step}", run.start(), run.end()),
        });
        rest = after;
    }
    words.join(", ")
}

/// The longest run of evenly spaced layers at the beginning, its step, and what follows. Two layers make a run only
/// where they are neighbours, since two points are evenly spaced whatever they are. `None` where there are no layers.
fn next_run(layers: &[u32]) -> Option<(RangeInclusive<u32>, u32, &[u32])> {
    let (&first, rest) = layers.split_first()?;
    let Some(&second) = rest.first() else {
        return Some((first..=first, 1, rest));
    };
    let step = second - first;
    let n = 1 + layers.windows(2).take_while(|pair| pair[1] - pair[0] == step).count();
    // `0, 3-6`, not `0-3 by 3, 4-6`: the end of this run may be the beginning of a run of neighbours.
    let n = match layers.get(n) {
        Some(next) if step > 1 && next - layers[n - 1] == 1 => n - 1,
        _ => n,
    };
    match (step, n) {
        (1, 2..) | (2.., 3..) => Some((first..=layers[n - 1], step, &layers[n..])),
        _ => Some((first..=first, 1, rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_listed_as_people_write_them() {
        let list = |layers: &[u32]| layer_list(layers);
        assert_eq!(list(&[]), "");
        assert_eq!(list(&[7]), "7");
        assert_eq!(list(&[0, 1]), "0-1");
        assert_eq!(list(&[0, 2]), "0, 2");
        assert_eq!(list(&[0, 2, 4]), "0-4 by 2");
        assert_eq!(list(&[0, 3, 4, 5]), "0, 3-5");
        assert_eq!(list(&(0..60).collect::<Vec<_>>()), "0-59");
        // The layers of Yi-34B whose ffn_down gets more bits in Q4_K_M.
        let more_bits: Vec<u32> = (0..60).filter(|&i| !(7..52).contains(&i) || (i - 7) % 3 == 2).collect();
        assert_eq!(list(&more_bits), "0-6, 9-48 by 3, 51-59");
        let fewer_bits: Vec<u32> = (0..60).filter(|i| !more_bits.contains(i)).collect();
        assert_eq!(
            list(&fewer_bits),
            "7-8, 10-11, 13-14, 16-17, 19-20, 22-23, 25-26, 28-29, 31-32, 34-35, 37-38, \
                                       40-41, 43-44, 46-47, 49-50"
        );
    }

    #[test]
    fn every_layer_is_listed_once() {
        // All 4096 sets of layers below 12, read back from the list.
        for set in 0u32..1 << 12 {
            let layers: Vec<u32> = (0..12).filter(|layer| set >> layer & 1 == 1).collect();
            let list = layer_list(&layers);
            let mut read = vec![];
            for word in list.split(", ").filter(|word| !word.is_empty()) {
                let (range, step) = word.split_once(" by ").unwrap_or((word, "1"));
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                let (first, last): (u32, u32) = (first.parse().unwrap(), last.parse().unwrap());
                read.extend((first..=last).step_by(step.parse().unwrap()));
            }
            assert_eq!(read, layers, "{list}");
        }
    }

    #[test]
    fn tensors_that_are_alike_become_one_group() {
        let info = |name: &str, dims: &[u64], ty| TensorInfo { name: name.into(), dims: dims.into(), ty };
        let tensors = [
            info("token_embd.weight", &[256, 8], TensorType::Q4_K),
            info("blk.0.attn_v.weight", &[256, 4], TensorType::Q6_K),
            info("blk.0.ffn_up.weight", &[256, 4], TensorType::Q4_K),
            info("blk.1.attn_v.weight", &[256, 4], TensorType::Q4_K),
            info("blk.1.ffn_up.weight", &[256, 4], TensorType::Q4_K),
            info("blk.10.attn_v.weight", &[256, 4], TensorType::Q6_K),
        ];
        let groups = groups(&tensors);
        let found: Vec<_> =
            groups.iter().map(|g| (g.name.as_str(), g.ty, g.layers.as_slice(), g.n_tensors, g.n_bytes)).collect();
        let wanted: [(&str, TensorType, &[u32], u64, u64); 4] = [
            ("token_embd.weight", TensorType::Q4_K, &[], 1, 8 * 144),
            ("blk.*.attn_v.weight", TensorType::Q6_K, &[0, 10], 2, 8 * 210),
            ("blk.*.attn_v.weight", TensorType::Q4_K, &[1], 1, 4 * 144),
            ("blk.*.ffn_up.weight", TensorType::Q4_K, &[0, 1], 2, 8 * 144),
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn yi_34b_takes_240_kib_of_cache_a_token() {
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", "llama");
        metadata.set("llama.block_count", 60u32);
        metadata.set("llama.embedding_length", 7168u32);
        metadata.set("llama.attention.head_count", 56u32);
        metadata.set("llama.attention.head_count_kv", 8u32);
        assert_eq!(ModelShape::of(&metadata).kv_bytes_per_token, Some(240 * 1024));
        metadata.set("llama.attention.key_length", 256u32);
        assert_eq!(ModelShape::of(&metadata).kv_bytes_per_token, Some(360 * 1024));
    }

    #[test]
    fn sizes_that_are_missing_or_absurd_leave_a_gap() {
        let mut metadata = Metadata::new();
        assert_eq!(ModelShape::of(&metadata), ModelShape::default());
        metadata.set("general.architecture", "llama");
        metadata.set("llama.block_count", u64::MAX);
        metadata.set("llama.embedding_length", u64::MAX);
        metadata.set("llama.attention.head_count", 0u32);
        assert_eq!(ModelShape::of(&metadata).kv_bytes_per_token, None);
        metadata.set("llama.attention.head_count", 1u32);
        assert_eq!(ModelShape::of(&metadata).kv_bytes_per_token, None);
        metadata.set("llama.attention.head_count_kv", vec![8u32, 4]);
        assert_eq!(ModelShape::of(&metadata).kv_heads, None);
    }
}
