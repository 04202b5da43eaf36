//! Engines that are processes.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::{Boxed, Launch, Launched, Process};

/// Lines of an engine's messages that are kept, to say how it ended.
const KEPT_LINES: usize = 20;

/// The most bytes of a line that are kept.
const KEPT_BYTES: usize = 400;

/// A program that is an engine.
pub struct Program {
    /// It.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Is told each line of its messages.
    pub log: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Launch for Program {
    fn launch(&self) -> io::Result<Launched> {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C in the terminal is for the server, which lets answers end.
        #[cfg(unix)]
        command.process_group(0);
        let mut child = command.kill_on_drop(true).spawn()?;
        let missing = || io::Error::other("it has no pipes");
        let input = child.stdin.take().ok_or_else(missing)?;
        let output = child.stdout.take().ok_or_else(missing)?;
        let messages = child.stderr.take().ok_or_else(missing)?;
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let (kept, log) = (lines.clone(), self.log.clone());
        let reading = tokio::spawn(async move {
            let mut messages = BufReader::new(messages).lines();
            // What is no UTF-8 ends it: nibble and llama.cpp write nothing else.
            while let Ok(Some(line)) = messages.next_line().await {
                log(&line);
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.len() == KEPT_LINES {
                    kept.pop_front();
                }
                kept.push_back(line.chars().take(KEPT_BYTES).collect());
            }
        });
        let process = Box::new(Running { child, lines, reading: Some(reading) });
        Ok(Launched { input: Box::new(input), output: Box::new(output), process })
    }
}

struct Running {
    child: Child,
    lines: Arc<Mutex<VecDeque<String>>>,
    reading: Option<tokio::task::JoinHandle<()>>,
}

impl Process for Running {
    fn ended(&mut self) -> Boxed<'_, String> {
        Box::pin(async {
            let status = self.child.wait().await;
            // Its last words may still be on their way.
            if let Some(reading) = self.reading.take() {
                let _ = tokio::time::timeout(std::time::Duration::from_millis(200), reading).await;
            }
            let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            let last = lines.iter().rev().find(|line| is_telling(line));
            match status {
                Ok(status) => how(status, last.map(String::as_str)),
                Err(error) => format!("cannot be waited for: {error}"),
            }
        })
    }

    fn kill(&mut self) {
        let _ = self.child.start_kill();
    }
}

/// Whether a line says something about an end, as those of backtraces do not.
fn is_telling(line: &str) -> bool {
    let line = line.trim_start();
    !line.is_empty() && !line.starts_with('#') && !line.starts_with("0x") && !line.starts_with('[')
}

/// Says how a process ended, with the last thing that it said.
fn how(status: ExitStatus, last: Option<&str>) -> String {
    let mut how = match (signal(status), status.code()) {
        (Some(signal), _) => format!("was ended by signal {signal}"),
        (None, Some(0)) => "ended".to_string(),
        (None, Some(code)) => format!("ended with exit status {code}"),
        (None, None) => "ended".to_string(),
    };
    if let Some(last) = last.filter(|_| !status.success()) {
        how.push_str(", after it said \"");
        how.push_str(last.trim());
        how.push('"');
    }
    how
}

#[cfg(unix)]
fn signal(status: ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

#[cfg(not(unix))]
fn signal(_: ExitStatus) -> Option<i32> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    async fn end_of(script: &str) -> (String, Vec<String>) {
        let said = Arc::new(Mutex::new(Vec::new()));
        let log = said.clone();
        let program = Program {
            path: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            log: Arc::new(move |line| log.lock().unwrap().push(line.to_string())),
        };
        let mut launched = program.launch().unwrap();
        let how = launched.process.ended().await;
        (how, said.lock().unwrap().clone())
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_told_with_its_last_words() {
        assert_eq!(end_of("exit 0").await, ("ended".to_string(), Vec::new()));
        let (how, said) = end_of("echo GGML_ASSERT failed >&2; echo '#0  abort' >&2; kill -ABRT $$").await;
        assert_eq!(how, "was ended by signal 6, after it said \"GGML_ASSERT failed\"");
        assert_eq!(said, ["GGML_ASSERT failed", "#0  abort"]);
        assert_eq!(
            end_of("echo no memory >&2; exit 3").await.0,
            "ended with exit status 3, after it said \"no memory\""
        );
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let program = Program { path: "/nowhere/engine".into(), arguments: Vec::new(), log: Arc::new(|_| ()) };
        assert!(program.launch().is_err());
    }
}
