//! `nibble tokenize`

use std::io::Write;
use std::path::PathBuf;

use super::out;
use super::table::{self, Align};
use crate::base::display::visible;
use crate::chat::{self, Prompt};
use crate::llama::Model;
use crate::vocab::PieceType;
use crate::vocab::Tokenizer;

/// Show the token ids of a text
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model: a GGUF file, or any part of a split one
    model: PathBuf,

    /// The text; '-', or no text when input is piped in, reads standard input. After '--', it may begin with a dash
    text: Option<String>,

    /// Read the text from a file
    #[arg(short, long, value_name = "FILE", conflicts_with = "text")]
    file: Option<PathBuf>,

    /// Recognize control tokens in the text, such as <|endoftext|>; by default they are plain text
    #[arg(long)]
    special: bool,

    /// Print only the ids, on one line
    #[arg(long, conflicts_with = "json")]
    ids: bool,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let text = super::run::prompt_text(args.text.as_deref(), args.file.as_deref())?;
    let model = Model::load_vocabulary(&args.model)?;
    let prompt = if args.special { Prompt::with_control_tokens(text) } else { Prompt::plain(text) };
    let ids = chat::encode(&prompt, model.tokenizer())?;
    out::to_stdout(|out| {
        if args.ids {
            let words: Vec<String> = ids.iter().map(u32::to_string).collect();
            writeln!(out, "{}", words.join(" "))?;
        } else if args.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&report(&ids, model.tokenizer()))?)?;
        } else {
            out.table(rows(&ids, model.tokenizer()))?;
        }
        Ok(())
    })
}

fn rows(ids: &[u32], tokenizer: &dyn Tokenizer) -> comfy_table::Table {
    let mut table = table::new(&[("id", Align::Right), ("piece", Align::Left), ("type", Align::Left)]);
    for &id in ids {
        table.add_row([id.to_string(), visible(tokenizer.piece(id)).into_owned(), kind(tokenizer, id).to_string()]);
    }
    table
}

fn report(ids: &[u32], tokenizer: &dyn Tokenizer) -> serde_json::Value {
    let tokens: Vec<serde_json::Value> = ids
        .iter()
        .map(|&id| serde_json::json!({ "id": id, "piece": tokenizer.piece(id), "type": kind(tokenizer, id) }))
        .collect();
    serde_json::json!({ "n_tokens": ids.len(), "tokens": tokens })
}

fn kind(tokenizer: &dyn Tokenizer, id: u32) -> &'static str {
    match tokenizer.kind(id) {
        PieceType::Normal => "normal",
        PieceType::Unknown => "unknown",
        PieceType::Control => "control",
        PieceType::UserDefined => "user-defined",
        PieceType::Unused => "unused",
        PieceType::Byte => "byte",
    }
}
