//! Weights that are quantized already, told by the tensors that lie beside them.
//!
//! What `config.json` says of it does not decide: programs that merge adapters leave the key behind in 16-bit models, and
//! programs that copy files lose it.

use std::fmt;

/// What quantized the weights of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Quantizer {
    Bitsandbytes4,
    Bitsandbytes8,
    /// GPTQ and AWQ name their tensors alike.
    GptqOrAwq,
    Gptq,
    CompressedTensors,
    Fp8,
    Mlx,
    Hqq,
    Quanto,
    Torchao,
    Aqlm,
    /// Scales that several programs call so.
    Unknown,
}

/// How names end that a quantizer gives to the tensors beside its codes, and those of the codes themselves. The first that
/// any name of a checkpoint ends with tells.
///
/// Sources: `Params4bit` and `Int8Params` of bitsandbytes, `WQLinear_GEMM` of AutoAWQ, `QuantLinear` of AutoGPTQ,
/// `compressors` of compressed-tensors, `FP8Linear` of transformers, `QuantizedLinear` of MLX, and the quantized linears of
/// HQQ, quanto, torchao and AQLM.
const ENDINGS: &[(&str, Quantizer)] = &[
    (".absmax", Quantizer::Bitsandbytes4),
    (".nested_absmax", Quantizer::Bitsandbytes4),
    (".quant_map", Quantizer::Bitsandbytes4),
    (".nested_quant_map", Quantizer::Bitsandbytes4),
    (".quant_state", Quantizer::Bitsandbytes4),
    (".quant_state.bitsandbytes__nf4", Quantizer::Bitsandbytes4),
    (".quant_state.bitsandbytes__fp4", Quantizer::Bitsandbytes4),
    (".SCB", Quantizer::Bitsandbytes8),
    (".weight_format", Quantizer::Bitsandbytes8),
    (".g_idx", Quantizer::Gptq),
    (".qweight", Quantizer::GptqOrAwq),
    (".qzeros", Quantizer::GptqOrAwq),
    (".weight_packed", Quantizer::CompressedTensors),
    (".weight_zero_point", Quantizer::CompressedTensors),
    (".weight_global_scale", Quantizer::CompressedTensors),
    (".weight_scale_inv", Quantizer::Fp8),
    (".biases", Quantizer::Mlx),
    (".W_q", Quantizer::Hqq),
    ("._data", Quantizer::Quanto),
    ("._scale", Quantizer::Quanto),
    ("._weight_qdata", Quantizer::Torchao),
    ("._weight_scale", Quantizer::Torchao),
    (".codebooks", Quantizer::Aqlm),
    (".weight_scale", Quantizer::Unknown),
    (".weight_scales", Quantizer::Unknown),
    (".input_scale", Quantizer::Unknown),
    (".pre_quant_scale", Quantizer::Unknown),
    (".scales", Quantizer::Unknown),
    ("_scale_inv", Quantizer::Unknown),
    ("_scale", Quantizer::Unknown),
    ("_packed", Quantizer::Unknown),
];

impl Quantizer {
    /// Returns what quantized the weights of a checkpoint that has tensors of these names, and the name that tells.
    pub(super) fn of<'a>(names: impl IntoIterator<Item = &'a str> + Clone) -> Option<(Self, &'a str)> {
        ENDINGS.iter().find_map(|&(ending, quantizer)| {
            let told = names.clone().into_iter().find(|name| name.ends_with(ending))?;
            Some((quantizer, told))
        })
    }
}

impl fmt::Display for Quantizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bitsandbytes4 => "bitsandbytes, to 4 bits",
            Self::Bitsandbytes8 => "bitsandbytes, to 8 bits",
            Self::GptqOrAwq => "AWQ or GPTQ",
            Self::Gptq => "GPTQ",
            Self::CompressedTensors => "compressed-tensors",
            Self::Fp8 => "FP8 with scales",
            Self::Mlx => "MLX",
            Self::Hqq => "HQQ",
            Self::Quanto => "quanto",
            Self::Torchao => "torchao",
            Self::Aqlm => "AQLM",
            Self::Unknown => "with scales of their own",
        })
    }
}
