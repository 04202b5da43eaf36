//! Gives mapped pages of a model's file back to the system while llama.cpp copies weights out of them.
//!
//! llama.cpp maps the whole file and reads all of it at once. While it then fills the second layout, each weight is in
//! memory twice, and stays so until the system runs out of memory and finds out which pages are not needed.

use std::path::PathBuf;

/// Mapped bytes of a file that are kept while a model loads. Less than a layer of Yi-34B.
const KEPT: u64 = 128 << 20;

/// The pages of a model's files.
pub(super) struct Pages {
    files: Vec<PathBuf>,
    // Also take them out of the system's cache of the file.
    uncache: bool,
    // Bytes to load, and how many had been loaded when pages were given back last.
    total: u64,
    last: Option<u64>,
    maps: Vec<system::Map>,
}

impl Pages {
    /// `uncache` says that the system has no room for the file beside the copies.
    pub fn new(files: Vec<PathBuf>, total: u64, uncache: bool) -> Self {
        Self { files, uncache, total, last: None, maps: Vec::new() }
    }

    /// Called while a model loads, with a number from 0 to 1.
    pub fn at(&mut self, part: f32) {
        let done = (f64::from(part) * self.total as f64) as u64;
        match self.last {
            None => {
                self.maps = system::maps_of(&self.files);
                // All of it has been read into memory, but nothing has been copied.
                self.maps.iter().for_each(|map| map.unmap());
            }
            Some(last) if done < last.saturating_add(KEPT) => return,
            Some(_) => self.give_back(),
        }
        self.last = Some(done);
    }

    /// Called when a model has been loaded.
    pub fn done(&self) {
        self.give_back();
        self.maps.iter().for_each(|map| map.used_at_random());
    }

    fn give_back(&self) {
        for map in &self.maps {
            if self.uncache {
                map.uncache();
            }
            map.unmap();
        }
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::ffi::{OsStr, c_void};
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    use std::path::{Path, PathBuf};

    use rustix::mm::{Advice, madvise};

    /// A shared mapping of a file.
    pub struct Map {
        start: usize,
        len: usize,
    }

    /// Returns where this process has mapped the files, including nibble's own mappings of them.
    pub fn maps_of(files: &[PathBuf]) -> Vec<Map> {
        let nodes: Vec<(u64, u64)> =
            files.iter().filter_map(|file| file.metadata().ok()).map(|data| (data.dev(), data.ino())).collect();
        // A file system that lies over others (overlayfs, btrfs) has device numbers here that `stat` does not tell.
        let paths: Vec<PathBuf> = files.iter().filter_map(|file| file.canonicalize().ok()).collect();
        let maps = std::fs::read("/proc/self/maps").unwrap_or_default();
        maps.split(|byte| *byte == b'\n')
            .filter_map(parse)
            .filter(|line| nodes.contains(&line.node) || paths.iter().any(|path| path == line.path))
            .map(|line| line.map)
            .collect()
    }

    /// What a line of `/proc/self/maps` says.
    pub(super) struct Line<'a> {
        pub map: Map,
        /// Device and inode.
        pub node: (u64, u64),
        pub path: &'a Path,
    }

    /// Parses a line such as `7f00-7f20 r--s 00000000 fe:00 1234  /a/model.gguf`, if the mapping is a shared one that cannot
    /// be written to.
    pub(super) fn parse(line: &[u8]) -> Option<Line<'_>> {
        // A path may hold anything; what stands before it is ASCII.
        let (fields, path) = line.split_at(line.iter().position(|byte| *byte == b'/').unwrap_or(line.len()));
        let mut words = std::str::from_utf8(fields).ok()?.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        if words.next()? != "r--s" {
            return None;
        }
        let (major, minor) = words.nth(1)?.split_once(':')?;
        let inode = words.next()?.parse().ok()?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = (hex(start)? as usize, hex(end)? as usize);
        let device = rustix::fs::makedev(hex(major)? as u32, hex(minor)? as u32);
        let map = Map { start, len: end.checked_sub(start)? };
        Some(Line { map, node: (device, inode), path: Path::new(OsStr::from_bytes(path)) })
    }

    impl Map {
        /// Takes the pages out of this process. They stay in the system's cache of the file.
        pub fn unmap(&self) {
            // A page that is used again and again is kept in the cache longer. Reading a file once is not such a use.
            self.advise(Advice::Sequential);
            self.advise(Advice::LinuxDontNeed);
        }

        /// Takes the pages that this process has used since the last [`Self::unmap`] out of the system's cache as well.
        pub fn uncache(&self) {
            self.advise(Advice::LinuxPageOut);
        }

        /// Says that from now on, the pages are used in any order.
        pub fn used_at_random(&self) {
            self.advise(Advice::Normal);
        }

        fn advise(&self, advice: Advice) {
            // SAFETY: a shared mapping of a file that nobody writes to: pages that are dropped are read from the file
            // again when they are used. If it has been unmapped meanwhile, the system refuses; that another file has been
            // mapped there costs that file a second read.
            let _ = unsafe { madvise(self.start as *mut c_void, self.len, advice) };
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_shared_mapping_is_found_with_its_file() {
            let line = "7f5a3c000000-7f5a3c021000 r--s 00000000 fe:0a 1234                     /m/a b.gguf";
            let Line { map, node, path } = parse(line.as_bytes()).unwrap();
            assert_eq!((map.start, map.len), (0x7f5a_3c00_0000, 0x21000));
            assert_eq!((node, path), ((rustix::fs::makedev(0xfe, 0xa), 1234), Path::new("/m/a b.gguf")));
            assert!(parse(line.replace("r--s", "rw-s").as_bytes()).is_none());
            assert!(parse(line.replace("r--s", "r--p").as_bytes()).is_none());
            assert!(parse(b"").is_none() && parse(b"7ffd-7fff r--s 0 fe:0a x").is_none());
            assert_eq!(parse(b"7ffd-7fff r--s 0 fe:0a 7 /\xff").unwrap().path, Path::new(OsStr::from_bytes(b"/\xff")));
        }

        #[test]
        fn a_file_is_found_whatever_its_name() {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("模型 a.gguf");
            std::fs::write(&file, [1; 5000]).unwrap();
            let link = folder.path().join("link.gguf");
            std::os::unix::fs::symlink(&file, &link).unwrap();
            let mapping = crate::base::mmap::Mapping::open(&file).unwrap();
            for name in [file, link] {
                let maps = maps_of(&[name]);
                assert_eq!(maps.len(), 1);
                assert_eq!((maps[0].start, maps[0].len), (mapping.bytes().as_ptr() as usize, 8192));
            }
            assert!(maps_of(&[folder.path().join("none.gguf")]).is_empty());
        }
    }
}

/// Other systems do not tell where a file is mapped, or need no help.
#[cfg(not(target_os = "linux"))]
mod system {
    use std::path::PathBuf;

    pub struct Map;

    pub fn maps_of(_files: &[PathBuf]) -> Vec<Map> {
        Vec::new()
    }

    impl Map {
        pub fn unmap(&self) {}
        pub fn uncache(&self) {}
        pub fn used_at_random(&self) {}
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::base::mmap::Mapping;

    /// Bytes of a mapping that are in this process's memory.
    fn resident(mapping: &Mapping) -> u64 {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", mapping.bytes().as_ptr() as usize);
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
        let line = lines.find(|line| line.starts_with("Rss:")).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }

    #[test]
    fn pages_that_were_copied_are_given_back() {
        const MIB: usize = 1 << 20;
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let n = 3 * KEPT as usize;
        std::fs::write(file.path(), vec![7u8; n]).unwrap();
        let mapping = Mapping::open(file.path()).unwrap();
        let touch = |from: usize, to: usize| -> u64 {
            mapping.bytes()[from..to].iter().step_by(4096).map(|byte| u64::from(*byte)).sum()
        };
        // A sum that nobody looks at would not be computed, and no page touched.
        assert_eq!(touch(0, n), 7 * (n as u64 / 4096));
        assert!(resident(&mapping) > n as u64 / 2, "{}", resident(&mapping));
        for uncache in [false, true] {
            let mut pages = Pages::new(vec![file.path().to_path_buf()], n as u64, uncache);
            pages.at(0.0);
            assert_eq!(resident(&mapping), 0);
            for done in (0..n).step_by(MIB) {
                assert_eq!(touch(done, done + MIB), 7 * 256);
                pages.at((done + MIB) as f32 / n as f32);
                // The system maps a few pages around each that is touched.
                assert!(resident(&mapping) <= KEPT + MIB as u64, "{} at {done}", resident(&mapping));
            }
            pages.done();
            assert_eq!(resident(&mapping), 0);
            // Nothing is lost.
            assert_eq!(touch(0, n), 7 * (n as u64 / 4096));
        }
    }
}
