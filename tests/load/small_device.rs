//! Makes the memory of a Vulkan device smaller: a library to be loaded before Vulkan's (`LD_PRELOAD`), for scripts/check-gpu.
//!
//! ```text
//! DEVICE_BYTES    the device says that it has so many bytes
//! DEVICE_FILLS    no more than so many bytes can be had of it, whatever it says: another program has taken the rest
//! ```
//!
//! Source: vkGetInstanceProcAddr, VkMemoryAllocateInfo and VkPhysicalDeviceMemoryProperties2 of the Vulkan specification.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::mem::transmute;
use std::sync::{Mutex, OnceLock};

type Function = *const c_void;
type GetProc = unsafe extern "C" fn(*mut c_void, *const c_char) -> Function;
type Allocate = unsafe extern "C" fn(*mut c_void, *const AllocateInfo, *const c_void, *mut u64) -> i32;
type Free = unsafe extern "C" fn(*mut c_void, u64, *const c_void);
type Properties = unsafe extern "C" fn(*mut c_void, *mut MemoryProperties);

#[repr(C)]
pub struct AllocateInfo {
    kind: u32,
    next: *const c_void,
    bytes: u64,
    memory_type: u32,
}

#[repr(C)]
pub struct MemoryProperties {
    kind: u32,
    next: *mut c_void,
    n_types: u32,
    types: [[u32; 2]; 32],
    n_heaps: u32,
    heaps: [Heap; 16],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Heap {
    bytes: u64,
    flags: u32,
}

unsafe extern "C" {
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

const RTLD_NEXT: *mut c_void = -1isize as *mut c_void;
const VK_ERROR_OUT_OF_DEVICE_MEMORY: i32 = -2;

static ALLOCATE: OnceLock<usize> = OnceLock::new();
static FREE: OnceLock<usize> = OnceLock::new();
static PROPERTIES: OnceLock<usize> = OnceLock::new();
static TAKEN: Mutex<Option<HashMap<u64, u64>>> = Mutex::new(None);

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// # Safety
/// As Vulkan's function of this name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vkGetInstanceProcAddr(instance: *mut c_void, name: *const c_char) -> Function {
    // SAFETY: the next library that has this name is Vulkan's, and the name ends in NUL.
    unsafe {
        let next: GetProc = transmute(dlsym(RTLD_NEXT, c"vkGetInstanceProcAddr".as_ptr()));
        let found = next(instance, name);
        let (real, ours) = match CStr::from_ptr(name).to_bytes() {
            b"vkAllocateMemory" => (&ALLOCATE, allocate as Allocate as Function),
            b"vkFreeMemory" => (&FREE, free as Free as Function),
            b"vkGetPhysicalDeviceMemoryProperties2" => (&PROPERTIES, properties as Properties as Function),
            _ => return found,
        };
        if found.is_null() {
            return found;
        }
        real.get_or_init(|| found as usize);
        ours
    }
}

unsafe extern "C" fn allocate(device: *mut c_void, info: *const AllocateInfo, with: *const c_void, to: *mut u64) -> i32 {
    let mut taken = TAKEN.lock().unwrap();
    let taken = taken.get_or_insert_default();
    // SAFETY: Vulkan's function, whose arguments these are.
    unsafe {
        let bytes = (*info).bytes;
        if number("DEVICE_FILLS").is_some_and(|most| taken.values().sum::<u64>() + bytes > most) {
            return VK_ERROR_OUT_OF_DEVICE_MEMORY;
        }
        let real: Allocate = transmute(*ALLOCATE.get().unwrap());
        let result = real(device, info, with, to);
        if result == 0 {
            taken.insert(*to, bytes);
        }
        result
    }
}

unsafe extern "C" fn free(device: *mut c_void, memory: u64, with: *const c_void) {
    TAKEN.lock().unwrap().get_or_insert_default().remove(&memory);
    // SAFETY: Vulkan's function, whose arguments these are.
    unsafe { transmute::<usize, Free>(*FREE.get().unwrap())(device, memory, with) }
}

unsafe extern "C" fn properties(device: *mut c_void, found: *mut MemoryProperties) {
    // SAFETY: Vulkan's function, whose arguments these are; it fills the struct.
    unsafe {
        transmute::<usize, Properties>(*PROPERTIES.get().unwrap())(device, found);
        if let Some(bytes) = number("DEVICE_BYTES") {
            let n = (*found).n_heaps as usize;
            for heap in &mut (&mut (*found).heaps)[..n.min(16)] {
                heap.bytes = heap.bytes.min(bytes);
            }
        }
    }
}
