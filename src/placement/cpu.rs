//! The CPU and its caches, on which speeds depend.

use crate::base::remembered::Remembered;
use crate::gguf::TensorType;
use crate::llama::{self, DeviceSpeed};

/// Returns the name that the CPU reports.
pub fn cpu_name() -> Option<String> {
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_cpu_list(sysinfo::CpuRefreshKind::nothing());
    let name = system.cpus().first()?.brand().split_whitespace().collect::<Vec<_>>().join(" ");
    (!name.is_empty()).then_some(name)
}

/// Returns the name under which a measurement of this machine is remembered: `what`, the CPU, and the build of nibble and of
/// llama.cpp, on which it depends.
///
/// # Errors
/// [`llama::Error::Backend`] if llama.cpp cannot be started.
pub fn measurement(what: &str) -> Result<String, llama::Error> {
    let (machine, version) = (cpu_name().unwrap_or_default(), env!("CARGO_PKG_VERSION"));
    let build = blake3::hash(llama::system_info()?.as_bytes()).to_hex();
    Ok(format!("{what}, {machine}, nibble {version}, {}", &build[..16]))
}

/// Returns how fast the CPU writes with `threads` threads: as fast as it multiplies with weights of Q4_K, which is measured when
/// it was not before. `None` if there is no memory for that.
///
/// # Errors
/// [`llama::Error::Backend`] if llama.cpp cannot be started.
pub fn cpu_speed(threads: u32) -> Result<Option<DeviceSpeed>, llama::Error> {
    let (remembered, name) = (Remembered::of_user(), measurement(&format!("writing with {threads} threads"))?);
    if let Some(known) = remembered.get(&name) {
        return Ok(Some(known));
    }
    let seconds = llama::writing_time(TensorType::Q4_K, threads)?.filter(|seconds| *seconds > 0.0);
    let speed = seconds.map(|seconds| DeviceSpeed { bytes_a_second: seconds.recip(), seconds_a_token: 0.0 });
    if let Some(speed) = &speed {
        remembered.put(&name, speed);
    }
    Ok(speed)
}

/// Returns the number of physical cores.
pub fn n_cores() -> u32 {
    u32::try_from(num_cpus::get_physical()).unwrap_or(1)
}

/// The last caches before memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caches {
    /// Bytes of each.
    pub bytes: u64,
    /// How many there are; each serves cores of its own.
    pub count: u32,
}

impl Caches {
    /// Returns those of this machine; `None` if the system does not say.
    pub fn this() -> Option<Self> {
        #[cfg(target_os = "linux")]
        return of_linux(std::path::Path::new("/sys/devices/system/cpu"));
        #[cfg(target_os = "macos")]
        return of_macos();
        #[cfg(not(any(target_os = "linux", target_os = "macos")))]
        None
    }

    /// Returns the most bytes of cache that this many threads can use together: a core uses the cache that serves it.
    pub fn bytes_for(&self, threads: u32) -> u64 {
        self.bytes.saturating_mul(self.count.min(threads).into())
    }
}

/// Reads `cpuN/cache/indexM/{level,size,shared_cpu_list}` in `root`.
///
/// Source: Linux's `Documentation/ABI/testing/sysfs-devices-system-cpu`.
#[cfg(any(target_os = "linux", test))]
fn of_linux(root: &std::path::Path) -> Option<Caches> {
    use std::collections::BTreeMap;

    let read = |path: std::path::PathBuf| Some(std::fs::read_to_string(path).ok()?.trim().to_string());
    // By level and by the CPUs that share it.
    let mut found = BTreeMap::new();
    for cpu in std::fs::read_dir(root).ok()?.flatten() {
        let name = cpu.file_name();
        let is_cpu = name.to_str().and_then(|name| name.strip_prefix("cpu")).is_some_and(|n| n.parse::<u32>().is_ok());
        let Ok(caches) = std::fs::read_dir(cpu.path().join("cache")) else { continue };
        for cache in caches.flatten().filter(|_| is_cpu).map(|cache| cache.path()) {
            let level = read(cache.join("level")).and_then(|level| level.parse::<u32>().ok());
            let shared = read(cache.join("shared_cpu_list"));
            let size = read(cache.join("size")).and_then(|size| kibibytes(&size));
            if let (Some(level), Some(shared), Some(size)) = (level, shared, size) {
                found.insert((level, shared), size);
            }
        }
    }
    let last = found.last_key_value()?.0.0;
    let sizes: Vec<u64> = found.iter().filter(|((level, _), _)| *level == last).map(|(_, size)| *size).collect();
    Some(Caches { bytes: sizes.iter().copied().max()?, count: u32::try_from(sizes.len()).ok()? })
}

/// Parses a size such as `32768K` into bytes.
#[cfg(any(target_os = "linux", test))]
fn kibibytes(text: &str) -> Option<u64> {
    text.strip_suffix('K')?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The last cache of a known size is level 2, one for each group of cores, on Apple's CPUs, and level 3 on Intel's.
#[cfg(target_os = "macos")]
fn of_macos() -> Option<Caches> {
    let number = |key: &str| {
        let out = std::process::Command::new("sysctl").args(["-n", key]).output().ok()?;
        String::from_utf8(out.stdout).ok()?.trim().parse::<u64>().ok().filter(|n| *n > 0)
    };
    let bytes = number("hw.l3cachesize").or_else(|| number("hw.perflevel0.l2cachesize"));
    Some(Caches { bytes: bytes.or_else(|| number("hw.l2cachesize"))?, count: 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_cpu() {
        assert!(n_cores() >= 1);
        if let Some(name) = cpu_name() {
            assert_eq!(name.trim(), name);
        }
        if let Some(caches) = Caches::this() {
            assert!(caches.bytes >= 16 << 10 && caches.count >= 1, "{caches:?}");
        }
    }

    #[test]
    fn each_cache_counts_once_and_the_last_level_alone() {
        let dir = tempfile::tempdir().unwrap();
        for cpu in 0..4 {
            for (index, (level, size, shared)) in
                [("1", "48K", cpu.to_string()), ("3", "32768K", if cpu < 2 { "0-1" } else { "2-3" }.to_string())]
                    .into_iter()
                    .enumerate()
            {
                let folder = dir.path().join(format!("cpu{cpu}/cache/index{index}"));
                std::fs::create_dir_all(&folder).unwrap();
                for (file, text) in [("level", level), ("size", size), ("shared_cpu_list", &shared)] {
                    std::fs::write(folder.join(file), format!("{text}\n")).unwrap();
                }
            }
        }
        std::fs::create_dir_all(dir.path().join("cpufreq/cache/index0")).unwrap();
        let caches = of_linux(dir.path()).unwrap();
        assert_eq!(caches, Caches { bytes: 32 << 20, count: 2 });
        assert_eq!((caches.bytes_for(1), caches.bytes_for(64)), (32 << 20, 64 << 20));
        assert_eq!(of_linux(&dir.path().join("nowhere")), None);
    }
}
