//! How a model writes reasoning and calls, found in the text of its chat template.

/// What stands around calls and reasoning. Many vocabularies have tokens for these, and their models write no others.
pub const MARKERS: [&str; 11] = [
    "<tool_call>",
    "</tool_call>",
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<think>",
    "</think>",
    "[THINK]",
    "[/THINK]",
    "<seed:think>",
    "</seed:think>",
];

/// How a model writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen, and what tools are described as to
    /// models whose templates know none.
    Hermes,
    /// `{"name": ..., "parameters": {...}}` at the beginning of an answer, possibly after `<|python_tag|>`: Llama 3.
    Llama,
    /// `[TOOL_CALLS][{"name": ..., "arguments": {...}}]`, or `[TOOL_CALLS]name[ARGS]{...}`: Mistral.
    Mistral {
        /// Whether it is the second.
        named: bool,
    },
    /// `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`: Qwen3-Coder.
    Xml,
}

impl Style {
    /// Finds the style of a chat template.
    pub fn of_template(template: &str) -> Self {
        if template.contains("[TOOL_CALLS]") {
            Self::Mistral { named: template.contains("[ARGS]") }
        } else if template.contains("<function=") {
            Self::Xml
        } else if template.contains("<tool_call>") {
            Self::Hermes
        } else if template.contains("<|python_tag|>")
            || (template.contains("<|start_header_id|>") && template.contains("\"parameters\""))
        {
            Self::Llama
        } else {
            Self::Hermes
        }
    }

    /// What begins a call anywhere in an answer.
    pub(super) fn marker(self) -> &'static str {
        match self {
            Self::Hermes | Self::Xml => "<tool_call>",
            Self::Llama => "<|python_tag|>",
            Self::Mistral { .. } => "[TOOL_CALLS]",
        }
    }
}

/// What stands around reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Markers {
    /// Before it.
    pub open: &'static str,
    /// After it.
    pub close: &'static str,
}

/// Known pairs.
const REASONING: [Markers; 3] = [
    Markers { open: "<think>", close: "</think>" },
    Markers { open: "[THINK]", close: "[/THINK]" },
    Markers { open: "<seed:think>", close: "</seed:think>" },
];

/// What stands around the reasoning of models with this chat template; `None` if they do not reason.
pub fn reasoning_of(template: &str) -> Option<Markers> {
    REASONING.into_iter().find(|markers| template.contains(markers.open) || template.contains(markers.close))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_marker_is_listed() {
        let styles = [Style::Hermes, Style::Xml, Style::Llama, Style::Mistral { named: true }];
        let reasoning = REASONING.iter().flat_map(|markers| [markers.open, markers.close]);
        for marker in styles.iter().map(|style| style.marker()).chain(reasoning) {
            assert!(MARKERS.contains(&marker), "{marker}");
        }
    }
}
