//! `nibble compare --weights` against plain loops in double precision, over weights that this file reads and permutes
//! itself, and that ggml dequantizes where it is there.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nibble::base::random::Random;
use nibble::convert::Importance;
use nibble::gguf::{Gguf, Layout, TensorInfo, TensorType};
use nibble::report::results::{TensorError, WeightError, WeightErrors};
use nibble::weights::{Error, WeightComparison};
use serde_json::Value;

use crate::support::{self, Tensor, Variation, convert, error, folder, has, nibble, stdout, yi_nano};

/// Compares with the library, on so many threads.
fn compare_on(
    threads: usize,
    source: &Path,
    files: &[&Path],
    importance: Option<&Importance>,
) -> Vec<Result<WeightErrors, Error>> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let job = WeightComparison::prepare(source, files, importance).unwrap();
    pool.install(|| job.execute(&|_, _| (), &AtomicBool::new(false))).unwrap()
}

fn compare(source: &Path, file: &Path) -> WeightErrors {
    compare_on(2, source, &[file], None).remove(0).unwrap()
}

fn made(dir: &Path, recipe: &str) -> PathBuf {
    convert(&yi_nano(), &dir.join(format!("{recipe}.gguf")), &["-q", recipe])
}

/// The rows of a checkpoint's tensor, in the order of the GGUF file.
fn source_rows(checkpoint: &Variation, info: &TensorInfo) -> Vec<Vec<f64>> {
    let name = support::name_in_checkpoint(&info.name);
    let tensor = checkpoint.tensors.iter().find(|tensor| tensor.name == name).unwrap();
    assert_eq!(tensor.dtype, "BF16");
    let bf16 = |bytes: &[u8]| f64::from(f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16));
    let weights: Vec<f64> = tensor.bytes.chunks_exact(2).map(bf16).collect();
    let is_permuted = ["attn_q", "attn_k"].iter().any(|part| info.name.contains(part));
    let row_len = if is_permuted && info.dims.len() == 1 { 1 } else { info.dims[0] as usize };
    let rows: Vec<Vec<f64>> = weights.chunks_exact(row_len).map(<[f64]>::to_vec).collect();
    let rows = match is_permuted {
        false => rows,
        true => {
            // Channel j of a head lies beside channel j + d/2.
            let key = if info.name.contains("attn_q") { "num_attention_heads" } else { "num_key_value_heads" };
            let head = rows.len() / checkpoint.config[key].as_u64().unwrap() as usize;
            let halves = |head: &[Vec<f64>]| {
                let (first, second) = head.split_at(head.len() / 2);
                first.iter().zip(second).flat_map(|(a, b)| [a.clone(), b.clone()]).collect::<Vec<_>>()
            };
            rows.chunks_exact(head).flat_map(halves).collect()
        }
    };
    match info.dims.len() {
        1 => vec![rows.concat()],
        _ => rows,
    }
}

/// The rows of a tensor of a GGUF file, as ggml reads them.
#[cfg(feature = "llama")]
fn dequantized(ty: TensorType, bytes: &[u8]) -> Vec<f32> {
    use llama_cpp_sys_2 as ggml;
    if ty == TensorType::F32 {
        // ggml has no function for what is a copy.
        return bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    }
    let mut weights = vec![0.0; bytes.len() / ty.block_bytes() * ty.block_len()];
    // Whole words, for ggml's blocks are aligned.
    let mut words = vec![0u64; bytes.len().div_ceil(8)];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks(8)) {
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_ne_bytes(whole);
    }
    // SAFETY: the table has an entry for every type's number, and lives as long as the process.
    let to_float = unsafe { (*ggml::ggml_get_type_traits(ty.id() as ggml::ggml_type)).to_float }.unwrap();
    // SAFETY: `words` holds the blocks, `weights` has room for their weights.
    unsafe { to_float(words.as_ptr().cast(), weights.as_mut_ptr(), weights.len() as i64) };
    weights
}

#[cfg(not(feature = "llama"))]
fn dequantized(ty: TensorType, bytes: &[u8]) -> Vec<f32> {
    let mut weights = vec![0.0; bytes.len() / ty.block_bytes() * ty.block_len()];
    nibble::quant::format(ty).unwrap().dequantize(bytes, &mut weights);
    weights
}

/// The definition of all numbers: loops over rows and columns.
#[derive(Default)]
struct Oracle {
    n: f64,
    source: f64,
    candidate: f64,
    product: f64,
    difference: f64,
    weighted_source: f64,
    weighted_difference: f64,
    /// Relative errors of the rows.
    rows: Vec<f64>,
}

impl Oracle {
    fn add(&mut self, source: &[Vec<f64>], candidate: &[f32], importance: Option<&[f32]>) {
        let row_len = source[0].len();
        for (row, source) in source.iter().enumerate() {
            let (mut of_row, mut differences) = (0.0, 0.0);
            for (column, &w) in source.iter().enumerate() {
                let q = f64::from(candidate[row * row_len + column]);
                self.n += 1.0;
                of_row += w * w;
                differences += (w - q) * (w - q);
                self.candidate += q * q;
                self.product += w * q;
                if let Some(importance) = importance {
                    self.weighted_source += f64::from(importance[column]) * w * w;
                    self.weighted_difference += f64::from(importance[column]) * (w - q) * (w - q);
                }
            }
            self.source += of_row;
            self.difference += differences;
            self.rows.push((differences / of_row).sqrt());
        }
    }

    #[track_caller]
    fn check(&self, found: &WeightError, name: &str) {
        let near = |found: f64, wanted: f64, what: &str| {
            assert!((found - wanted).abs() <= 1e-11 * wanted.abs(), "{name}, {what}: {found}, wanted {wanted}");
        };
        near(found.rmse, (self.difference / self.n).sqrt(), "rmse");
        near(found.relative, (self.difference / self.source).sqrt(), "relative");
        near(found.cosine, self.product / (self.source * self.candidate).sqrt(), "cosine");
        assert_eq!(found.weighted.is_some(), self.weighted_source > 0.0, "{name}");
        if let Some(weighted) = found.weighted {
            near(weighted, (self.weighted_difference / self.weighted_source).sqrt(), "weighted");
        }
    }
}

/// Checks every number of `found` against the definition.
fn check_all(checkpoint: &Variation, file: &Path, importance: Option<&Importance>, found: &WeightErrors) {
    let gguf = Gguf::open(file).unwrap();
    assert_eq!(found.skipped, [""; 0]);
    assert_eq!(found.tensors.len(), gguf.tensors().len());
    let (mut overall, mut roles) = (Oracle::default(), HashMap::<String, Oracle>::new());
    for (i, (info, tensor)) in gguf.tensors().iter().zip(&found.tensors).enumerate() {
        assert_eq!((&tensor.name, tensor.ty.as_str()), (&info.name, info.ty.name()));
        assert_eq!(tensor.weights, info.dims.iter().product::<u64>());
        let (source, candidate) = (source_rows(checkpoint, info), dequantized(info.ty, gguf.data(i)));
        let importance = importance.and_then(|importance| importance.of(&info.name));
        let mut oracle = Oracle::default();
        oracle.add(&source, &candidate, importance);
        if info.dims.len() > 1 {
            overall.add(&source, &candidate, importance);
            roles.entry(tensor.role.clone()).or_default().add(&source, &candidate, importance);
        }
        oracle.check(&tensor.error, &info.name);
        let worst = oracle.rows.iter().copied().fold(0.0, f64::max);
        assert!((tensor.worst_row_relative - worst).abs() <= 1e-11 * worst, "{}", info.name);
        assert!((oracle.rows[tensor.worst_row as usize] - worst).abs() <= 1e-11 * worst, "{}", info.name);
    }
    overall.check(&found.overall.unwrap(), "overall");
    assert_eq!(found.roles.len(), roles.len());
    for role in &found.roles {
        roles[&role.role].check(&role.error, &role.role);
        assert_eq!(role.weights as f64, roles[&role.role].n);
    }
}

/// Random importance of the columns of every matrix but the embedding, as calibration gives.
fn random_importance() -> Importance {
    let mut random = Random::new(7);
    let dir = folder();
    let gguf = Gguf::open(&made(dir.path(), "Q8_0")).unwrap();
    let matrices = gguf.tensors().iter().filter(|info| info.dims.len() == 2 && info.name != "token_embd.weight");
    let values = matrices
        .map(|info| (info.name.clone(), (0..info.dims[0]).map(|_| (random.unit() * 10.0) as f32).collect()))
        .collect();
    Importance::new("random".to_string(), blake3::hash(b"random"), values)
}

#[test]
fn every_number_is_that_of_a_plain_loop_over_all_weights() {
    let dir = folder();
    let files = ["Q4_K_M", "Q2_K", "IQ4_XS", "Q4_1", "F16"].map(|recipe| made(dir.path(), recipe));
    let paths: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let importance = random_importance();
    let nano = Variation::of_yi_nano();
    for importance in [None, Some(&importance)] {
        let found = compare_on(2, &yi_nano(), &paths, importance);
        for (file, found) in files.iter().zip(&found) {
            check_all(&nano, file, importance, found.as_ref().unwrap());
        }
        let relative: Vec<f64> = found.iter().map(|found| found.as_ref().unwrap().overall.unwrap().relative).collect();
        assert!(relative[1] > relative[0] && relative[0] > relative[4], "{relative:?}");
    }
}

#[test]
fn the_same_weights_differ_by_nothing_whatever_holds_them() {
    let dir = folder();
    let (bf16, q8) = (made(dir.path(), "BF16"), made(dir.path(), "Q8_0"));
    for (source, file) in [(yi_nano(), &bf16), (bf16.clone(), &bf16), (q8.clone(), &q8)] {
        let found = compare(&source, file);
        assert_eq!((found.tensors.len(), found.skipped.len()), (39, 0));
        let nothing = WeightError { rmse: 0.0, relative: 0.0, cosine: 1.0, weighted: None };
        assert!(found.tensors.iter().all(|tensor| tensor.error == nothing && tensor.worst_row_relative == 0.0));
        assert!(found.roles.iter().all(|role| role.error == nothing));
        assert_eq!(found.overall, Some(nothing));
    }
}

#[test]
fn numbers_depend_on_nothing_but_the_files() {
    let dir = folder();
    let files = ["Q4_K_S", "Q6_K"].map(|recipe| made(dir.path(), recipe));
    let paths: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let together = compare_on(1, &yi_nano(), &paths, None);
    for threads in [2, 5] {
        for (a, b) in together.iter().zip(compare_on(threads, &yi_nano(), &paths, None)) {
            assert_eq!(a.as_ref().unwrap(), &b.unwrap());
        }
    }
    for (together, file) in together.iter().zip(&files) {
        assert_eq!(together.as_ref().unwrap(), &compare(&yi_nano(), file), "alone as among others");
    }
    let parts = dir.path().join("parts");
    fs::create_dir(&parts).unwrap();
    convert(&yi_nano(), &parts.join("q.gguf"), &["-q", "Q4_K_S", "--split-max-size", "1M"]);
    let parts: Vec<_> = support::files(&parts).iter().map(|name| parts.join(name)).collect();
    assert!(parts.len() > 2);
    assert_eq!(together[0].as_ref().unwrap(), &compare(&yi_nano(), &parts[1]), "a candidate in parts");
    // Where the source is cut otherwise, the sums are rounded otherwise, and no more than that.
    let shards = dir.path().join("shards");
    Variation::of_yi_nano().write_shards(&shards, 3);
    let bf16 = made(dir.path(), "BF16");
    for source in [shards, bf16] {
        let found = compare(&source, &files[0]);
        for (a, b) in together[0].as_ref().unwrap().tensors.iter().zip(&found.tensors) {
            assert_eq!((&a.name, a.worst_row), (&b.name, b.worst_row));
            assert!((a.error.relative - b.error.relative).abs() <= 1e-13 * a.error.relative);
        }
    }
}

#[test]
fn biases_are_permuted_like_the_rows_they_belong_to() {
    let dir = folder();
    let mut biased = Variation::of_yi_nano();
    biased.config.insert("attention_bias".to_string(), true.into());
    for layer in 0..4 {
        for (what, n) in [("q", 256), ("k", 128), ("v", 128), ("o", 256)] {
            let name = format!("model.layers.{layer}.self_attn.{what}_proj.weight");
            let n = biased.tensors.iter().find(|tensor| tensor.name == name).map_or(n, |tensor| tensor.shape[0]);
            let bytes = (0..n).flat_map(|i| ((0x3f80 + i) as u16).to_le_bytes()).collect();
            let name = name.replace(".weight", ".bias");
            biased.tensors.push(Tensor { name, dtype: "BF16".to_string(), shape: vec![n], bytes });
        }
    }
    let folder = dir.path().join("biased");
    biased.write_single(&folder);
    let file = convert(&folder, &dir.path().join("biased.gguf"), &["-q", "Q4_K_M"]);
    let found = compare(&folder, &file);
    let biases: Vec<&TensorError> = found.tensors.iter().filter(|tensor| tensor.role == "bias").collect();
    assert_eq!(biases.len(), 16);
    assert!(biases.iter().all(|tensor| tensor.error.relative == 0.0 && tensor.worst_row == 0));
    check_all(&biased, &file, None, &found);
}

/// Writes a file with other tensors: each is kept, dropped, or given other sizes.
fn with_tensors(file: &Path, to: &Path, change: impl Fn(&mut Vec<(TensorInfo, Vec<u8>)>)) {
    let gguf = Gguf::open(file).unwrap();
    let mut tensors: Vec<_> =
        gguf.tensors().iter().cloned().enumerate().map(|(i, info)| (info, gguf.data(i).to_vec())).collect();
    change(&mut tensors);
    let infos = tensors.iter().map(|(info, _)| info.clone()).collect();
    let layout = Layout::new(gguf.metadata(), infos, 32, None).unwrap();
    layout.write_part(0, &mut fs::File::create(to).unwrap(), |i| &tensors[i].1).unwrap();
}

#[test]
fn what_cannot_be_compared_is_said_and_the_rest_is_compared() {
    let dir = folder();
    let file = made(dir.path(), "Q4_K_M");
    let whole = compare(&yi_nano(), &file);
    let odd = dir.path().join("odd.gguf");
    with_tensors(&file, &odd, |tensors| {
        let at = |tensors: &[(TensorInfo, Vec<u8>)], name: &str| {
            tensors.iter().position(|(info, _)| info.name == name).unwrap()
        };
        let i = at(tensors, "token_embd.weight");
        tensors[i].0.dims[1] -= 1;
        let row_bytes = tensors[i].1.len() / (tensors[i].0.dims[1] as usize + 1);
        let n_bytes = tensors[i].1.len() - row_bytes;
        tensors[i].1.truncate(n_bytes);
        let i = at(tensors, "blk.2.ffn_up.weight");
        tensors.remove(i);
        let i = at(tensors, "blk.3.ffn_up.weight");
        tensors[i].0.name = "blk.3.ffn_更.weight".to_string();
        // The scale of a super-block in row 2, whose halves come first.
        let i = at(tensors, "blk.1.attn_q.weight");
        tensors[i].1[2 * 144..2 * 144 + 2].copy_from_slice(&[0xff, 0x7f]);
        // The same number of bytes, of a type that nibble does not know.
        let i = at(tensors, "blk.0.attn_q.weight");
        let (info, bytes) = &mut tensors[i];
        info.ty = "IQ2_XXS".parse().unwrap();
        let n_bytes = info.n_bytes().unwrap() as usize;
        bytes.resize(n_bytes, 0);
    });
    let found = compare(&yi_nano(), &odd);
    let wanted = [
        "tensor 'token_embd.weight' is 256 x 6399, and the source's is 256 x 6400",
        "tensor 'blk.0.attn_q.weight' is IQ2_XXS, which nibble cannot read back",
        "tensor 'blk.3.ffn_更.weight' is not in the source",
        "tensor 'blk.2.ffn_up.weight' is missing: only the source has it",
        "tensor 'blk.3.ffn_up.weight' is missing: only the source has it",
        "tensor 'blk.1.attn_q.weight' has NaN or infinity in this file, the first in row 2 (counted from 0)",
    ];
    let (mut skipped, mut wanted) = (found.skipped.clone(), wanted.map(str::to_string).to_vec());
    skipped.sort();
    wanted.sort();
    assert_eq!(skipped, wanted);
    assert_eq!(found.tensors.len(), 39 - 5);
    for tensor in &found.tensors {
        assert_eq!(whole.tensors.iter().find(|wanted| wanted.name == tensor.name), Some(tensor));
    }
    let overall = found.overall.unwrap();
    assert!(overall.relative.is_finite() && overall.relative > 0.0);
}

#[test]
fn a_source_with_nan_is_compared_but_for_that_tensor() {
    let dir = folder();
    let mut nano = Variation::of_yi_nano();
    nano.tensor("model.layers.2.mlp.up_proj.weight").bytes[256 * 2 * 5..][..2].copy_from_slice(&[0xc0, 0x7f]);
    let source = dir.path().join("nan");
    nano.write_single(&source);
    let found = compare(&source, &made(dir.path(), "Q4_K_M"));
    let wanted = "tensor 'blk.2.ffn_up.weight' has NaN or infinity in the source, the first in row 5 (counted from 0)";
    assert_eq!((found.skipped.as_slice(), found.tensors.len()), ([wanted.to_string()].as_slice(), 38));
}

#[test]
fn a_file_that_cannot_be_compared_leaves_the_others_their_results() {
    let dir = folder();
    let good = made(dir.path(), "Q4_K_M");
    let cut = dir.path().join("cut.gguf");
    fs::write(&cut, &fs::read(&good).unwrap()[..100_000]).unwrap();
    let other = dir.path().join("other.gguf");
    with_tensors(&good, &other, |tensors| tensors.iter_mut().for_each(|(info, _)| info.name.insert(0, 'x')));
    let absent = dir.path().join("absent.gguf");
    let found = compare_on(2, &yi_nano(), &[&cut, &good, &other, &absent], None);
    assert_eq!(found[1].as_ref().unwrap(), &compare(&yi_nano(), &good));
    let said = |i: usize| found[i].as_ref().unwrap_err().to_string();
    has(&said(0), &["cut.gguf"]);
    has(&said(2), &["other.gguf: none of its 39 tensors is in", "it is of another model"]);
    has(&said(3), &["absent.gguf"]);
    // None that can be read is no reason to fail either.
    assert!(compare_on(1, &yi_nano(), &[&cut], None)[0].is_err());
}

#[test]
fn importance_of_another_model_is_refused_and_a_stopped_comparison_gives_nothing() {
    let dir = folder();
    let file = made(dir.path(), "Q4_K_M");
    let narrow = [("blk.0.attn_q.weight".to_string(), vec![1.0; 128])].into();
    let importance = Importance::new("narrow".to_string(), blake3::hash(b"narrow"), narrow);
    let said = WeightComparison::prepare(&yi_nano(), &[&file], Some(&importance)).err().unwrap().to_string();
    has(&said, &["blk.0.attn_q.weight", "128", "256"]);

    let job = WeightComparison::prepare(&yi_nano(), &[&file], None).unwrap();
    let cancel = AtomicBool::new(true);
    assert!(matches!(job.execute(&|_, _| (), &cancel), Err(Error::Cancelled)));
}

#[test]
fn progress_ends_where_it_said() {
    let dir = folder();
    let files = ["Q4_K_M", "Q8_0"].map(|recipe| made(dir.path(), recipe));
    let (done, all) = (AtomicU64::new(0), AtomicU64::new(0));
    let progress = |bytes, of| {
        done.fetch_add(bytes, Ordering::Relaxed);
        all.store(of, Ordering::Relaxed);
    };
    let job = WeightComparison::prepare(&yi_nano(), &files, None).unwrap();
    job.execute(&progress, &AtomicBool::new(false)).unwrap();
    let tensors = |file: &PathBuf| Gguf::open(file).unwrap().tensor_bytes();
    let source: usize = Variation::of_yi_nano().tensors.iter().map(|tensor| tensor.bytes.len()).sum();
    let wanted = source as u64 + files.iter().map(tensors).sum::<u64>();
    assert_eq!((done.into_inner(), all.into_inner()), (wanted, wanted));
}

#[test]
fn the_program_prints_tables_and_json_and_exits_with_1_where_a_file_failed() {
    let dir = folder();
    let (q4, q8) = (made(dir.path(), "Q4_K_M"), made(dir.path(), "Q8_0"));
    let nano = yi_nano();
    let (nano, q4, q8) = (nano.to_str().unwrap(), q4.to_str().unwrap(), q8.to_str().unwrap());
    let text = stdout(&nibble(["compare", nano, q4, q8, "--weights"]));
    has(
        &text,
        &["Relative error by role", "ffn_down", "Worst tensors of Q4_K_M", "Worst tensors of Q8_0", "Its error"],
    );

    let json = dir.path().join("found.json");
    let to_json = ["compare", nano, q4, "--weights", "--json", json.to_str().unwrap()];
    has(&stdout(&nibble(to_json)), &["Worst tensors of Q4_K_M"]);
    has(&error(&nibble(to_json)), &["found.json exists already; --force replaces it"]);
    let json: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    let weights = &json["candidates"][0]["weights"];
    let found = compare(&yi_nano(), Path::new(q4));
    assert_eq!(weights["overall"]["relative"].as_f64(), Some(found.overall.unwrap().relative));
    assert_eq!(weights["tensors"].as_array().unwrap().len(), 39);

    let absent = dir.path().join("不在.gguf");
    let absent = absent.to_str().unwrap();
    has(&error(&nibble(["compare", nano, absent, "--weights"])), &["不在.gguf"]);
    let output = nibble(["compare", nano, absent, q4, "--weights"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    has(&said, &["nibble: 不在: ", "1 of 2 candidates could not be compared"]);
    has(&String::from_utf8(output.stdout).unwrap(), &["Q4_K_M"]);
    has(&error(&nibble(["compare", absent, q4, "--weights"])), &["不在.gguf", "No such file"]);
}
