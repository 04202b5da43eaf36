//! Pre-tokenizers: how byte-level vocabularies split a text before merging, and their names in llama.cpp.
//!
//! A GGUF file does not contain the rules, only a name (`tokenizer.ggml.pre`) for which llama.cpp has rules. The name
//! is found here by comparing the rules in `tokenizer.json` exactly: rules that are almost right give ids that are
//! almost right, which nobody notices.
//!
//! Source of the names: `llama-vocab.cpp`, which quotes the originals of the expressions it had to rewrite.

use serde_json::Value;

use super::split::{self, Matches};
use crate::base::display::shorten;

/// One step of a pre-tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Every match of the expression becomes a part.
    Split(String),
    /// Digits become parts, one by one or as runs.
    Digits { one_by_one: bool },
    /// Runs of punctuation become parts.
    Punctuation,
    /// Bytes become characters, optionally after splitting by GPT-2's expression.
    ByteLevel { gpt2_split: bool },
}

/// A step in the table below.
#[derive(Clone, Copy)]
enum Known {
    Split(&'static str),
    /// An expression that starts like this: one of them enumerates all letters with case.
    SplitLike(&'static str),
    /// Digits in either way: the vocabulary has no piece of two digits, so the result is the same.
    AnyDigits,
    Digits {
        one_by_one: bool,
    },
    Punctuation,
    Gpt2Bytes,
    Bytes,
}
use Known::{AnyDigits, Bytes, Gpt2Bytes, Punctuation, Split, SplitLike};

/// Whether a word that is a piece is used as it is, without merging.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whole {
    Yes,
    No,
    /// llama.cpp does not, and no known tokenizer of this kind does.
    Any,
}

const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_3_5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const BAILING_MOE: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const MINICPM_5: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-Ֆ";
const DEEPSEEK_CJK: &str = "[一-龥ࠀ-一가-\u{d7ff}]+";
const DEEPSEEK_3_WORDS: &str = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";

/// The letters with case that [`DEEPSEEK_LETTERS`] begins to enumerate.
const DEEPSEEK_ALL_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const SUPER_BPE_THREES: &str = r"(?=(\d{3})+(?!\d))";

/// llama.cpp's names, and the steps that each stands for.
#[rustfmt::skip]
const KNOWN: &[(&str, Whole, &[Known])] = &[
    ("gpt-2",          Whole::No,  &[Gpt2Bytes]),
    ("llama-bpe",      Whole::Yes, &[Split(LLAMA_3), Bytes]),
    // The same expression as Llama 3's, but words are always merged.
    ("dbrx",           Whole::No,  &[Split(LLAMA_3), Bytes]),
    ("tekken",         Whole::Any, &[Split(TEKKEN), Bytes]),
    ("qwen2",          Whole::No,  &[Split(QWEN_2), Bytes]),
    ("qwen35",         Whole::No,  &[Split(QWEN_3_5), Bytes]),
    ("gpt-4o",         Whole::Any, &[Split(GPT_4O), Bytes]),
    ("smollm",         Whole::No,  &[Known::Digits { one_by_one: true }, Gpt2Bytes]),
    ("deepseek-llm",   Whole::No,  &[Split("[\r\n]"), SplitLike(DEEPSEEK_LETTERS), Split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
                                     Split(r"\s+$"), Split(DEEPSEEK_CJK), AnyDigits, Bytes]),
    ("deepseek-coder", Whole::No,  &[Split("[\r\n]"), Split(r"\s?\p{L}+"), Split(r"\s?\p{P}+"), Split(DEEPSEEK_CJK),
                                     Known::Digits { one_by_one: true }, Bytes]),
    ("deepseek-v3",    Whole::No,  &[Split(r"\p{N}{1,3}"), Split("[一-龥\u{3040}-ゟ゠-ヿ]+"), Split(DEEPSEEK_3_WORDS), Bytes]),
    ("falcon",         Whole::No,  &[Punctuation, Gpt2Bytes, Known::Digits { one_by_one: false }, Split("[0-9][0-9][0-9]")]),
    ("exaone-moe",     Whole::No,  &[Split(EXAONE_MOE), Bytes]),
    ("bailingmoe",     Whole::No,  &[Split(BAILING_MOE), Bytes]),
    ("minicpm5",       Whole::Yes, &[Split(r"\p{N}{1,3}"), Split(MINICPM_5), Bytes]),
    ("seed-coder",     Whole::No,  &[Split(SEED_CODER), Bytes]),
    ("superbpe",       Whole::No,  &[Split(r"\p{N}+"), Split(SUPER_BPE_THREES), Bytes]),
];

impl Known {
    fn is(self, step: &Step) -> bool {
        match (self, step) {
            (Split(known), Step::Split(found)) => spelled_out(known) == spelled_out(found),
            (SplitLike(known), Step::Split(found)) => found.starts_with(known),
            (AnyDigits, Step::Digits { .. }) => true,
            (Self::Digits { one_by_one: known }, Step::Digits { one_by_one: found }) => known == *found,
            (Punctuation, Step::Punctuation) => true,
            (Gpt2Bytes, Step::ByteLevel { gpt2_split }) => *gpt2_split,
            (Bytes, Step::ByteLevel { gpt2_split }) => !gpt2_split,
            _ => false,
        }
    }
}

impl Known {
    /// What splits a text in this way.
    fn rules(self) -> Vec<split::Step> {
        let matches = |expression: &str| split::Step::Matches(Matches::new(expression));
        let regex = |expression: &str| regex::Regex::new(expression).expect("a constant");
        match self {
            Split(SUPER_BPE_THREES) => vec![split::Step::Threes(regex(r"\d+"))],
            Split(expression) => vec![matches(expression)],
            SplitLike(_) => vec![matches(DEEPSEEK_ALL_LETTERS)],
            AnyDigits => vec![split::Step::Digits { one_by_one: true }],
            Self::Digits { one_by_one } => vec![split::Step::Digits { one_by_one }],
            Punctuation => vec![matches(r"[\p{P}!-/:-@\[-`{-~]+")],
            Gpt2Bytes => vec![matches(GPT_2), split::Step::Bytes],
            Bytes => vec![split::Step::Bytes],
        }
    }
}

/// Escapes the line breaks in an expression: some files have escapes, some the characters, with the same meaning.
fn spelled_out(regex: &str) -> String {
    regex.replace('\r', r"\r").replace('\n', r"\n")
}

/// Returns llama.cpp's name of a byte-level pre-tokenizer; `ignore_merges` is the field of that name in the model.
///
/// # Errors
/// If the pre-tokenizer is unknown. The error is the pre-tokenizer as text, shortened.
pub(super) fn name(pre_tokenizer: &Value, ignore_merges: bool) -> Result<&'static str, String> {
    let shown = || shorten(&pre_tokenizer.to_string(), 300);
    let mut steps = Vec::new();
    for step in super::huggingface::flatten(pre_tokenizer, "pretokenizers") {
        steps.push(self::step(step).ok_or_else(shown)?);
    }
    let whole = if ignore_merges { Whole::Yes } else { Whole::No };
    KNOWN
        .iter()
        .filter(|(_, known, _)| *known == Whole::Any || *known == whole)
        .find(|(_, _, known)| {
            known.len() == steps.len() && known.iter().zip(&steps).all(|(known, step)| known.is(step))
        })
        .map(|(name, _, _)| *name)
        .ok_or_else(shown)
}

/// Returns the rules that a name in a GGUF file stands for, and whether a word that is a piece is used as it is, without
/// merging; `None` if nibble does not know the name.
pub(super) fn rules(name: &str) -> Option<(Vec<split::Step>, bool)> {
    let (_, _, steps) = KNOWN.iter().find(|(known, ..)| *known == name)?;
    Some((steps.iter().flat_map(|step| step.rules()).collect(), whole_words_in_llama_cpp(name)))
}

/// Returns whether llama.cpp uses a word that is a piece as it is, for pre-tokenizers of this name.
pub(super) fn whole_words_in_llama_cpp(name: &str) -> bool {
    matches!(name, "llama-bpe" | "minicpm5" | "tekken")
}

/// What llama.cpp splits in another way than the tokenizers library, in words; `None` if nothing of consequence is known.
/// A test compares the two on texts in many scripts.
pub(super) fn other_in_llama_cpp(name: &str) -> Option<&'static str> {
    Some(match name {
        // Its expressions know no marks, and of case only ASCII's.
        "tekken" | "gpt-4o" => "words with combining marks, as in Hindi, Thai and Tamil",
        // Its `\s` is ASCII's there.
        "deepseek-llm" | "deepseek-coder" => {
            "words after other spaces than the usual one, such as U+3000 in Chinese texts"
        }
        // The library looks for digits after it has written bytes as characters, of which some are digits.
        "falcon" => "words of scripts whose bytes, written as characters, look like digits, as in Hindi and Thai",
        "superbpe" => "digits of other scripts",
        _ => return None,
    })
}

/// Returns whether any step converts bytes to characters.
pub(super) fn is_byte_level(pre_tokenizer: &Value) -> bool {
    super::huggingface::flatten(pre_tokenizer, "pretokenizers").iter().any(|step| step["type"] == "ByteLevel")
}

/// Reads a step; `None` if no known tokenizer has such a step.
fn step(step: &Value) -> Option<Step> {
    match step["type"].as_str()? {
        "Split" => {
            // Isolated keeps text between matches as parts. Inverted Removed has the same effect for expressions that
            // match every text, and all of the above that are written like that do.
            let how = (step["behavior"].as_str()?, step["invert"].as_bool().unwrap_or(false));
            let same = matches!(how, ("Isolated", false) | ("Removed", true));
            let pattern = step["pattern"]["Regex"].as_str()?;
            same.then(|| Step::Split(pattern.to_string()))
        }
        "Digits" => Some(Step::Digits { one_by_one: step["individual_digits"].as_bool().unwrap_or(false) }),
        "Punctuation" => (step["behavior"] == "Contiguous").then_some(Step::Punctuation),
        "ByteLevel" => {
            // llama.cpp does not add a space in front for such vocabularies.
            let prefix = step["add_prefix_space"].as_bool().unwrap_or(true);
            (!prefix).then(|| Step::ByteLevel { gpt2_split: step["use_regex"].as_bool().unwrap_or(true) })
        }
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    fn split(regex: &str) -> Value {
        json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
    }

    fn bytes(use_regex: bool) -> Value {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
    }

    fn sequence(steps: &[Value]) -> Value {
        json!({"type": "Sequence", "pretokenizers": steps})
    }

    fn written(known: Known) -> Value {
        match known {
            Split(regex) => split(regex),
            SplitLike(start) => split(&format!("{start}]+")),
            AnyDigits => json!({"type": "Digits", "individual_digits": true}),
            Known::Digits { one_by_one } => json!({"type": "Digits", "individual_digits": one_by_one}),
            Punctuation => json!({"type": "Punctuation", "behavior": "Contiguous"}),
            Gpt2Bytes => bytes(true),
            Bytes => bytes(false),
        }
    }

    /// Every known pre-tokenizer as in `tokenizer.json`, with its name and whether whole words are looked up.
    pub fn known() -> impl Iterator<Item = (&'static str, bool, Value)> {
        KNOWN.iter().map(|(known, whole, steps)| {
            let steps: Vec<Value> = steps.iter().map(|&step| written(step)).collect();
            (*known, *whole == Whole::Yes, sequence(&steps))
        })
    }

    #[test]
    fn every_known_way_of_splitting_is_found_under_its_own_name() {
        for (known, whole, pre_tokenizer) in known() {
            assert_eq!(name(&pre_tokenizer, whole), Ok(known));
        }
        assert_eq!(name(&bytes(true), false), Ok("gpt-2"));
    }

    #[test]
    fn one_character_of_difference_is_refused() {
        let almost = sequence(&[split(&LLAMA_3.replace("{1,3}", "{1,2}")), bytes(false)]);
        let shown = name(&almost, true).unwrap_err();
        assert!(shown.contains("Sequence") && shown.len() < 400, "{shown}");
        assert!(name(&sequence(&[split(LLAMA_3), bytes(true)]), true).is_err());
        assert!(name(&sequence(&[split(QWEN_2), bytes(false)]), true).is_err(), "qwen2 never takes whole words");
        assert!(name(&json!({"type": "Whitespace"}), false).is_err());
        assert!(name(&json!({"type": "ByteLevel", "add_prefix_space": true}), false).is_err());
        assert!(name(&Value::Null, false).is_err());
    }
}
