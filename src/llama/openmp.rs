//! The threads that evaluate a model: the part of OpenMP's runtime that ggml uses, for programs that GCC compiled.
//!
//! ggml runs each graph in an OpenMP region, and its threads wait for one another after every operation, several hundred
//! times a token. How they wait decides what happens beside other programs. GCC's own runtime spins for about ten
//! milliseconds before it sleeps. If the system runs another program in place of one of the threads, the others spin
//! until their time is used up and lose their CPUs as well: on two cores beside two busy programs, a small model is 20
//! to 50 times as slow. With less spinning, the same model is slower on a quiet machine, because to sleep and to be woken
//! takes longer than most operations. A fixed number of rounds, which is all that libgomp can be told (and only before
//! the program starts), is wrong on one of the two.
//!
//! These threads adapt instead. They spin, because waits are usually over soon, but not for long, and sleep at once while
//! other programs need the CPUs (see [`Crowd`]).
//!
//! The functions have the names and the C interface that GCC compiles OpenMP's directives to (libgomp's ABI, unchanged
//! since GCC 4.9), so that the linker uses them instead of the ones in libgomp. They cover what ggml's CPU code uses: a
//! region with a number of threads, `barrier`, `single`, and the two functions that say which thread of how many is
//! running. A region without a number of threads, which may use the rest of OpenMP, runs on one thread; libgomp's functions
//! then see no team, and work as they do outside of any region. Programs compiled by Clang call other functions, and keep
//! their own runtime.

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_uint, c_void};
use std::hint::spin_loop;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::thread::futex;

/// What a region runs on each of its threads.
type Outlined = unsafe extern "C" fn(*mut c_void);

/// Regions that ran with more than one thread.
static REGIONS: AtomicU64 = AtomicU64::new(0);

/// Returns how many regions this process has run on these threads.
#[cfg(test)]
pub(super) fn regions() -> u64 {
    REGIONS.load(Ordering::Relaxed)
}

thread_local! {
    /// The region that this thread is in: its team, and the thread's number.
    static MEMBER: Cell<Option<(*const Team, u32)>> = const { Cell::new(None) };
    /// The team of the regions that this thread begins. Its threads end with it.
    static OWN: RefCell<Option<Own>> = const { RefCell::new(None) };
}

/// `#pragma omp parallel num_threads(n)`: runs `outlined(data)` on `n` threads, of which the caller is number 0.
///
/// # Safety
/// Called by compiled code: `outlined` may be called with `data` on any thread until this returns.
#[unsafe(no_mangle)]
unsafe extern "C" fn GOMP_parallel(outlined: Outlined, data: *mut c_void, n: c_uint, _flags: c_uint) {
    // A region inside a region, and one whose number of threads is ours to choose, has one thread.
    let outer = MEMBER.take();
    let own = if n > 1 && outer.is_none() { OWN.try_with(|own| team_of(own, n)).ok().flatten() } else { None };
    match own {
        // SAFETY: as promised by the caller.
        Some(team) => unsafe { team.run(outlined, data, n) },
        // SAFETY: as promised by the caller.
        None => unsafe { outlined(data) },
    }
    MEMBER.set(outer);
}

/// `#pragma omp barrier`: waits until all threads of the region are here.
#[unsafe(no_mangle)]
extern "C" fn GOMP_barrier() {
    if let Some((team, _)) = MEMBER.get() {
        // SAFETY: the team outlives the region that this thread is in.
        unsafe { &*team }.barrier();
    }
}

/// `#pragma omp single`: true for the first thread that arrives at this one, of which there is one between two barriers.
#[unsafe(no_mangle)]
extern "C" fn GOMP_single_start() -> bool {
    match MEMBER.get() {
        // SAFETY: the team outlives the region that this thread is in.
        Some((team, _)) => unsafe { &*team }.single(),
        None => true,
    }
}

#[unsafe(no_mangle)]
extern "C" fn omp_get_thread_num() -> c_int {
    MEMBER.get().map_or(0, |(_, i)| i as c_int)
}

#[unsafe(no_mangle)]
extern "C" fn omp_get_num_threads() -> c_int {
    // SAFETY: the team outlives the region that this thread is in.
    MEMBER.get().map_or(1, |(team, _)| unsafe { &*team }.n.load(Ordering::Relaxed) as c_int)
}

/// Returns this thread's team with at least `n` threads; `None` if the system starts no more threads.
fn team_of(own: &RefCell<Option<Own>>, n: u32) -> Option<Arc<Team>> {
    let mut own = own.try_borrow_mut().ok()?;
    if own.as_ref().is_none_or(|own| own.team.workers.len() + 1 < n as usize) {
        *own = Some(Own::start(n)?);
    }
    own.as_ref().map(|own| own.team.clone())
}

/// A team, and the duty to end its threads.
struct Own {
    team: Arc<Team>,
}

impl Own {
    fn start(n: u32) -> Option<Self> {
        let own = Self { team: Arc::new(Team::new(n as usize - 1)) };
        for i in 1..n {
            let team = own.team.clone();
            // When it fails, dropping `own` ends those that have started.
            std::thread::Builder::new().name(format!("compute-{i}")).spawn(move || team.work(i)).ok()?;
        }
        Some(own)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.team.stop.store(true, Ordering::Relaxed);
        self.team.workers.iter().for_each(|worker| _ = worker.advance());
    }
}

/// Threads that run regions together.
struct Team {
    // What the current region runs. Written by its first thread before the others are called.
    outlined: AtomicPtr<c_void>,
    data: AtomicPtr<c_void>,
    n: AtomicU32,
    // Threads that have arrived at the current barrier.
    arrived: Apart<AtomicU32>,
    // Advances when all have.
    passed: Signal,
    // The barrier after which a `single` has been taken, plus one.
    single: AtomicU32,
    // Calls each of the other threads to a region.
    workers: Box<[Signal]>,
    stop: AtomicBool,
}

impl Team {
    fn new(n_workers: usize) -> Self {
        Self {
            outlined: AtomicPtr::default(),
            data: AtomicPtr::default(),
            n: AtomicU32::new(1),
            arrived: Apart::default(),
            passed: Signal::default(),
            single: AtomicU32::new(0),
            workers: (0..n_workers).map(|_| Signal::default()).collect(),
            stop: AtomicBool::new(false),
        }
    }

    /// Runs a region on `n` threads, and returns when all have left it.
    ///
    /// # Safety
    /// `outlined` may be called with `data` on any thread until this returns.
    unsafe fn run(&self, outlined: Outlined, data: *mut c_void, n: u32) {
        REGIONS.fetch_add(1, Ordering::Relaxed);
        CROWD.forget(clock);
        self.outlined.store(outlined as *mut c_void, Ordering::Relaxed);
        self.data.store(data, Ordering::Relaxed);
        self.n.store(n, Ordering::Relaxed);
        // Publishes what was written above.
        self.workers[..n as usize - 1].iter().for_each(|worker| _ = worker.advance());
        MEMBER.set(Some((self, 0)));
        // SAFETY: as promised by the caller.
        unsafe { outlined(data) };
        self.barrier();
        MEMBER.set(None);
    }

    /// What thread `i` does, from 1: runs regions until the team ends.
    fn work(&self, i: u32) {
        let signal = &self.workers[i as usize - 1];
        let mut seen = 0;
        loop {
            seen = signal.wait_beyond(seen, BETWEEN_REGIONS);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let data = self.data.load(Ordering::Relaxed);
            // SAFETY: `run` stored a function of this type before it called this thread.
            let outlined =
                unsafe { std::mem::transmute::<*mut c_void, Outlined>(self.outlined.load(Ordering::Relaxed)) };
            MEMBER.set(Some((self, i)));
            // SAFETY: `run` has not returned: it waits for this thread at the barrier.
            unsafe { outlined(data) };
            self.barrier();
            MEMBER.set(None);
        }
    }

    fn barrier(&self) {
        // Cannot change before this thread has arrived.
        let passed = self.passed.now();
        if self.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == self.n.load(Ordering::Relaxed) {
            self.arrived.0.store(0, Ordering::Relaxed);
            if self.passed.advance() {
                CROWD.look();
            }
        } else {
            self.passed.wait_beyond(passed, AT_BARRIER);
        }
    }

    fn single(&self) -> bool {
        let this = self.passed.now().wrapping_add(1);
        self.single.swap(this, Ordering::Relaxed) != this
    }
}

/// A cache line for itself, so that threads that wait for one word do not slow down those that write another.
#[derive(Default)]
#[repr(align(128))]
struct Apart<T>(T);

/// A number that only grows, and that threads wait for.
#[derive(Default)]
#[repr(align(128))]
struct Signal {
    number: AtomicU32,
    sleepers: AtomicU32,
}

impl Signal {
    fn now(&self) -> u32 {
        self.number.load(Ordering::Acquire)
    }

    /// Adds one, and wakes the threads that sleep. One thread at a time calls this. Returns whether any slept.
    fn advance(&self) -> bool {
        let next = self.number.load(Ordering::Relaxed).wrapping_add(1);
        // In one order with the sleeper's: either it sees the new number, or this sees the sleeper.
        self.number.store(next, Ordering::SeqCst);
        let asleep = self.sleepers.load(Ordering::SeqCst) > 0;
        if asleep {
            // It fails only for a bad address or bad flags.
            let _ = futex::wake(&self.number, futex::Flags::PRIVATE, i32::MAX as u32);
        }
        asleep
    }

    /// Waits until the number is another than `seen`, and returns it. The thread spins for `patience` before it sleeps; it
    /// sleeps at once while other programs need this CPU.
    fn wait_beyond(&self, seen: u32, patience: Duration) -> u32 {
        let mut began = None;
        while !CROWD.is_here() && began.is_none_or(|began: Instant| began.elapsed() < patience) {
            // Most waits are over before it is worth looking at the clock.
            for _ in 0..ROUNDS {
                let now = self.now();
                if now != seen {
                    return now;
                }
                spin_loop();
            }
            began = began.or_else(|| Some(Instant::now()));
        }
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let now = loop {
            let now = self.number.load(Ordering::SeqCst);
            if now != seen {
                break now;
            }
            // Returns at once if the number has changed, and may return without a reason.
            let _ = futex::wait(&self.number, futex::Flags::PRIVATE, seen, None);
        };
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
        now
    }
}

/// Times around the loop between two looks at the clock: one to four microseconds.
const ROUNDS: u32 = 64;

/// How long a thread spins at a barrier: longer than operations differ between threads, shorter than the turns (about
/// three milliseconds) in which Linux shares a CPU among programs.
const AT_BARRIER: Duration = Duration::from_micros(1000);

/// How long a thread spins for the next region, while the first thread chooses a token.
const BETWEEN_REGIONS: Duration = Duration::from_micros(1000);

/// Whether other programs need the CPUs that this process computes on.
///
/// The sign is a thread that others wait for and that the system had taken off its CPU. Now and then that happens on
/// every machine; a program that computes as well takes a CPU away every few milliseconds. [`Crowd::MANY`] signs within
/// [`Crowd::WINDOW`] mean that CPUs have to be shared, until there have not been [`Crowd::STILL`] for [`Crowd::MEMORY`].
struct Crowd {
    here: AtomicBool,
    // In nanoseconds of `clock`.
    until: AtomicU64,
    window: AtomicU64,
    signs: AtomicU32,
}

static CROWD: Crowd = Crowd::new();

thread_local! {
    /// How often this thread had been taken off its CPU when it last looked.
    static TAKEN_OFF: Cell<i64> = const { Cell::new(0) };
}

impl Crowd {
    const WINDOW: u64 = 100_000_000;
    const MANY: u32 = 6;
    const STILL: u32 = 2;
    const MEMORY: u64 = 300_000_000;

    const fn new() -> Self {
        let here = AtomicBool::new(false);
        Self { here, until: AtomicU64::new(0), window: AtomicU64::new(0), signs: AtomicU32::new(0) }
    }

    fn is_here(&self) -> bool {
        self.here.load(Ordering::Relaxed)
    }

    /// Called by a thread that others have slept for.
    fn look(&self) {
        let taken_off = times_taken_off();
        if TAKEN_OFF.replace(taken_off) != taken_off {
            self.sign(clock());
        }
    }

    /// Counts a sign. Two threads at a time may count one twice or lose it, which does no harm.
    fn sign(&self, now: u64) {
        if now.saturating_sub(self.window.load(Ordering::Relaxed)) > Self::WINDOW {
            self.window.store(now, Ordering::Relaxed);
            self.signs.store(0, Ordering::Relaxed);
        }
        let signs = self.signs.fetch_add(1, Ordering::Relaxed) + 1;
        if signs >= if self.is_here() { Self::STILL } else { Self::MANY } {
            self.until.store(now + Self::MEMORY, Ordering::Relaxed);
            self.here.store(true, Ordering::Relaxed);
        }
    }

    /// Called before each region.
    fn forget(&self, now: impl FnOnce() -> u64) {
        if self.is_here() && now() > self.until.load(Ordering::Relaxed) {
            self.here.store(false, Ordering::Relaxed);
        }
    }
}

/// Returns the time in nanoseconds since the first call.
fn clock() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// Returns how often the system has given the CPU of this thread to another one while this one could have gone on.
fn times_taken_off() -> i64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: writes to our struct; zeros are a valid one, should it fail.
    unsafe {
        libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
        usage.assume_init().ru_nivcsw
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ptr;
    use std::sync::Mutex;

    use llama_cpp_sys_2 as sys;

    use super::*;

    /// What the threads of a region have seen.
    #[derive(Default)]
    struct Seen {
        threads: Mutex<BTreeSet<(c_int, c_int)>>,
        singles: AtomicU32,
        sum: AtomicU32,
        inner: AtomicU32,
    }

    const STEPS: u32 = 200;

    unsafe extern "C" fn steps(data: *mut c_void) {
        // SAFETY: the data that `region` passed, which outlives the region.
        let seen = unsafe { &*data.cast::<Seen>() };
        let (i, n) = (omp_get_thread_num(), omp_get_num_threads());
        seen.threads.lock().unwrap().insert((i, n));
        for step in 0..STEPS {
            seen.sum.fetch_add(1, Ordering::Relaxed);
            GOMP_barrier();
            // All threads have added theirs, and none has begun the next step.
            assert_eq!(seen.sum.load(Ordering::Relaxed), (step + 1) * n as u32);
            GOMP_barrier();
            if GOMP_single_start() {
                seen.singles.fetch_add(1, Ordering::Relaxed);
            }
            GOMP_barrier();
        }
        if n > 1 {
            // SAFETY: as for the region that this thread is in.
            unsafe { GOMP_parallel(inner, data, 4, 0) };
        }
        assert_eq!((omp_get_thread_num(), omp_get_num_threads()), (i, n));
    }

    unsafe extern "C" fn inner(data: *mut c_void) {
        // SAFETY: as in `steps`.
        let seen = unsafe { &*data.cast::<Seen>() };
        assert_eq!((omp_get_thread_num(), omp_get_num_threads(), GOMP_single_start()), (0, 1, true));
        GOMP_barrier();
        seen.inner.fetch_add(1, Ordering::Relaxed);
    }

    fn region(n: u32) -> Seen {
        let mut seen = Seen::default();
        // SAFETY: `steps` takes this data, which outlives the call.
        unsafe { GOMP_parallel(steps, ptr::from_mut(&mut seen).cast(), n, 0) };
        seen
    }

    #[test]
    fn threads_of_a_region_meet_at_each_barrier() {
        // More threads than before, fewer, and more than there are CPUs.
        for n in [2, 3, 2, 1, 16, 4] {
            let seen = region(n);
            let threads: BTreeSet<_> = (0..n as c_int).map(|i| (i, n as c_int)).collect();
            assert_eq!(*seen.threads.lock().unwrap(), threads);
            assert_eq!(seen.sum.into_inner(), n * STEPS);
            assert_eq!(seen.singles.into_inner(), STEPS);
            assert_eq!(seen.inner.into_inner(), if n > 1 { n } else { 0 });
        }
        // Without a number of threads, and outside of a region.
        assert_eq!(region(0).threads.into_inner().unwrap(), BTreeSet::from([(0, 1)]));
        assert_eq!((omp_get_thread_num(), omp_get_num_threads(), GOMP_single_start()), (0, 1, true));
        GOMP_barrier();
    }

    #[test]
    fn teams_of_several_threads_do_not_mix() {
        std::thread::scope(|scope| {
            for n in [2, 3, 4] {
                scope.spawn(move || (0..5).for_each(|_| assert_eq!(region(n).sum.into_inner(), n * STEPS)));
            }
        });
    }

    #[test]
    fn ggml_computes_on_these_threads() {
        crate::llama::system_info().unwrap();
        let before = regions();
        let params = sys::ggml_init_params { mem_size: 64 << 20, mem_buffer: ptr::null_mut(), no_alloc: false };
        // SAFETY: the context has room for two matrices of 1024 x 1024 numbers, their product and the graph.
        unsafe {
            let context = sys::ggml_init(params);
            let [a, b] = [2.0f32, 3.0].map(|value| {
                let matrix = sys::ggml_new_tensor_2d(context, sys::GGML_TYPE_F32, 1024, 1024);
                std::slice::from_raw_parts_mut((*matrix).data.cast::<f32>(), 1024 * 1024).fill(value);
                matrix
            });
            let graph = sys::ggml_new_graph(context);
            let product = sys::ggml_mul_mat(context, a, b);
            sys::ggml_build_forward_expand(graph, product);
            assert_eq!(sys::ggml_graph_compute_with_ctx(context, graph, 2), sys::GGML_STATUS_SUCCESS);
            let product = std::slice::from_raw_parts((*product).data.cast::<f32>(), 1024 * 1024);
            assert!(product.iter().all(|value| *value == 6.0 * 1024.0));
            sys::ggml_free(context);
        }
        assert!(regions() > before, "the linker took the functions of another library");
    }

    /// Returns the time in which this thread has been on a CPU.
    fn cpu_time() -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    #[test]
    fn a_thread_that_waits_for_long_sleeps() {
        let signal = Signal::default();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let before = cpu_time();
                assert_eq!(signal.wait_beyond(0, AT_BARRIER), 1);
                cpu_time() - before
            });
            std::thread::sleep(Duration::from_millis(200));
            assert!(signal.advance());
            let busy = waiting.join().unwrap();
            assert!(busy < 20 * AT_BARRIER, "{busy:?}");
        });
        assert!(!signal.advance());
        assert_eq!(signal.wait_beyond(1, AT_BARRIER), 2);
    }

    #[test]
    fn programs_that_come_and_go_are_noticed() {
        const MS: u64 = 1_000_000;
        let crowd = Crowd::new();
        // Now and then, a thread is taken off its CPU on every machine.
        for i in 0..100 {
            crowd.sign(1000 * MS + i * 40 * MS);
            assert!(!crowd.is_here());
        }
        // A program that computes takes turns of three milliseconds.
        let came = 10_000 * MS;
        let noticed = (0..).find(|i| {
            crowd.sign(came + i * 6 * MS);
            crowd.is_here()
        });
        assert!(noticed.is_some_and(|i| i < 10), "{noticed:?}");
        for i in 10..500 {
            crowd.sign(came + i * 6 * MS);
            crowd.forget(|| came + i * 6 * MS);
            assert!(crowd.is_here());
        }
        let left = came + 500 * 6 * MS;
        crowd.forget(|| left + 100 * MS);
        assert!(crowd.is_here());
        crowd.forget(|| left + 400 * MS);
        assert!(!crowd.is_here());
    }
}
