//! The types a checkpoint's tensors can have, under the names that safetensors and PyTorch give them.

use std::fmt;

use crate::gguf::TensorType;

/// A tensor's element type. Types that nibble converts have a variant. Others are kept by name, so that a folder with an
/// odd tensor still opens; an error follows when its values are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum DType {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
    /// Any other, such as `F8_E4M3` or `U16`.
    Other(DTypeName),
}

/// The float types whose values nibble reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum FloatType {
    F64,
    F32,
    F16,
    BF16,
}

impl From<FloatType> for TensorType {
    fn from(float: FloatType) -> Self {
        match float {
            FloatType::F64 => Self::F64,
            FloatType::F32 => Self::F32,
            FloatType::F16 => Self::F16,
            FloatType::BF16 => Self::BF16,
        }
    }
}

/// A dtype's name: 1 to 15 characters, of ASCII letters, digits and underscores.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DTypeName {
    len: u8,
    bytes: [u8; 15],
}

/// Name in safetensors, bits, and the name of PyTorch's `torch.dtype`; the first ten are the variants of [`DType`].
/// Sources: `enum Dtype` in safetensors' `tensor.rs`, `c10/core/ScalarType.h` in PyTorch.
const NAMES: &[(&str, u64, &str)] = &[
    ("F64", 64, "float64"),
    ("F32", 32, "float32"),
    ("F16", 16, "float16"),
    ("BF16", 16, "bfloat16"),
    ("I64", 64, "int64"),
    ("I32", 32, "int32"),
    ("I16", 16, "int16"),
    ("I8", 8, "int8"),
    ("U8", 8, "uint8"),
    ("BOOL", 8, "bool"),
    ("U64", 64, "uint64"),
    ("U32", 32, "uint32"),
    ("U16", 16, "uint16"),
    ("C64", 64, "complex64"),
    ("C128", 128, "complex128"),
    ("F8_E4M3", 8, "float8_e4m3fn"),
    ("F8_E5M2", 8, "float8_e5m2"),
    ("F8_E4M3FNUZ", 8, "float8_e4m3fnuz"),
    ("F8_E5M2FNUZ", 8, "float8_e5m2fnuz"),
    ("F8_E8M0", 8, "float8_e8m0fnu"),
    ("F6_E2M3", 6, ""),
    ("F6_E3M2", 6, ""),
    ("F4", 4, ""),
];

impl DTypeName {
    fn new(name: &str) -> Option<Self> {
        let mut bytes = [0; 15];
        let ok = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        if name.is_empty() || name.len() > bytes.len() || !name.bytes().all(ok) {
            return None;
        }
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Some(Self { len: name.len() as u8, bytes })
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        // Only ASCII gets in.
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl fmt::Debug for DTypeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl DType {
    /// Returns the type with this name in safetensors files; `None` for text that cannot be a type's name.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "F64" => Self::F64,
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::BF16,
            "I64" => Self::I64,
            "I32" => Self::I32,
            "I16" => Self::I16,
            "I8" => Self::I8,
            "U8" => Self::U8,
            "BOOL" => Self::Bool,
            _ => Self::Other(DTypeName::new(name)?),
        })
    }

    /// The type that PyTorch calls `torch.NAME`, such as `bfloat16`.
    pub(super) fn from_torch_name(name: &str) -> Option<Self> {
        let name = match name {
            "double" => "float64",
            "float" => "float32",
            "half" => "float16",
            "long" => "int64",
            "int" => "int32",
            "short" => "int16",
            _ => name,
        };
        NAMES.iter().find(|(_, _, torch)| *torch == name && !name.is_empty()).and_then(|(n, _, _)| Self::from_name(n))
    }

    /// The name as safetensors files write it.
    pub fn name(&self) -> &str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
            Self::Other(name) => name.as_str(),
        }
    }

    /// Returns the bits of an element; `None` for an unknown type.
    pub fn bits(&self) -> Option<u64> {
        NAMES.iter().find(|(name, _, _)| *name == self.name()).map(|&(_, bits, _)| bits)
    }

    /// Returns the bytes of `n_elements` elements; `None` if the type's size is unknown, the elements do not fill whole bytes,
    /// or the size does not fit a `u64`.
    pub fn n_bytes(&self, n_elements: u64) -> Option<u64> {
        let bits = self.bits()?.checked_mul(n_elements)?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    /// Returns the float type, if nibble can read it.
    pub fn float(&self) -> Option<FloatType> {
        match self {
            Self::F64 => Some(FloatType::F64),
            Self::F32 => Some(FloatType::F32),
            Self::F16 => Some(FloatType::F16),
            Self::BF16 => Some(FloatType::BF16),
            _ => None,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FloatType {
    /// Bytes of an element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

/// Returns the number of elements of a tensor of this shape: 1 for a scalar; `None` if it does not fit a `u64`.
pub(super) fn n_elements(shape: &[u64]) -> Option<u64> {
    // A zero anywhere makes the product zero, whatever the other sizes would overflow to.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_name_leads_back_to_itself() {
        for &(name, bits, torch) in NAMES {
            let dtype = DType::from_name(name).unwrap();
            assert_eq!(dtype.name(), name);
            assert_eq!(dtype.bits(), Some(bits));
            if !torch.is_empty() {
                assert_eq!(DType::from_torch_name(torch), Some(dtype));
            }
            if let Some(float) = dtype.float() {
                assert_eq!(float.bytes() as u64 * 8, bits);
            }
        }
    }

    #[test]
    fn an_unknown_type_keeps_its_name_and_has_no_size() {
        let dtype = DType::from_name("F3_E1M1").unwrap();
        assert_eq!((dtype.to_string().as_str(), dtype.bits(), dtype.float()), ("F3_E1M1", None, None));
    }

    #[test]
    fn refuses_names_that_no_type_has() {
        for name in ["", "SIXTEEN_LETTERS_", "F 32", "ф32"] {
            assert_eq!(DType::from_name(name), None, "{name}");
        }
        assert_eq!(DType::from_torch_name(""), None);
    }

    #[test]
    fn sizes_do_not_overflow() {
        assert_eq!(DType::F64.n_bytes(u64::MAX), None);
        assert_eq!(DType::from_name("F4").unwrap().n_bytes(3), None);
        assert_eq!(DType::from_name("F4").unwrap().n_bytes(4), Some(2));
        assert_eq!(n_elements(&[u64::MAX, 2]), None);
        assert_eq!(n_elements(&[u64::MAX, 2, 0]), Some(0));
        assert_eq!(n_elements(&[]), Some(1));
    }
}
