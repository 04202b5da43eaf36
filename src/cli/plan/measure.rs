//! What is asked of llama.cpp, and what is measured: memory and speed.

use std::cell::OnceCell;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;

use super::Target;
use super::candidate::Candidate;
use super::row::Row;
use crate::base::folders;
use crate::base::remembered::Remembered;
use crate::bench::{self, PaceOptions};
use crate::cli::out;
use crate::engine::{self, SessionOptions};
use crate::llama::{self, AttentionTime, Heads, KvTypes, Model, ModelFile, ModelOptions};
use crate::placement::{self, Demand, HollowFile, Outline, Pace, Repack, Shape, heads};

/// What a running model takes that was not there when it was asked for: the texts, the sampler, code that had not run yet, and
/// what is left of copying weights into the second layout.
const MARGIN: u64 = 6 << 20;

/// llama.cpp is not asked about larger contexts: some of its tables have an entry for each token, simulated or not.
const MOST_ASKED: u32 = 1 << 22;

pub(super) struct Meter<'a> {
    target: &'a Target,
    cancel: Arc<AtomicBool>,
    folder: PathBuf,
    remembered: Remembered,
    /// What a program takes for itself that runs the first model: those that follow differ in their types alone.
    program: OnceCell<u64>,
}

/// A model whose memory is simulated.
pub(super) struct Simulated {
    model: Model,
    program: u64,
    session: SessionOptions,
}

impl<'a> Meter<'a> {
    pub fn new(target: &'a Target, cancel: Arc<AtomicBool>) -> Self {
        let folder = folders::cache().map(|folder| folder.join("outlines")).filter(|folder| is_writable(folder));
        let folder = folder.unwrap_or_else(std::env::temp_dir);
        Self { target, cancel, folder, remembered: Remembered::of_user(), program: OnceCell::new() }
    }

    /// Loads a candidate without its weights.
    pub fn simulate(&self, candidate: &Candidate) -> anyhow::Result<Simulated> {
        let file = self.make(&candidate.outline)?;
        let session = SessionOptions { threads: Some(self.target.threads), ..SessionOptions::default() };
        let model = Model::load(file.path(), simulated())?;
        let program = match self.program.get() {
            Some(program) => *program,
            None => *self.program.get_or_init(|| program_bytes(file.path()).saturating_add(MARGIN)),
        };
        Ok(Simulated { model, program, session })
    }

    fn make(&self, outline: &Outline) -> anyhow::Result<HollowFile> {
        outline.make(&self.folder).with_context(|| format!("no file could be made in {}", self.folder.display()))
    }

    /// Measures how fast a candidate is, for all of its rows.
    pub fn speeds(&self, candidate: &Candidate, rows: &mut [&mut Row]) -> anyhow::Result<()> {
        let outline = &candidate.outline;
        let Some(first) = heads(outline.metadata()).first().copied() else { return Ok(()) };
        let n_layers = outline.n_layers();
        let Some(plain) = self.attention(first, n_layers, KvTypes::default())? else { return Ok(()) };
        let made = self.make(outline)?;
        let file = ModelFile::check(made.path(), ModelOptions { gpu_layers: Some(0), ..ModelOptions::default() })?;
        for row in rows {
            let needs = row.fit.placement().map_or(0, |placed| placed.host);
            let machine = Some(&self.target.machine);
            let layout = engine::layout(&file, Repack::Auto, needs, self.target.threads, machine, 0)?;
            let pace = self.pace(outline, layout.used, plain)?;
            let Some(attention) = self.attention(first, n_layers, row.spot.kv_types)? else { continue };
            let half = f64::from(row.spot.n_ctx) / 2.0;
            row.reading = Some(pace.reading(n_layers, half, attention));
            row.writing = Some(pace.writing(n_layers, half, attention));
        }
        Ok(())
    }

    fn pace(&self, outline: &Outline, repack: bool, attention: AttentionTime) -> anyhow::Result<Pace> {
        let mut shape = blake3::Hasher::new();
        shape.update(format!("{:?}\n", heads(outline.metadata())).as_bytes());
        for tensor in outline.tensors() {
            shape.update(format!("{} {:?} {}\n", tensor.name, tensor.dims, tensor.ty).as_bytes());
        }
        let layout = if repack { "second" } else { "first" };
        let name = self.name(&format!("pace of {} in the {layout} layout", &shape.finalize().to_hex()[..16]))?;
        if let Some(known) = self.remembered.get(&name) {
            return Ok(known);
        }
        let (folder, threads, cancel) = (self.folder.clone(), self.target.threads, self.cancel.clone());
        let found = bench::pace(outline, &PaceOptions { folder, threads, repack, attention, cancel })?;
        self.remembered.put(&name, &found);
        Ok(found)
    }

    fn attention(&self, heads: Heads, n_layers: u32, kv_types: KvTypes) -> anyhow::Result<Option<AttentionTime>> {
        let Heads { n, n_kv, key, value } = heads;
        let name = self.name(&format!("attention of {n} {n_kv} {key} {value}, {n_layers} layers, {kv_types}"))?;
        if let Some(known) = self.remembered.get(&name) {
            return Ok(Some(known));
        }
        let found = llama::attention_time(heads, n_layers.into(), kv_types, self.target.threads)?;
        if let Some(found) = &found {
            self.remembered.put(&name, found);
        }
        Ok(found)
    }

    /// Returns the name of a measurement, with what it depends on.
    fn name(&self, what: &str) -> Result<String, llama::Error> {
        placement::measurement(&format!("{what}, {} threads", self.target.threads))
    }
}

/// Returns whether files can be made in a folder, which is made if it is not there.
fn is_writable(folder: &Path) -> bool {
    let probe = folder.join(format!("probe-{}", std::process::id()));
    let made = std::fs::create_dir_all(folder).and_then(|()| std::fs::File::create_new(&probe)).is_ok();
    made && std::fs::remove_file(&probe).is_ok()
}

/// Returns how models are loaded whose memory is simulated.
fn simulated() -> ModelOptions {
    ModelOptions { no_alloc: true, gpu_layers: Some(0), ..ModelOptions::default() }
}

/// Returns the bytes that a program takes which has loaded the model at `path`, without its weights: asked of one, or else of
/// this one.
fn program_bytes(path: &Path) -> u64 {
    let of_another = || {
        let mut command = Command::new(std::env::current_exe().ok()?);
        let output = command.arg("plan").arg(path).arg("--program-bytes").stdin(Stdio::null()).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok().filter(|_| output.status.success())
    };
    of_another().or_else(placement::program_bytes).unwrap_or(0)
}

/// Loads the model at `path` without its weights, makes a context as if for running it, and prints the bytes that this program
/// takes.
pub(super) fn print_program_bytes(path: &Path) -> anyhow::Result<()> {
    let model = Model::load(path, simulated())?;
    model.reservation(&SessionOptions { n_ctx: Some(512), ..SessionOptions::default() }.context(None, 1))?;
    out::to_stdout(|out| Ok(writeln!(out, "{}", placement::program_bytes().unwrap_or(0))?))
}

impl Simulated {
    /// Returns what the candidate takes with a context of this size; `None` if its heads cannot have such a KV cache.
    pub fn demand(&self, candidate: &Candidate, n_ctx: u32, kv_types: KvTypes) -> anyhow::Result<Option<Demand>> {
        if !heads(candidate.outline.metadata()).iter().all(|heads| kv_types.fit(heads)) {
            return Ok(None);
        }
        let compute = self.compute(n_ctx, kv_types)?;
        Ok(Some(Demand::new(&candidate.outline, n_ctx, kv_types, compute, self.program)))
    }

    /// Returns the bytes of intermediate results.
    fn compute(&self, n_ctx: u32, kv_types: KvTypes) -> Result<u64, llama::Error> {
        let session = SessionOptions { n_ctx: Some(n_ctx), kv_types, ..self.session.clone() };
        if n_ctx > MOST_ASKED {
            return Ok(Shape::of_model(&self.model).estimate(&session.size(None)).compute);
        }
        Ok(self.model.reservation(&session.context(None, 1))?.total())
    }
}
