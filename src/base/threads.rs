//! Units of work, taken one by one by every thread: what conversions, verifications and comparisons have in common.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Calls `task` with the numbers up to `n`, on every thread of the current rayon pool, in order as far as several threads
/// can. Each thread has its own buffers, which go from one call to the next. The first failure ends it.
///
/// # Errors
/// The failure of the smallest number, so that what is reported does not depend on the threads' luck.
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

/// The first `n` elements of a buffer, which is made longer where it is too short.
pub fn room<T: Copy + Default>(buffer: &mut Vec<T>, n: usize) -> &mut [T] {
    if buffer.len() < n {
        buffer.resize(n, T::default());
    }
    &mut buffer[..n]
}
