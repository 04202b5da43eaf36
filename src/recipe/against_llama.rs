//! The built-in recipes against llama.cpp's own choice: small models of many shapes, quantized by `llama_model_quantize`.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::path::Path;
use std::process::Command;

use llama_cpp_sys_2 as sys;

use super::{QUANTIZATION_VERSION, Recipe, plan};
use crate::arch::{self, Hyperparameters};
use crate::gguf::{TensorInfo, TensorType};

const WORKER: &str = "recipe::against_llama::worker";

/// llama.cpp writes a page for each model, and its log belongs to the whole process; so the work is done in one that is
/// apart from other tests.
#[test]
fn llama_cpp_chooses_the_same_type_for_every_tensor_of_every_shape() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", WORKER, "--ignored", "--nocapture", "--test-threads=1"])
        .output()
        .unwrap();
    let said = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        text.lines().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
    };
    let (stdout, stderr) = (said(&output.stdout), said(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    let compared = stdout.lines().find_map(|line| line.strip_prefix("tensors compared: "));
    let compared: u64 = compared.unwrap_or_else(|| panic!("{stdout}\n{stderr}")).parse().unwrap();
    println!("{compared} tensors compared");
    assert!(compared > 1_000_000, "{compared}");
}

#[test]
#[ignore = "silences llama.cpp; llama_cpp_chooses_the_same_type_for_every_tensor_of_every_shape runs it"]
fn worker() {
    unsafe extern "C" fn silence(_: sys::ggml_log_level, _: *const std::ffi::c_char, _: *mut std::ffi::c_void) {}
    // SAFETY: nothing else in this process uses llama.cpp.
    unsafe {
        sys::llama_log_set(Some(silence), std::ptr::null_mut());
        sys::llama_backend_init();
    }
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = (folder.path().join("source.gguf"), folder.path().join("target.gguf"));
    let (mut compared, mut wrong) = (0u64, Vec::new());
    for (i, hyper) in models().iter().enumerate() {
        let source_type = if i % 2 == 0 { TensorType::F32 } else { TensorType::F16 };
        let tensors = two_rows_each(arch::tensors(hyper, source_type));
        write_model(&source, hyper, &tensors);
        for recipe in Recipe::all() {
            for importance in [false, true] {
                quantize(&source, &target, recipe.file_type, importance);
                let plan = plan(recipe, &hyper.topology(), &tensors, importance, &[]).unwrap();
                let (version, theirs) = read_types(&target);
                assert_eq!(version, QUANTIZATION_VERSION);
                assert_eq!(theirs.len(), plan.tensors.len());
                for ours in &plan.tensors {
                    let ty = theirs[&ours.name];
                    compared += 1;
                    if ty != ours.ty {
                        let with = if importance { "with" } else { "without" };
                        let (name, why) = (&ours.name, &ours.why);
                        wrong.push(format!(
                            "{} {with} importance, {hyper:?}: {name} {} ({why}), {ty} in llama.cpp",
                            recipe.name, ours.ty
                        ));
                    }
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {compared} differ, first\n{}",
        wrong.len(),
        wrong[..wrong.len().min(5)].join("\n")
    );
    println!("\ntensors compared: {compared}");
}

/// Every number of layers up to 20 and those of large models, with every sharing of heads; then rows of all kinds.
fn models() -> Vec<Hyperparameters> {
    let base =
        Hyperparameters { hidden: 256, ffn: 512, head_dim: 32, vocab: 64, n_heads: 8, ..Hyperparameters::yi_6b() };
    let mut models = Vec::new();
    for n_layers in (1..=20).chain([32, 48, 60, 80, 81]) {
        for n_kv_heads in [1, 2, 4, 8] {
            // Every sharing of heads meets both as the number of layers goes up.
            let tied = (n_layers + n_kv_heads / 2) % 2 == 0;
            let attention_bias = n_layers % 3 == 0;
            models.push(Hyperparameters { n_layers, n_kv_heads, tied, attention_bias, ..base.clone() });
        }
    }
    for (hidden, ffn, head_dim) in [(288, 512, 36), (256, 544, 32), (512, 768, 12), (100, 256, 32), (96, 300, 9)] {
        for (n_layers, n_kv_heads, tied) in [(3, 2, true), (9, 8, false), (16, 2, false), (17, 8, true), (80, 2, false)]
        {
            models.push(Hyperparameters { n_layers, n_kv_heads, tied, hidden, ffn, head_dim, ..base.clone() });
        }
    }
    models
}

/// The number of rows decides no type, as long as a matrix stays one.
fn two_rows_each(mut tensors: Vec<TensorInfo>) -> Vec<TensorInfo> {
    tensors.iter_mut().filter(|tensor| tensor.dims.len() == 2).for_each(|tensor| tensor.dims[1] = 2);
    tensors
}

/// A model of zeros, written with ggml's own writer.
fn write_model(path: &Path, hyper: &Hyperparameters, tensors: &[TensorInfo]) {
    let count = |key: &str, value: u32| (CString::new(key).unwrap(), value);
    let path_c = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: every pointer is to a string or context that lives until the end of the block; the context has room for
    // the descriptions of all tensors, and none of their data is touched.
    let meta_bytes = unsafe {
        let gguf = sys::gguf_init_empty();
        sys::gguf_set_val_str(gguf, c"general.architecture".as_ptr(), c"llama".as_ptr());
        sys::gguf_set_val_f32(gguf, c"llama.attention.layer_norm_rms_epsilon".as_ptr(), 1e-5);
        for (key, value) in [
            count("llama.context_length", 4096),
            count("llama.embedding_length", hyper.hidden),
            count("llama.block_count", hyper.n_layers),
            count("llama.feed_forward_length", hyper.ffn),
            count("llama.attention.head_count", hyper.n_heads),
            count("llama.attention.head_count_kv", hyper.n_kv_heads),
        ] {
            sys::gguf_set_val_u32(gguf, key.as_ptr(), value);
        }
        let mem_size = (tensors.len() + 1) * sys::ggml_tensor_overhead();
        let ggml = sys::ggml_init(sys::ggml_init_params { mem_size, mem_buffer: std::ptr::null_mut(), no_alloc: true });
        for tensor in tensors {
            let dims: Vec<i64> = tensor.dims.iter().map(|&size| size as i64).collect();
            let name = CString::new(tensor.name.as_str()).unwrap();
            let added = sys::ggml_new_tensor(ggml, tensor.ty.id(), dims.len() as i32, dims.as_ptr());
            sys::ggml_set_name(added, name.as_ptr());
            sys::gguf_add_tensor(gguf, added);
        }
        assert!(sys::gguf_write_to_file(gguf, path_c.as_ptr(), true));
        let meta_bytes = sys::gguf_get_meta_size(gguf) as u64;
        sys::ggml_free(ggml);
        sys::gguf_free(gguf);
        meta_bytes
    };
    let data_bytes: u64 = tensors.iter().map(|tensor| tensor.n_bytes().unwrap().next_multiple_of(32)).sum();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(meta_bytes + data_bytes).unwrap();
}

fn quantize(source: &Path, target: &Path, file_type: u32, importance: bool) {
    let path = |path: &Path| CString::new(path.to_str().unwrap()).unwrap();
    let (source, target) = (path(source), path(target));
    // That there is importance is what counts, not for which tensor.
    let entries = [
        sys::llama_model_imatrix_data { name: c"some.weight".as_ptr(), data: [1f32].as_ptr(), size: 1 },
        sys::llama_model_imatrix_data { name: std::ptr::null(), data: std::ptr::null(), size: 0 },
    ];
    // SAFETY: the paths and the entries, which end with a null name, outlive the call.
    let failed = unsafe {
        let mut params = sys::llama_model_quantize_default_params();
        params.nthread = 1;
        params.ftype = file_type;
        params.imatrix = if importance { entries.as_ptr() } else { std::ptr::null() };
        sys::llama_model_quantize(source.as_ptr(), target.as_ptr(), &params)
    };
    assert_eq!(failed, 0, "llama_model_quantize failed for file type {file_type}");
}

/// `general.quantization_version`, and the name and type of every tensor.
fn read_types(path: &Path) -> (u32, HashMap<String, TensorType>) {
    let path = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the context is checked, its names are copied before it is freed, and ids are below the number of tensors.
    unsafe {
        let params = sys::gguf_init_params { no_alloc: true, ctx: std::ptr::null_mut() };
        let gguf = sys::gguf_init_from_file(path.as_ptr(), params);
        assert!(!gguf.is_null());
        let version = sys::gguf_find_key(gguf, c"general.quantization_version".as_ptr());
        assert!(version >= 0);
        let version = sys::gguf_get_val_u32(gguf, version);
        let tensor = |id| {
            let name = CStr::from_ptr(sys::gguf_get_tensor_name(gguf, id)).to_str().unwrap().to_string();
            (name, TensorType::from_id(sys::gguf_get_tensor_type(gguf, id)).unwrap())
        };
        let types = (0..sys::gguf_get_n_tensors(gguf)).map(tensor).collect();
        sys::gguf_free(gguf);
        (version, types)
    }
}
