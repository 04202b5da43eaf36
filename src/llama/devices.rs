//! The devices that llama.cpp can compute on, and their memory.

use std::ffi::{CStr, c_char};

use llama_cpp_sys_2 as sys;

use super::{Error, backend, remote};

/// A device that llama.cpp was built for and has found.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// llama.cpp's short name: `CPU`, `CUDA0`, `Metal`.
    pub name: String,
    /// The name that its maker gave it.
    pub description: String,
    /// Its kind.
    pub kind: DeviceKind,
    /// Size of its memory in bytes; 0 if it is not known.
    pub total_bytes: u64,
    /// Free bytes of its memory; 0 if they are not known.
    pub free_bytes: u64,
    /// How fast it is; `None` if it was not measured.
    pub speed: Option<DeviceSpeed>,
}

/// How fast a device writes.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct DeviceSpeed {
    /// Bytes of weights that it reads a second.
    pub bytes_a_second: f64,
    /// Seconds that each token takes in addition, however little it reads: the way to another machine and back.
    pub seconds_a_token: f64,
}

/// The kind of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// A GPU with memory of its own.
    Gpu,
    /// A GPU that uses the machine's memory.
    IntegratedGpu,
    /// A device of another machine.
    Remote,
    /// Anything else that helps the processor, such as a library for matrices.
    Accelerator,
}

/// Returns all devices, in llama.cpp's order.
///
/// # Errors
/// [`Error::Backend`] if llama.cpp cannot be started.
pub fn devices() -> Result<Vec<Device>, Error> {
    Ok(pointers()?.map(describe).collect())
}

/// Returns the devices that layers can be on, in the order in which llama.cpp fills them: those of other machines, then GPUs
/// with memory of their own, or else those without.
///
/// # Errors
/// [`Error::Backend`] if llama.cpp cannot be started.
///
/// Source: `llama_prepare_model_devices` in llama.cpp's `llama.cpp`.
pub fn layer_devices() -> Result<Vec<Device>, Error> {
    let mut devices = devices()?;
    let has_gpu = devices.iter().any(|device| device.kind == DeviceKind::Gpu);
    devices.retain(|device| match device.kind {
        DeviceKind::Remote | DeviceKind::Gpu => true,
        DeviceKind::IntegratedGpu => !has_gpu,
        DeviceKind::Cpu | DeviceKind::Accelerator => false,
    });
    // The order is kept within a kind.
    devices.sort_by_key(|device| device.kind != DeviceKind::Remote);
    Ok(devices)
}

/// Returns whether layers can be on a device other than the processor.
///
/// # Errors
/// [`Error::Backend`] if llama.cpp cannot be started.
pub fn has_gpu() -> Result<bool, Error> {
    let kind = |device| unsafe {
        // SAFETY: the device is one that ggml lists. The call reads a field of it.
        sys::ggml_backend_dev_type(device)
    };
    Ok(pointers()?
        .map(kind)
        .any(|kind| matches!(kind, sys::GGML_BACKEND_DEVICE_TYPE_GPU | sys::GGML_BACKEND_DEVICE_TYPE_IGPU)))
}

/// Returns the buffers in which the device called `name` keeps tensors.
///
/// # Errors
/// [`Error::Device`] if no device has this name.
pub(super) fn buffer_type(name: &str) -> Result<sys::ggml_backend_buffer_type_t, Error> {
    match pointers()?.find(|device| describe(*device).name == name) {
        // SAFETY: a device that ggml lists lives as long as the process. The call reads a field of it.
        Some(device) => Ok(unsafe { sys::ggml_backend_dev_buffer_type(device) }),
        None => {
            let available: Vec<String> = devices()?.into_iter().map(|device| device.name).collect();
            Err(Error::Device { name: name.to_string(), available: available.join(", ") })
        }
    }
}

/// Returns the error for a call that failed because a device had no room for `what`, if that is why.
pub(super) fn full(heard: &backend::Heard, what: &'static str) -> Option<Error> {
    let (name, bytes) = heard.no_room()?;
    let known = devices().ok()?.into_iter().find(|device| device.name == name && device.kind != DeviceKind::Cpu);
    let device = remote::of_buffers(&name).or(known)?.description;
    Some(Error::DeviceFull { device, what, bytes })
}

pub(super) fn pointers() -> Result<impl Iterator<Item = sys::ggml_backend_dev_t>, Error> {
    backend::get()?;
    // SAFETY: takes nothing. ggml registers its devices when it starts, and drops none while the process runs.
    let n = unsafe { sys::ggml_backend_dev_count() };
    // SAFETY: asserts that the index is below the count.
    Ok((0..n).map(|index| unsafe { sys::ggml_backend_dev_get(index) }).filter(|device| !device.is_null()))
}

pub(super) fn describe(device: sys::ggml_backend_dev_t) -> Device {
    // SAFETY: the device is one that ggml lists, and its name is a constant of it.
    let name = unsafe { text(sys::ggml_backend_dev_name(device)) };
    // What another machine said is known here, and asking it again could find it gone.
    if let Some(known) = remote::device(&name) {
        return known;
    }
    let (mut free, mut total) = (0usize, 0usize);
    // SAFETY: the device is one that ggml lists; the strings are constants of it, and the numbers are written to ours.
    unsafe {
        sys::ggml_backend_dev_memory(device, &raw mut free, &raw mut total);
        Device {
            name,
            description: text(sys::ggml_backend_dev_description(device)),
            kind: match sys::ggml_backend_dev_type(device) {
                sys::GGML_BACKEND_DEVICE_TYPE_CPU => DeviceKind::Cpu,
                sys::GGML_BACKEND_DEVICE_TYPE_GPU => DeviceKind::Gpu,
                sys::GGML_BACKEND_DEVICE_TYPE_IGPU => DeviceKind::IntegratedGpu,
                _ => DeviceKind::Accelerator,
            },
            total_bytes: total as u64,
            free_bytes: free as u64,
            speed: None,
        }
    }
}

/// # Safety
/// `text` is null, or a string that ends in NUL.
pub(super) unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, so that it is a string by this function's contract.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_a_processor_with_memory() {
        let devices = devices().unwrap();
        let cpu = devices.iter().find(|device| device.kind == DeviceKind::Cpu).unwrap();
        assert!(!cpu.name.is_empty() && cpu.total_bytes >= cpu.free_bytes, "{cpu:?}");
        assert!(buffer_type(&cpu.name).is_ok_and(|buffers| !buffers.is_null()));
        let error = buffer_type("Abacus7").unwrap_err().to_string();
        assert!(error.contains("'Abacus7'") && error.contains(&cpu.name), "{error}");
    }
}
