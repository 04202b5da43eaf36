//! How a run begins, and what it leaves if it does not finish.
//!
//! ```text
//! x.gguf.journal    created first, removed last: it says what the partial files are
//! x.gguf.partial    the output, zeros where nothing has been written yet, its header written last of all
//! x.gguf            the name it gets when it is complete and on the disk
//! ```
//!
//! A run may be interrupted between any two steps. If the files do not have their names yet, the next run finds a journal
//! and partial files, and resumes. If some or all have their names and the journal still exists, it takes the names back,
//! checks the files and names them again: nothing is trusted that has not been read.

use std::fmt;
use std::path::Path;
use std::time::SystemTime;

use super::execute::{Event, Observer};
use super::journal::{Changed, Contents, Identity, Journal, OutputFile, Record, SourceFile};
use super::output::{self, Outputs};
use super::{Error, Job};
use crate::base::atomic_file::folder;
use crate::base::mmap::Mapping;
use crate::pass::{self, Bytes, Encoder, SPAN_BYTES, Span, file_hashes};

/// What an unfinished run left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// No file.
    Nothing,
    /// Work that the next run resumes.
    Work {
        /// Percentage of all work that is done.
        percent: u8,
    },
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => write!(f, "nothing was left behind"),
            Self::Work { percent } => {
                write!(f, "{percent}% is done and kept")
            }
        }
    }
}

/// The partial output files and the journal of a run.
pub struct Site {
    pub journal: Journal,
    pub outputs: Outputs,
    /// For each span, the record of an earlier run. Not to be trusted before the output is checked.
    pub records: Vec<Option<Record>>,
}

impl Job {
    /// Opens the journal and the partial files: those of an earlier run if it can be resumed, otherwise new ones.
    pub(super) fn open_site(
        &self,
        identity: &Identity,
        spans: &[Span],
        observer: &dyn Observer,
    ) -> Result<Site, Error> {
        self.check_places()?;
        let (mut journal, contents) = Journal::open(&output::journal_path(&self.target))?;
        let is_new = matches!(contents, Contents::Nothing);
        let (before, changed) = match contents {
            Contents::Nothing => (None, None),
            Contents::Damaged => (None, Some(Changed::Journal)),
            Contents::Of(before) => {
                let changed = identity.changed_since(&before);
                (Some(before), if self.options.restart { Some(Changed::Asked) } else { changed })
            }
        };
        let goes_on = before.is_some() && changed.is_none();
        let mut records = vec![None; spans.len()];
        if goes_on {
            records = journal.records(spans.len())?;
            self.take_back(spans, &records)?;
        }
        if let Err(error) = self.check_before(is_new) {
            if is_new {
                journal.remove();
            }
            return Err(error);
        }
        if let Some(changed) = changed {
            observer.event(Event::StartingOver(changed));
        }
        let done_bytes = done_bytes(spans, &records);
        if !goes_on {
            self.discard(before.as_ref());
            if let Err(error) = journal.begin(identity, spans.len()) {
                return Err(self.leave(error, journal, done_bytes, spans));
            }
        }
        match Outputs::open(&self.outputs) {
            Ok(outputs) => Ok(Site { journal, outputs, records }),
            Err(error) => Err(self.leave(error, journal, done_bytes, spans)),
        }
    }

    /// Ends a failed run: keeps what the next run can resume, or removes everything.
    pub(super) fn leave(&self, error: Error, journal: Journal, done_bytes: u64, spans: &[Span]) -> Error {
        let total = spans.iter().map(Span::n_bytes).sum::<u64>().max(1);
        // Checked before files are removed: it is the failed run that lacked the space.
        let error = match &error {
            Error::Write { source, .. } if is_full(source) => self.disk_full().unwrap_or(error),
            _ => error,
        };
        let left = if error.may_pass() && done_bytes > 0 {
            // If this fails, the next run finds less to resume.
            let _ = journal.sync();
            Left::Work { percent: (u128::from(done_bytes) * 100 / u128::from(total)).clamp(1, 100) as u8 }
        } else {
            self.discard(None);
            journal.remove();
            Left::Nothing
        };
        if error.may_pass() { Error::Unfinished { error: Box::new(error), left } } else { error }
    }

    fn disk_full(&self) -> Option<Error> {
        let missing = output::missing_bytes(&self.outputs).filter(|missing| *missing > 0)?;
        Some(Error::DiskFull { folder: folder(&self.target).to_path_buf(), missing })
    }

    /// Checks that the run may begin, once the files of an earlier run are recognized.
    fn check_before(&self, is_new: bool) -> Result<(), Error> {
        if !self.options.force {
            output::check_names(&self.outputs)?;
        }
        let partials = self.outputs.iter().map(|(path, _)| output::partial_path(path));
        if let Some(path) = partials.into_iter().find(|path| path.symlink_metadata().is_ok())
            && is_new
            && !self.options.restart
        {
            return Err(Error::UnknownPartial { path });
        }
        output::check_room(&self.outputs)
    }

    /// Gives complete files their partial names back, if an earlier run was interrupted while it named them.
    fn take_back(&self, spans: &[Span], records: &[Option<Record>]) -> Result<(), Error> {
        // Files are named only when every span is done.
        let Some(values) = records.iter().map(|record| Some(record.as_ref()?.value)).collect::<Option<Vec<_>>>() else {
            return Ok(());
        };
        let layout = self.layout_with_hashes(&file_hashes(spans, &values))?;
        for ((path, bytes), part) in self.outputs.iter().zip(layout.parts()) {
            output::take_back(path, *bytes, &part.header);
        }
        Ok(())
    }

    /// Removes this run's partial files, and those of an earlier run that made something else of the same name.
    fn discard(&self, before: Option<&Identity>) {
        output::discard(self.outputs.iter().map(|(path, _)| path.as_path()));
        let names = before.into_iter().flat_map(|identity| &identity.outputs).map(|output| Path::new(&output.name));
        // A journal may only name files beside it, whatever was written into it.
        let names = names.filter(|name| name.file_name() == Some(name.as_os_str()));
        let paths: Vec<_> = names.map(|name| self.target.with_file_name(name)).collect();
        output::discard(paths.iter().map(|path| path.as_path()));
    }

    /// Returns everything that the bytes of the result depend on.
    pub(super) fn identity(&self, files: &[&Mapping], encoders: &[Encoder]) -> Result<Identity, Error> {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let source = files.iter().map(|file| {
            let (bytes, modified) = state(file)?;
            if bytes != file.bytes().len() as u64 {
                return Err(Error::SourceChanged { path: file.path().to_path_buf() });
            }
            let head = &file.bytes()[..file.bytes().len().min(HEAD_BYTES)];
            Ok(SourceFile { name: name(file.path()), bytes, modified, head: hex(&blake3::hash(head)) })
        });
        let outputs = self.outputs.iter().map(|(path, bytes)| OutputFile { name: name(path), bytes: *bytes });
        Ok(Identity {
            version: env!("CARGO_PKG_VERSION").to_string(),
            result: hex(&self.result_hash(files, encoders)),
            source: source.collect::<Result<_, Error>>()?,
            outputs: outputs.collect(),
        })
    }

    /// Returns the hash of the plan: the headers as far as they are known, where every tensor comes from and goes, and how
    /// it is encoded.
    fn result_hash(&self, files: &[&Mapping], encoders: &[Encoder]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        // With the length of each text, so that no two plans hash the same bytes.
        let mut add = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        add(format!("spans of {SPAN_BYTES}, allow nan: {}", self.options.allow_nan).as_bytes());
        self.layout.parts().iter().for_each(|part| add(&part.header));
        if let Some(prologue) = &self.options.prologue {
            add(format!("prologue {}", prologue.identity()).as_bytes());
        }
        for (i, encoder) in encoders.iter().enumerate() {
            for input in &encoder.assembly.inputs {
                let place = match &input.bytes {
                    Bytes::Mapped(map, range) => {
                        let file = files.iter().position(|file| std::ptr::eq(*file, *map));
                        format!("{file:?} {range:?}")
                    }
                    Bytes::Made(bytes) => format!("{bytes:?}"),
                };
                let rows = (input.n_rows, input.row_len, input.first_row);
                let (packing, plus) = (input.packed.as_ref().map(|(packing, _)| packing.name), input.plus);
                add(format!("{place} {:?} {rows:?} {:?} {packing:?} {plus}", input.ty, input.order).as_bytes());
            }
            add(format!("{:?} {:?}", encoder.ty, self.layout.place(i)).as_bytes());
            match encoder.importance {
                Some(importance) => add(&importance.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()),
                None => add(b"none"),
            }
        }
        hasher.finalize()
    }
}

/// Bytes that [`SourceFile::head`] hashes: more than the list of tensors takes, in all but odd cases.
const HEAD_BYTES: usize = 1 << 20;

/// Returns the length and the time of the last change, in nanoseconds since 1970.
pub fn state(file: &Mapping) -> Result<(u64, i64), Error> {
    let (bytes, modified) =
        file.state().map_err(|source| pass::Error::Read { path: file.path().to_path_buf(), source })?;
    let nanoseconds = match modified.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => after.as_nanos() as i64,
        Err(before) => -(before.duration().as_nanos() as i64),
    };
    Ok((bytes, nanoseconds))
}

/// Returns how many bytes of the source are done.
pub fn done_bytes(spans: &[Span], records: &[Option<Record>]) -> u64 {
    spans.iter().zip(records).filter(|(_, record)| record.is_some()).map(|(span, _)| span.n_bytes()).sum()
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

fn hex(hash: &blake3::Hash) -> String {
    hash.to_hex().to_string()
}
