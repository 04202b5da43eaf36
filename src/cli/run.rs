//! `nibble run`

use crate::base::text::without_mark;
use crate::base::units;
use std::io::{self, IsTerminal, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::ArgAction;

use super::escapes::unescaped;
use super::interrupt::{self, Interrupted};
use super::machine::{self, MachineArgs, NO_LIMIT, interruptible, parse_max_tokens};
use super::repeats::Repeats;
use super::sampling::SamplingArgs;
use super::speculation::{self, SpeculationArgs};
use super::structure::StructureArgs;
use super::template::{self, Extras, TemplateArgs};
use crate::chat::{self, Message, Prompt};
use crate::engine;
use crate::engine::{CacheError, Finish, GenerateOptions, Generated, PromptCache, Session, Writer};
use crate::llama::{self, Model};
use crate::vocab::Tokenizer;

/// Generate text with a model
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nibble run yi-34b-chat-q4_k.gguf --chat -p 'Tell me about the Song dynasty.'
  nibble run yi-34b-q4_k.gguf -p 'Once upon a time' -n 200 --seed 7
  nibble run yi-34b-chat-q4_k.gguf --chat -p 'Three dynasties, as JSON.' --json-schema list.json
  git diff | nibble run yi-34b-chat-q4_k.gguf --chat --system 'Write a commit message.'")]
pub struct Args {
    /// The model: a GGUF file, or any part of a split one
    model: PathBuf,

    /// The text to continue, as with --prompt
    #[arg(conflicts_with_all = ["prompt", "file"])]
    text: Option<String>,

    /// The text to continue; '-' reads it from standard input, without its last line break
    #[arg(
        short,
        long,
        value_name = "TEXT",
        conflicts_with = "file",
        allow_hyphen_values = true,
        help_heading = "Prompt"
    )]
    prompt: Option<String>,

    /// Read the prompt from a file, without its last line break
    #[arg(short, long, value_name = "FILE", help_heading = "Prompt")]
    file: Option<PathBuf>,

    /// Send the prompt as a chat message, in the model's own chat template
    #[arg(long, help_heading = "Prompt")]
    chat: bool,

    /// With --chat: the system message, which comes before the prompt
    #[arg(long, value_name = "TEXT", requires = "chat", allow_hyphen_values = true, help_heading = "Prompt")]
    system: Option<String>,

    /// With --chat: a Jinja template from a file, or 'chatml', instead of the model's own
    #[arg(long, value_name = "FILE", requires = "chat", help_heading = "Prompt")]
    chat_template: Option<PathBuf>,

    #[command(flatten)]
    template: TemplateArgs,

    /// Save the model's state after the prompt to this file, and start from it if the next prompt begins the same way
    #[arg(long, value_name = "FILE", help_heading = "Prompt")]
    prompt_cache: Option<PathBuf>,

    /// Keep backslashes in --prompt, --system and --stop; by default \n is a line break there, \t a tab and \\ a backslash
    #[arg(long, help_heading = "Prompt")]
    no_escape: bool,

    /// Treat control tokens that the prompt spells, such as <|endoftext|>, as control tokens and not as text
    #[arg(long, conflicts_with = "chat", help_heading = "Prompt")]
    special: bool,

    /// The most tokens to write [default: until an end token, or until the context is full]
    #[arg(short = 'n', long, value_name = "N", value_parser = parse_max_tokens, allow_negative_numbers = true,
          help_heading = "Writing")]
    max_tokens: Option<usize>,

    /// Stop when the model writes this text, which is not printed; can be given several times
    #[arg(long, value_name = "TEXT", action = ArgAction::Append, allow_hyphen_values = true, help_heading = "Writing")]
    stop: Vec<String>,

    #[command(flatten)]
    // Many, and the other commands have few.
    sampling: Box<SamplingArgs>,

    #[command(flatten)]
    structure: StructureArgs,

    #[command(flatten)]
    machine: MachineArgs,

    #[command(flatten)]
    speculation: SpeculationArgs,

    /// Print one JSON object at the end instead of text
    #[arg(long, help_heading = "Output")]
    json: bool,

    /// With --json: report the log-probability of each token, and of this many of the most likely tokens in its place
    #[arg(long, value_name = "N", requires = "json", help_heading = "Output")]
    logprobs: Option<usize>,

    /// Print nothing but the text
    #[arg(short, long, conflicts_with = "verbose", help_heading = "Output")]
    quiet: bool,

    /// Show llama.cpp's log
    #[arg(short, long, help_heading = "Output")]
    verbose: bool,
}

impl Args {
    /// Puts a text that was given as an argument in its place, and replaces escapes.
    fn read(mut self) -> Self {
        self.prompt = self.prompt.or(self.text.take());
        self.max_tokens = self.max_tokens.filter(|n| *n != NO_LIMIT);
        if !self.no_escape {
            let texts = self.prompt.iter_mut().chain(&mut self.system).chain(&mut self.stop);
            texts.for_each(|text| *text = unescaped(text));
        }
        self
    }
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let args = args.read();
    // Mistakes on the command line are reported before gigabytes are loaded.
    args.sampling.params().check()?;
    let grammar = args.structure.grammar()?;
    if args.template.are_given() && !args.chat {
        bail!("tools and arguments are for the chat template; add --chat");
    }
    let extras = args.template.read()?;
    let mut text = prompt_text(args.prompt.as_deref(), args.file.as_deref())?;
    if args.prompt.as_deref().is_none_or(|given| given == "-") {
        cut_last_line_break(&mut text);
    }
    llama::set_verbose(args.verbose);
    let session = args.speculation.session(args.machine.session(interrupt::listen()?))?;
    let model = interruptible(args.machine.load(&args.model, &session, args.quiet))?;
    let mut draft = interruptible(args.speculation.draft(&args.machine, &model, &session))?;
    let tokens = chat::encode(&prompt(&args, text, extras, &model)?, model.tokenizer())?;
    if tokens.is_empty() {
        bail!("the prompt is empty, and the model's tokenizer adds no token that begins a text");
    }
    let mut sampler = args.sampling.sampler(model.tokenizer())?;
    let mut repeats = Repeats::default();
    let mut constraint = match &grammar {
        Some(grammar) => Some(StructureArgs::constraint(grammar, model.tokenizer())?),
        None => None,
    };
    let mut session = Session::new(&model, &session)?;
    if !args.quiet
        && let Some(warning) = machine::too_long(&session)
    {
        eprintln!("warning: {warning}");
    }

    let options = GenerateOptions {
        max_tokens: args.max_tokens,
        stop: args.stop.clone(),
        logprobs: args.logprobs,
        ..GenerateOptions::default()
    };
    let warn = |warning: CacheError| {
        if let Some(path) = args.prompt_cache.as_deref().filter(|_| !args.quiet) {
            eprintln!("warning: the prompt cache {}: {}", path.display(), super::message(&warning.into()));
        }
    };
    let mut cache = None;
    if let Some(path) = &args.prompt_cache {
        let (loaded, unused) = PromptCache::load(path, &mut session, &tokens)?;
        cache = Some(loaded);
        unused.into_iter().for_each(warn);
    }
    let mut out = Output { stdout: io::stdout().lock(), quiet: args.json, ended_line: true, error: None };
    let writer = Writer { draft: draft.as_mut(), constraint: constraint.as_mut(), ..Writer::new(&mut sampler) };
    let written = engine::generate(&mut session, writer, &tokens, &options, |step| {
        if let Some(repeated) = repeats.push(step.text).filter(|_| !args.quiet) {
            eprintln!("\nwarning: {}; Ctrl-C ends it", super::repeats::sentence(&repeated));
        }
        out.text(step.text)
    })?;
    // Where a stop text ended it, the text lacks at least that.
    let stopped = matches!(written.finish, Finish::Stop { .. });
    let complete = constraint.as_mut().map(|constraint| constraint.is_complete() && !stopped);
    let finished = finish(&args, out, &written, sampler.seed(), complete, model.tokenizer());
    if let (Some(false), Some(grammar), false) = (complete, grammar, args.quiet) {
        eprint!("{}", cut(&written.finish, grammar.what()));
    }
    // At the very end: nobody waits for it, and no error here loses the text.
    if let Some(Err(error)) = cache.map(|mut cache| cache.save(&mut session, tokens.len())) {
        warn(error);
    }
    finished
}

/// Returns the warning for a text that ended before it satisfied its grammar.
fn cut(finish: &Finish, what: &str) -> String {
    let why = match finish {
        Finish::MaxTokens => "-n allows no more tokens; ask for more",
        Finish::ContextFull => "the context is full; --ctx makes it larger",
        Finish::Stop { .. } => "a stop text occurred",
        // Reported elsewhere: the model's end, a closed pipe, an interrupt.
        _ => return String::new(),
    };
    format!("warning: the text was cut off before it was complete, and does not satisfy {what}: {why}\n")
}

/// Reads the prompt: from the command line, a file, or standard input where something is piped into it.
pub(super) fn prompt_text(given: Option<&str>, file: Option<&Path>) -> anyhow::Result<String> {
    match (given, file) {
        (Some(text), _) if text != "-" => Ok(text.to_string()),
        (_, Some(path)) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read the text in {}", path.display()))?;
            Ok(without_mark(text))
        }
        (given, None) => {
            let mut stdin = io::stdin();
            if given.is_none() && stdin.is_terminal() {
                bail!("no text given; write it on the command line, name a file with -f, or pipe it in");
            }
            let mut text = String::new();
            stdin.read_to_string(&mut text).context("cannot read the text from standard input")?;
            Ok(without_mark(text))
        }
    }
}

/// Removes the line break at the end of files and pipes, after which a model would start a new paragraph.
fn cut_last_line_break(text: &mut String) {
    let cut = text.strip_suffix('\n').map(|t| t.strip_suffix('\r').unwrap_or(t).len());
    text.truncate(cut.unwrap_or(text.len()));
}

fn prompt(args: &Args, text: String, extras: Extras, model: &Model) -> anyhow::Result<Prompt> {
    if args.special {
        return Ok(Prompt::with_control_tokens(text));
    }
    if !args.chat {
        return Ok(Prompt::plain(text));
    }
    let source = template::Source::read(args.chat_template.as_ref())?;
    let template = source.template(model.metadata(), &extras)?;
    let (template, unread) = extras.add_to(template)?;
    let folded = (args.system.is_some() && template.folds_system()).then(|| template::FOLDED.to_string());
    let warnings = source.warning(model.tokenizer()).map(str::to_string).into_iter().chain(unread).chain(folded);
    warnings.filter(|_| !args.quiet).for_each(|warning| eprintln!("warning: {warning}"));
    let system = args.system.as_deref().map(|text| Message::new("system", text));
    let messages: Vec<Message> = system.into_iter().chain([Message::new("user", text)]).collect();
    Ok(template.render(&messages, true, model.tokenizer().markers())?)
}

/// Writes text to standard output as it comes.
struct Output {
    stdout: io::StdoutLock<'static>,
    quiet: bool,
    ended_line: bool,
    error: Option<io::Error>,
}

impl Output {
    fn text(&mut self, text: &str) -> ControlFlow<()> {
        if text.is_empty() || self.quiet {
            return ControlFlow::Continue(());
        }
        self.ended_line = text.ends_with('\n');
        match self.stdout.write_all(text.as_bytes()).and_then(|()| self.stdout.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.error = Some(error);
                ControlFlow::Break(())
            }
        }
    }
}

fn finish(
    args: &Args,
    mut out: Output,
    written: &Generated,
    seed: u64,
    complete: Option<bool>,
    tokenizer: &dyn Tokenizer,
) -> anyhow::Result<()> {
    let last = if args.json {
        let mut report = report(args, written, seed, complete);
        if args.logprobs.is_some() {
            report["logprobs"] = logprobs(written, tokenizer);
        }
        format!("{}\n", serde_json::to_string_pretty(&report)?)
    } else if out.ended_line {
        String::new()
    } else {
        "\n".to_string()
    };
    let error =
        out.error.take().or_else(|| out.stdout.write_all(last.as_bytes()).and_then(|()| out.stdout.flush()).err());
    match error {
        // The reader has closed the pipe.
        Some(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        Some(error) => return Err(error).context("cannot write to standard output"),
        None => {}
    }
    if !args.quiet && !args.json {
        eprint!("{}", statistics(args, written, seed));
    }
    match written.finish {
        // The statistics say so.
        Finish::Cancelled => Err(Interrupted(String::new()).into()),
        _ => Ok(()),
    }
}

fn statistics(args: &Args, written: &Generated, seed: u64) -> String {
    let tokens = |n: usize| format!("{} token{}", units::count(n as u64), if n == 1 { "" } else { "s" });
    let speed = |rate: f64| if rate > 0.0 { format!(", {rate:.1} tokens/s") } else { String::new() };
    let why = match &written.finish {
        Finish::End { token } => format!("the model ended with token {token}"),
        Finish::Stop { text } => format!("stopped at {text:?}"),
        Finish::Complete => "the text is complete".to_string(),
        Finish::MaxTokens => "as many tokens as asked for".to_string(),
        Finish::ContextFull => "the context is full; --ctx makes it larger".to_string(),
        Finish::Dropped => "the reader of the output stopped".to_string(),
        Finish::Cancelled => "interrupted".to_string(),
    };
    let seed = if args.sampling.is_greedy() { String::new() } else { format!("seed:      {seed}\n") };
    let reused = match written.reused_tokens {
        0 => String::new(),
        n => format!(" ({} of them from the prompt cache)", units::count(n as u64)),
    };
    let guessed = written.speculation.as_ref().map(|s| format!("drafted:   {}\n", speculation::line(s)));
    format!(
        "\nprompt:    {}{reused}{}\nwritten:   {}{}\n{}ended:     {why}\n{seed}",
        tokens(written.prompt_tokens),
        speed(written.prompt_rate()),
        tokens(written.tokens.len()),
        speed(written.generate_rate()),
        guessed.unwrap_or_default(),
    )
}

fn report(args: &Args, written: &Generated, seed: u64, complete: Option<bool>) -> serde_json::Value {
    let (end_token, stop_text) = match &written.finish {
        Finish::End { token } => (Some(*token), None),
        Finish::Stop { text } => (None, Some(text.as_str())),
        _ => (None, None),
    };
    let detail = match &written.finish {
        Finish::End { .. } => "end_token",
        Finish::Stop { .. } => "stop_text",
        Finish::Complete => "complete",
        Finish::MaxTokens => "max_tokens",
        Finish::ContextFull => "context_full",
        Finish::Dropped | Finish::Cancelled => "cancelled",
    };
    serde_json::json!({
        "model": args.model.display().to_string(),
        "text": written.text,
        "tokens": written.tokens,
        "finish_reason": written.finish.reason(),
        "finish_detail": detail,
        "end_token": end_token,
        "stop_text": stop_text,
        "complete": complete,
        "seed": seed,
        "prompt_tokens": written.prompt_tokens,
        "reused_tokens": written.reused_tokens,
        "generated_tokens": written.tokens.len(),
        "prompt_seconds": written.prompt_time.as_secs_f64(),
        "generate_seconds": written.generate_time.as_secs_f64(),
        "prompt_tokens_per_second": written.prompt_rate(),
        "generated_tokens_per_second": written.generate_rate(),
        "speculation": written.speculation.as_ref().map(speculation::json),
    })
}

/// For each token that was written what the model itself thought of it, in the words of OpenAI's API, and its number.
fn logprobs(written: &Generated, tokenizer: &dyn Tokenizer) -> serde_json::Value {
    let entry = |id: u32, logprob: f64| {
        let bytes = tokenizer.bytes(id);
        // JSON has no infinity.
        let logprob = logprob.max(f64::MIN);
        serde_json::json!({"id": id, "token": String::from_utf8_lossy(bytes), "bytes": bytes, "logprob": logprob})
    };
    let tokens = written.tokens.iter().zip(&written.logprobs).map(|(&token, logprobs)| {
        let mut of_token = entry(token, logprobs.logprob);
        of_token["top_logprobs"] = logprobs.top.iter().map(|&(id, logprob)| entry(id, logprob)).collect();
        of_token
    });
    tokens.collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::llama::KvType;
    use crate::sample::{Params, Temperature};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Line::try_parse_from(std::iter::once("run").chain(line.split(' '))).map(|line| line.args)
    }

    #[test]
    fn the_defaults_are_those_of_llama_cpp() {
        let args = parse("m.gguf -p hi").unwrap();
        assert_eq!(args.sampling.params(), Params::default());
        let session = args.machine.session(std::sync::Arc::default());
        assert_eq!((session.n_ctx, session.threads, session.kv_types), (None, None, KvType::F16.into()));
    }

    #[test]
    fn what_is_typed_is_what_is_done() {
        let args = parse("m.gguf -f x --temp 0.5 --top-k 0 --top-p 1 --min-p 0 --seed 9 --kv-type q8_0 --ctx 99 -n 3");
        let args = args.unwrap();
        let temperature = Temperature::fixed(0.5);
        let wanted = Params { temperature, top_k: 0, top_p: 1.0, min_p: 0.0, seed: Some(9), ..Params::default() };
        assert_eq!(args.sampling.params(), wanted);
        let session = args.machine.session(std::sync::Arc::default());
        assert_eq!((session.n_ctx, session.kv_types), (Some(99), KvType::Q8_0.into()));
        assert_eq!(args.max_tokens, Some(3));
        assert_eq!(parse("m --greedy -p x").unwrap().sampling.params(), Params::greedy());
        assert_eq!(parse("m -p x --stop a --stop b").unwrap().stop, ["a", "b"]);
        assert_eq!(parse("m -c 7 x").unwrap().read().prompt.as_deref(), Some("x"));
        assert_eq!(parse("m x -n -1").unwrap().read().max_tokens, None);
        assert_eq!(parse("m x -n -2").unwrap().read().max_tokens, None);
        let escaped = parse(r"m -p a\nb --chat --system \t --stop \n").unwrap().read();
        assert_eq!(
            (escaped.prompt.unwrap(), escaped.system.unwrap(), escaped.stop),
            ("a\nb".into(), "\t".into(), vec!["\n".into()])
        );
        let kept = parse(r"m -p a\nb --no-escape --stop \n").unwrap().read();
        assert_eq!((kept.prompt.unwrap(), kept.stop), (r"a\nb".into(), vec![r"\n".to_string()]));
    }

    #[test]
    fn one_line_break_is_cut_from_what_a_shell_gives() {
        for (given, wanted) in [("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a", "a"), ("\n", ""), ("", "")] {
            let mut text = given.to_string();
            cut_last_line_break(&mut text);
            assert_eq!(text, wanted, "{given:?}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for line in [
            "m -p x -f y",
            "m -p x --greedy --seed 3",
            "m -p x --system s",
            "m -p x --chat --special",
            "m -p x --quiet --verbose",
            "m -p x --kv-type q3",
            "m x -p y",
            "m -p x --ctx 0",
            "m -p x -n -3",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
