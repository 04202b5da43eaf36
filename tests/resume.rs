//! Conversions that are cut off: what is done is kept, nothing else is believed, and the result is the same to the byte.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::{Variation, convert, error, files, folder, has, nibble, stdout, yi_nano};

/// A checkpoint that takes a while, in a folder of its own, and room for what is made of it.
struct Bench {
    dir: TempDir,
    source: PathBuf,
    out: PathBuf,
}

/// Of the checkpoint: 4 MiB each, but the last of each file.
const N_SPANS: usize = 14;

impl Bench {
    /// [`N_SPANS`] spans in two files.
    fn new() -> Self {
        let dir = folder();
        let (source, made) = (dir.path().join("yi-wide"), dir.path().join("made"));
        let mut wide = Variation::of_yi_nano();
        let ffn = 8192u64;
        wide.config.insert("intermediate_size".to_string(), ffn.into());
        let mut state = 1u32;
        for tensor in wide.tensors.iter_mut().filter(|tensor| tensor.name.contains(".mlp.")) {
            tensor.shape = if tensor.name.contains("down") { vec![256, ffn] } else { vec![ffn, 256] };
            let mut weight = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Of both signs, from 2^-7 to 2^-5.
                ((state >> 16) as u16 & 0x80ff | 0x3c00).to_le_bytes()
            };
            tensor.bytes = (0..256 * ffn).flat_map(|_| weight()).collect();
        }
        wide.write_shards(&source, 2);
        let spans = |name: &String| fs::metadata(source.join(name)).unwrap().len().div_ceil(4 << 20) as usize;
        let shards = files(&source).into_iter().filter(|name| name.ends_with(".safetensors"));
        assert_eq!(shards.map(|name| spans(&name)).sum::<usize>(), N_SPANS);
        fs::create_dir(&made).unwrap();
        Self { out: made.join("x.gguf"), source, dir }
    }

    fn made(&self) -> &Path {
        self.out.parent().unwrap()
    }

    fn partial(&self) -> PathBuf {
        self.made().join("x.gguf.partial")
    }

    fn journal(&self) -> PathBuf {
        self.made().join("x.gguf.journal")
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nibble"));
        command.arg("convert").arg(&self.source).arg("-o").arg(&self.out).args(more);
        if !more.contains(&"--threads") {
            // Slower, and so easier to stop.
            command.args(["--threads", "1"]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, more: &[&str]) -> Output {
        self.command(more).output().unwrap()
    }

    /// What an undisturbed run gives.
    fn reference(&self, more: &[&str]) -> Vec<u8> {
        fs::read(convert(&self.source, &self.dir.path().join("reference.gguf"), &[more, &["--force"]].concat()))
            .unwrap()
    }

    /// Starts a run, and halts it when so many spans are done and not all. [`go_on`] lets it go on.
    fn start(&self, more: &[&str], n_done: usize) -> Child {
        for _ in 0..20 {
            let mut child = self.command(more).spawn().unwrap();
            let start = Instant::now();
            while self.n_done() < n_done && child.try_wait().unwrap().is_none() {
                assert!(start.elapsed() < Duration::from_secs(120), "nothing is done");
                std::thread::sleep(Duration::from_millis(1));
            }
            signal(&child, "STOP");
            std::thread::sleep(Duration::from_millis(5));
            if child.try_wait().unwrap().is_none() && (n_done..N_SPANS).contains(&self.n_done()) {
                return child;
            }
            // It was faster than this test was.
            child.kill().unwrap();
            let status = child.wait().unwrap();
            assert!(status.success() || status.code().is_none(), "{}", stderr_of(child));
            files(self.made()).iter().for_each(|name| fs::remove_file(self.made().join(name)).unwrap());
        }
        panic!("every run was done before it could be stopped");
    }

    /// Starts a run and ends it as a power switch would, when so many spans are done.
    fn cut_off(&self, more: &[&str], n_done: usize) {
        let mut child = self.start(more, n_done);
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success());
        assert!(!self.out.exists());
    }

    /// Spans that the journal says are done.
    fn n_done(&self) -> usize {
        let journal = fs::read(self.journal()).unwrap_or_default();
        let slots = &journal[head_bytes(&journal).unwrap_or(journal.len())..];
        slots.chunks_exact(64).filter(|slot| slot.iter().any(|byte| *byte != 0)).count()
    }

    /// Runs to the end, which must be the same as `reference`, with nothing beside it; gives what was said.
    #[track_caller]
    fn finish(&self, more: &[&str], reference: &[u8]) -> String {
        let output = self.run(more);
        stdout(&output);
        assert!(fs::read(&self.out).unwrap() == reference, "the result differs");
        assert_eq!(files(self.made()), ["x.gguf"]);
        String::from_utf8(output.stderr).unwrap()
    }
}

fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    // One that has ended cannot be signalled, and need not be.
    Command::new("kill").args([&format!("-{name}"), &pid]).stderr(Stdio::null()).status().unwrap();
}

fn go_on(child: &Child) {
    signal(child, "CONT");
}

/// Where the journal's slots begin: after its third line.
fn head_bytes(journal: &[u8]) -> Option<usize> {
    Some(journal.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(2)?.0 + 1)
}

fn stderr_of(mut child: Child) -> String {
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    text
}

/// The share that a run says it found done.
#[track_caller]
fn percent(stderr: &str) -> u32 {
    let (_, rest) = stderr.split_once("resuming: ").unwrap_or_else(|| panic!("not resumed: {stderr}"));
    rest.split('%').next().unwrap().parse().unwrap()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x01;
    fs::write(path, bytes).unwrap();
}

/// Kills runs at any moment, as many as `NIBBLE_TEST_KILLS` says (5 if it says nothing), until each ends by itself.
#[test]
fn a_run_may_be_killed_at_any_moment_and_as_often_as_one_likes() {
    let n_kills: u32 = std::env::var("NIBBLE_TEST_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    let bench = Bench::new();
    let reference = bench.reference(&["-q", "Q4_0"]);
    let start = Instant::now();
    bench.finish(&["-q", "Q4_0"], &reference);
    let whole = start.elapsed();
    let (mut killed, mut resumed, mut completed, mut state) = (0, 0, 0, 7u32);
    fs::remove_file(&bench.out).unwrap();
    while killed < n_kills {
        let threads = if killed % 2 == 0 { "1" } else { "3" };
        let mut child = bench.command(&["-q", "Q4_0", "--threads", threads]).spawn().unwrap();
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        std::thread::sleep(whole.mul_f64(f64::from(state >> 8) / f64::from(1 << 24)));
        child.kill().unwrap();
        match child.wait().unwrap().success() {
            false => killed += 1,
            true => completed += 1,
        }
        resumed += u32::from(stderr_of(child).contains("resuming: "));
        if bench.out.exists() {
            // Killed or not: what has the name is whole.
            assert!(fs::read(&bench.out).unwrap() == reference);
            if files(bench.made()) == ["x.gguf"] {
                fs::remove_file(&bench.out).unwrap();
            }
        }
    }
    bench.finish(&["-q", "Q4_0"], &reference);
    eprintln!("killed {killed} times, resumed {resumed} times, completed {completed} times between");
}

#[test]
fn finished_work_is_not_done_again() {
    let bench = Bench::new();
    let reference = bench.reference(&["-q", "Q4_0"]);
    bench.cut_off(&["-q", "Q4_0"], 8);
    assert_eq!(files(bench.made()), ["x.gguf.journal", "x.gguf.partial"]);
    let said = bench.finish(&["-q", "Q4_0"], &reference);
    // 8 of 14 spans, of which the last of each file is short.
    assert!(percent(&said) >= 45, "{said}");
    assert!(!said.contains("damaged"), "{said}");
}

#[test]
fn damaged_work_is_done_again() {
    let bench = Bench::new();
    let reference = bench.reference(&["-q", "Q4_0"]);
    bench.cut_off(&["-q", "Q4_0"], 8);
    // In the first file's first tensors, which come first.
    let written = fs::read(bench.partial()).unwrap();
    let places: Vec<_> = (0..written.len()).filter(|&at| written[at] != 0).step_by(written.len() / 7).collect();
    assert!(places.len() > 1);
    places.iter().for_each(|&at| flip(&bench.partial(), at));
    let said = bench.finish(&["-q", "Q4_0"], &reference);
    has(&said, &["resuming: ", "damaged or lost, and are made again"]);
}

#[test]
fn what_lies_between_tensors_is_put_right_too() {
    let bench = Bench::new();
    let reference = bench.reference(&["-q", "Q4_0"]);
    bench.cut_off(&["-q", "Q4_0"], 8);
    // Every zero becomes something else, the header's and the padding's among them; and the file is too long.
    let mut bytes = fs::read(bench.partial()).unwrap();
    bytes.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = 0xaa);
    bytes.extend([1, 2, 3]);
    fs::write(bench.partial(), bytes).unwrap();
    bench.finish(&["-q", "Q4_0"], &reference);
}

#[test]
fn a_lost_partial_file_or_a_shortened_one_is_made_again() {
    let bench = Bench::new();
    let reference = bench.reference(&["-q", "Q4_0"]);
    bench.cut_off(&["-q", "Q4_0"], 8);
    fs::remove_file(bench.partial()).unwrap();
    has(&bench.finish(&["-q", "Q4_0"], &reference), &["resuming: 0%", "damaged or lost"]);
    fs::remove_file(&bench.out).unwrap();
    bench.cut_off(&["-q", "Q4_0"], 8);
    fs::OpenOptions::new().write(true).open(bench.partial()).unwrap().set_len(3_000_000).unwrap();
    has(&bench.finish(&["-q", "Q4_0"], &reference), &["resuming: ", "damaged or lost"]);
}

#[test]
fn a_journal_with_a_torn_end_counts_as_far_as_it_goes() {
    let bench = Bench::new();
    let reference = bench.reference(&["-q", "Q4_0"]);
    bench.cut_off(&["-q", "Q4_0"], 8);
    let journal = fs::read(bench.journal()).unwrap();
    fs::write(bench.journal(), &journal[..head_bytes(&journal).unwrap() + 2 * 64 + 30]).unwrap();
    let said = bench.finish(&["-q", "Q4_0"], &reference);
    assert!((5..20).contains(&percent(&said)), "{said}");
}

#[test]
fn a_damaged_journal_means_starting_over() {
    let bench = Bench::new();
    let reference = bench.reference(&["-q", "Q4_0"]);
    bench.cut_off(&["-q", "Q4_0"], 3);
    flip(&bench.journal(), 40);
    has(&bench.finish(&["-q", "Q4_0"], &reference), &["starting over", "journal", "damaged"]);
}

#[test]
fn a_changed_source_means_starting_over() {
    let bench = Bench::new();
    bench.cut_off(&["-q", "Q4_0"], 3);
    let shard = bench.source.join("model-00002-of-00002.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    // A weight, and nothing that a header says.
    let last = bytes.len() - 1;
    bytes[last] ^= 0x80;
    fs::write(&shard, bytes).unwrap();
    let reference = bench.reference(&["-q", "Q4_0"]);
    has(&bench.finish(&["-q", "Q4_0"], &reference), &["starting over", "source has changed", "model-00002-of-00002"]);
}

#[test]
fn another_recipe_or_option_means_starting_over() {
    let bench = Bench::new();
    bench.cut_off(&["-q", "Q4_0"], 3);
    let reference = bench.reference(&["-q", "Q8_0"]);
    has(&bench.finish(&["-q", "Q8_0"], &reference), &["starting over", "recipe, an option"]);
    // The parts of the split result that will never be are removed.
    fs::remove_file(&bench.out).unwrap();
    let mut child = bench.start(&["-q", "Q4_0", "--split-max-size", "5M"], 3);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(files(bench.made()).len() > 3);
    has(&bench.finish(&["-q", "Q8_0"], &reference), &["starting over", "recipe, an option"]);
    // Work that was let through is not work that was checked.
    fs::remove_file(&bench.out).unwrap();
    bench.cut_off(&["-q", "Q4_0", "--allow-nan"], 3);
    let reference = bench.reference(&["-q", "Q4_0"]);
    has(&bench.finish(&["-q", "Q4_0"], &reference), &["starting over"]);
}

#[test]
fn another_version_means_starting_over() {
    let bench = Bench::new();
    let reference = bench.reference(&["-q", "Q4_0"]);
    bench.cut_off(&["-q", "Q4_0"], 3);
    let journal = fs::read(bench.journal()).unwrap();
    let head = head_bytes(&journal).unwrap();
    let lines = String::from_utf8(journal[..head].to_vec()).unwrap();
    let version = format!("\"version\":\"{}\"", env!("CARGO_PKG_VERSION"));
    let lines: Vec<_> = lines.lines().map(|line| line.replace(&version, "\"version\":\"0.0.1\"")).collect();
    let checked = format!("{}\n{}\n", lines[0], lines[1]);
    let hash = blake3::hash(checked.as_bytes()).to_hex();
    fs::write(bench.journal(), [checked.as_bytes(), hash.as_bytes(), b"\n", &journal[head..]].concat()).unwrap();
    has(&bench.finish(&["-q", "Q4_0"], &reference), &["starting over", "0.0.1"]);
}

#[test]
fn restart_begins_anew() {
    let bench = Bench::new();
    let reference = bench.reference(&["-q", "Q4_0"]);
    bench.cut_off(&["-q", "Q4_0"], 3);
    let said = bench.finish(&["-q", "Q4_0", "--restart"], &reference);
    has(&said, &["starting over", "--restart"]);
    assert!(!said.contains("resuming"), "{said}");
}

#[test]
fn a_second_run_on_the_same_output_is_refused() {
    let bench = Bench::new();
    let reference = bench.reference(&["-q", "Q4_0"]);
    let mut first = bench.start(&["-q", "Q4_0"], 2);
    for more in [&["-q", "Q4_0"][..], &["-q", "Q4_0", "--restart"], &["-q", "Q8_0", "--force"]] {
        has(&error(&bench.run(more)), &["another nibble is writing this output", "x.gguf.journal"]);
    }
    go_on(&first);
    assert!(first.wait().unwrap().success(), "{}", stderr_of(first));
    assert!(fs::read(&bench.out).unwrap() == reference);
    assert_eq!(files(bench.made()), ["x.gguf"]);
}

#[test]
fn an_interrupt_stops_cleanly_and_the_same_command_goes_on() {
    let bench = Bench::new();
    let reference = bench.reference(&["-q", "Q4_0"]);
    let mut child = bench.start(&["-q", "Q4_0"], 5);
    signal(&child, "INT");
    go_on(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let said = stderr_of(child);
    assert_eq!(said.lines().count(), 1, "{said}");
    has(&said, &["stopped", "% is done and kept", "same command", "--restart"]);
    assert_eq!(files(bench.made()), ["x.gguf.journal", "x.gguf.partial"]);
    assert!(percent(&bench.finish(&["-q", "Q4_0"], &reference)) > 0);
}

#[test]
fn an_existing_result_stays_until_the_new_one_is_complete() {
    let bench = Bench::new();
    let reference = bench.reference(&["-q", "Q4_0"]);
    let mut child = bench.start(&["-q", "Q4_0", "--force"], 3);
    fs::write(&bench.out, "old").unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(fs::read(&bench.out).unwrap(), b"old");
    // Without --force it is as precious as before, and the work is kept.
    has(&error(&bench.run(&["-q", "Q4_0"])), &["x.gguf", "exists", "--force"]);
    assert_eq!(fs::read(&bench.out).unwrap(), b"old");
    assert!(percent(&bench.finish(&["-q", "Q4_0", "--force"], &reference)) > 0);
}

/// Cuts a split conversion off when all is done, by a file in the way of one of its parts; gives the names of the parts.
fn all_but_named(bench: &Bench) -> Vec<String> {
    const SPLIT: [&str; 4] = ["-q", "Q4_0", "--split-max-size", "5M"];
    let mut child = bench.start(&SPLIT, 1);
    let partials: Vec<_> = files(bench.made()).into_iter().filter(|name| name.ends_with(".partial")).collect();
    let names: Vec<_> = partials.iter().map(|name| name.strip_suffix(".partial").unwrap().to_string()).collect();
    assert!(names.len() > 2);
    let in_the_way = bench.made().join(&names[1]);
    fs::write(&in_the_way, "precious").unwrap();
    go_on(&child);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    has(&stderr_of(child), &[&names[1], "exists", "100% is done and kept"]);
    assert_eq!(fs::read(&in_the_way).unwrap(), b"precious");
    // The part before it had its name already.
    assert!(!bench.made().join(&names[0]).exists());
    fs::remove_file(in_the_way).unwrap();
    names
}

#[test]
fn a_run_that_ended_between_giving_names_gives_them_all() {
    const SPLIT: [&str; 4] = ["-q", "Q4_0", "--split-max-size", "5M"];
    let bench = Bench::new();
    let other = folder();
    convert(&bench.source, &other.path().join("x.gguf"), &SPLIT);
    let names = all_but_named(&bench);
    let as_left = |name: &String| (bench.made().join(format!("{name}.partial")), bench.made().join(name));
    for n_named in 0..=names.len() {
        for (partial, named) in names.iter().take(n_named).map(as_left) {
            fs::rename(partial, named).unwrap();
        }
        let journal = fs::read(bench.made().join("x.gguf.journal")).unwrap();
        let output = bench.run(&SPLIT);
        stdout(&output);
        has(&String::from_utf8_lossy(&output.stderr), &["resuming: 100%"]);
        assert_eq!(files(bench.made()), names);
        for name in &names {
            assert!(fs::read(bench.made().join(name)).unwrap() == fs::read(other.path().join(name)).unwrap(), "{name}");
        }
        // As it was before the names were given.
        for (partial, named) in names.iter().map(as_left) {
            fs::rename(named, partial).unwrap();
        }
        fs::write(bench.made().join("x.gguf.journal"), journal).unwrap();
    }
}

#[test]
fn files_that_are_somebody_elses_are_not_touched() {
    let dir = folder();
    let out = dir.path().join("x.gguf");
    let (partial, journal) = (dir.path().join("x.gguf.partial"), dir.path().join("x.gguf.journal"));
    let run = |more: &[&str]| {
        let args = ["convert", yi_nano().to_str().unwrap(), "-o", out.to_str().unwrap()].map(str::to_string);
        nibble(args.into_iter().chain(more.iter().map(|more| more.to_string())))
    };
    fs::write(&journal, "dear diary").unwrap();
    for more in [&[][..], &["--restart"], &["--force"]] {
        has(&error(&run(more)), &["x.gguf.journal", "not a journal of nibble's"]);
    }
    assert_eq!(fs::read(&journal).unwrap(), b"dear diary");
    fs::remove_file(&journal).unwrap();

    fs::write(&partial, "a download").unwrap();
    has(&error(&run(&[])), &["x.gguf.partial", "--restart"]);
    assert_eq!(fs::read(&partial).unwrap(), b"a download");
    assert_eq!(files(dir.path()), ["x.gguf.partial"]);
    stdout(&run(&["--restart"]));
    assert_eq!(files(dir.path()), ["x.gguf"]);

    // A source that has the name of what would be written.
    let source = convert(&yi_nano(), &dir.path().join("y.gguf.partial"), &["-q", "BF16"]);
    let before = fs::read(&source).unwrap();
    let target = dir.path().join("y.gguf");
    let args = ["convert", source.to_str().unwrap(), "-o", target.to_str().unwrap(), "--restart"];
    has(&error(&nibble(args)), &["y.gguf.partial", "being converted"]);
    assert!(fs::read(&source).unwrap() == before);
}

/// A small disk of its own: scripts/test runs this where the system lets a process mount one.
#[test]
#[cfg(target_os = "linux")]
#[ignore = "needs leave to mount a file system"]
fn a_disk_that_is_too_small_says_so_at_once_and_a_larger_one_will_do() {
    let bench = Bench::new();
    let reference = bench.reference(&["-q", "Q4_0"]);
    let script = r#"
        mount -t tmpfs -o size=6M tmpfs "$1" || exit 9
        "$2" convert "$3" -o "$1/x.gguf" -q Q4_0; echo "code $?"; ls "$1"
        mount -o remount,size=200M "$1" || exit 9
        "$2" convert "$3" -o "$1/x.gguf" -q Q4_0 && cp "$1/x.gguf" "$4"
    "#;
    let copy = bench.dir.path().join("copy.gguf");
    let output = Command::new("unshare")
        .args(["-rm", "sh", "-c", script, "sh"])
        .args([bench.made(), Path::new(env!("CARGO_BIN_EXE_nibble")), &bench.source, &copy])
        .output()
        .unwrap();
    has(&String::from_utf8_lossy(&output.stderr), &["not enough room", "missing"]);
    let printed = stdout(&output);
    let before: Vec<_> = printed.lines().take(2).collect();
    assert!(before[0] == "code 1" && !before[1].starts_with("x.gguf.partial"), "left behind: {printed}");
    assert!(fs::read(copy).unwrap() == reference);
}
