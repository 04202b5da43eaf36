//! Gradients against differences, and what the descent keeps.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::descent::{Descent, Settings, Windows};
use super::parameters::{Draft, Layout, Numbers, SHARE};
use super::*;
use crate::arch::ARCHITECTURES;
use crate::convert::{Job, Options};
use crate::gguf::{Gguf, Metadata, TensorInfo};
use crate::quant::{self, Half};
use crate::recipe::Recipe;

/// A file as it is.
impl Draft for Gguf {
    fn metadata(&self) -> &Metadata {
        self.metadata()
    }

    fn tensors(&self) -> &[TensorInfo] {
        self.tensors()
    }

    fn read(&self, tensor: usize, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        bytes.copy_from_slice(&self.data(tensor)[offset as usize..][..bytes.len()]);
        Ok(())
    }
}

/// A file without its output matrix: the embedding is used in its place.
struct Tied {
    gguf: Gguf,
    tensors: Vec<TensorInfo>,
    indices: Vec<usize>,
}

impl Tied {
    fn new(gguf: Gguf) -> Self {
        let kept = |index: &usize| gguf.tensors()[*index].name != "output.weight";
        let indices: Vec<usize> = (0..gguf.tensors().len()).filter(kept).collect();
        let tensors = indices.iter().map(|index| gguf.tensors()[*index].clone()).collect();
        Self { gguf, tensors, indices }
    }
}

impl Draft for Tied {
    fn metadata(&self) -> &Metadata {
        self.gguf.metadata()
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read(&self, tensor: usize, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        Draft::read(&self.gguf, self.indices[tensor], offset, bytes)
    }
}

/// yi-nano in several types.
fn draft(folder: &Path) -> Gguf {
    let types =
        ["token_embd.weight=Q4_0", "blk.0.*=IQ4_XS", "blk.1.*=Q4_K", "blk.2.*=Q5_1", "blk.3.attn_q.weight=Q3_K"];
    let options = Options {
        output: Some(folder.join("draft.gguf")),
        overrides: types.iter().map(|text| text.parse().unwrap()).collect(),
        ..Options::new(Recipe::find("Q2_K").unwrap().clone())
    };
    Job::prepare(&yi_nano(), options).unwrap().execute(&(), &AtomicBool::new(false)).unwrap();
    Gguf::open(&folder.join("draft.gguf")).unwrap()
}

fn yi_nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/yi-nano")
}

fn source() -> Source {
    Source::open(&yi_nano(), ARCHITECTURES, false, None).unwrap()
}

/// Windows of 16 tokens of two texts.
fn windows() -> Windows {
    let window = |at: u32| (0..16).map(|i| 9 + (at * 16 + i) * 977 % 900).collect();
    let texts = vec![(0..6).map(window).collect(), (6..10).map(window).collect()];
    Windows { length: 16, texts, held_out: (10..14).map(window).collect() }
}

fn quiet(_: Doing) {}

fn descent<'a>(original: &'a Model<'a>, draft: &'a dyn Draft, windows: &'a Windows) -> Descent<'a> {
    static NEVER: AtomicBool = AtomicBool::new(false);
    Descent {
        original,
        draft,
        windows,
        n_tokens: 32 * 64,
        settings: Settings { tokens_a_step: 64, rate: 4e-3, norm_rate: 1e-3, ..Settings::default() },
        folder: std::env::temp_dir(),
        cancel: &NEVER,
        tell: &quiet,
    }
}

/// Differences of the loss where single scales, and weights of norms, move to other numbers that can be stored.
fn gradients_are_differences(draft: &dyn Draft) {
    let (source, windows) = (source(), windows());
    let weights = SourceWeights::new(&source);
    let original = Model::new(&source.metadata, &weights).unwrap();
    let layout = Layout::new(draft);
    let descent = descent(&original, draft, &windows);
    let targets = descent.targets().unwrap();
    let read = [0, 7];
    let zeros = layout.zeros();
    let gradients = descent.gradients(&layout, &zeros, &targets, &read).unwrap();
    let loss = |changes: &Numbers| descent.loss(&layout, changes, &targets, &read).unwrap();
    let with = |tensor: usize, at: usize, change: &[f32]| {
        let mut changes = zeros.clone();
        changes[tensor][at..at + change.len()].copy_from_slice(change);
        loss(&changes)
    };
    let mut n_compared = 0;
    for (tensor, info) in draft.tensors().iter().enumerate() {
        let gradients = &gradients[tensor];
        let format = quant::format(info.ty).unwrap();
        let n = format.n_halves().max(1);
        if gradients.is_empty() {
            assert!(format.n_halves() == 0 && !info.name.ends_with("_norm.weight"), "{} is not tuned", info.name);
            continue;
        }
        // The block that matters most: differences of others are lost in rounding.
        let largest = (0..gradients.len()).max_by(|a, b| gradients[*a].abs().total_cmp(&gradients[*b].abs())).unwrap();
        let at = largest / n * n;
        let check = |what: &str, wanted: f64, slope: f64| {
            let scale = f64::from(gradients[largest].abs());
            assert!(
                (wanted - slope).abs() < 0.02 * scale + 2e-6,
                "{} {}: {what}: {slope}, {wanted}",
                info.name,
                info.ty
            );
        };
        if format.n_halves() == 0 {
            let slope = (with(tensor, at, &[1.0 / 64.0]) - with(tensor, at, &[-1.0 / 64.0])) * 32.0;
            check("weight", f64::from(gradients[at]), slope);
            n_compared += 1;
            continue;
        }
        let mut block = vec![0; info.ty.block_bytes()];
        draft.read(tensor, (at / n * block.len()) as u64, &mut block).unwrap();
        let [d, dmin] = format.halves(&block).unwrap()[0].map(Half::value);
        // The changes for which d and dmin are the halves next to so many times what they are, and how much that is.
        let step = |value: f32, times: f32| Half::new(value * times).value() / value - 1.0;
        let (up, down) = (step(d, 33.0 / 32.0), step(d, 31.0 / 32.0));
        let of_d = |change: f32| match n {
            1 => with(tensor, at, &[change]),
            // What dmin would get is taken back.
            _ => with(tensor, at, &[change, -change / SHARE]),
        };
        let slope = (of_d(up) - of_d(down)) / f64::from(up - down);
        let of_dmin = gradients.get(at + 1).filter(|_| n == 2).map_or(0.0, |of_min| f64::from(of_min / SHARE));
        check("d", f64::from(gradients[at]) - of_dmin, slope);
        n_compared += 1;
        if n == 2 && dmin != 0.0 {
            let (up, down) = (step(dmin, 33.0 / 32.0), step(dmin, 31.0 / 32.0));
            let of_dmin_at = |change: f32| with(tensor, at, &[0.0, change / SHARE]);
            let slope = (of_dmin_at(up) - of_dmin_at(down)) / f64::from(up - down);
            check("dmin", of_dmin, slope);
            n_compared += 1;
        }
    }
    assert!(n_compared > 40, "{n_compared}");
}

#[test]
fn gradients_of_scales_and_norms_are_differences_of_the_loss() {
    let folder = tempfile::tempdir().unwrap();
    gradients_are_differences(&draft(folder.path()));
}

#[test]
fn gradients_of_an_embedding_that_is_the_output_too_are_differences_of_the_loss() {
    let folder = tempfile::tempdir().unwrap();
    gradients_are_differences(&Tied::new(draft(folder.path())));
}

#[test]
fn the_loss_is_the_divergence_of_the_predictions() {
    let p = [0.3f32, -1.0, 2.0, 0.0];
    let q = [0.1f32, -1.5, 2.5, 0.4];
    let shares = |x: &[f32]| {
        let sum: f64 = x.iter().map(|x| f64::from(*x).exp()).sum();
        x.iter().map(|x| f64::from(*x).exp() / sum).collect::<Vec<f64>>()
    };
    let wanted: f64 = shares(&p).iter().zip(shares(&q)).map(|(p, q)| p * (p / q).ln()).sum();
    let found = descent::divergence(&p, &mut q.to_vec());
    assert!((found - wanted).abs() < 1e-7, "{found}, {wanted}");
    assert!(descent::divergence(&p, &mut p.to_vec()).abs() < 1e-12);
}

#[test]
fn a_descent_comes_nearer_and_threads_do_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let (draft, source, windows) = (draft(folder.path()), source(), windows());
    let weights = SourceWeights::new(&source);
    let original = Model::new(&source.metadata, &weights).unwrap();
    let layout = Layout::new(&draft);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| descent(&original, &draft, &windows).run(&layout).unwrap())
    };
    let (changes, achieved) = run(1);
    assert!(achieved.after < 0.97 * achieved.before, "{achieved:?}");
    assert_eq!(achieved.n_tokens, 64);
    assert!(run(3) == (changes.clone(), achieved));
    // What is written are the changes, in whole rows, and finite.
    let mut n_changed = 0;
    layout
        .write::<transformer::Error>(&changes, |tensor, offset, bytes| {
            let was = &draft.data(tensor)[offset as usize..][..bytes.len()];
            let info = &draft.tensors()[tensor];
            let format = quant::format(info.ty).unwrap();
            assert!(format.not_finite(bytes).is_none(), "{}", info.name);
            n_changed += usize::from(was != bytes);
            Ok(())
        })
        .unwrap();
    assert!(n_changed > 30, "{n_changed}");
    // Without changes, nothing changes.
    layout
        .write::<transformer::Error>(&layout.zeros(), |tensor, offset, bytes| {
            assert!(&draft.data(tensor)[offset as usize..][..bytes.len()] == bytes);
            Ok(())
        })
        .unwrap();
}

#[test]
fn what_is_worse_for_held_out_windows_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (draft, source, windows) = (draft(folder.path()), source(), windows());
    let weights = SourceWeights::new(&source);
    let original = Model::new(&source.metadata, &weights).unwrap();
    let layout = Layout::new(&draft);
    let mut wild = descent(&original, &draft, &windows);
    wild.settings.rate = 0.5;
    wild.settings.checks = 1;
    wild.n_tokens = 8 * 64;
    let (changes, achieved) = wild.run(&layout).unwrap();
    assert_eq!(achieved.after, achieved.before);
    assert!(changes == layout.zeros());
}

#[test]
fn each_step_reads_as_many_windows_of_each_text() {
    let windows = Windows {
        length: 100,
        texts: vec![vec![vec![1; 100]; 7], vec![vec![2; 100]; 30]],
        held_out: vec![vec![3; 100]],
    };
    let steps = windows.steps(20_000, 1024);
    assert_eq!(steps.len(), 20);
    assert!(steps.iter().all(|step| step.iter().filter(|window| **window < 7).count() == 5 && step.len() == 10));
    let mut times = [0; 37];
    steps.iter().flatten().for_each(|window| times[*window] += 1);
    // 100 of each text: none is read again before all were.
    assert!(times[..7].iter().all(|n| (14..=15).contains(n)) && times[7..].iter().all(|n| (3..=4).contains(n)));
}
