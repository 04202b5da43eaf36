//! What the server counts, in Prometheus' text format. Names are llama.cpp's where it has them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use super::app::now;
use super::backend::Model;
use super::protocol::Status;

/// What the server counts itself.
pub struct Counters {
    /// Seconds since 1970 at which it began.
    started: u64,
    /// Answered requests by path and status.
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// Tokens that embeddings were computed of, by model.
    embedded: Mutex<BTreeMap<String, u64>>,
}

impl Default for Counters {
    fn default() -> Self {
        Self { started: now(), requests: Mutex::default(), embedded: Mutex::default() }
    }
}

impl Counters {
    /// Counts an answer. `route` is a route of the server, not the path of a request.
    pub fn answered(&self, route: &'static str, status: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((route, status)).or_default() += 1;
    }

    /// Counts tokens that embeddings of a model were computed of.
    pub fn embedded(&self, model: &str, n_tokens: u64) {
        let mut embedded = self.embedded.lock().unwrap_or_else(PoisonError::into_inner);
        *embedded.entry(model.to_string()).or_default() += n_tokens;
    }

    /// Returns the seconds since 1970 at which counting began: when the server started.
    pub fn started(&self) -> u64 {
        self.started
    }
}

/// The name of a metric, its type, what it is, and its value.
type Metric = (&'static str, &'static str, &'static str, fn(&Status) -> f64);

/// Writes all metrics. A model that is not loaded has no status. Lines have the names of models, unless there is one model
/// and never another: llama.cpp's server, which has one, writes none, and what reads its metrics expects none.
pub fn text(counters: &Counters, models: &[(Model, Option<Status>)], has_one_model: bool) -> String {
    let mut text = String::new();
    let of = |model: &Model| match has_one_model {
        true => String::new(),
        false => format!("{{model=\"{}\"}}", label(&model.name)),
    };
    let metrics: [Metric; 20] = [
        ("llamacpp:prompt_tokens_total", "counter", "Tokens of prompts that were read.", |s| s.read_tokens as f64),
        ("llamacpp:prompt_tokens_cached_total", "counter", "Tokens of prompts that were found in the cache.", |s| {
            s.cached_tokens as f64
        }),
        ("llamacpp:prompt_seconds_total", "counter", "Seconds in which they were read.", |s| s.reading_seconds),
        ("llamacpp:tokens_predicted_total", "counter", "Tokens that were written.", |s| s.written_tokens as f64),
        ("llamacpp:tokens_predicted_seconds_total", "counter", "Seconds in which they were.", |s| s.writing_seconds),
        ("llamacpp:n_decode_total", "counter", "Evaluations of the model.", |s| s.evaluations as f64),
        // Its type at llama.cpp, although it is no sum.
        ("llamacpp:n_tokens_max", "counter", "The most tokens that a text has had.", |s| s.most_tokens as f64),
        ("llamacpp:spec_decode_num_draft_tokens_total", "counter", "Tokens that were guessed.", |s| {
            s.guessed_tokens as f64
        }),
        ("llamacpp:spec_decode_num_accepted_tokens_total", "counter", "Guesses that were right.", |s| {
            s.accepted_guesses as f64
        }),
        ("llamacpp:spec_decode_num_drafts_total", "counter", "Times that tokens were guessed.", |s| s.guesses as f64),
        ("llamacpp:n_busy_slots_per_decode", "gauge", "Mean number of sequences in an evaluation.", |s| {
            s.evaluated_sequences as f64 / s.evaluations.max(1) as f64
        }),
        ("llamacpp:prompt_tokens_seconds", "gauge", "Mean tokens of prompts a second.", |s| {
            per_second(s.read_tokens, s.reading_seconds)
        }),
        ("llamacpp:predicted_tokens_seconds", "gauge", "Mean written tokens a second.", |s| {
            per_second(s.written_tokens, s.writing_seconds)
        }),
        ("llamacpp:kv_cache_tokens", "gauge", "Tokens that the context holds.", |s| s.held_tokens as f64),
        ("llamacpp:requests_processing", "gauge", "Sequences that are being written.", |s| {
            s.slots.iter().filter(|slot| slot.task.is_some()).count() as f64
        }),
        ("llamacpp:requests_deferred", "gauge", "Requests that wait.", |s| s.waiting as f64),
        ("nibble:evaluated_sequences_total", "counter", "Sequences in all evaluations.", |s| {
            s.evaluated_sequences as f64
        }),
        ("nibble:prefix_memory_bytes", "gauge", "Bytes of prefixes in memory.", |s| s.prefix_bytes as f64),
        ("nibble:prefix_disk_bytes", "gauge", "Bytes of prefixes on the disk.", |s| s.prefix_disk_bytes as f64),
        ("nibble:slots", "gauge", "Sequences of the context.", |s| s.slots.len() as f64),
    ];
    for (name, kind, help, value) in metrics {
        head(&mut text, name, kind, help);
        for (model, status) in models {
            if let Some(status) = status {
                let _ = writeln!(text, "{name}{} {}", of(model), value(status));
            }
        }
    }
    head(
        &mut text,
        "nibble:model_restarts_total",
        "counter",
        "How often the process of a model had to be started again.",
    );
    for (model, _) in models {
        let _ = writeln!(text, "nibble:model_restarts_total{} {}", of(model), model.restarts);
    }
    head(&mut text, "nibble:model_ready", "gauge", "Whether a model is loaded.");
    for (model, status) in models {
        let ready = u8::from(status.is_some());
        let _ = writeln!(text, "nibble:model_ready{} {ready}", of(model));
    }
    head(&mut text, "nibble:embedded_tokens_total", "counter", "Tokens that embeddings were computed of.");
    let embedded = counters.embedded.lock().unwrap_or_else(PoisonError::into_inner);
    for (model, _) in models {
        let n_tokens = embedded.get(&model.name).copied().unwrap_or(0);
        let _ = writeln!(text, "nibble:embedded_tokens_total{} {n_tokens}", of(model));
    }
    head(&mut text, "nibble:http_requests_total", "counter", "Answered requests.");
    let requests = counters.requests.lock().unwrap_or_else(PoisonError::into_inner);
    for ((route, status), n) in requests.iter() {
        let _ = writeln!(text, "nibble:http_requests_total{{route=\"{}\",status=\"{status}\"}} {n}", label(route));
    }
    text
}

fn per_second(n: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { n as f64 / seconds } else { 0.0 }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
