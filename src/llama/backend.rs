//! The process-wide part of llama.cpp: its start, its log, and the lock for operations that must not run concurrently.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

use llama_cpp_2::LlamaCppError;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_sys_2 as sys;

use super::Error;

/// Never dropped: it has to outlive all models and contexts.
static BACKEND: OnceLock<Result<LlamaBackend, LlamaCppError>> = OnceLock::new();
static MAKING: Mutex<()> = Mutex::new(());
static VERBOSE: AtomicBool = AtomicBool::new(false);

/// Returns the backend, which the first call starts.
pub(super) fn get() -> Result<&'static LlamaBackend, Error> {
    let backend = BACKEND.get_or_init(|| {
        // SAFETY: `on_log` has the required type, takes no data, and never unwinds. It is set before anything else of
        // llama.cpp runs, so that no other thread is using the old one.
        unsafe { sys::llama_log_set(Some(on_log), std::ptr::null_mut()) };
        LlamaBackend::init()
    });
    backend.as_ref().map_err(|e| Error::Backend(format!("{e}: this process already uses it outside nibble")))
}

/// The version of the crate that llama.cpp comes in.
pub const VERSION: &str = "0.1.160";

/// Is told why llama.cpp ends the process, before it does.
type OnAbort = Box<dyn Fn(&str) -> Option<u8> + Send + Sync>;

static ON_ABORT: OnceLock<OnAbort> = OnceLock::new();

/// Calls `tell` with llama.cpp's message when one of its assertions fails. The process ends when `tell` returns: at once with the
/// status that it returns, or as after a crash. Only the first call of this function counts.
pub fn on_abort(tell: impl Fn(&str) -> Option<u8> + Send + Sync + 'static) {
    if ON_ABORT.set(Box::new(tell)).is_ok() {
        // SAFETY: the function has the required type, and never unwinds.
        unsafe { sys::ggml_set_abort_callback(Some(aborting)) };
    }
}

unsafe extern "C" fn aborting(message: *const c_char) {
    // SAFETY: ggml passes a string that ends in NUL.
    let message = if message.is_null() { "".into() } else { unsafe { CStr::from_ptr(message) }.to_string_lossy() };
    if let Some(tell) = ON_ABORT.get() {
        // No panic may cross into C++, which ends the process next.
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| tell(&message)));
        if let Ok(Some(status)) = told {
            // Nothing is cleaned up: other threads are in the middle of it.
            #[cfg(target_os = "linux")]
            // SAFETY: ends the process.
            unsafe {
                libc::_exit(status.into())
            };
            #[cfg(not(target_os = "linux"))]
            std::process::exit(status.into());
        }
    }
}

/// Returns a lock that is held while a model is loaded, or a context or an adapter is created, because llama.cpp writes
/// to the model then.
pub(super) fn making() -> MutexGuard<'static, ()> {
    // The lock guards no data of ours that a panic could leave half changed.
    MAKING.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Sends llama.cpp's log to standard error, or discards it, which is the default.
pub fn set_verbose(verbose: bool) {
    VERBOSE.store(verbose, Ordering::Relaxed);
}

/// Returns what llama.cpp was built for and uses of this CPU: `CPU : AVX2 = 1 | ...`.
///
/// # Errors
/// [`Error::Backend`] if llama.cpp cannot be started.
pub fn system_info() -> Result<String, Error> {
    get()?;
    let _making = making();
    // SAFETY: a string that llama.cpp keeps and rewrites at each call. The lock is held, and the string is copied at once.
    let text = unsafe { CStr::from_ptr(sys::llama_print_system_info()) };
    Ok(text.to_string_lossy().trim().to_string())
}

/// The last errors and warnings that llama.cpp logged on this thread, and the sizes of buffers.
#[derive(Default)]
struct Lines {
    // (is an error, text without the line break)
    recent: Vec<(bool, String)>,
    // The lines that say how large a buffer is.
    sizes: Vec<String>,
    // Whether the last line is still being written.
    open: bool,
}

/// The reason if llama.cpp logged neither an error nor a warning.
pub const NO_REASON: &str = "it gave no reason";

const KEPT_LINES: usize = 32;

/// Stands between what a buffer is and how large it is, in llama.cpp's log.
const SIZE: &str = " buffer size =";
const KEPT_BYTES: usize = 1000;

thread_local! {
    // llama.cpp logs why a call failed on the thread that made the call, so that models which are loaded at the same time
    // do not get each other's reasons.
    static LINES: RefCell<Lines> = RefCell::default();
}

/// What llama.cpp logged during a call.
#[must_use]
pub(super) struct Heard {
    // (is an error, text)
    lines: Vec<(bool, String)>,
    sizes: Vec<String>,
}

/// The size of a buffer as llama.cpp logs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BufferSize {
    /// The buffer's name: that of a device, or of a kind of its memory.
    pub name: String,
    /// What it is for: `model`, `KV`, `compute`, `output`.
    pub what: String,
    /// Bytes: at least as many as it has, and at most 0.01 MiB more, because that is how exactly they are logged.
    pub bytes: u64,
}

impl Heard {
    /// Returns the sizes of buffers that were logged: `sched_reserve:        CPU compute buffer size =   190.52 MiB`.
    pub fn sizes(&self) -> Vec<BufferSize> {
        let size = |line: &String| {
            let (head, size) = without_function(line).split_once(SIZE)?;
            let (name, what) = head.trim().rsplit_once(' ')?;
            let mib: f64 = size.trim().strip_suffix("MiB")?.trim().parse().ok()?;
            // Rounded to hundredths; the cast saturates.
            let bytes = ((mib + 0.005) * f64::from(1 << 20)).ceil() as u64;
            Some(BufferSize { name: name.trim().to_string(), what: what.to_string(), bytes })
        };
        self.sizes.iter().filter_map(size).collect()
    }

    /// Returns the buffers of a device's memory for which there was no room, and their bytes: `failed to allocate Vulkan0 buffer of
    /// size 63965952`.
    pub fn no_room(&self) -> Option<(String, u64)> {
        self.lines.iter().find_map(|(_, text)| {
            let (_, rest) = text.split_once("failed to allocate ")?;
            let (name, bytes) = rest.split_once(" buffer of size ")?;
            Some((name.to_string(), bytes.trim().parse().ok()?))
        })
    }

    /// Returns why the call failed: the errors that were logged, or the warnings if there were no errors.
    pub fn reason(&self) -> String {
        let told = |errors: bool| {
            let mut texts: Vec<&str> = self
                .lines
                .iter()
                .filter(|(error, _)| *error == errors)
                .map(|(_, text)| without_function(text))
                .collect();
            texts.dedup();
            // The caller's error says this already.
            texts.retain(|text| *text != "failed to load model");
            // The first line says what was wrong. Those that follow repeat it for each caller.
            texts.truncate(3);
            texts.join("; ")
        };
        let reason = [told(true), told(false)].into_iter().find(|r| !r.is_empty());
        reason.unwrap_or_else(|| NO_REASON.to_string())
    }
}

/// Runs `call`. Returns its result, and what llama.cpp logged meanwhile. If nothing is logged, it costs almost nothing;
/// it is used for the evaluation of every token.
pub(super) fn listen<T>(call: impl FnOnce() -> T) -> (T, Heard) {
    LINES.with_borrow_mut(|lines| {
        lines.recent.clear();
        lines.sizes.clear();
        lines.open = false;
    });
    let out = call();
    let heard = LINES.with_borrow_mut(|lines| Heard {
        lines: std::mem::take(&mut lines.recent),
        sizes: std::mem::take(&mut lines.sizes),
    });
    (out, heard)
}

/// As [`listen`], for a call whose result is what is logged: takes the log for so long, in case that another user of llama.cpp in
/// this process has taken it. The caller holds [`making`].
pub(super) fn listen_for<T>(call: impl FnOnce() -> T) -> (T, Heard) {
    let (mut theirs, mut data): (sys::ggml_log_callback, _) = (None, std::ptr::null_mut());
    // SAFETY: the first call writes who has the log to our variables. `on_log` has the required type, takes no data, and never
    // unwinds.
    unsafe {
        sys::llama_log_get(&raw mut theirs, &raw mut data);
        sys::llama_log_set(Some(on_log), std::ptr::null_mut());
    }
    let out = listen(call);
    // SAFETY: who had the log gets it back, with the data that belong to it.
    unsafe { sys::llama_log_set(theirs, data) };
    out
}

/// llama.cpp begins its lines with the name of the C++ function: `llama_model_load: error loading model: ...`.
fn without_function(line: &str) -> &str {
    match line.split_once(": ") {
        Some((function, rest)) if !function.contains(' ') => rest.trim(),
        _ => line.trim(),
    }
}

unsafe extern "C" fn on_log(level: sys::ggml_log_level, text: *const c_char, _data: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a string that ends in NUL and lives for the length of this call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    if VERBOSE.load(Ordering::Relaxed) {
        // Not `eprint!`, which panics where standard error is closed.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
    }
    // This fails in a thread that is ending and in a log from within a log, when nobody listens.
    let _ = LINES.try_with(|lines| {
        if let Ok(mut lines) = lines.try_borrow_mut() {
            lines.add(level, &text);
        }
    });
}

impl Lines {
    fn add(&mut self, level: sys::ggml_log_level, text: &str) {
        let error = level == sys::GGML_LOG_LEVEL_ERROR;
        let continues = level == sys::GGML_LOG_LEVEL_CONT;
        match self.recent.last_mut() {
            Some((_, line)) if continues && self.open => {
                if line.len() < KEPT_BYTES {
                    line.push_str(text.trim_end_matches('\n'));
                }
            }
            _ if error || level == sys::GGML_LOG_LEVEL_WARN => {
                if self.recent.len() < KEPT_LINES {
                    self.recent.push((error, text.trim_end_matches('\n').chars().take(KEPT_BYTES).collect()));
                }
            }
            // A line of another level began, whose continuations are not kept either.
            _ => {
                if level == sys::GGML_LOG_LEVEL_INFO && text.contains(SIZE) && self.sizes.len() < KEPT_LINES {
                    self.sizes.push(text.trim_end_matches('\n').chars().take(KEPT_BYTES).collect());
                }
                self.open = false;
                return;
            }
        }
        self.open = !text.ends_with('\n');
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    fn log(level: sys::ggml_log_level, text: &str) {
        let text = CString::new(text).unwrap();
        // SAFETY: a string that ends in NUL, alive until after the call.
        unsafe { on_log(level, text.as_ptr(), std::ptr::null_mut()) };
    }

    #[test]
    fn the_reason_is_what_was_logged_as_an_error() {
        let ((), heard) = listen(|| {
            log(sys::GGML_LOG_LEVEL_INFO, "llama_model_loader: loaded meta data\n");
            log(sys::GGML_LOG_LEVEL_WARN, "load: a warning\n");
            log(sys::GGML_LOG_LEVEL_ERROR, "llama_model_load: error loading model: ");
            log(sys::GGML_LOG_LEVEL_CONT, "missing tensor 'x'\n");
            log(sys::GGML_LOG_LEVEL_CONT, "stray\n");
            log(sys::GGML_LOG_LEVEL_ERROR, "failed to load\n");
        });
        let reason = heard.reason();
        assert_eq!(reason, "error loading model: missing tensor 'x'; failed to load");
        let ((), heard) = listen(|| log(sys::GGML_LOG_LEVEL_WARN, "find_slot: no room\n"));
        assert_eq!(heard.reason(), "no room");
        let ((), heard) = listen(|| ());
        assert_eq!(heard.reason(), NO_REASON);
    }

    #[test]
    fn sizes_of_buffers_are_heard_and_are_no_reasons() {
        let ((), heard) = listen(|| {
            log(sys::GGML_LOG_LEVEL_INFO, "sched_reserve:        CPU compute buffer size =   190.52 MiB\n");
            log(sys::GGML_LOG_LEVEL_INFO, "load_tensors:   CPU_Mapped model buffer size =     6.52 MiB\n");
            log(sys::GGML_LOG_LEVEL_INFO, "load_tensors: something else\n");
            log(sys::GGML_LOG_LEVEL_INFO, "x:  CPU KV buffer size = many MiB\n");
        });
        let size = |name: &str, what: &str, mib: f64| {
            let bytes = ((mib + 0.005) * 1048576.0).ceil() as u64;
            BufferSize { name: name.into(), what: what.into(), bytes }
        };
        assert_eq!(heard.sizes(), [size("CPU", "compute", 190.52), size("CPU_Mapped", "model", 6.52)]);
        assert_eq!(heard.reason(), NO_REASON);
    }

    #[test]
    fn threads_do_not_hear_each_other() {
        let ((), heard) = listen(|| {
            std::thread::spawn(|| log(sys::GGML_LOG_LEVEL_ERROR, "theirs\n")).join().unwrap();
            log(sys::GGML_LOG_LEVEL_ERROR, "ours\n");
        });
        assert_eq!(heard.reason(), "ours");
    }

    #[test]
    fn a_flood_of_lines_is_not_kept() {
        let ((), heard) = listen(|| {
            for i in 0..10_000 {
                log(sys::GGML_LOG_LEVEL_ERROR, &format!("line {i} {}", "x".repeat(5000)));
            }
        });
        assert!(heard.reason().len() < 4 * KEPT_BYTES);
    }
}
