//! The type of a tensor whose rows the chosen type's block does not divide.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde::Deserialize;

use super::file::TypeName;
use crate::gguf::TensorType;

/// `quant-tables/fallbacks.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fallbacks {
    fallback: HashMap<TypeName, TypeName>,
    otherwise: Otherwise,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Otherwise {
    #[serde(rename = "type")]
    ty: TypeName,
}

static FALLBACKS: LazyLock<Fallbacks> = LazyLock::new(|| {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/quant-tables/fallbacks.toml"));
    // It is part of the program, and a test reads it.
    toml::from_str(text).expect("the built-in table of fallbacks can be read")
});

/// Returns the type for rows of `row_len` weights for which `wanted` was chosen: `wanted` itself if its block divides
/// them.
///
/// Source: `tensor_type_fallback` in llama.cpp's `src/llama-quant.cpp`.
pub(super) fn fallback(wanted: TensorType, row_len: u64) -> TensorType {
    let divides = |ty: TensorType| ty.row_bytes(row_len).is_some();
    if divides(wanted) {
        return wanted;
    }
    match FALLBACKS.fallback.get(&TypeName(wanted)) {
        Some(&TypeName(ty)) if divides(ty) => ty,
        _ => FALLBACKS.otherwise.ty.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant;

    #[test]
    fn every_type_of_long_blocks_has_one_of_blocks_of_32_and_the_last_resort_fits_every_row() {
        for ty in quant::FORMATS.iter().map(|format| format.ty) {
            let next = FALLBACKS.fallback.get(&TypeName(ty)).map(|ty| ty.0);
            assert_eq!(next.map(TensorType::block_len), (ty.block_len() > 32).then_some(32), "{ty}");
        }
        assert_eq!(FALLBACKS.otherwise.ty.0.block_len(), 1);
    }

    #[test]
    fn falls_back_only_where_the_block_does_not_divide_the_row() {
        use TensorType::*;
        assert_eq!(fallback(Q4_K, 512), Q4_K);
        assert_eq!(fallback(Q4_K, 512 + 32), Q5_0);
        assert_eq!(fallback(Q4_K, 512 + 1), F16);
        assert_eq!(fallback(Q8_0, 33), F16);
        assert_eq!(fallback(F32, 33), F32);
    }
}
