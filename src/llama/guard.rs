//! Calls into C++ that may throw.
//!
//! Most of llama.cpp's functions catch their own exceptions. Evaluating does not: a GPU whose memory is full, or that was lost,
//! throws while it computes.

use std::ffi::{CStr, c_char, c_void};

unsafe extern "C-unwind" {
    /// See `guard.cpp`.
    fn nibble_guard(
        call: unsafe extern "C-unwind" fn(*mut c_void),
        data: *mut c_void,
        message: *mut c_char,
        size: usize,
    ) -> bool;
}

/// Longer messages are cut.
const LONGEST: usize = 1000;

/// Returns what `call` returns, or what it threw. `call` must not panic. What it calls has to be declared `C-unwind`, and its own
/// values must need no clean-up: where it throws, none is done.
pub(super) fn guarded<T: Copy, F: Fn() -> T + Copy>(call: F) -> Result<T, String> {
    struct Data<T, F> {
        call: F,
        result: Option<T>,
    }
    unsafe extern "C-unwind" fn run<T: Copy, F: Fn() -> T + Copy>(data: *mut c_void) {
        // SAFETY: the pointer that is passed below, to a struct that lives meanwhile.
        let data = unsafe { &mut *data.cast::<Data<T, F>>() };
        data.result = Some((data.call)());
    }
    let mut data = Data { call, result: None };
    let mut message = [0u8; LONGEST];
    // SAFETY: `run` gets the data that it expects, and the message has so many bytes. Nothing is thrown out of the call.
    let returned =
        unsafe { nibble_guard(run::<T, F>, (&raw mut data).cast(), message.as_mut_ptr().cast(), message.len()) };
    match data.result {
        Some(result) if returned => Ok(result),
        _ => {
            Err(CStr::from_bytes_until_nul(&message).map_or(String::new(), |text| text.to_string_lossy().into_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C-unwind" {
        fn nibble_throw();
    }

    #[test]
    fn what_is_thrown_is_an_error() {
        assert_eq!(guarded(|| 7), Ok(7));
        // SAFETY: throws, which is caught.
        let thrown = guarded(|| unsafe { nibble_throw() });
        assert_eq!(thrown, Err("no memory left".to_string()));
        assert_eq!(guarded(|| 8), Ok(8));
    }
}
