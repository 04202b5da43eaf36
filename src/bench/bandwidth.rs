//! Measures how fast this machine reads memory, which limits how fast a large model generates text.
//!
//! ```text
//! thread 0   [ its own part of the buffer ]  sum, pass after pass
//! thread 1   [ its own part of the buffer ]  sum
//! ...            begin of the first ──────────► end of the last: one pass
//! ```
//!
//! Summing numbers measures the right limit for weights, which are read and never written. The buffer is several times
//! the size of the last-level cache, so that nothing of one pass is still cached in the next. Each thread fills the
//! part that it reads, so that on NUMA machines its part is in the nearest memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use super::Spread;

/// The measured speed of reading memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Bandwidth {
    /// Threads that read at the same time.
    pub threads: u32,
    /// Bytes of a pass, of all threads together.
    pub buffer_bytes: u64,
    /// Bytes per second of each pass, in order.
    pub passes: Vec<f64>,
}

impl Bandwidth {
    /// Returns the fastest pass, in bytes per second: the speed when nothing disturbs the machine.
    pub fn best(&self) -> f64 {
        self.passes.iter().copied().fold(0.0, f64::max)
    }

    /// Returns the median pass, in bytes per second.
    pub fn median(&self) -> f64 {
        Spread::of(&self.passes).map_or(0.0, |spread| spread.median)
    }
}

/// The smallest and the largest buffer, in bytes.
const BUFFER_BYTES: (u64, u64) = (256 << 20, 1 << 30);

/// Returns the bytes of a buffer that is large enough for a machine with caches of `cache_bytes` together, and that leaves
/// most of the available memory to others.
pub fn buffer_bytes(cache_bytes: Option<u64>, available_bytes: Option<u64>) -> u64 {
    let (least, most) = BUFFER_BYTES;
    let wanted = cache_bytes.unwrap_or(0).saturating_mul(4).clamp(least, most);
    available_bytes.map_or(wanted, |available| wanted.min(available / 4))
}

/// The fewest passes of a measurement.
const LEAST_PASSES: usize = 3;

/// Reads `buffer_bytes` with this many threads, again and again, for about `time`. Returns `None` if there is no memory
/// for the buffer, no thread, or `cancel` was set before there were enough passes.
pub fn measure(threads: u32, buffer_bytes: u64, time: Duration, cancel: &AtomicBool) -> Option<Bandwidth> {
    let n_threads = usize::try_from(threads).ok().filter(|n| (1..=4096).contains(n))?;
    let words = usize::try_from(buffer_bytes / 8).ok()? / n_threads;
    if words == 0 {
        return None;
    }
    let read_bytes = (words * n_threads * 8) as f64;
    let barrier = Barrier::new(n_threads);
    let (failed, done) = (AtomicBool::new(false), AtomicBool::new(false));
    // When each thread began and ended the current pass.
    let times: Vec<Mutex<Option<(Instant, Instant)>>> = (0..n_threads).map(|_| Mutex::new(None)).collect();
    let passes = Mutex::new(Vec::new());

    let work = |number: usize| {
        let mut buffer: Vec<u64> = Vec::new();
        if buffer.try_reserve_exact(words).is_err() {
            failed.store(true, Ordering::Relaxed);
        } else {
            // Any values will do, but they have to be written: pages that were never written share one page of zeros.
            buffer.extend((0..words as u64).map(|i| i ^ number as u64));
        }
        barrier.wait();
        if failed.load(Ordering::Relaxed) {
            return;
        }
        let started = Instant::now();
        loop {
            barrier.wait();
            if done.load(Ordering::Relaxed) {
                return;
            }
            let begin = Instant::now();
            std::hint::black_box(sum(&buffer));
            *lock(&times[number]) = Some((begin, Instant::now()));
            barrier.wait();
            if number == 0 {
                let ran: Vec<_> = times.iter().filter_map(|time| *lock(time)).collect();
                let begin = ran.iter().map(|(begin, _)| *begin).min();
                let end = ran.iter().map(|(_, end)| *end).max();
                let mut passes = lock(&passes);
                if let (Some(begin), Some(end)) = (begin, end) {
                    passes.push(read_bytes / end.duration_since(begin).as_secs_f64().max(1e-9));
                }
                let enough = started.elapsed() >= time && passes.len() >= LEAST_PASSES;
                if enough || cancel.load(Ordering::Relaxed) {
                    done.store(true, Ordering::Relaxed);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for number in 1..n_threads {
            let work = &work;
            scope.spawn(move || work(number));
        }
        work(0);
    });
    let passes = std::mem::take(&mut *lock(&passes));
    (passes.len() >= LEAST_PASSES).then_some(Bandwidth { threads, buffer_bytes: read_bytes as u64, passes })
}

/// Locks a mutex whose contents no panic leaves half changed.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Number of streams that a thread reads side by side. With a single stream, a core waits for the next page more often
/// than necessary: on an AMD EPYC (family 26) one stream reached 20 GB/s, four or more reached 25 to 40.
const STREAMS: usize = 8;

/// Words of a stream that are read at a time.
const STRETCH: usize = 64;

/// Returns the sum of all words, modulo 2^64.
fn sum(words: &[u64]) -> u64 {
    // A fold like this becomes a loop over the widest vectors that the CPU of the build has, several at a time.
    let add = |words: &[u64]| words.iter().fold(0, |sum: u64, word| sum.wrapping_add(*word));
    let stream = words.len() / STREAMS;
    let (streams, rest) = words.split_at(stream * STREAMS);
    let mut total = add(rest);
    for at in (0..stream).step_by(STRETCH) {
        let stretch = at..stream.min(at + STRETCH);
        for stream in streams.chunks_exact(stream) {
            total = total.wrapping_add(add(&stream[stretch.clone()]));
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_summed_once() {
        for n in [0u64, 1, 7, 8, 9, 511, 512, 513, 1000, 4096, 5003] {
            let words: Vec<u64> = (0..n).map(|i| i * i + 7).collect();
            assert_eq!(sum(&words), words.iter().sum::<u64>(), "{n} words");
        }
        assert_eq!(sum(&[u64::MAX; 100]), 0u64.wrapping_sub(100));
    }

    #[test]
    fn passes_are_timed_with_as_many_threads_as_asked_for() {
        let none = AtomicBool::new(false);
        for threads in [1, 2, 3] {
            let found = measure(threads, 4 << 20, Duration::from_millis(5), &none).unwrap();
            assert_eq!(found.threads, threads);
            assert!(found.buffer_bytes <= 4 << 20 && found.buffer_bytes > (4 << 20) - 64, "{}", found.buffer_bytes);
            assert!(found.passes.len() >= LEAST_PASSES);
            // From a broken clock to a machine of another century.
            assert!(found.passes.iter().all(|rate| (1e7..1e14).contains(rate)), "{:?}", found.passes);
            assert!(found.median() <= found.best());
        }
    }

    #[test]
    fn what_cannot_be_measured_is_none() {
        let time = Duration::from_millis(1);
        let none = AtomicBool::new(false);
        assert_eq!(measure(0, 1 << 20, time, &none), None);
        assert_eq!(measure(2, 8, time, &none), None);
        // More than any machine has: refused by the allocator, not fatal.
        assert_eq!(measure(2, u64::MAX / 2, time, &none), None);
        assert_eq!(measure(1, 1 << 20, Duration::from_secs(60), &AtomicBool::new(true)), None);
    }

    #[test]
    fn the_buffer_is_beyond_the_cache_and_within_what_is_free() {
        assert_eq!(buffer_bytes(Some(32 << 20), Some(64 << 30)), 256 << 20);
        assert_eq!(buffer_bytes(Some(128 << 20), Some(64 << 30)), 512 << 20);
        assert_eq!(buffer_bytes(Some(1 << 30), None), 1 << 30);
        assert_eq!(buffer_bytes(None, Some(400 << 20)), 100 << 20);
    }
}
