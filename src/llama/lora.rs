//! LoRA adapters: small matrices that are added to those of a model while it runs.
//!
//! ```text
//! y = W x + scale (alpha / r) B (A x)        W  [out, in]    A  [r, in]  'NAME.lora_a'    B  [out, r]  'NAME.lora_b'
//! ```
//!
//! An adapter is a GGUF file whose `general.type` is `adapter`. llama.cpp aborts the process for some adapters that do
//! not fit the model, and silently ignores parts of others. Therefore everything is checked before llama.cpp sees the
//! file.
//!
//! Source: Hu et al., "LoRA", <https://arxiv.org/abs/2106.09685>; llama.cpp's `llama-adapter.cpp` and
//! `convert_lora_to_gguf.py`.

use std::ffi::CString;
use std::path::PathBuf;
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::load::Handle;
use super::{Error, backend};
use crate::gguf::{Gguf, TensorInfo, TensorType, Value};

/// An adapter and its strength.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    /// A GGUF file.
    pub path: PathBuf,
    /// 1 applies it as it was trained, 0 not at all.
    pub scale: f32,
}

impl std::str::FromStr for Lora {
    type Err = String;

    /// Parses `FILE` or `FILE=SCALE`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (path, scale) = match text.rsplit_once('=').map(|(path, scale)| (path, scale.parse::<f32>())) {
            Some((path, Ok(scale))) => (path, scale),
            // A file's name may contain a '='.
            _ => (text, 1.0),
        };
        if !scale.is_finite() {
            return Err(format!("the scale is {scale}; it has to be a finite number"));
        }
        if path.is_empty() {
            return Err("no file is named".to_string());
        }
        Ok(Self { path: path.into(), scale })
    }
}

/// An adapter in llama.cpp's memory. llama.cpp frees it together with its model, so this is kept beside the model.
pub(super) struct Adapter {
    pointer: NonNull<sys::llama_adapter_lora>,
    scale: f32,
}

// SAFETY: the adapter belongs to no thread in particular, and is only read once it is loaded.
unsafe impl Send for Adapter {}
unsafe impl Sync for Adapter {}

/// The file of an adapter that has been checked.
#[derive(Debug)]
pub(super) struct Checked {
    path: PathBuf,
    scale: f32,
    /// Size of its tensors in bytes.
    pub bytes: u64,
    /// Identifies its contents.
    pub hash: blake3::Hash,
}

/// Checks the adapter in `lora` for use with `model`.
///
/// # Errors
/// If the file is not an adapter, or does not fit this model.
pub(super) fn check(lora: &Lora, model: &Gguf) -> Result<Checked, Error> {
    let adapter = Gguf::open(&lora.path)?;
    check_adapter(&adapter, model).map_err(|reason| Error::Lora { path: lora.path.clone(), reason })?;
    let mut hasher = blake3::Hasher::new();
    for mapping in adapter.mappings() {
        hasher.update(mapping.bytes());
    }
    Ok(Checked { path: lora.path.clone(), scale: lora.scale, bytes: adapter.tensor_bytes(), hash: hasher.finalize() })
}

fn check_adapter(adapter: &Gguf, model: &Gguf) -> Result<(), String> {
    let metadata = adapter.metadata();
    let is = |key: &str, wanted: &str| match metadata.get(key) {
        Some(Value::String(found)) if found == wanted => Ok(()),
        Some(Value::String(found)) => Err(format!("its '{key}' is '{}', but has to be '{wanted}'", shown(found))),
        _ => Err(format!("it does not say that its '{key}' is '{wanted}', so it is not a LoRA adapter")),
    };
    is("general.type", "adapter")?;
    is("adapter.type", "lora")?;
    let architecture = model.metadata().str("general.architecture").unwrap_or("llama");
    is("general.architecture", architecture)
        .map_err(|reason| format!("{reason}: it was made for another kind of model"))?;
    match metadata.get("adapter.lora.alpha") {
        None => {}
        Some(Value::F32(alpha)) if alpha.is_finite() => {}
        Some(_) => return Err("its 'adapter.lora.alpha' has to be a finite 32-bit float".to_string()),
    }
    if metadata.get("adapter.alora.invocation_tokens").is_some() {
        return Err(
            "it is an activated LoRA, which takes effect in the middle of a text; nibble cannot run those".into()
        );
    }
    if adapter.paths().len() > 1 {
        return Err("it is split over several files, which llama.cpp cannot load".to_string());
    }
    if adapter.tensors().is_empty() {
        return Err("it has no tensors".to_string());
    }
    let is_tied = model.tensor("output.weight").is_none();
    for tensor in adapter.tensors() {
        let name = &tensor.name;
        let is_a = name.ends_with(".lora_a");
        let Some(base) = name.strip_suffix(".lora_a").or_else(|| name.strip_suffix(".lora_b")) else {
            let name = shown(name);
            return Err(format!(
                "its tensor '{name}' replaces one of the model's, which cannot be done while a model runs"
            ));
        };
        let other = format!("{base}.{}", if is_a { "lora_b" } else { "lora_a" });
        let Some(other) = adapter.tensor(&other) else { return Err(format!("it has no tensor '{}'", shown(&other))) };
        check_type(tensor)?;
        if is_a {
            check_pair(base, tensor, other, model, is_tied)?;
        }
    }
    Ok(())
}

/// Checks the type: llama.cpp cannot multiply with every type, or look up its rows.
fn check_type(tensor: &TensorInfo) -> Result<(), String> {
    match tensor.ty {
        TensorType::F32 | TensorType::F16 | TensorType::BF16 | TensorType::Q8_0 => Ok(()),
        ty => {
            Err(format!("its tensor '{}' is {}, but has to be F32, F16, BF16 or Q8_0", shown(&tensor.name), ty.name()))
        }
    }
}

/// Checks that both matrices fit the model's tensor `base` and each other.
fn check_pair(base: &str, a: &TensorInfo, b: &TensorInfo, model: &Gguf, is_tied: bool) -> Result<(), String> {
    let size = |tensor: &TensorInfo, i: usize| tensor.dims.get(i).copied().unwrap_or(1);
    let sizes = |tensor: &TensorInfo| (0..4).map(|i| size(tensor, i)).collect::<Vec<_>>();
    let base_name = shown(base);
    let Some(weight) = model.tensor(base) else {
        return Err(format!("the model has no tensor '{base_name}', which it changes: it was made for another model"));
    };
    if weight.dims.len() < 2 {
        return Err(format!("it changes '{base_name}', which is not a matrix"));
    }
    let (inputs, outputs) = (size(weight, 0), size(weight, 1));
    let rank = size(b, 0);
    let more = sizes(weight)[2..].to_vec();
    // Rows of the embedding are looked up in A, which is therefore transposed.
    let (wanted_a, wanted_b) = match base {
        "token_embd.weight" if is_tied => {
            return Err("it changes 'token_embd.weight', which the model uses for its output too".to_string());
        }
        "token_embd.weight" => ([rank, outputs], [rank, inputs]),
        _ => ([inputs, rank], [rank, outputs]),
    };
    for (tensor, wanted) in [(a, wanted_a), (b, wanted_b)] {
        let wanted = [&wanted[..], &more].concat();
        if sizes(tensor) != wanted {
            let text = |sizes: &[u64]| {
                let used = sizes.iter().rposition(|size| *size != 1).map_or(1, |last| last + 1).max(2);
                sizes[..used].iter().map(u64::to_string).collect::<Vec<_>>().join(" x ")
            };
            return Err(format!(
                "its tensor '{}' is {}, but has to be {} for the model's '{base_name}': it was made for another \
                 model",
                shown(&tensor.name),
                text(&sizes(tensor)),
                text(&wanted),
            ));
        }
    }
    Ok(())
}

/// Shortens a name from a file for a message.
fn shown(name: &str) -> String {
    name.chars().take(80).collect()
}

/// Loads a checked adapter beside its model.
///
/// # Errors
/// If llama.cpp cannot load it.
pub(super) fn load(model: &Handle, checked: &Checked) -> Result<Adapter, Error> {
    let path = checked.path.to_str().ok_or_else(|| Error::Path(checked.path.clone()))?;
    let c_path = CString::new(path).map_err(|_| Error::Path(checked.path.clone()))?;
    let (adapter, heard) = backend::listen(|| {
        let _making = backend::making();
        // SAFETY: the model is alive, the lock keeps others from changing it, and the path ends in NUL. Returns null where
        // the file is broken or memory runs out (it catches its own exceptions). Asserts on tensors that do not fit the
        // model, which `check` has refused.
        unsafe { sys::llama_adapter_lora_init(model.as_ptr(), c_path.as_ptr()) }
    });
    let refused = || Error::Lora { path: checked.path.clone(), reason: heard.reason() };
    Ok(Adapter { pointer: NonNull::new(adapter).ok_or_else(refused)?, scale: checked.scale })
}

/// Makes `context` use `adapters`.
///
/// # Safety
/// The context must be alive, and belong to the model that the adapters were loaded for.
pub(super) unsafe fn apply(context: NonNull<sys::llama_context>, adapters: &[Adapter]) {
    let mut pointers: Vec<_> = adapters.iter().map(|adapter| adapter.pointer.as_ptr()).collect();
    let mut scales: Vec<_> = adapters.iter().map(|adapter| adapter.scale).collect();
    // SAFETY: both lists have the length that is passed, and llama.cpp copies them. The call always returns 0.
    unsafe {
        sys::llama_set_adapters_lora(context.as_ptr(), pointers.as_mut_ptr(), pointers.len(), scales.as_mut_ptr());
    }
}

/// Returns bytes that identify the adapters, their scales and their order, for use in a hash. Leaves out adapters with
/// a scale of 0.
pub(super) fn identity(checked: &[Checked]) -> Vec<u8> {
    let used = checked.iter().filter(|checked| checked.scale != 0.0);
    used.flat_map(|checked| checked.hash.as_bytes().iter().copied().chain(checked.scale.to_le_bytes())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_come_with_a_scale() {
        let read = |text: &str| text.parse::<Lora>().map(|lora| (lora.path.display().to_string(), lora.scale));
        assert_eq!(read("a.gguf"), Ok(("a.gguf".to_string(), 1.0)));
        assert_eq!(read("a.gguf=0.5"), Ok(("a.gguf".to_string(), 0.5)));
        assert_eq!(read("a=b.gguf"), Ok(("a=b.gguf".to_string(), 1.0)));
        assert_eq!(read("a=b.gguf=-2"), Ok(("a=b.gguf".to_string(), -2.0)));
        assert!(read("a.gguf=nan").is_err() && read("a.gguf=inf").is_err() && read("=1").is_err() && read("").is_err());
    }
}
