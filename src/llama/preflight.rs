//! Refuses files for which llama.cpp would abort the process, before it sees them.
//!
//! llama.cpp returns an error for most wrong keys and tensors. For some, it calls a function that does not exist or
//! fails an assertion, which ends the process. So this module accepts only:
//!
//! ```text
//! types        weights of types that llama.cpp can multiply with; vectors of floats
//! layers       1 to 512                                                     LLAMA_MAX_LAYERS
//! experts      none, or at most 1024, of which 1 or more are used           LLAMA_MAX_EXPERTS
//! epsilon      finite, not negative
//! RoPE base    finite, above 0
//! ```
//!
//! Source: `llama_model_base::load_hparams` in llama.cpp's `llama-model.cpp`, and `llama-hparams.h`.

use std::path::Path;

use super::Error;
use crate::gguf::{Metadata, TensorInfo, TensorType, Value};

/// llama.cpp's `LLAMA_MAX_LAYERS`.
const MAX_LAYERS: u64 = 512;

/// llama.cpp's `LLAMA_MAX_EXPERTS`.
const MAX_EXPERTS: u64 = 1024;

/// Checks the metadata and tensors of a model file. `path` is for messages.
///
/// # Errors
/// [`Error::Tensor`] and [`Error::Key`].
pub(super) fn check(path: &Path, metadata: &Metadata, tensors: &[TensorInfo]) -> Result<(), Error> {
    tensors.iter().try_for_each(|tensor| check_tensor(path, tensor))?;
    let arch = metadata.str("general.architecture").unwrap_or("llama");
    let keys = Keys { path, metadata, arch };
    keys.layers()?;
    keys.experts()?;
    for key in ["attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "attention.group_norm_epsilon"] {
        keys.float(key, |epsilon| epsilon >= 0.0, "a finite number of 0 or more")?;
    }
    for key in ["rope.freq_base", "rope.freq_base_swa"] {
        keys.float(key, |base| base > 0.0, "a finite number above 0")?;
    }
    Ok(())
}

fn check_tensor(path: &Path, tensor: &TensorInfo) -> Result<(), Error> {
    use TensorType::{BF16, F16, F32, F64, I8, I16, I32, I64, Q8_1, Q8_K};
    let refused = |wanted| {
        let (path, name, found) = (path.to_path_buf(), tensor.name.clone(), tensor.ty);
        Err(Error::Tensor { path, name, found, wanted })
    };
    // ggml ignores trailing sizes of 1.
    let is_vector = tensor.dims.iter().skip(1).all(|&size| size == 1);
    // DeepSeek's table from tokens to experts is looked up, not multiplied.
    let is_table = tensor.name.contains("tid2eid");
    match tensor.ty {
        F32 | F16 | BF16 => Ok(()),
        I8 | I16 | I32 | I64 | F64 | Q8_1 | Q8_K if tensor.name.ends_with(".weight") && !is_table => {
            refused("a type that llama.cpp can multiply with, such as F16 or Q4_K")
        }
        _ if is_vector => refused("F32, F16 or BF16, as it is a vector"),
        _ => Ok(()),
    }
}

/// Access to the numbers that describe a model, by key without the architecture's prefix.
struct Keys<'a> {
    path: &'a Path,
    metadata: &'a Metadata,
    arch: &'a str,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(&format!("{}.{key}", self.arch))
    }

    fn refused<T>(&self, key: &str, found: impl ToString, wanted: impl ToString) -> Result<T, Error> {
        Err(Error::Key {
            path: self.path.to_path_buf(),
            key: format!("{}.{key}", self.arch),
            found: found.to_string(),
            wanted: wanted.to_string(),
        })
    }

    /// Returns the largest number at `key`, which holds one number or one per layer. Returns 0 if the key is missing.
    fn most(&self, key: &str) -> Result<u64, Error> {
        let number = |value: Option<Value>| match value.as_ref().and_then(Value::as_u64) {
            Some(number) => Ok(number),
            None => self.refused(key, "something else", "a whole number, or a list of them"),
        };
        match self.get(key) {
            None => Ok(0),
            Some(Value::Array(array)) => {
                // llama.cpp reads one number per layer and refuses lists of another length.
                let read = array.len().min(MAX_LAYERS as usize);
                (0..read).try_fold(0, |most, i| Ok(number(array.get(i))?.max(most)))
            }
            Some(value) => number(Some(value.clone())),
        }
    }

    fn layers(&self) -> Result<(), Error> {
        let n_layers = self.most("block_count")?;
        if !(1..=MAX_LAYERS).contains(&n_layers) {
            return self.refused("block_count", n_layers, format!("1 to {MAX_LAYERS}"));
        }
        let predicting = self.most("nextn_predict_layers")?;
        if predicting > n_layers {
            return self.refused("nextn_predict_layers", predicting, format!("at most the {n_layers} of block_count"));
        }
        Ok(())
    }

    fn experts(&self) -> Result<(), Error> {
        let experts = self.most("expert_count")?;
        let used = self.most("expert_used_count")?;
        // llama.cpp treats a single expert of these architectures as none.
        if experts <= 1 && self.arch.starts_with("hunyuan") {
            return Ok(());
        }
        if experts > MAX_EXPERTS {
            return self.refused("expert_count", experts, format!("at most {MAX_EXPERTS}"));
        }
        if used > experts || (used == 0 && experts > 0) {
            let wanted = match experts {
                0 => "0, as there is no expert_count".to_string(),
                _ => format!("1 to the {experts} of expert_count"),
            };
            return self.refused("expert_used_count", used, wanted);
        }
        let groups = self.most("expert_group_count")?;
        let divide = match groups {
            0 => true,
            1 => experts > 1,
            _ => groups < experts && experts.is_multiple_of(groups),
        };
        if !divide {
            return self.refused("expert_group_count", groups, format!("a number that divides the {experts} experts"));
        }
        let groups_used = self.most("expert_group_used_count")?;
        if groups > 1 && !(1..groups).contains(&groups_used) {
            return self.refused("expert_group_used_count", groups_used, format!("1 to {}", groups - 1));
        }
        Ok(())
    }

    fn float(&self, key: &str, accepted: impl Fn(f64) -> bool, wanted: &str) -> Result<(), Error> {
        match self.get(key).and_then(Value::as_f64) {
            Some(number) if !number.is_finite() || !accepted(number) => self.refused(key, number, wanted),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Metadata {
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", "llama");
        metadata.set("llama.block_count", 2u32);
        metadata.set("llama.attention.layer_norm_rms_epsilon", 1e-5f32);
        metadata.set("llama.rope.freq_base", 5e6f32);
        metadata
    }

    fn with(keys: &[(&str, Value)]) -> String {
        let mut metadata = model();
        keys.iter().for_each(|(key, value)| metadata.set(format!("llama.{key}"), value.clone()));
        check(Path::new("a.gguf"), &metadata, &[]).map_or_else(|e| e.to_string(), |()| "accepted".to_string())
    }

    fn tensor(name: &str, dims: &[u64], ty: TensorType) -> String {
        let tensor = TensorInfo { name: name.to_string(), dims: dims.to_vec(), ty };
        check(Path::new("a.gguf"), &model(), &[tensor]).map_or_else(|e| e.to_string(), |()| "accepted".to_string())
    }

    #[test]
    fn refuses_types_that_llama_cpp_cannot_compute_with() {
        use TensorType::*;
        for ty in [I8, I16, I32, I64, F64, Q8_1, Q8_K] {
            let told = tensor("blk.0.attn_q.weight", &[256, 256], ty);
            assert!(told.contains("a.gguf") && told.contains("blk.0.attn_q.weight"), "{told}");
            assert!(told.contains(ty.name()) && told.contains("such as F16"), "{told}");
        }
        for ty in [Q4_K, Q8_0, I32] {
            let told = tensor("blk.0.attn_norm.weight", &[256], ty);
            assert!(told.contains("attn_norm"), "{told}");
            assert_ne!(tensor("blk.0.attn_q.bias", &[256, 1], ty), "accepted");
        }
        for ty in [F32, F16, BF16] {
            assert_eq!(tensor("blk.0.attn_norm.weight", &[256], ty), "accepted");
        }
        for ty in [F32, F16, BF16, Q4_K, Q8_0, IQ2_XXS] {
            assert_eq!(tensor("blk.0.attn_q.weight", &[256, 256], ty), "accepted");
        }
    }

    #[test]
    fn refuses_numbers_that_llama_cpp_asserts_against() {
        let number = |n: u32| Value::from(n);
        assert_eq!(with(&[]), "accepted");
        for n in [0, 513, u32::MAX] {
            let told = with(&[("block_count", number(n))]);
            assert!(told.contains("a.gguf") && told.contains("llama.block_count"), "{told}");
            assert!(told.contains(&n.to_string()) && told.contains("1 to 512"), "{told}");
        }
        assert_eq!(with(&[("block_count", number(512))]), "accepted");
        assert_eq!(with(&[("expert_count", number(0)), ("expert_used_count", number(0))]), "accepted");
        assert_eq!(with(&[("expert_count", number(8)), ("expert_used_count", number(2))]), "accepted");
        for (count, used) in [(1025, 2), (8, 0), (8, 9), (0, 2)] {
            let told = with(&[("expert_count", number(count)), ("expert_used_count", number(used))]);
            assert!(told.contains("llama.expert_"), "{count} {used}: {told}");
        }
        assert!(with(&[("expert_count", number(8))]).contains("expert_used_count"));
        let experts =
            [("expert_count", number(8)), ("expert_used_count", number(2)), ("expert_group_count", number(3))];
        assert!(with(&experts).contains("expert_group_count"));
        for epsilon in [f32::NAN, f32::INFINITY, -1e-5] {
            assert!(with(&[("attention.layer_norm_rms_epsilon", epsilon.into())]).contains("epsilon"));
        }
        for base in [f32::NAN, f32::INFINITY, -1.0, 0.0] {
            assert!(with(&[("rope.freq_base", base.into())]).contains("rope.freq_base"));
        }
    }
}
