//! Names of converted files.
//!
//! Convention: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#gguf-naming-convention>
//!
//! ```text
//! Yi-34B-Chat-Q4_K_M.gguf
//! ~~ ~~~ ~~~~ ~~~~~~
//! base size fine-tune encoding
//! ```

use crate::pass::size_label;

/// Returns the file name for a model called `name` (usually its folder) in `encoding` (usually the recipe).
///
/// Keeps the name as people know it, with a size label put in where it has none, and characters that are awkward in file
/// names replaced.
pub fn file_name(name: &str, n_weights: u64, encoding: &str) -> String {
    let (mut base, encoding) = (plain(name), plain(encoding));
    if base.is_empty() {
        base = "model".to_string();
    }
    if !base.split('-').any(is_size_label) {
        base = format!("{base}-{}", size_label(n_weights));
    }
    format!("{base}-{encoding}.gguf")
}

/// Returns the file name for an adapter called `name` in `encoding`, as llama.cpp's converter ends it.
pub fn adapter_file_name(name: &str, encoding: &str) -> String {
    let base = plain(name);
    let base = if base.is_empty() { "adapter" } else { &base };
    format!("{base}-{}-LoRA.gguf", plain(encoding))
}

/// Replaces characters that are awkward in file names. A name that starts with a dot would be hidden, one that starts
/// with a dash would look like an option.
fn plain(text: &str) -> String {
    let keep = |c: char| if c.is_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' };
    text.trim().chars().map(keep).collect::<String>().trim_matches(['-', '.', '_']).to_string()
}

/// Returns whether a part of a name says how large the model is: `34B`, `1.5B`, `8x7B`, `260K`.
fn is_size_label(part: &str) -> bool {
    let Some(number) = part.strip_suffix(['K', 'M', 'B', 'T', 'k', 'm', 'b', 't']) else { return false };
    let number = match number.split_once('x') {
        Some((experts, rest)) if !experts.is_empty() && experts.bytes().all(|b| b.is_ascii_digit()) => rest,
        _ => number,
    };
    let mut halves = number.splitn(2, '.');
    halves.all(|half| !half.is_empty() && half.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_size_is_kept_and_one_without_gets_it() {
        assert_eq!(file_name("Yi-34B-Chat", 34_388_917_248, "Q4_K_M"), "Yi-34B-Chat-Q4_K_M.gguf");
        assert_eq!(file_name("Yi-1.5-9B", 8_829_407_232, "Q4_0"), "Yi-1.5-9B-Q4_0.gguf");
        assert_eq!(file_name("yi-nano", 6_424_832, "IQ4_XS"), "yi-nano-6.4M-IQ4_XS.gguf");
        assert_eq!(file_name("Mixtral-8x7B", 46_700_000_000, "Q4_0"), "Mixtral-8x7B-Q4_0.gguf");
    }

    #[test]
    fn an_adapter_is_called_one() {
        assert_eq!(adapter_file_name("yi-34b-poems", "F16"), "yi-34b-poems-F16-LoRA.gguf");
        assert_eq!(adapter_file_name("../..", "F32"), "adapter-F32-LoRA.gguf");
    }

    #[test]
    fn a_name_cannot_leave_its_folder_or_look_like_an_option() {
        assert_eq!(file_name("../../etc/x", 7_000_000_000, "Q4_0"), "etc-x-7B-Q4_0.gguf");
        assert_eq!(file_name("--force", 7_000_000_000, "Q4_0"), "force-7B-Q4_0.gguf");
        assert_eq!(file_name("Yi-34B", 34_388_917_248, "my/Q4"), "Yi-34B-my-Q4.gguf");
        assert_eq!(file_name("  ", 7_000_000_000, "Q4_0"), "model-7B-Q4_0.gguf");
        assert_eq!(file_name("我的模型 7B", 7_000_000_000, "Q4_0"), "我的模型-7B-Q4_0.gguf");
    }
}
