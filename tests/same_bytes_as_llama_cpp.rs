//! The oracle: what `llama_model_quantize` of the vendored llama.cpp makes from our F32 file, tensor by tensor.

use std::ffi::CString;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use llama_cpp_sys_2 as sys;
use nibble::convert::{Importance, Job, Options};
use nibble::gguf::Gguf;
use nibble::recipe::Recipe;

use crate::support::{convert, folder, yi_nano};

/// Calls `llama_model_quantize`.
pub fn llama_quantize(from: &Path, to: &Path, file_type: u32, importance: Option<&Importance>) {
    let values = |i: &Importance| i.matrices().map(|name| (name.to_string(), i.of(name).unwrap().to_vec())).collect();
    llama_quantize_with(from, to, file_type, importance.map(values));
}

/// As [`llama_quantize`], with these values for the columns of these matrices, as they are.
pub fn llama_quantize_with(from: &Path, to: &Path, file_type: u32, importance: Option<Vec<(String, Vec<f32>)>>) {
    let c_string = |path: &Path| CString::new(path.to_str().unwrap()).unwrap();
    let (from, to) = (c_string(from), c_string(to));
    let has_importance = importance.is_some();
    let names: Vec<(CString, Vec<f32>)> =
        importance.into_iter().flatten().map(|(name, values)| (CString::new(name).unwrap(), values)).collect();
    let mut entries: Vec<sys::llama_model_imatrix_data> = names
        .iter()
        .map(|(name, v)| sys::llama_model_imatrix_data { name: name.as_ptr(), data: v.as_ptr(), size: v.len() })
        .collect();
    entries.push(sys::llama_model_imatrix_data { name: std::ptr::null(), data: std::ptr::null(), size: 0 });
    // SAFETY: the strings, the values and the list (which ends in a null name) outlive the call; the log callback takes
    // no data.
    let code = unsafe {
        sys::llama_log_set(Some(quiet), std::ptr::null_mut());
        let mut params = sys::llama_model_quantize_default_params();
        params.ftype = file_type as sys::llama_ftype;
        params.nthread = 2;
        params.imatrix = if has_importance { entries.as_ptr() } else { std::ptr::null() };
        sys::llama_model_quantize(from.as_ptr(), to.as_ptr(), &params)
    };
    assert_eq!(code, 0);
}

extern "C" fn quiet(_: sys::ggml_log_level, _: *const std::ffi::c_char, _: *mut std::ffi::c_void) {}

/// Made-up importance of every matrix: positive, uneven, and with some channels never seen.
fn importance(model: &Gguf) -> Importance {
    let mut state = 1u32;
    let mut value = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let x = (state >> 8) as f32 / (1 << 24) as f32;
        if x < 0.02 { 0.0 } else { x * x * 40.0 + 1e-3 }
    };
    let matrices = model.tensors().iter().filter(|t| t.dims.len() == 2);
    // llama.cpp has no importance for the embeddings, which no matrix product reads.
    let values = matrices
        .filter(|t| t.name != "token_embd.weight")
        .map(|t| (t.name.clone(), (0..t.row_len()).map(|_| value()).collect()))
        .collect();
    Importance::new("made up".to_string(), blake3::hash(b"made up"), values)
}

#[test]
fn every_recipe_gives_the_tensors_that_llama_cpp_makes() {
    let dir = folder();
    let f32_file = convert(&yi_nano(), &dir.path().join("f32.gguf"), &["-q", "F32"]);
    let importance = importance(&Gguf::open(&f32_file).unwrap());
    let (mut n_tensors, mut n_bytes) = (0, 0);
    for recipe in Recipe::all() {
        for importance in [None, Some(&importance)] {
            let theirs = dir.path().join("theirs.gguf");
            llama_quantize(&f32_file, &theirs, recipe.file_type, importance);

            let ours = dir.path().join("ours.gguf");
            let options = Options {
                output: Some(ours.clone()),
                force: true,
                importance: importance.cloned(),
                ..Options::new(recipe.clone())
            };
            Job::prepare(&yi_nano(), options).unwrap().execute(&(), &AtomicBool::new(false)).unwrap();

            let (ours, theirs) = (Gguf::open(&ours).unwrap(), Gguf::open(&theirs).unwrap());
            assert_eq!(ours.tensors().len(), theirs.tensors().len());
            let what = format!("{}, importance {}", &recipe.name, importance.is_some());
            for (i, tensor) in theirs.tensors().iter().enumerate() {
                let j = ours.tensors().iter().position(|t| t.name == tensor.name).unwrap();
                assert_eq!(ours.tensors()[j], *tensor, "{what}");
                assert!(ours.data(j) == theirs.data(i), "{what}: the bytes of {} differ", tensor.name);
                n_tensors += 1;
                n_bytes += ours.data(j).len();
            }
        }
    }
    eprintln!("{n_tensors} tensors, {n_bytes} bytes equal");
}
