//! Files that are right, and files that are not.

use std::path::{Path, PathBuf};

use super::*;
use crate::gguf::{Layout, Metadata, TensorInfo};

/// A `.dat` file of these entries, as llama-imatrix wrote them: name, windows, values.
fn dat(entries: &[(&str, i32, &[f32])], tail: &[u8]) -> Vec<u8> {
    let mut bytes = (entries.len() as i32).to_le_bytes().to_vec();
    for (name, windows, values) in entries {
        bytes.extend((name.len() as i32).to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend(windows.to_le_bytes());
        bytes.extend((values.len() as i32).to_le_bytes());
        bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
    }
    bytes.extend(tail);
    bytes
}

/// Number of windows and name of the text, as they end a `.dat` file.
fn tail(windows: i32, name: &str) -> Vec<u8> {
    [&windows.to_le_bytes()[..], &(name.len() as i32).to_le_bytes(), name.as_bytes()].concat()
}

/// A GGUF of these tensors of 32-bit floats.
fn gguf(kind: Option<&str>, tensors: &[(&str, &[u64], &[f32])]) -> Vec<u8> {
    let mut metadata = Metadata::new();
    if let Some(kind) = kind {
        metadata.set("general.type", kind);
    }
    metadata.set("imatrix.datasets", vec!["wiki.txt".to_string()]);
    metadata.set("imatrix.chunk_count", 3u32);
    metadata.set("imatrix.chunk_size", 512u32);
    let info = |(name, dims, _): &(&str, &[u64], &[f32])| TensorInfo {
        name: name.to_string(),
        dims: dims.to_vec(),
        ty: TensorType::F32,
    };
    let layout = Layout::new(&metadata, tensors.iter().map(info).collect(), 32, None).unwrap();
    let mut bytes = Vec::new();
    let data = |i: usize| tensors[i].2.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
    layout.write_part(0, &mut bytes, data).unwrap();
    bytes
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join("importance");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn read(&self, bytes: &[u8]) -> Result<File, Error> {
        File::read(&self.file(bytes))
    }

    /// What is said of a file that is refused: one line that names it.
    #[track_caller]
    fn refusal(&self, bytes: &[u8]) -> String {
        let error = self.read(bytes).and_then(|file| file.importance()).expect_err("it is refused").to_string();
        assert!(error.contains("importance: ") && !error.contains('\n'), "{error}");
        error
    }
}

fn some() -> Sums {
    let matrix = |sums: &[f64], count| Matrix { sums: sums.to_vec(), counts: vec![count] };
    Sums {
        matrices: [
            ("blk.0.attn_q.weight".to_string(), matrix(&[1.5, 0.0, 1e30], 512.0)),
            ("blk.0.ffn_up.weight".to_string(), matrix(&[2.0; 40], 256.5)),
        ]
        .into(),
        texts: vec![CalibrationText {
            name: "红楼梦.txt".into(),
            blake3: "ab".repeat(32),
            weight: 0.5,
            tokens: 1030,
            windows: 2,
        }],
        windows: 2,
        window: 512,
    }
}

#[test]
fn what_is_written_is_read_again() {
    let folder = Folder::new();
    let sums = some();
    let bytes = sums.to_bytes().unwrap();
    assert_eq!(bytes, sums.to_bytes().unwrap());
    let file = folder.read(&bytes).unwrap();
    let rounded = |sums: &Sums| {
        let mut sums = sums.clone();
        sums.matrices.values_mut().for_each(|m| m.sums.iter_mut().for_each(|x| *x = f64::from(*x as f32)));
        sums
    };
    assert_eq!(file.sums(), rounded(&sums));
    assert_eq!(file.blake3, blake3::hash(&bytes));
    let importance = file.importance().unwrap();
    assert_eq!(importance.name, "importance");
    assert_eq!(importance.of("blk.0.attn_q.weight").unwrap(), [1.5 / 512.0, 1.5 / 512.0, (1e30f32 / 512.0)]);
    // Nothing of where or when it was made: the texts' names are all.
    assert_eq!(folder.0.path().to_str().map(|path| String::from_utf8_lossy(&bytes).contains(path)), Some(false));
}

#[test]
fn the_older_form_means_the_same() {
    let folder = Folder::new();
    // A column that was never used counts as the least important one.
    let wanted = [("a.weight", vec![0.25f32, 4.0]), ("b.weight", vec![1.0, 1.0, 3.0])];
    // Σx² / n · windows.
    let entries = [("a.weight", 4, &[1.0, 16.0][..]), ("b.weight", 4, &[0.0, 4.0, 12.0])];
    for tail in [vec![], 4i32.to_le_bytes().to_vec(), tail(4, "wiki.txt"), tail(4, "")] {
        let file = folder.read(&dat(&entries, &tail)).unwrap();
        let importance = file.importance().unwrap();
        assert_eq!(importance.matrices().len(), 2);
        for (name, values) in &wanted {
            assert_eq!(importance.of(name).unwrap(), values, "{name}");
        }
    }
    let file = folder.read(&dat(&entries, &tail(4, "wiki.txt"))).unwrap();
    assert_eq!((file.sums().windows, file.sums().texts[0].name.as_str()), (4, "wiki.txt"));
    assert_eq!(file.sums().matrices["a.weight"].counts, [4.0 * 512.0]);
}

#[test]
fn the_newer_form_of_llama_cpp_is_read() {
    let folder = Folder::new();
    let sums: Vec<f32> = (0..8).map(|x| x as f32 * 512.0).collect();
    let tensors: [(&str, &[u64], &[f32]); 3] =
        // Newer versions keep plain sums too.
        [("a.in_sum", &[8, 1], &[-1.0; 8]), ("a.in_sum2", &[8, 1], &sums), ("a.counts", &[1, 1], &[1024.0])];
    for (kind, tensors) in [(Some("imatrix"), &tensors[..]), (None, &tensors[1..])] {
        let file = folder.read(&gguf(kind, tensors)).unwrap();
        assert_eq!((file.sums().windows, file.sums().window, file.sums().texts[0].weight), (3, 512, 1.0));
        let wanted: Vec<f32> = (0..8).map(|x| x.max(1) as f32 / 2.0).collect();
        assert_eq!(file.importance().unwrap().of("a").unwrap(), wanted);
    }
}

#[test]
fn a_matrix_that_has_seen_nothing_has_no_importance() {
    let folder = Folder::new();
    let tensors: [(&str, &[u64], &[f32]); 4] = [
        ("a.in_sum2", &[2, 1], &[0.0; 2]),
        ("a.counts", &[1, 1], &[0.0]),
        ("b.in_sum2", &[2, 1], &[1.0; 2]),
        ("b.counts", &[1, 1], &[2.0]),
    ];
    let importance = folder.read(&gguf(Some("imatrix"), &tensors)).unwrap().importance().unwrap();
    assert_eq!((importance.of("a"), importance.of("b")), (None, Some(&[0.5, 0.5][..])));
    let importance = folder.read(&dat(&[("a", 0, &[1.0]), ("b", 1, &[3.0])], &[])).unwrap().importance().unwrap();
    assert_eq!((importance.of("a"), importance.of("b")), (None, Some(&[3.0][..])));
}

#[test]
fn what_is_no_importance_is_refused_and_so_is_what_is_damaged() {
    let folder = Folder::new();
    let one: [(&str, &[u64], &[f32]); 2] = [("a.in_sum2", &[2, 1], &[1.0; 2]), ("a.counts", &[1, 1], &[1.0])];
    let of = |sums: &[f32], counts: &[f32]| {
        let (n, m) = ([sums.len() as u64, 1], [1, counts.len() as u64]);
        gguf(Some("imatrix"), &[("a.in_sum2", &n, sums), ("a.counts", &m, counts)])
    };
    let has = |bytes: &[u8], words: &str| {
        let said = folder.refusal(bytes);
        assert!(said.contains(words), "'{words}' is not in: {said}");
    };
    has(b"", "is not a file of importance");
    has(b"Once upon a time, there was a little girl named Lily.", "is not a file of importance");
    has(b"\x01\0", "is not a file of importance");
    has(&[0; 64], "is not a file of importance");
    has(&gguf(Some("model"), &one), "is a model, wanted a file of importance");
    has(&gguf(Some("imatrix"), &[]), "is not a file of importance");
    has(&gguf(None, &[("token_embd.weight", &[2, 1], &[1.0; 2])]), "is a model, wanted");
    has(&gguf(Some("imatrix"), &one[..1]), "has no tensor 'a.counts'");
    has(&gguf(Some("imatrix"), &one[1..]), "has no tensor 'a.in_sum2'");
    has(&of(&[1.0, f32::NAN], &[1.0]), "'a' has NaN at column 1");
    has(&of(&[1.0, f32::INFINITY], &[1.0]), "'a' has inf at column 1");
    has(&of(&[-1.0, 1.0], &[1.0]), "'a' has -1 at column 0");
    has(&of(&[1.0, 1.0], &[-1.0]), "'a' has -1 at its count");
    has(&of(&[1.0, 1.0], &[f32::NAN]), "'a' has NaN at its count");
    has(&of(&[1.0, 1.0, 1.0], &[1.0, 1.0]), "3 sums and 2 counts");
    has(&of(&[1.0, 1.0], &[1.0, 1.0]), "2 experts");

    has(&dat(&[("a", 1, &[f32::NAN])], &[]), "'a' has NaN at column 0");
    has(&dat(&[("a", 1, &[-1.0])], &[]), "at column 0");
    has(&dat(&[("a", -1, &[1.0])], &[]), "the number of windows of entry 0 at byte 9 is -1, wanted 0 or more");
    has(&dat(&[("a", 1, &[1.0]), ("a", 1, &[1.0])], &[]), "'a' is in it twice");
    has(&dat(&[("a", 1, &[1.0])], &[tail(1, "x"), vec![7]].concat()), "1 bytes follow its end at byte");
    let mut bytes = dat(&[("a", 1, &[1.0; 8])], &[]);
    bytes[13..17].copy_from_slice(&i32::MAX.to_le_bytes());
    has(&bytes, "ends at byte 49, within the values of entry 0");
    bytes[4..8].copy_from_slice(&0i32.to_le_bytes());
    has(&bytes, "the length of the name of entry 0 at byte 4 is 0, wanted 1 or more");
}

#[test]
fn a_file_of_another_type_of_numbers_is_refused() {
    let folder = Folder::new();
    let bytes = some().write(&Metadata::new(), TensorType::F64).unwrap();
    assert!(folder.refusal(&bytes).contains("'blk.0.attn_q.weight.in_sum2' is F64, wanted F32"));
}

#[test]
fn no_file_that_is_cut_short_or_changed_by_a_byte_panics() {
    let folder = Folder::new();
    let files =
        [some().to_bytes().unwrap(), dat(&[("a.weight", 2, &[1.0, 2.0]), ("b", 1, &[0.0])], &tail(2, "wiki.txt"))];
    for whole in &files {
        for n in (0..whole.len()).step_by(7) {
            // Some of the older form are whole without their end.
            let cut = folder.read(&whole[..n]);
            let at_padding = n + 32 > whole.len();
            assert!(cut.is_err() || at_padding || whole == &files[1], "{n} bytes are taken for a file");
        }
        for at in 0..whole.len().min(700) {
            let mut bytes = whole.clone();
            bytes[at] ^= [0xff, 0x80, 0x01][at % 3];
            let _ = folder.read(&bytes).and_then(|file| file.importance());
        }
    }
}

#[test]
fn sums_and_counts_of_several_files_add_up() {
    let path = Path::new("b");
    let (mut a, mut b) = (some(), some());
    b.matrices.insert("output.weight".to_string(), Matrix { sums: vec![3.0], counts: vec![1.0] });
    a.add(&b, 2.0, path, "a").unwrap();
    assert_eq!(a.matrices["blk.0.attn_q.weight"], Matrix { sums: vec![4.5, 0.0, 1e30 + 2e30], counts: vec![1536.0] });
    assert_eq!(a.matrices["output.weight"], Matrix { sums: vec![6.0], counts: vec![2.0] });
    assert_eq!(a.windows, 4);
    assert_eq!(a.texts.iter().map(|text| text.weight).collect::<Vec<_>>(), [0.5, 1.0]);

    let before = a.clone();
    let narrow = Matrix { sums: vec![1.0; 2], counts: vec![1.0] };
    b.matrices.insert("blk.0.attn_q.weight".to_string(), narrow);
    let error = a.add(&b, 1.0, path, "a").unwrap_err().to_string();
    assert!(error.contains("'blk.0.attn_q.weight' has 2 columns here, and 3 in a"), "{error}");
    assert_eq!(a, before);
}

#[test]
fn a_sum_beyond_a_float_is_not_written() {
    let mut sums = some();
    sums.matrices.get_mut("blk.0.attn_q.weight").unwrap().sums[1] = 1e39;
    let error = sums.to_bytes().unwrap_err().to_string();
    assert!(error.contains("at column 1 is 1e39") || error.contains("at column 1 is 1000"), "{error}");
}

#[test]
fn importance_of_another_model_is_told_apart() {
    let folder = Folder::new();
    let file = folder.read(&some().to_bytes().unwrap()).unwrap();
    let columns = |q, up| -> HashMap<String, usize> {
        [("blk.0.attn_q.weight".to_string(), q), ("blk.0.ffn_up.weight".to_string(), up)].into()
    };
    assert!(file.check(&columns(3, 40)).is_ok());
    let said = |columns| file.check(&columns).unwrap_err().to_string();
    assert!(said(columns(4, 40)).contains("'blk.0.attn_q.weight' has 3 columns here, and 4 in the model"));
    assert!(said(HashMap::new()).contains("which the model does not have; was it made with another model?"));
}

#[test]
fn a_format_that_requires_importance_is_refused_without() {
    // No format of nibble's does yet; here Q2_K stands for one.
    let use_of = |ty| if ty == TensorType::Q2_K { ImportanceUse::Required } else { ImportanceUse::Used };
    let check = |tensors: &[(&'static str, TensorType)], importance: Option<&Importance>| {
        Required::check_with(use_of, tensors.iter().copied(), importance)
    };
    let q = ("blk.0.attn_q.weight", TensorType::Q2_K);
    let down = ("blk.0.ffn_down.weight", TensorType::Q2_K);
    let other = ("output.weight", TensorType::Q6_K);
    let values = [(q.0.to_string(), vec![1.0; 256])].into();
    let importance = Importance::new("some".to_string(), blake3::hash(b"some"), values);
    assert_eq!(check(&[other], None), Ok(()));
    assert_eq!(check(&[q, other], Some(&importance)), Ok(()));
    let lacks = |(tensor, ty): (&str, TensorType)| Err(Required { tensor: tensor.to_string(), ty });
    assert_eq!(check(&[other, q], None), lacks(q));
    assert_eq!(check(&[q, down], Some(&importance)), lacks(down));
    assert_eq!(
        lacks(down).unwrap_err().to_string(),
        "tensor 'blk.0.ffn_down.weight' cannot become Q2_K without importance, which says which of its weights matter"
    );
    assert_eq!(Required::check([q, down, other], None), Ok(()));
}

#[test]
fn columns_that_were_never_used_count_as_the_least_important_ones() {
    let of = |values: &[f32]| {
        let values = [("a".to_string(), values.to_vec())].into();
        let importance = Importance::new("x".to_string(), blake3::hash(b"x"), values);
        (importance.of("a").map(<[f32]>::to_vec), importance.unseen("a"), importance.has("a"))
    };
    let positive = [3.0, 1e-30, 0.5];
    assert_eq!(of(&positive), (Some(positive.to_vec()), 0, true));
    assert_eq!(of(&[3.0, 0.0, 0.5, 0.0]), (Some(vec![3.0, 0.5, 0.5, 0.5]), 2, true));
    assert_eq!(of(&[1e30, 0.0, 0.5]), (Some(vec![1e30, 0.5, 0.5]), 1, true));
    // Next to nothing would vanish when it is squared: then what the search can still compute with.
    assert_eq!(of(&[1.0, 0.0, 1e-30]), (Some(vec![1.0, 2f32.powi(-40), 1e-30]), 1, true));
    assert_eq!(of(&[2f32.powi(-30), 0.0, 1e-30]).0.unwrap()[1], 2f32.powi(-55));
    // Nothing is known of a matrix that no text used.
    assert_eq!(of(&[0.0; 3]), (None, 3, true));
    // What makes no sense stays, for those who check it.
    assert_eq!(of(&[0.0, -1.0]), (Some(vec![0.0, -1.0]), 0, true));
    assert!(of(&[0.0, f32::NAN]).0.unwrap()[1].is_nan());
}

#[test]
fn values_are_read_when_they_are_asked_for() {
    let folder = Folder::new();
    let file = folder.read(&some().to_bytes().unwrap()).unwrap();
    assert_eq!(file.matrices().collect::<Vec<_>>(), ["blk.0.attn_q.weight", "blk.0.ffn_up.weight"]);
    assert_eq!(file.matrix("blk.0.ffn_up.weight").unwrap().counts, [256.5]);
    assert_eq!(file.matrix("output.weight"), None);
    let importance = file.importance().unwrap();
    drop(file);
    assert!(importance.values.values().all(|values| values.get().is_none()));
    assert_eq!(importance.of("blk.0.ffn_up.weight").unwrap().len(), 40);
    assert_eq!(importance.values.values().filter(|values| values.get().is_some()).count(), 1);
}
