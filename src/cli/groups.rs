//! Groups tensors that differ only in their layer.

use std::collections::HashMap;
use std::hash::Hash;
use std::ops::RangeInclusive;

/// Tensors that differ only in their layer.
#[derive(Debug, PartialEq)]
pub struct Group<K> {
    /// The name, with `*` for the layer.
    pub name: String,
    /// Their common properties other than the name.
    pub alike: K,
    /// In ascending order.
    pub layers: Vec<u32>,
    pub n_tensors: u64,
    /// Of all of them.
    pub n_bytes: u64,
}

/// Groups tensors whose names differ only in the layer, and that are equal in the properties that the caller passes.
///
/// `tensors` has each tensor's name, the properties that have to be equal, and its bytes. The groups are in the order
/// in which their names first occur. Groups with the same name are adjacent.
pub fn groups<'a, K: Copy + Eq + Hash>(tensors: impl IntoIterator<Item = (&'a str, K, u64)>) -> Vec<Group<K>> {
    let mut groups: Vec<Group<K>> = vec![];
    // Maps a name to its rank and to the groups that have it. A real model has a few dozen names, however many tensors
    // it has. These are hash maps so that a million names in a hostile file do not take a million linear searches.
    let mut named = HashMap::<String, (usize, HashMap<K, usize>)>::new();
    for (name, alike, n_bytes) in tensors {
        let (name, layer) = without_layer(name);
        let rank = named.len();
        let (_, with_name) = named.entry(name.clone()).or_insert_with(|| (rank, HashMap::new()));
        let at = *with_name.entry(alike).or_insert_with(|| {
            groups.push(Group { name, alike, layers: vec![], n_tensors: 0, n_bytes: 0 });
            groups.len() - 1
        });
        let group = &mut groups[at];
        group.layers.extend(layer);
        group.n_tensors += 1;
        group.n_bytes += n_bytes;
    }
    for group in &mut groups {
        group.layers.sort_unstable();
        // The experts of a layer are alike too.
        group.layers.dedup();
    }
    groups.sort_by_cached_key(|group| named.get(&group.name).map(|(rank, _)| *rank));
    groups
}

/// `blk.12.ffn_up.weight` or `model.layers.12.mlp.up_proj.weight` with `*` for the layer and any other number, and the
/// layer.
fn without_layer(name: &str) -> (String, Option<u32>) {
    let mut layer = None;
    let part = |part: &str| match part.parse::<u32>() {
        // Not every number that can be read is a layer: one may begin with a plus.
        Ok(number) if part.bytes().all(|byte| byte.is_ascii_digit()) => {
            layer = layer.or(Some(number));
            "*".to_string()
        }
        _ => part.to_string(),
    };
    let name = name.split('.').map(part).collect::<Vec<_>>().join(".");
    (name, layer)
}

/// Formats layers as people write them: `0-6, 9-51 by 3, 53-59`. `layers` must be in ascending order.
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

/// Returns the longest run of evenly spaced layers at the beginning, its step, and the remaining layers. Two layers
/// count as a run only if they are neighbours, because any two points are evenly spaced. `None` if there are no layers.
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
    use crate::gguf::{TensorInfo, TensorType};

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
    fn numbers_between_full_stops_become_stars_and_the_first_is_the_layer() {
        for (name, wanted, layer) in [
            ("output.weight", "output.weight", None),
            ("blk.12.ffn_up.weight", "blk.*.ffn_up.weight", Some(12)),
            (
                "model.layers.7.block_sparse_moe.experts.3.w1.weight",
                "model.layers.*.block_sparse_moe.experts.*.w1.weight",
                Some(7),
            ),
            ("blk.+1.w", "blk.+1.w", None),
            ("blk.99999999999.w", "blk.99999999999.w", None),
            ("blk..w", "blk..w", None),
        ] {
            assert_eq!(without_layer(name), (wanted.to_string(), layer));
        }
        let experts = ["l.0.e.0.w", "l.0.e.1.w", "l.1.e.0.w"].map(|name| (name, (), 1));
        let groups = groups(experts);
        assert_eq!((groups.len(), groups[0].n_tensors, groups[0].layers.as_slice()), (1, 3, [0, 1].as_slice()));
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
        let groups = groups(tensors.iter().map(|t| (t.name.as_str(), t.ty, t.n_bytes().unwrap())));
        let found: Vec<_> =
            groups.iter().map(|g| (g.name.as_str(), g.alike, g.layers.as_slice(), g.n_tensors, g.n_bytes)).collect();
        let wanted: [(&str, TensorType, &[u32], u64, u64); 4] = [
            ("token_embd.weight", TensorType::Q4_K, &[], 1, 8 * 144),
            ("blk.*.attn_v.weight", TensorType::Q6_K, &[0, 10], 2, 8 * 210),
            ("blk.*.attn_v.weight", TensorType::Q4_K, &[1], 1, 4 * 144),
            ("blk.*.ffn_up.weight", TensorType::Q4_K, &[0, 1], 2, 8 * 144),
        ];
        assert_eq!(found, wanted);
    }
}
