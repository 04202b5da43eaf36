//! Runs numbered tasks on all threads, as conversions, verifications and comparisons do.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Calls `task` with each number below `n`, on all threads of the current rayon pool. Threads take the numbers in order.
/// Each thread has its own buffers, which it passes to every call. The first failure stops the others.
///
/// # Errors
/// If a task fails. Of the failures that occurred, the one with the smallest number is returned.
pub fn on_all_threads<B: Default, E: Send>(
    n: usize,
    task: impl Fn(usize, &mut B) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let failure: Mutex<Option<(usize, E)>> = Mutex::new(None);
    rayon::broadcast(|_| {
        let mut buffers = B::default();
        while !stop.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= n {
                break;
            }
            if let Err(error) = task(at, &mut buffers) {
                stop.store(true, Ordering::Relaxed);
                let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                if failure.as_ref().is_none_or(|(before, _)| at < *before) {
                    *failure = Some((at, error));
                }
            }
        }
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// Returns the first `n` elements of a buffer, after extending it if it is shorter.
pub fn room<T: Copy + Default>(buffer: &mut Vec<T>, n: usize) -> &mut [T] {
    if buffer.len() < n {
        buffer.resize(n, T::default());
    }
    &mut buffer[..n]
}
