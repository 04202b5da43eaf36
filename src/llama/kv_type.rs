//! How the KV cache stores its keys and values.

use std::fmt;
use std::str::FromStr;

use llama_cpp_sys_2 as sys;

/// How numbers of the KV cache are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// 32-bit floats: exact.
    F32,
    /// 16-bit floats.
    #[default]
    F16,
    /// 16-bit floats with the range of 32-bit floats.
    BF16,
    /// 8.5 bits per value, in blocks of 32, like all that follow.
    Q8_0,
    /// 6 bits per value.
    Q5_1,
    /// 5.5 bits per value.
    Q5_0,
    /// 5 bits per value.
    Q4_1,
    /// 4.5 bits per value.
    Q4_0,
    /// 4.5 bits per value, not evenly spaced.
    Iq4Nl,
}

impl KvType {
    /// All types, largest first.
    pub const ALL: [Self; 9] =
        [Self::F32, Self::F16, Self::BF16, Self::Q8_0, Self::Q5_1, Self::Q5_0, Self::Q4_1, Self::Q4_0, Self::Iq4Nl];

    /// Returns its name, as llama.cpp spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q5_1 => "q5_1",
            Self::Q5_0 => "q5_0",
            Self::Q4_1 => "q4_1",
            Self::Q4_0 => "q4_0",
            Self::Iq4Nl => "iq4_nl",
        }
    }

    /// Returns whether values share scales in blocks.
    pub fn is_quantized(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// Bytes of 32 values.
    pub(crate) fn bytes_of_32(self) -> u64 {
        match self {
            Self::F32 => 128,
            Self::F16 | Self::BF16 => 64,
            Self::Q8_0 => 34,
            Self::Q5_1 => 24,
            Self::Q5_0 => 22,
            Self::Q4_1 => 20,
            Self::Q4_0 | Self::Iq4Nl => 18,
        }
    }

    pub(super) fn number(self) -> sys::ggml_type {
        match self {
            Self::F32 => sys::GGML_TYPE_F32,
            Self::F16 => sys::GGML_TYPE_F16,
            Self::BF16 => sys::GGML_TYPE_BF16,
            Self::Q8_0 => sys::GGML_TYPE_Q8_0,
            Self::Q5_1 => sys::GGML_TYPE_Q5_1,
            Self::Q5_0 => sys::GGML_TYPE_Q5_0,
            Self::Q4_1 => sys::GGML_TYPE_Q4_1,
            Self::Q4_0 => sys::GGML_TYPE_Q4_0,
            Self::Iq4Nl => sys::GGML_TYPE_IQ4_NL,
        }
    }
}

/// How the KV cache stores its keys and its values.
///
/// Keys decide which tokens are looked at, and bear coarse types less well than values. Quantized types need flash attention,
/// and heads of a multiple of 32 values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvTypes {
    /// The type of the keys.
    pub keys: KvType,
    /// The type of the values.
    pub values: KvType,
}

impl KvTypes {
    /// Returns whether one of them is quantized.
    pub fn are_quantized(self) -> bool {
        self.keys.is_quantized() || self.values.is_quantized()
    }

    /// Returns the bytes of so many numbers of keys and of values.
    pub(crate) fn bytes(self, keys: u64, values: u64) -> u64 {
        let keys = keys.saturating_mul(self.keys.bytes_of_32());
        keys.saturating_add(values.saturating_mul(self.values.bytes_of_32())) / 32
    }

    /// Sets the types for a context.
    pub(super) fn ask(self, params: &mut sys::llama_context_params) {
        params.type_k = self.keys.number();
        params.type_v = self.values.number();
    }
}

impl From<KvType> for KvTypes {
    fn from(both: KvType) -> Self {
        Self { keys: both, values: both }
    }
}

/// As in `f16`, or `q8_0/q4_0` if keys and values have different types.
impl fmt::Display for KvTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.keys.name())?;
        if self.values != self.keys {
            write!(f, "/{}", self.values.name())?;
        }
        Ok(())
    }
}

/// A text that names no types of a KV cache.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it has to be one of {}, or two of them, for keys and values, as in q8_0/q5_1", names())]
pub struct UnknownKvType;

fn names() -> String {
    KvType::ALL.map(KvType::name).join(", ")
}

impl FromStr for KvTypes {
    type Err = UnknownKvType;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let one = |name: &str| {
            let found = KvType::ALL.into_iter().find(|ty| ty.name().eq_ignore_ascii_case(name.trim()));
            found.ok_or(UnknownKvType)
        };
        match text.split_once('/') {
            Some((keys, values)) => Ok(Self { keys: one(keys)?, values: one(values)? }),
            None => Ok(one(text)?.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_names_are_ggmls() {
        for ty in KvType::ALL {
            // SAFETY: the number is that of a type of this build.
            let (bytes, is_quantized, name) = unsafe {
                let name = std::ffi::CStr::from_ptr(sys::ggml_type_name(ty.number()));
                (sys::ggml_row_size(ty.number(), 32), sys::ggml_is_quantized(ty.number()), name)
            };
            assert_eq!(ty.bytes_of_32(), bytes as u64, "{ty:?}");
            assert_eq!(ty.is_quantized(), is_quantized, "{ty:?}");
            assert_eq!(Ok(ty.name()), name.to_str());
        }
    }

    #[test]
    fn both_are_read_and_written() {
        for keys in KvType::ALL {
            for values in KvType::ALL {
                let types = KvTypes { keys, values };
                assert_eq!(types.to_string().parse(), Ok(types));
            }
        }
        assert_eq!("Q8_0/ iq4_NL".parse(), Ok(KvTypes { keys: KvType::Q8_0, values: KvType::Iq4Nl }));
        for wrong in ["", "q8", "q8_0/", "/q8_0", "q8_0/f16/f16", "q4_k"] {
            let error = wrong.parse::<KvTypes>().unwrap_err().to_string();
            assert!(error.contains("q8_0, q5_1") && error.contains("iq4_nl"), "{error}");
        }
    }
}
