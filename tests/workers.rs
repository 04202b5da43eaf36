//! Layers on other machines: real workers, all of them on this one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::support::{self, has};

/// `yi-nano`, converted once. It has four layers, and an output that counts as one.
fn yi_nano() -> &'static Path {
    static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("workers-yi-nano.gguf");
        support::convert(&support::yi_nano(), &file, &["-q", "Q8_0", "--force"])
    });
    &FILE
}

/// The program. All of them remember the same speeds.
fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nibble"));
    command.env("NIBBLE_CACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("workers-cache"));
    command
}

/// A worker on a port of its own.
struct Worker {
    child: Child,
    address: String,
    said: Receiver<String>,
    store: tempfile::TempDir,
}

impl Worker {
    fn start() -> Self {
        Self::with(&[])
    }

    fn with(arguments: &[&str]) -> Self {
        let store = support::folder();
        // Free now; nothing else here takes it that soon.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let mut child = program()
            .args(["worker", "--threads", "1", "--listen", &address, "--store"])
            .arg(store.path())
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (tell, said) = channel();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| tell.send(line)));
        let worker = Self { child, address, said, store };
        worker.says("listens at");
        worker
    }

    /// Waits for a line with these words.
    fn says(&self, words: &str) -> String {
        let mut told = Vec::new();
        while let Ok(line) = self.said.recv_timeout(Duration::from_secs(20)) {
            if line.contains(words) {
                return line;
            }
            told.push(line);
        }
        panic!("it never said '{words}', but {told:?}");
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The processes that compute for clients.
    #[cfg(target_os = "linux")]
    fn engines(&self) -> Vec<u32> {
        let id = self.child.id();
        let text = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        // Each thread has children of its own.
        let tasks = std::fs::read_dir(format!("/proc/{id}/task")).unwrap().flatten();
        let of = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        let all = tasks.map(of).collect::<Vec<_>>().join(" ") + &text;
        let mut ids: Vec<u32> = all.split_whitespace().filter_map(|id| id.parse().ok()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program writes 30 tokens without chance. Weights are in the layout of the file everywhere: another one rounds otherwise.
fn run(arguments: &[&str]) -> std::process::Output {
    let usual = ["--greedy", "-n", "30", "--threads", "1", "--repack", "off", "Once upon a time"];
    let mut command = program();
    command.arg("run").arg(yi_nano()).args(usual).args(arguments).output().unwrap()
}

fn text(arguments: &[&str]) -> String {
    support::stdout(&run(arguments))
}

#[test]
fn a_text_is_the_same_wherever_the_layers_are() {
    let (one, two, three) = (Worker::start(), Worker::start(), Worker::start());
    let here = text(&[]);
    assert!(here.len() > 40, "{here}");
    let worker = |worker: &Worker| worker.address.clone();
    let [a, b, c] = [worker(&one), worker(&two), worker(&three)];
    assert_eq!(text(&["--worker", &a, "--split", "5"]), here, "all on one");
    assert_eq!(text(&["--worker", &a, "--split", "2"]), here, "some on one");
    assert_eq!(text(&["--worker", &a, "--worker", &b, "--split", "2,2"]), here, "on two");
    assert_eq!(text(&["--worker", &a, "--worker", &b, "--worker", &c, "--split", "1,2,2"]), here, "on three");
    assert_eq!(text(&["--worker", &a, "--split", "0"]), here, "on none");
    // A session has ended with its program, and nothing is left of it.
    for _ in 0..5 {
        one.says("works for 127.0.0.1");
        one.says("127.0.0.1 has ended its session");
    }
    #[cfg(target_os = "linux")]
    assert_eq!(one.engines(), Vec::<u32>::new());
}

#[test]
fn without_being_told_layers_stay_where_they_are_faster() {
    let worker = Worker::start();
    // The same processor, and a way to it.
    let output = run(&["--worker", &worker.address]);
    assert_eq!(support::stdout(&output), text(&[]));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains("layers"), "{said}");
    worker.says("works for");
}

#[test]
fn several_programs_use_a_worker_at_the_same_time() {
    let worker = Worker::start();
    let here = text(&[]);
    let running: Vec<_> = (0..3)
        .map(|_| {
            let address = worker.address.clone();
            std::thread::spawn(move || text(&["--worker", &address, "--split", "3"]))
        })
        .collect();
    for text in running {
        assert_eq!(text.join().unwrap(), here);
    }
}

/// Starts a long answer, with all layers on a worker, and returns the program when it has begun to write.
fn writing(worker: &Worker) -> (Child, String) {
    let mut child = program()
        .arg("run")
        .arg(yi_nano())
        .args(["--greedy", "-n", "30000", "--ctx", "32768", "--ignore-eos", "--threads", "1"])
        .args(["--worker", &worker.address, "--split", "5", "Once upon a time"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut begun = [0; 40];
    child.stdout.as_mut().unwrap().read_exact(&mut begun).unwrap();
    (child, String::from_utf8_lossy(&begun).into_owned())
}

/// Waits for the program, which has to end by itself and soon, with an error that names the worker.
fn ends(child: Child, worker: &Worker, words: &[&str]) {
    let begun = Instant::now();
    let output = child.wait_with_output().unwrap();
    let took = begun.elapsed();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    // Tests beside this one take their time: scripts/check-workers measures it.
    assert!(took < Duration::from_secs(20), "{took:?}");
    has(&said, words);
    has(&said, &["the worker at", &worker.address, "went away"]);
    assert!(!said.contains("ggml-rpc") && said.lines().count() < 6, "{said}");
}

#[test]
fn a_worker_that_is_killed_ends_the_answer_with_its_name() {
    let mut worker = Worker::start();
    let (child, _) = writing(&worker);
    worker.kill();
    ends(child, &worker, &[]);
}

#[cfg(target_os = "linux")]
#[test]
fn an_engine_that_is_killed_ends_its_own_answer_alone() {
    let worker = Worker::start();
    let (child, _) = writing(&worker);
    let engines = worker.engines();
    assert_eq!(engines.len(), 1, "{engines:?}");
    assert!(Command::new("kill").args(["-9", &engines[0].to_string()]).status().unwrap().success());
    ends(child, &worker, &["its engine was ended by signal 9", "memory"]);
    worker.says("signal 9");
    assert_eq!(text(&["--worker", &worker.address, "--split", "2"]), text(&[]));
}

#[cfg(unix)]
#[test]
fn a_worker_that_falls_silent_is_not_waited_for() {
    let worker = Worker::start();
    let (child, _) = writing(&worker);
    // As if its cable was pulled: the connection is there, and nothing comes.
    let signal = |name: &str| Command::new("kill").args([name, &worker.child.id().to_string()]).status().unwrap();
    assert!(signal("-STOP").success());
    ends(child, &worker, &["silent for 7 seconds"]);
    assert!(signal("-CONT").success());
    worker.says("ended");
}

#[test]
fn a_worker_that_is_asked_to_end_says_so() {
    let worker = Worker::start();
    let (child, _) = writing(&worker);
    #[cfg(unix)]
    assert!(Command::new("kill").args(["-INT", &worker.child.id().to_string()]).status().unwrap().success());
    #[cfg(unix)]
    ends(child, &worker, &["was asked to end"]);
    #[cfg(not(unix))]
    drop(child);
}

#[test]
fn weights_are_sent_once() {
    // Only tensors of more than 10 MiB are kept, which yi-nano has none of.
    let folder = support::folder();
    let checkpoint = folder.path().join("wide");
    let shape = "--layers 1 --hidden 512 --ffn 16384 --heads 8 --kv-heads 2 --vocab 6400 --tokenizer";
    let mut make = program();
    make.arg("make-checkpoint").args(shape.split(' ')).arg(support::yi_nano()).arg(&checkpoint);
    support::stdout(&make.output().unwrap());
    let file = support::convert(&checkpoint, &folder.path().join("wide.gguf"), &["-q", "F16"]);
    let worker = Worker::start();
    let kept = || std::fs::read_dir(worker.store.path().join("kept")).unwrap().count();
    let write = || {
        let mut command = program();
        let usual = ["--greedy", "-n", "4", "--threads", "1", "--repack", "off", "a"];
        let output =
            command.arg("run").arg(&file).args(usual).args(["--worker", &worker.address, "--split", "2"]).output();
        support::stdout(&output.unwrap())
    };
    let first = write();
    worker.says("has ended its session");
    let begun = Instant::now();
    while kept() < 3 && begun.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(20));
    }
    // Those of the feed-forward layer.
    let n = kept();
    assert_eq!(n, 3);
    assert_eq!(write(), first);
    worker.says("has ended its session");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(kept(), n);
}

#[test]
fn what_is_no_worker_is_told_from_one() {
    let refused = |address: &str| {
        let output = run(&["--worker", address]);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    // Nobody is there.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    has(&refused(&format!("127.0.0.1:{port}")), &["cannot be reached", "nibble worker"]);
    has(&refused("no-such-host.invalid"), &["no-such-host.invalid:7117", "cannot be reached"]);
    has(&refused("8.8.8.8"), &["not on a private network", "ssh -L 7117:localhost:7117 8.8.8.8"]);
    // Somebody else is, or another version.
    let answering = |answer: &'static str| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            line
        });
        address
    };
    has(&refused(&answering("HTTP/1.1 400 Bad Request\r\n\r\n")), &["is no worker of nibble's"]);
    has(&refused(&answering("")), &["is no worker of nibble's"]);
    has(&refused(&answering("{\"refused\":\"it is too old\"}\n")), &["refuses: it is too old"]);
    // There is a number for each device.
    let split = support::error(&run(&["--split", "1,2,3,4,5,6,7,8,9"]));
    has(&split, &["cannot be split over 9 devices", "--split has a number for each --worker"]);
    // A flag that is wrong is refused before.
    assert_eq!(run(&["--worker", "http://desk"]).status.code(), Some(2));
}

#[test]
fn a_plan_counts_on_workers() {
    let worker = Worker::with(&["--memory", "3G"]);
    let plan = |more: &[&str]| {
        let mut command = program();
        command.args([
            "plan",
            "Yi-34B",
            "-q",
            "Q4_K_M",
            "--ctx",
            "4096",
            "--kv-type",
            "f16",
            "--no-measure",
            "--threads",
            "1",
        ]);
        command.args(["--worker", &worker.address]).args(more).output().unwrap()
    };
    let found: serde_json::Value = serde_json::from_str(&support::stdout(&plan(&["--json"]))).unwrap();
    assert_eq!(found["machine"]["workers"], serde_json::json!([worker.address]));
    let bytes = found["machine"]["gpus"][0].as_u64().unwrap();
    assert!(bytes > 0 && bytes <= 3_000_000_000, "{bytes}");
    if let Some(split) = found["rows"][0]["split"].as_array() {
        // Whatever memory this machine has, a worker as fast as it gets no more than 3 GB.
        assert!(split.len() == 1 && split[0].as_u64().unwrap() < 9, "{split:?}");
    }
    let table = support::stdout(&plan(&[]));
    has(&table, &["Elsewhere", "at 127.0.0.1"]);
    has(&support::error(&plan(&["--memory", "64G"])), &["leave out --memory"]);
}

#[test]
fn a_worker_refuses_what_it_does_not_know_and_goes_on() {
    let worker = Worker::start();
    let ask = |line: &[u8]| {
        let mut stream = TcpStream::connect(&worker.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        stream.write_all(line).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    let other = br#"{"session":"x","opens":true,"engine":"nibble 9, llama.cpp 9"}"#;
    has(&ask(&[other, b"\n".as_slice()].concat()), &["refused", "nibble 9, llama.cpp 9", "have to be the same"]);
    worker.says("refused 127.0.0.1");
    assert_eq!(ask(b"GET / HTTP/1.1\r\n\r\n"), "");
    assert_eq!(ask(&[b"\xff".repeat(100_000).as_slice(), b"\n"].concat()), "");
    // Connections that say nothing are closed.
    let silent = TcpStream::connect(&worker.address).unwrap();
    silent.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    assert_eq!((&silent).read(&mut [0]).unwrap(), 0);
    assert_eq!(text(&["--worker", &worker.address, "--split", "2"]), text(&[]));
}

#[cfg(target_os = "linux")]
#[test]
fn nothing_listens_on_a_public_address() {
    let worker = Worker::start();
    let (mut child, _) = writing(&worker);
    let ids: Vec<u32> = [worker.child.id(), child.id()].into_iter().chain(worker.engines()).collect();
    let mut sockets = Vec::new();
    for id in ids {
        for file in std::fs::read_dir(format!("/proc/{id}/fd")).unwrap().flatten() {
            let target = std::fs::read_link(file.path()).unwrap_or_default().to_string_lossy().into_owned();
            sockets.extend(target.strip_prefix("socket:[").map(|inode| inode.trim_end_matches(']').to_string()));
        }
    }
    let listening = |file: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let rows: Vec<Vec<String>> =
            text.lines().skip(1).map(|line| line.split_whitespace().map(str::to_string).collect()).collect();
        // State 0A is LISTEN; the tenth word is the socket's number.
        rows.into_iter()
            .filter(|row| row[3] == "0A" && sockets.contains(&row[9]))
            .map(|row| row[1].clone())
            .collect::<Vec<_>>()
    };
    let v4 = listening("/proc/net/tcp");
    assert!(v4.len() >= 3, "the worker, its engine and the relay here: {v4:?}");
    assert!(v4.iter().all(|address| address.starts_with("0100007F:")), "{v4:?}");
    assert_eq!(listening("/proc/net/tcp6"), Vec::<String>::new());
    child.kill().unwrap();
    child.wait().unwrap();
    let refused = support::error(&support::nibble(["worker", "--listen", "0.0.0.0:7117"]));
    has(&refused, &["no private network", "--public"]);
}
