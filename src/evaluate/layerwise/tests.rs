use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::convert::{self, Job};
use crate::recipe::Recipe;
use crate::transformer::Weights;

fn plain(folder: &Path, recipe: &str) -> Job {
    let output = Some(folder.join(format!("{recipe}.gguf")));
    let options = convert::Options { output, ..convert::Options::new(Recipe::find(recipe).unwrap().clone()) };
    let job = Job::prepare(Path::new("tests/data/yi-nano"), options).unwrap();
    job.execute(&(), &AtomicBool::new(false)).unwrap();
    job
}

fn options() -> Options {
    Options { n_tokens: 1024, window: Some(128), ..Options::new(Text::built_in(), 4096) }
}

#[test]
fn rounding_while_reading_gives_the_weights_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    for recipe in ["Q4_K_S", "F16"] {
        let job = plain(folder.path(), recipe);
        let file = Gguf::open(&job.outputs()[0].0).unwrap();
        let source = SourceWeights::new(job.source());
        let nearest = Nearest::new(&source, job.plan());
        assert_eq!(nearest.names().len(), file.tensors().len());
        let mut n_changed = 0;
        for tensor in file.tensors() {
            let [_, n_rows] = nearest.dims(&tensor.name).unwrap();
            let rows = n_rows / 3..n_rows;
            let read = |weights: &dyn Weights| {
                let mut numbers = Vec::new();
                weights.rows(&tensor.name, rows.clone(), &mut numbers).unwrap();
                numbers
            };
            assert!(read(&nearest) == read(&file), "{}", tensor.name);
            n_changed += usize::from(read(&nearest) != read(&source));
        }
        // Norms stay, and 16 bits of one kind may be exact in another.
        assert!(n_changed > 20, "{n_changed}");
    }
}

#[test]
fn plain_rounding_is_as_far_away_as_itself() {
    let folder = tempfile::tempdir().unwrap();
    let job = plain(folder.path(), "Q4_0");
    let file = job.outputs()[0].0.clone();
    let compare = |threads: u32, n_tokens: u64| {
        let session = SessionOptions { threads: Some(threads), ..SessionOptions::default() };
        let options = Options { session, n_tokens, ..options() };
        let comparison = LayerComparison::prepare(job.source(), job.plan(), &file, folder.path(), options).unwrap();
        let steps = std::sync::Mutex::new(Vec::new());
        let outcome = comparison.execute(&|doing| steps.lock().unwrap().push((doing.step, doing.of))).unwrap();
        // Four layers of three models, and the output.
        assert_eq!(steps.into_inner().unwrap(), (0..13).map(|step| (step, 13)).collect::<Vec<_>>());
        outcome
    };
    let outcome = compare(1, 1024);
    assert_eq!(outcome, compare(3, 1024));
    assert_eq!((outcome.made, outcome.ratio.value), (outcome.nearest, 1.0));
    assert!(outcome.made.kld.value > 0.002 && outcome.made.kld.value < 0.1, "{:?}", outcome.made);
    assert!(outcome.made.same_top.value > 0.7 && outcome.made.same_top.value < 1.0);
    assert_eq!(outcome.texts.iter().map(|text| text.windows).collect::<Vec<_>>(), [2; 4]);
    assert_eq!((outcome.window, outcome.scored), (128, 8 * 63));
    let names: Vec<_> = outcome.texts.iter().map(|text| text.name.as_str()).collect();
    assert_eq!(names, ["english", "chinese", "code", "chat"]);
    let mean = outcome.texts.iter().map(|text| text.made.value).sum::<f64>() / 4.0;
    assert!((mean - outcome.made.kld.value).abs() < 1e-12);
    // The folder is left as it was.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn the_original_is_at_no_distance() {
    let folder = tempfile::tempdir().unwrap();
    let (same, other) = (plain(folder.path(), "BF16"), plain(folder.path(), "Q8_0"));
    let file = same.outputs()[0].0.clone();
    let comparison = LayerComparison::prepare(other.source(), other.plan(), &file, folder.path(), options()).unwrap();
    let outcome = comparison.execute(&|_| ()).unwrap();
    assert_eq!((outcome.made.kld.value, outcome.made.same_top.value, outcome.ratio.value), (0.0, 1.0, 0.0));
    assert!(outcome.nearest.kld.value > 1e-6);
}

#[test]
fn it_stops_when_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let job = plain(folder.path(), "Q4_0");
    let cancel = Arc::new(AtomicBool::new(false));
    let session = SessionOptions { cancel: cancel.clone(), ..SessionOptions::default() };
    let options = Options { session, ..options() };
    let file = job.outputs()[0].0.clone();
    let comparison = LayerComparison::prepare(job.source(), job.plan(), &file, folder.path(), options).unwrap();
    let stopped = comparison.execute(&|doing| cancel.store(doing.step == 5, Ordering::Relaxed));
    assert!(matches!(stopped, Err(Error::Cancelled)));
}
