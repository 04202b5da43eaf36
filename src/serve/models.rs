//! The models that are served: one, or those of a folder, each with a process of its own.
//!
//! ```text
//!  one file, or DIR/*.gguf ──► Served: name, file, Engine ──► nibble engine      started by the first request,
//!              ▲                                                                 ended when idle, or when another
//!        DIR/NAME.toml                                                           model needs the memory
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use tokio::time::Instant;

use super::backend::{self, Answers, Backend, Later, Model};
use super::protocol::{Failure, FailureKind, ModelInfo, Task};
use super::supervisor::{Engine, Launch, Limits, State};

/// A folder is looked at again after this time.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// How to start the engine of a model.
pub type Starts = dyn Fn(&Path) -> Arc<dyn Launch> + Send + Sync;

/// Where models are.
#[derive(Clone, Debug)]
pub enum Place {
    /// One file.
    File(PathBuf),
    /// All GGUF files of a folder, of split ones the first part.
    Folder(PathBuf),
}

/// What the models share.
#[derive(Clone, Debug)]
pub struct Sharing {
    /// When to give up an engine, and when to end it.
    pub limits: Limits,
    /// The most bytes of the files of loaded models together. A model that is larger is loaded alone.
    pub most_bytes: u64,
    /// The most models that are loaded at a time.
    pub most_models: usize,
}

/// The models that are served.
pub struct Models {
    place: Place,
    sharing: Sharing,
    starts: Box<Starts>,
    known: Mutex<Known>,
    /// Held while one is made room for: two at a time would both take it.
    making_room: tokio::sync::Mutex<()>,
}

struct Known {
    models: BTreeMap<String, Served>,
    looked: Option<Instant>,
}

struct Served {
    path: PathBuf,
    created: u64,
    bytes: u64,
    engine: Engine,
    /// When somebody last asked for it.
    asked: Instant,
}

impl Models {
    /// Returns the models at `place`, none of which is loaded yet. Has to be called in a tokio runtime.
    ///
    /// # Errors
    /// If the file or the folder cannot be read.
    pub fn new(place: Place, sharing: Sharing, starts: Box<Starts>) -> std::io::Result<Self> {
        let known = Mutex::new(Known { models: BTreeMap::new(), looked: None });
        let models = Self { place, sharing, starts, known, making_room: tokio::sync::Mutex::default() };
        models.look(&mut models.known())?;
        Ok(models)
    }

    /// Loads the model of a single file, before anybody asks for it.
    pub fn load_first(&self) {
        if let (Place::File(_), Some(served)) = (&self.place, self.known().models.values().next()) {
            served.engine.load();
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds out which files there are. Models whose files are gone are forgotten, and end after their tasks.
    fn look(&self, known: &mut Known) -> std::io::Result<()> {
        let files = match &self.place {
            Place::File(path) => vec![path.clone()],
            Place::Folder(folder) => models_in(folder)?,
        };
        let mut found = BTreeMap::new();
        for path in files {
            let Some(name) = name_of(&path) else { continue };
            // What was deleted a moment ago is not there.
            let Ok(metadata) = std::fs::metadata(&path) else { continue };
            let created = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let created = created.map_or(0, |since| since.as_secs());
            let served = match known.models.remove(&name) {
                Some(served) if served.path == path && served.created == created => served,
                _ => {
                    let engine = Engine::new((self.starts)(&path), self.sharing.limits);
                    Served { bytes: bytes_of(&path, metadata.len()), path, created, engine, asked: Instant::now() }
                }
            };
            found.insert(name, served);
        }
        known.models = found;
        known.looked = Some(Instant::now());
        Ok(())
    }

    /// Returns the engine of a model, after what else is loaded has made room for it.
    async fn engine(&self, name: &str) -> Result<Engine, Failure> {
        let (engine, bytes) = {
            let mut known = self.known();
            let served = known.models.get_mut(name).ok_or_else(|| Failure {
                kind: FailureKind::Unavailable,
                message: format!("there is no model '{name}' any more"),
            })?;
            served.asked = Instant::now();
            (served.engine.clone(), served.bytes)
        };
        if is_loaded(&engine) {
            return Ok(engine);
        }
        let _only_one = self.making_room.lock().await;
        while let Some(other) = self.to_unload(name, bytes) {
            other.unload().await;
        }
        engine.load();
        // Nobody else may count on this memory before it is taken.
        let mut state = engine.state();
        let _ = state.wait_for(|state| !matches!(state, State::Unloaded)).await;
        Ok(engine)
    }

    /// Ends all processes after their tasks, so that they write what they keep on the disk. Those that take longer than
    /// `patience` are left.
    pub async fn close(&self, patience: Duration) {
        let engines: Vec<Engine> = self.known().models.values().map(|served| served.engine.clone()).collect();
        let unload = |engine: Engine| tokio::spawn(async move { engine.unload().await });
        let unloading: Vec<_> = engines.into_iter().map(unload).collect();
        let all = async {
            for one in unloading {
                let _ = one.await;
            }
        };
        let _ = tokio::time::timeout(patience, all).await;
    }

    /// Returns what has to be unloaded first if this model is to be loaded: what nobody has asked for the longest.
    fn to_unload(&self, name: &str, bytes: u64) -> Option<Engine> {
        let known = self.known();
        let loaded = || known.models.iter().filter(|(other, served)| *other != name && is_loaded(&served.engine));
        let total = loaded().fold(bytes, |sum, (_, served)| sum.saturating_add(served.bytes));
        if total <= self.sharing.most_bytes && loaded().count() < self.sharing.most_models.max(1) {
            return None;
        }
        loaded().min_by_key(|(_, served)| served.asked).map(|(_, served)| served.engine.clone())
    }
}

/// Returns whether an engine has memory, or is about to.
fn is_loaded(engine: &Engine) -> bool {
    !matches!(*engine.state().borrow(), State::Unloaded | State::Broken { is_loop: true, .. })
}

/// Returns the GGUF files of a folder, of split ones the first part.
fn models_in(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let is_gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
        if is_gguf && path.is_file() && part_of(&path).is_none_or(|(part, _)| part == 1) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Returns the name of a model: that of its file, without what says which part of it that is.
fn name_of(path: &Path) -> Option<String> {
    let name = path.file_stem()?.to_str()?;
    Some(part_of(path).map_or(name, |(_, whole)| whole).to_string())
}

/// Returns the number of a part, and the name of the whole, of a file such as `NAME-00001-of-00003.gguf`.
fn part_of(path: &Path) -> Option<(u32, &str)> {
    let (rest, of) = path.file_stem()?.to_str()?.rsplit_once("-of-")?;
    let (name, part) = rest.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(of) && is_number(part)).then(|| part.parse().ok().map(|part| (part, name))).flatten()
}

/// Returns the bytes of a model, whose first file has `first`.
fn bytes_of(path: &Path, first: u64) -> u64 {
    let (Some((_, whole)), Some(folder)) = (part_of(path), path.parent()) else { return first };
    let Ok(entries) = std::fs::read_dir(folder) else { return first };
    let is_part = |path: &Path| part_of(path).is_some_and(|(_, name)| name == whole);
    let parts = entries.flatten().filter(|entry| is_part(&entry.path()));
    parts.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

impl Backend for Models {
    fn models(&self) -> Vec<Model> {
        let mut known = self.known();
        if known.looked.is_none_or(|looked| looked.elapsed() >= LOOK_AGAIN) {
            // A folder that cannot be read now has what it had.
            let _ = self.look(&mut known);
        }
        let model = |(name, served): (&String, &Served)| Model {
            name: name.clone(),
            aliases: Vec::new(),
            created: served.created,
            state: on_the_wire(&served.engine.state().borrow()),
            restarts: served.engine.restarts(),
        };
        known.models.iter().map(model).collect()
    }

    fn has_one_model(&self) -> bool {
        matches!(self.place, Place::File(_))
    }

    fn info<'a>(&'a self, model: &'a str) -> Later<'a, Result<Arc<ModelInfo>, Failure>> {
        Box::pin(async move {
            let engine = self.engine(model).await?;
            let mut state = engine.state();
            // An engine that ended by accident is started again; one that ends again and again is not waited for.
            let is_decided = |state: &State| matches!(state, State::Ready(_) | State::Broken { is_loop: true, .. });
            let state = state.wait_for(is_decided).await.map(|state| state.clone());
            match state {
                Ok(State::Ready(info)) => Ok(info),
                Ok(State::Broken { reason, ends, .. }) => Err(Failure {
                    kind: FailureKind::Unavailable,
                    message: format!("the model cannot be used: the engine {reason}, {ends} times in a row"),
                }),
                _ => Err(Failure {
                    kind: FailureKind::Unavailable,
                    message: "the model was unloaded while it was waited for; try again".to_string(),
                }),
            }
        })
    }

    fn submit<'a>(&'a self, model: &'a str, task: Task) -> Later<'a, Result<Answers, Failure>> {
        Box::pin(async move { Ok(self.engine(model).await?.submit(task)) })
    }
}

fn on_the_wire(state: &State) -> backend::State {
    match state {
        State::Unloaded => backend::State::Unloaded,
        State::Loading(progress) => backend::State::Loading { progress: *progress },
        State::Ready(info) => backend::State::Ready(info.clone()),
        State::Broken { reason, is_loop: true, .. } => backend::State::CrashLoop { reason: reason.clone() },
        State::Broken { reason, .. } => backend::State::Crashed { reason: reason.clone() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::protocol::Answer;
    use crate::serve::supervisor::tests::Fake;

    fn models(files: &[(&str, usize)], sharing: Sharing) -> (tempfile::TempDir, Models) {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), vec![0; *bytes]).unwrap();
        }
        let starts = Box::new(|_: &Path| Fake::new(0) as Arc<dyn Launch>);
        let models = Models::new(Place::Folder(folder.path().to_path_buf()), sharing, starts).unwrap();
        (folder, models)
    }

    fn sharing(most_bytes: u64, most_models: usize) -> Sharing {
        Sharing { limits: Limits::default(), most_bytes, most_models }
    }

    fn loaded(models: &Models) -> Vec<String> {
        let is_ready = |model: &Model| matches!(model.state, backend::State::Ready(_));
        models.models().into_iter().filter(is_ready).map(|model| model.name).collect()
    }

    async fn ask(models: &Models, name: &str) {
        models.info(name).await.unwrap();
        let mut answers = models.submit(name, Task::Decode { tokens: vec![0] }).await.unwrap();
        assert!(matches!(answers.next().await, Some(Answer::Text(_))));
        // Time passes between two requests.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    #[test]
    fn parts_of_a_model_are_one() {
        let part = |name: &str| part_of(Path::new(name)).map(|(part, name)| (part, name.to_string()));
        assert_eq!(part("a/yi-34b-00002-of-00003.gguf"), Some((2, "yi-34b".to_string())));
        for whole in ["yi-34b.gguf", "yi-of-34b.gguf", "yi-1-of-2.gguf", "-of-.gguf", "yi-00001-of-0000x.gguf"] {
            assert_eq!(part(whole), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_folder_is_served_by_the_names_of_its_files() {
        let files = [
            ("b.gguf", 10),
            ("a-00001-of-00002.gguf", 5),
            ("a-00002-of-00002.gguf", 7),
            ("c.GGUF", 1),
            ("notes.txt", 1),
        ];
        let (folder, models) = models(&files, sharing(100, 4));
        let names = |models: &Models| models.models().into_iter().map(|model| model.name).collect::<Vec<_>>();
        assert_eq!(names(&models), ["a", "b", "c"]);
        assert_eq!(models.known().models["a"].bytes, 12);
        ask(&models, "a").await;
        assert_eq!(loaded(&models), ["a"]);
        // What comes and goes is seen, and what stays is not loaded again.
        std::fs::write(folder.path().join("d.gguf"), "d").unwrap();
        std::fs::remove_file(folder.path().join("b.gguf")).unwrap();
        tokio::time::sleep(LOOK_AGAIN).await;
        assert_eq!((names(&models), loaded(&models)), (vec!["a".into(), "c".into(), "d".into()], vec!["a".into()]));
        assert!(models.info("b").await.unwrap_err().message.contains("'b'"));
    }

    #[tokio::test(start_paused = true)]
    async fn models_make_room_for_one_another() {
        let (_folder, models) =
            models(&[("a.gguf", 40), ("b.gguf", 40), ("c.gguf", 40), ("d.gguf", 400)], sharing(100, 9));
        for name in ["a", "b", "a"] {
            ask(&models, name).await;
        }
        assert_eq!(loaded(&models), ["a", "b"]);
        // The one that was asked for longest ago goes.
        ask(&models, "c").await;
        assert_eq!(loaded(&models), ["a", "c"]);
        // What is larger than allowed is alone.
        ask(&models, "d").await;
        assert_eq!(loaded(&models), ["d"]);
        ask(&models, "b").await;
        assert_eq!(loaded(&models), ["b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_models_are_loaded_than_allowed() {
        let (_folder, models) = models(&[("a.gguf", 1), ("b.gguf", 1), ("c.gguf", 1)], sharing(100, 2));
        for name in ["a", "b", "c"] {
            ask(&models, name).await;
        }
        assert_eq!(loaded(&models), ["b", "c"]);
        // A text that is being written is not cut off.
        let mut long = models.submit("b", Task::Decode { tokens: vec![1] }).await.unwrap();
        ask(&models, "c").await;
        let (asked, done) = tokio::join!(
            tokio::time::timeout(Duration::from_secs(60), models.info("a")),
            tokio::time::timeout(Duration::from_secs(30), long.next())
        );
        assert!(asked.is_err() && done.is_err());
        drop(long);
        ask(&models, "a").await;
        assert_eq!(loaded(&models), ["a", "c"]);
    }
}
