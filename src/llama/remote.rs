//! Devices of other machines, by ggml's RPC, and serving this machine's devices to others.
//!
//! ggml asserts that a connection works and that the other end is of its version. So the ends of it here are on this machine,
//! and of this program: see the room `remote`.

use std::convert::Infallible;
use std::ffi::{CString, c_char, c_void};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use llama_cpp_sys_2 as sys;

use super::devices::{self, Device, DeviceKind};
use super::{Error, backend};

/// Those that were added, by ggml's names, which it never uses again, with the names of their buffers.
static REMOTE: Mutex<Vec<(Device, String)>> = Mutex::new(Vec::new());

fn known() -> MutexGuard<'static, Vec<(Device, String)>> {
    // A panic leaves no device half changed.
    REMOTE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Returns the device of another machine that ggml calls `name`.
pub(super) fn device(name: &str) -> Option<Device> {
    known().iter().find(|(device, _)| device.name == name).map(|(device, _)| device.clone())
}

/// Returns the device of another machine whose buffers ggml calls `name`.
pub(super) fn of_buffers(name: &str) -> Option<Device> {
    known().iter().find(|(_, buffers)| buffers == name).map(|(device, _)| device.clone())
}

/// Returns a function of ggml's RPC.
///
/// # Errors
/// [`Error::Backend`] if llama.cpp was built without it.
fn function(registry: sys::ggml_backend_reg_t, name: &'static std::ffi::CStr) -> Result<*mut c_void, Error> {
    // SAFETY: the registry is one that ggml lists, and the name ends in NUL.
    let found = unsafe { sys::ggml_backend_reg_get_proc_address(registry, name.as_ptr()) };
    if found.is_null() { Err(without()) } else { Ok(found) }
}

fn without() -> Error {
    Error::Backend("it was built without the part that computes on other machines (GGML_RPC)".into())
}

fn registry() -> Result<sys::ggml_backend_reg_t, Error> {
    backend::get()?;
    // SAFETY: the name ends in NUL.
    let found = unsafe { sys::ggml_backend_reg_by_name(c"RPC".as_ptr()) };
    if found.is_null() { Err(without()) } else { Ok(found) }
}

/// Adds the devices that ggml's RPC offers at an address of this machine, for all models that are loaded from now on.
/// `offered` describes them, in the other end's order; their names are replaced by ggml's.
///
/// Ends the process if nothing answers there in ggml's protocol.
///
/// # Errors
/// [`Error::Backend`] if llama.cpp was built without RPC, or the other end has another number of devices.
pub fn add_remote(at: SocketAddr, offered: &[Device]) -> Result<(), Error> {
    type Add = unsafe extern "C" fn(*const c_char) -> sys::ggml_backend_reg_t;
    let add = function(registry()?, c"ggml_backend_rpc_add_server")?;
    // SAFETY: what ggml returns for this name has this type: see ggml-rpc.h.
    let add = unsafe { std::mem::transmute::<*mut c_void, Add>(add) };
    let endpoint = CString::new(at.to_string()).map_err(|_| without())?;
    let _making = backend::making();
    // SAFETY: the string ends in NUL, and ggml copies it.
    let added = unsafe { add(endpoint.as_ptr()) };
    let wrong = |n: usize| Error::Backend(format!("the worker has {n} devices, and offered {}", offered.len()));
    if added.is_null() {
        return Err(wrong(0));
    }
    // SAFETY: the registry was just made, and lives as long as the process.
    let n = unsafe { sys::ggml_backend_reg_dev_count(added) };
    if n != offered.len() {
        return Err(wrong(n));
    }
    for (index, offer) in offered.iter().enumerate() {
        // SAFETY: the index is below the count, and a device has a name, which is a constant of it.
        let name = unsafe { devices::text(sys::ggml_backend_dev_name(sys::ggml_backend_reg_dev_get(added, index))) };
        let device = Device { name, kind: DeviceKind::Remote, ..offer.clone() };
        known().push((device, format!("RPC{index}[{at}]")));
    }
    // SAFETY: made above. Its devices are listed from now on; they are known to us before.
    unsafe { sys::ggml_backend_register(added) };
    Ok(())
}

/// Returns the devices of this machine that others can use, in the order of [`serve_remote`]: GPUs, then the processor.
///
/// # Errors
/// [`Error::Backend`] if llama.cpp cannot be started.
pub fn offered_devices() -> Result<Vec<Device>, Error> {
    Ok(offered()?.into_iter().map(|(_, device)| device).collect())
}

fn offered() -> Result<Vec<(sys::ggml_backend_dev_t, Device)>, Error> {
    let mut all: Vec<_> = devices::pointers()?.map(|pointer| (pointer, devices::describe(pointer))).collect();
    all.retain(|(_, device)| matches!(device.kind, DeviceKind::Cpu | DeviceKind::Gpu));
    all.sort_by_key(|(_, device)| device.kind == DeviceKind::Cpu);
    Ok(all)
}

/// Serves the devices of this machine to whoever connects to this port of it, one at a time, until the process ends. Keeps
/// weights in the folder `store`, and takes them from there.
///
/// A client whose messages are wrong ends the process.
///
/// # Errors
/// [`Error::Backend`] if llama.cpp was built without RPC, or cannot listen there.
pub fn serve_remote(port: u16, threads: u32, store: Option<&Path>) -> Result<Infallible, Error> {
    type Serve = unsafe extern "C" fn(*const c_char, *const c_char, usize, usize, *mut sys::ggml_backend_dev_t);
    let serve = function(registry()?, c"ggml_backend_rpc_start_server")?;
    // SAFETY: what ggml returns for this name has this type: see ggml-rpc.h.
    let serve = unsafe { std::mem::transmute::<*mut c_void, Serve>(serve) };
    let endpoint = CString::new(format!("127.0.0.1:{port}")).map_err(|_| without())?;
    let not_a_path = |path: &Path| Error::Path(PathBuf::from(path));
    let store = store.map(|path| {
        let text = path.to_str().ok_or_else(|| not_a_path(path))?;
        CString::new(text).map_err(|_| not_a_path(path))
    });
    let store = store.transpose()?;
    let mut devices: Vec<_> = offered()?.into_iter().map(|(pointer, _)| pointer).collect();
    let store = store.as_ref().map_or(std::ptr::null(), |path| path.as_ptr());
    // SAFETY: the strings end in NUL and outlive the call, as the devices do, of which there are so many.
    unsafe { serve(endpoint.as_ptr(), store, threads as usize, devices.len(), devices.as_mut_ptr()) };
    Err(Error::Backend(format!("cannot listen on port {port} of this machine")))
}
