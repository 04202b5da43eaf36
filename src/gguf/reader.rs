//! Opening a model: one file, or all parts of a split one.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::error::shown;
use super::parse::Header;
use super::{Error, Metadata, Problem, TensorInfo, split};
use crate::base::mmap::Mapping;

/// A model, in one file or split over several. The files are memory-mapped and never read as a whole.
///
/// Headers are checked when the files are opened: every tensor is inside its file, and has the size that its shape and
/// type require.
#[derive(Debug)]
pub struct Gguf {
    parts: Vec<OpenPart>,
    /// The tensors of all parts, in the order of the files.
    tensors: Vec<TensorInfo>,
    /// The place of each tensor's bytes.
    places: Vec<Place>,
    by_name: HashMap<String, usize>,
}

#[derive(Debug)]
struct OpenPart {
    map: Mapping,
    version: u32,
    alignment: u64,
    metadata: Metadata,
    /// The end of the tensors' descriptions.
    header_end: usize,
}

#[derive(Debug)]
struct Place {
    part: usize,
    bytes: Range<usize>,
}

/// Bytes of a file that belong to no tensor and no header: padding.
#[derive(Debug)]
pub struct Gap<'a> {
    /// The file.
    pub map: &'a Mapping,
    /// Their range in the file.
    pub bytes: Range<usize>,
    /// The data after a gap begins at a multiple of this.
    pub alignment: u64,
}

impl Gguf {
    /// Opens the model at `path`. If that is any part of a split model, opens all parts.
    ///
    /// # Errors
    /// If a file cannot be opened, or is not a valid GGUF file of version 2 or 3, or if a part is missing or does not
    /// belong to this model.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let (first, header) = open_part(path)?;
        let problem = |problem| Error { path: path.to_path_buf(), problem };
        let mut gguf = Self { parts: vec![], tensors: vec![], places: vec![], by_name: HashMap::new() };
        match split::part_of(&header.metadata).map_err(problem)? {
            None => gguf.push(first, header)?,
            Some((_, n_parts)) if joined(&first, &header) > 0 => {
                return Err(problem(Problem::Joined { of: n_parts, n_more: joined(&first, &header) }));
            }
            Some((part, n_parts)) => {
                let paths = part_paths(path, part, n_parts).map_err(problem)?;
                // It is mapped again below with the others, which is simpler than keeping it, and costs nothing.
                drop((first, header));
                gguf.open_parts(&paths)?;
            }
        }
        Ok(gguf)
    }

    fn open_parts(&mut self, paths: &[PathBuf]) -> Result<(), Error> {
        let mut wanted_tensors = 0;
        for (part, path) in paths.iter().enumerate() {
            let (open, header) = open_part(path)?;
            check_part(&header.metadata, part, paths.len())
                .and_then(|()| {
                    if part == 0 {
                        wanted_tensors = split::tensors_count(&header.metadata)?;
                    }
                    Ok(())
                })
                .map_err(|problem| Error { path: path.clone(), problem })?;
            self.push(open, header)?;
        }
        let found = self.tensors.len();
        if found as u64 != wanted_tensors {
            let problem = Problem::SplitTensors { found, wanted: wanted_tensors };
            return Err(Error { path: paths[0].clone(), problem });
        }
        Ok(())
    }

    fn push(&mut self, mut part: OpenPart, header: Header) -> Result<(), Error> {
        part.metadata = header.metadata;
        let index = self.parts.len();
        for (info, bytes) in header.tensors.into_iter().zip(header.ranges) {
            if self.by_name.insert(info.name.clone(), self.tensors.len()).is_some() {
                let problem = Problem::TensorInTwoParts { name: shown(&info.name) };
                return Err(Error { path: part.map.path().to_path_buf(), problem });
            }
            self.tensors.push(info);
            self.places.push(Place { part: index, bytes });
        }
        self.parts.push(part);
        Ok(())
    }

    /// Returns the metadata of the first file. In a split model, it includes the `split.*` keys; later parts have no
    /// other keys.
    pub fn metadata(&self) -> &Metadata {
        // `open` never returns a model without parts.
        &self.parts[0].metadata
    }

    /// Returns the tensors' descriptions, in the order of the files.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Returns the tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index_of(name).map(|index| &self.tensors[index])
    }

    /// Returns the index in [`Self::tensors`] of the tensor called `name`.
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Returns the bytes of tensor `index` of [`Self::tensors`], without padding.
    ///
    /// # Panics
    /// When there is no such tensor.
    pub fn data(&self, index: usize) -> &[u8] {
        let (map, range) = self.location(index);
        &map.bytes()[range]
    }

    /// Returns the file that holds tensor `index` of [`Self::tensors`], and the tensor's byte range in it, for
    /// [`Mapping::will_read`] and [`Mapping::release`].
    ///
    /// # Panics
    /// When there is no such tensor.
    pub fn location(&self, index: usize) -> (&Mapping, Range<usize>) {
        let place = &self.places[index];
        (&self.parts[place.part].map, place.bytes.clone())
    }

    /// Returns the paths of the files, in the order of the parts.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.parts.iter().map(|part| part.map.path())
    }

    /// Returns the mapped files, in the order of the parts.
    pub fn mappings(&self) -> impl ExactSizeIterator<Item = &Mapping> {
        self.parts.iter().map(|part| &part.map)
    }

    /// Returns the bytes that are padding: from the end of each file's header to its first tensor, from each tensor to the
    /// next, and after the last. Empty gaps are left out.
    pub fn gaps(&self) -> Vec<Gap<'_>> {
        let mut gaps = vec![];
        // The places are in the order of the parts.
        let mut places = self.places.iter().peekable();
        for (index, part) in self.parts.iter().enumerate() {
            let mut at = part.header_end;
            while let Some(place) = places.next_if(|place| place.part == index) {
                gaps.push(Gap { map: &part.map, bytes: at..place.bytes.start, alignment: part.alignment });
                at = place.bytes.end;
            }
            gaps.push(Gap { map: &part.map, bytes: at..part.map.bytes().len(), alignment: part.alignment });
        }
        gaps.retain(|gap| !gap.bytes.is_empty());
        gaps
    }

    /// Returns the format version of the first file: 2 or 3.
    pub fn version(&self) -> u32 {
        self.parts[0].version
    }

    /// Returns the alignment of tensors in the first file.
    pub fn alignment(&self) -> u64 {
        self.parts[0].alignment
    }

    /// Returns the total size of all files, in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.mappings().map(|map| map.bytes().len() as u64).sum()
    }

    /// Returns the total size of all tensors without padding, in bytes.
    pub fn tensor_bytes(&self) -> u64 {
        self.places.iter().map(|place| place.bytes.len() as u64).sum()
    }

    /// Returns the total number of weights in all tensors.
    pub fn n_parameters(&self) -> u64 {
        // Each count was checked when the file was opened, and each weight takes a bit or more of a file that exists,
        // so that the sum is far from overflowing.
        self.tensors.iter().filter_map(TensorInfo::n_elements).fold(0, u64::saturating_add)
    }
}

/// How many more GGUF files there are behind this one in the same file.
fn joined(part: &OpenPart, header: &Header) -> usize {
    let mut rest = part.map.bytes();
    let mut end = header.ranges.iter().map(|range| range.end).max().unwrap_or(header.end);
    let mut n = 0;
    // Whoever writes files pads the last tensor, or does not.
    while let Some(after) = rest.get(end..) {
        let padding = end.next_multiple_of(32) - end;
        let starts = [0, padding].into_iter().find(|at| after.get(*at..).is_some_and(|rest| rest.starts_with(b"GGUF")));
        let Some(next) = starts.and_then(|at| after.get(at..)) else { break };
        n += 1;
        let Ok(header) = Header::parse(next) else { break };
        rest = next;
        end = header.ranges.iter().map(|range| range.end).max().unwrap_or(header.end);
    }
    n
}

fn open_part(path: &Path) -> Result<(OpenPart, Header), Error> {
    let problem = |problem| Error { path: path.to_path_buf(), problem };
    if path.is_dir() {
        return Err(problem(Problem::Folder));
    }
    let map = Mapping::open(path).map_err(|error| problem(Problem::Open(error)))?;
    let header = Header::parse(map.bytes()).map_err(problem)?;
    let (version, alignment) = (header.version, header.alignment);
    let header_end = header.end;
    Ok((OpenPart { map, version, alignment, metadata: Metadata::new(), header_end }, header))
}

/// Returns the paths of all parts of the model of which `path` is part `part` (from 0).
fn part_paths(path: &Path, part: usize, n_parts: usize) -> Result<Vec<PathBuf>, Problem> {
    let suffix = split::suffix(part, n_parts);
    let base = path
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.strip_suffix(&suffix))
        .ok_or(Problem::SplitName { part: part + 1, of: n_parts, suffix })?;
    let paths: Vec<_> = (0..n_parts).map(|part| path.with_file_name(split::file_name(base, part, n_parts))).collect();

    let missing: Vec<_> = paths.iter().filter(|path| !path.exists()).filter_map(|path| path.file_name()).collect();
    if missing.is_empty() {
        return Ok(paths);
    }
    const NAMED: usize = 8;
    let mut names: Vec<_> = missing.iter().take(NAMED).map(|name| name.to_string_lossy()).collect();
    if missing.len() > NAMED {
        names.push("the others".into());
    }
    Err(Problem::MissingParts { of: n_parts, n_missing: missing.len(), names: names.join(", ") })
}

/// Returns whether this is the metadata of part `part` (from 0).
fn check_part(metadata: &Metadata, part: usize, n_parts: usize) -> Result<(), Problem> {
    match split::part_of(metadata)? {
        Some((no, count)) if count == n_parts => {
            if no == part {
                return Ok(());
            }
            Err(Problem::SplitKey {
                key: split::NO,
                found: no.to_string(),
                wanted: format!("{part}, as the file's name says"),
            })
        }
        other => {
            let found = other.map_or("1 or absent".to_string(), |(_, count)| count.to_string());
            Err(Problem::SplitKey { key: split::COUNT, found, wanted: format!("{n_parts}, as in the other parts") })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::gguf::{Layout, TensorType, Value, file_name};

    /// Eight tensors of 128 bytes each, whose bytes are their index.
    fn write(folder: &Path, base: &str, split_max_bytes: Option<u64>) -> Vec<PathBuf> {
        let mut metadata = Metadata::new();
        metadata.set("general.name", "eight");
        let tensors = (0..8)
            .map(|index| TensorInfo { name: format!("blk.{index}.w"), dims: vec![16, 2], ty: TensorType::F32 })
            .collect();
        let layout = Layout::new(&metadata, tensors, 32, split_max_bytes).unwrap();
        let n_parts = layout.parts().len();
        (0..n_parts)
            .map(|part| {
                let path = folder.join(file_name(base, part, n_parts));
                let mut file = fs::File::create(&path).unwrap();
                layout.write_part(part, &mut file, |index| [index as u8; 128]).unwrap();
                path
            })
            .collect()
    }

    #[test]
    fn headers_tensors_and_gaps_are_the_whole_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        for (base, max_bytes) in [("one", None), ("split", Some(600))] {
            let paths = write(folder.path(), base, max_bytes);
            let last = paths.last().unwrap();
            let mut bytes = fs::read(last).unwrap();
            bytes.extend([7; 40]);
            fs::write(last, &bytes).unwrap();
            let gguf = Gguf::open(&paths[0]).unwrap();
            assert!(gguf.gaps().iter().all(|gap| !gap.bytes.is_empty() && gap.alignment == 32));
            // Tensors of 128 bytes leave no gaps between them: those are after the headers, and at the end.
            let total: usize = gguf.gaps().iter().map(|gap| gap.bytes.len()).sum();
            let headers: usize = gguf.parts.iter().map(|part| part.header_end).sum();
            assert_eq!(headers + total + gguf.tensor_bytes() as usize, gguf.file_bytes() as usize);
            let Gap { map, bytes, .. } = gguf.gaps().pop().unwrap();
            assert_eq!((map.path(), &map.bytes()[bytes]), (last.as_path(), &[7; 40][..]));
        }
    }

    fn edit(path: &Path, find: &[u8], replace: &[u8]) {
        let mut bytes = fs::read(path).unwrap();
        let at = bytes.windows(find.len()).position(|window| window == find).expect("the bytes to edit are there");
        bytes[at..at + replace.len()].copy_from_slice(replace);
        fs::write(path, bytes).unwrap();
    }

    #[track_caller]
    fn assert_refused(path: &Path, parts: &[&str]) {
        let message = Gguf::open(path).map(|_| ()).expect_err("refused").to_string();
        for part in parts {
            assert!(message.contains(part), "{message:?} does not say {part:?}");
        }
    }

    #[test]
    fn a_model_in_one_file_gives_its_tensors() {
        let folder = tempfile::tempdir().unwrap();
        let paths = write(folder.path(), "one", None);
        let gguf = Gguf::open(&paths[0]).unwrap();
        assert_eq!(gguf.paths().collect::<Vec<_>>(), [&paths[0]]);
        assert_eq!(gguf.metadata().str("general.name"), Some("eight"));
        assert_eq!((gguf.version(), gguf.alignment(), gguf.n_parameters()), (3, 32, 8 * 32));
        assert_eq!(gguf.file_bytes(), fs::metadata(&paths[0]).unwrap().len());
        assert_eq!(gguf.tensor_bytes(), 8 * 128);
        assert_eq!(gguf.tensor("blk.3.w"), Some(&gguf.tensors()[3]));
        assert_eq!(gguf.tensor("blk.8.w"), None);
        assert_eq!(gguf.data(3), [3; 128]);
    }

    #[test]
    fn any_part_of_a_split_model_opens_all_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let paths = write(folder.path(), "split", Some(600));
        assert!(paths.len() > 2, "{paths:?}");
        for path in &paths {
            let gguf = Gguf::open(path).unwrap();
            assert_eq!(gguf.paths().collect::<Vec<_>>(), paths);
            assert_eq!(gguf.metadata().str("general.name"), Some("eight"));
            assert_eq!(gguf.metadata().get("split.count"), Some(&Value::U16(paths.len() as u16)));
            assert_eq!(gguf.tensors().len(), 8);
            for index in 0..8 {
                assert_eq!(gguf.tensors()[index].name, format!("blk.{index}.w"));
                assert_eq!(gguf.data(index), [index as u8; 128]);
            }
        }
    }

    #[test]
    fn parts_that_were_put_into_one_file_are_recognised() {
        let folder = tempfile::tempdir().unwrap();
        let paths = write(folder.path(), "split", Some(600));
        let joined: Vec<u8> = paths.iter().flat_map(|path| fs::read(path).unwrap()).collect();
        let file = folder.path().join("joined.gguf");
        fs::write(&file, &joined).unwrap();
        let n_more = paths.len() - 1;
        let said = format!("part 1 of {} of a split model with {n_more} more file", paths.len());
        assert_refused(&file, &[&said, "'cat' joins them", "llama-gguf-split --merge"]);
        // Under the first part's own name, with the others still there.
        fs::write(&paths[0], &joined).unwrap();
        assert_refused(&paths[0], &[&said]);
    }

    #[test]
    fn missing_parts_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let paths = write(folder.path(), "split", Some(600));
        let of = paths.len();
        fs::remove_file(&paths[1]).unwrap();
        let missing = file_name("split", 1, of);
        assert_refused(&paths[0], &[&format!("split into {of} files, of which 1 are missing"), &missing]);
        assert_refused(&paths[of - 1], &[&missing, "same folder"]);
    }

    #[test]
    fn a_renamed_part_says_which_name_it_had() {
        let folder = tempfile::tempdir().unwrap();
        let paths = write(folder.path(), "split", Some(600));
        let renamed = folder.path().join("model.gguf");
        fs::rename(&paths[1], &renamed).unwrap();
        let suffix = format!("-00002-of-{:05}.gguf", paths.len());
        assert_refused(&renamed, &["model.gguf: this is part 2 of", &suffix, "names that they were made with"]);
    }

    #[test]
    fn parts_of_another_model_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let paths = write(folder.path(), "split", Some(600));
        let no = fs::read(&paths[1]).unwrap();

        fs::copy(&paths[2], &paths[1]).unwrap();
        assert_refused(&paths[0], &["-00002-of-", "split.no is 2, wanted 1"]);
        fs::write(&paths[1], &no).unwrap();

        edit(&paths[1], b"blk.", b"bla.");
        Gguf::open(&paths[0]).unwrap();
        let first_of_second = Gguf::open(&paths[0]).unwrap().tensors().iter().position(|t| t.name.starts_with("bla"));
        edit(&paths[1], format!("bla.{}.w", first_of_second.unwrap()).as_bytes(), b"blk.0.w");
        assert_refused(&paths[0], &["-00002-of-", "tensor \"blk.0.w\" is in an earlier part"]);
        fs::write(&paths[1], &no).unwrap();

        let mut count = b"split.count\x02\0\0\0".to_vec();
        edit(&paths[1], &count, b"split.count\x02\0\0\0\x09");
        assert_refused(&paths[0], &["split.count is 9", "as in the other parts"]);
        fs::write(&paths[1], &no).unwrap();

        count = b"split.tensors.count\x05\0\0\0\x08".to_vec();
        edit(&paths[0], &count, b"split.tensors.count\x05\0\0\0\x09");
        assert_refused(&paths[0], &["hold 8 tensors together, but split.tensors.count is 9"]);
        edit(&paths[0], b"split.tensors.count\x05", b"split.tensors.count\x04");
        assert_refused(&paths[0], &["split.tensors.count is 9 (u32), wanted an i32"]);
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert_refused(&folder.path().join("absent.gguf"), &["absent.gguf: cannot be opened: "]);
        assert_refused(folder.path(), &["this is a folder; models are run from GGUF files"]);
        let empty = folder.path().join("empty.gguf");
        fs::write(&empty, b"").unwrap();
        assert_refused(&empty, &["empty.gguf: offset 0", "the file is empty"]);
    }

    #[test]
    fn a_real_version_1_file_is_refused() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/gguf/version-1.gguf");
        assert_refused(&path, &["found GGUF version 1, wanted 2 or 3"]);
    }
}
