//! The types a tensor's elements can have: every type that a GGUF file may name, with ggml's number, name and block size.

use std::fmt;
use std::str::FromStr;

macro_rules! tensor_types {
    ($($variant:ident = $id:literal, $name:literal, $block_len:literal, $block_bytes:literal;)*) => {
        /// The type of a tensor's elements, numbered as in GGUF files.
        ///
        /// Source: `enum ggml_type` in ggml's `ggml.h`.
        #[allow(non_camel_case_types, missing_docs)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum TensorType { $($variant = $id,)* }

        impl TensorType {
            /// Every type, in the order of their numbers.
            pub const ALL: &'static [TensorType] = &[$(TensorType::$variant,)*];

            /// Returns the type with this number in GGUF files; `None` for numbers that were never assigned or are withdrawn.
            pub fn from_id(id: u32) -> Option<Self> {
                match id { $($id => Some(Self::$variant),)* _ => None }
            }

            /// The name as GGUF tools and the command line write it: `Q4_K`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Weights in a block; 1 for types that are not blocked.
            pub const fn block_len(self) -> usize {
                match self { $(Self::$variant => $block_len,)* }
            }

            /// Bytes in a block.
            pub const fn block_bytes(self) -> usize {
                match self { $(Self::$variant => $block_bytes,)* }
            }
        }
    };
}

// Formats that nibble implements assert that their block struct has this size; a test holds the rest against ggml.
tensor_types! {
    F32     =  0, "F32",     1,   4;
    F16     =  1, "F16",     1,   2;
    Q4_0    =  2, "Q4_0",    32,  18;
    Q4_1    =  3, "Q4_1",    32,  20;
    Q5_0    =  6, "Q5_0",    32,  22;
    Q5_1    =  7, "Q5_1",    32,  24;
    Q8_0    =  8, "Q8_0",    32,  34;
    Q8_1    =  9, "Q8_1",    32,  36;
    Q2_K    = 10, "Q2_K",    256, 84;
    Q3_K    = 11, "Q3_K",    256, 110;
    Q4_K    = 12, "Q4_K",    256, 144;
    Q5_K    = 13, "Q5_K",    256, 176;
    Q6_K    = 14, "Q6_K",    256, 210;
    Q8_K    = 15, "Q8_K",    256, 292;
    IQ2_XXS = 16, "IQ2_XXS", 256, 66;
    IQ2_XS  = 17, "IQ2_XS",  256, 74;
    IQ3_XXS = 18, "IQ3_XXS", 256, 98;
    IQ1_S   = 19, "IQ1_S",   256, 50;
    IQ4_NL  = 20, "IQ4_NL",  32,  18;
    IQ3_S   = 21, "IQ3_S",   256, 110;
    IQ2_S   = 22, "IQ2_S",   256, 82;
    IQ4_XS  = 23, "IQ4_XS",  256, 136;
    I8      = 24, "I8",      1,   1;
    I16     = 25, "I16",     1,   2;
    I32     = 26, "I32",     1,   4;
    I64     = 27, "I64",     1,   8;
    F64     = 28, "F64",     1,   8;
    IQ1_M   = 29, "IQ1_M",   256, 56;
    BF16    = 30, "BF16",    1,   2;
    TQ1_0   = 34, "TQ1_0",   256, 54;
    TQ2_0   = 35, "TQ2_0",   256, 66;
    MXFP4   = 39, "MXFP4",   32,  17;
    NVFP4   = 40, "NVFP4",   64,  36;
    Q1_0    = 41, "Q1_0",    128, 18;
    Q2_0    = 42, "Q2_0",    64,  18;
}

impl TensorType {
    /// The number in GGUF files.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// Bits per weight, scales included.
    pub fn bits_per_weight(self) -> f64 {
        (self.block_bytes() * 8) as f64 / self.block_len() as f64
    }

    /// Bytes of a row of `len` weights; `None` if a block does not divide the row or the size does not fit a `u64`.
    pub fn row_bytes(self, len: u64) -> Option<u64> {
        let block_len = self.block_len() as u64;
        if !len.is_multiple_of(block_len) {
            return None;
        }
        (len / block_len).checked_mul(self.block_bytes() as u64)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The given word is not the name of a tensor type.
#[derive(Debug, thiserror::Error)]
#[error("unknown tensor type '{0}', wanted a type of ggml's such as F32, BF16, Q8_0, Q4_K or IQ4_XS")]
pub struct UnknownType(pub String);

impl FromStr for TensorType {
    type Err = UnknownType;

    /// Takes the name in any case: `q4_k` as in recipe files, `Q4_K` as on the command line.
    fn from_str(name: &str) -> Result<Self, UnknownType> {
        Self::ALL
            .iter()
            .copied()
            .find(|ty| ty.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| UnknownType(name.to_string()))
    }
}

/// Returns the name of the recipe that a number in `general.file_type` stands for.
///
/// Source: `enum llama_ftype` in llama.cpp's `llama.h`.
pub fn file_type(id: u64) -> Option<&'static str> {
    Some(match id {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        19 => "IQ2_XXS",
        20 => "IQ2_XS",
        21 => "Q2_K_S",
        22 => "IQ3_XS",
        23 => "IQ3_XXS",
        24 => "IQ1_S",
        25 => "IQ4_NL",
        26 => "IQ3_S",
        27 => "IQ3_M",
        28 => "IQ2_S",
        29 => "IQ2_M",
        30 => "IQ4_XS",
        31 => "IQ1_M",
        32 => "BF16",
        36 => "TQ1_0",
        37 => "TQ2_0",
        38 => "MXFP4_MOE",
        39 => "NVFP4",
        40 => "Q1_0",
        41 => "Q2_0",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_type_is_called_as_the_recipe_that_writes_it() {
        for recipe in crate::recipe::Recipe::all() {
            assert_eq!(file_type(recipe.file_type.into()), Some(recipe.name.as_str()));
        }
        assert_eq!(file_type(4), None, "a type that llama.cpp has removed");
    }
}
