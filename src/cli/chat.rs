//! `nibble chat`
//!
//! ```text
//! input ───────► command ─────► Chat ─────────► engine::Assistant
//! a line editor  a message or   what to do      answers the conversation
//! or a pipe      a /command        │                │ events
//!                                  ▼                ▼
//!                               screen ◄───────── view
//! ```

pub(super) mod command;
mod echo;
pub(super) mod files;
mod input;
mod screen;
pub(super) mod settings;
mod signal;
mod view;

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::ArgAction;

use self::command::{Command, Typed};
use self::input::{Input, Line};
use self::screen::Screen;
use self::settings::Settings;
use self::signal::Interrupt;
use self::view::View;
use super::escapes::unescaped;
use super::interrupt::Interrupted;
use super::machine::{self, MachineArgs, NO_LIMIT, interruptible, parse_max_tokens};
use super::message;
use super::progress::Patient;
use super::sampling::{SamplingArgs, check_biases};
use super::speculation::{self, SpeculationArgs};
use super::structure::StructureArgs;
use super::template::{FOLDED, Source, TemplateArgs};
use crate::base::display::printable;
use crate::base::units;
use crate::chat::{self, Conversation};
use crate::engine::{Answer, Assistant, Draft, EventSink, Session, TurnEnd, TurnError, TurnOptions, TurnStats};
use crate::gguf::Gguf;
use crate::llama;

/// Chat with a model in the terminal
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every message is sent to the model in the model's own chat template; /help lists the commands. Answers go to standard \
output, everything else to standard error.

When input is piped in, each line is a message or a command. A line that ends in \\ continues on the next one, and \
\"\"\" opens and closes a message of several lines. The exit code is 1 if anything failed.

Examples:
  nibble chat yi-34b-chat-q4_k.gguf
  nibble chat yi-34b-chat-q4_k.gguf --system '请用中文回答。' --ctx 8192
  printf 'What is a nibble?\\nAnd a byte?\\n/save bytes.json\\n' | nibble chat yi-34b-chat-q4_k.gguf")]
pub struct Args {
    /// The model: a GGUF file, or any part of a split one
    model: PathBuf,

    /// The system message, which the model reads first
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Conversation")]
    system: Option<String>,

    /// Read the system message from a file
    #[arg(long, value_name = "FILE", conflicts_with = "system", help_heading = "Conversation")]
    system_file: Option<PathBuf>,

    /// Continue a saved conversation: a file written by /save, or a list of messages in the format of OpenAI's API
    #[arg(long, value_name = "FILE", help_heading = "Conversation")]
    load: Option<PathBuf>,

    /// Use a Jinja template from a file, or 'chatml', instead of the model's own
    #[arg(long, value_name = "FILE", help_heading = "Conversation")]
    chat_template: Option<PathBuf>,

    #[command(flatten)]
    template: TemplateArgs,

    /// Do not save what you type. The environment variable NIBBLE_HISTORY names another history file; if it is empty,
    /// nothing is saved
    #[arg(long, help_heading = "Conversation")]
    no_history: bool,

    /// The most tokens in an answer [default: until the model ends it]
    #[arg(short = 'n', long, value_name = "N", value_parser = parse_max_tokens, allow_negative_numbers = true,
          help_heading = "Writing")]
    max_tokens: Option<usize>,

    /// Stop an answer at this text, which is not shown; can be given several times
    #[arg(long, value_name = "TEXT", action = ArgAction::Append, allow_hyphen_values = true, help_heading = "Writing")]
    stop: Vec<String>,

    /// Keep backslashes in --system and --stop; by default \n is a line break there, \t a tab and \\ a backslash
    #[arg(long, help_heading = "Conversation")]
    no_escape: bool,

    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    structure: StructureArgs,

    #[command(flatten)]
    machine: MachineArgs,

    #[command(flatten)]
    speculation: SpeculationArgs,

    /// Show the speed after each answer
    #[arg(long, help_heading = "Output")]
    stats: bool,

    /// Show llama.cpp's log
    #[arg(short, long, help_heading = "Output")]
    verbose: bool,
}

pub fn run(mut args: Args) -> anyhow::Result<()> {
    if !args.no_escape {
        args.system.iter_mut().chain(&mut args.stop).for_each(|text| *text = unescaped(text));
    }
    // A mistake on the command line is reported before gigabytes are loaded.
    let mut settings = Settings { params: args.sampling.params(), stats: args.stats, ..Settings::default() };
    settings.params.check()?;
    let grammar = args.structure.grammar()?;
    if let Some(n) = args.max_tokens.filter(|n| *n != NO_LIMIT) {
        settings.set("max_tokens", &n.to_string())?;
    }
    let system = match &args.system_file {
        None => args.system.clone(),
        Some(path) => Some(super::run::prompt_text(None, Some(path))?.trim_end_matches(['\r', '\n']).to_string()),
    };
    let source = Source::read(args.chat_template.as_ref())?;
    let extras = args.template.read()?;
    let template = match source.template(Gguf::open(&args.model)?.metadata(), &extras) {
        Err(chat::Error::NoTemplate) => bail!(
            "{} has no chat template, which says how messages are written; pass one with --chat-template FILE, or \
             --chat-template chatml if the model was trained on <|im_start|>, or continue a text with 'nibble run'",
            args.model.display()
        ),
        template => template?,
    };
    let (template, unread) = extras.add_to(template)?;
    let loaded = args.load.as_deref().map(files::load).transpose()?;

    let screen = Screen::new();
    let history = if args.no_history { None } else { input::history_file() };
    let input = Input::open(history, screen.colour())?;
    let interrupt = Interrupt::listen(input.is_terminal())?;
    llama::set_verbose(args.verbose);
    if args.sampling.params().seed.is_none() && !args.sampling.is_greedy() {
        args.speculation.default_to_ngrams();
    }
    let (session, draft) = load(&args, &interrupt)?;
    let unsuitable = source.warning(session.model().tokenizer()).map(str::to_string);
    unsuitable.into_iter().chain(unread).for_each(|warning| screen.say(&format!("warning: {warning}")));
    if let Some(warning) = machine::too_long(&session) {
        screen.say(&format!("warning: {warning}"));
    }

    let tokenizer = session.model().tokenizer();
    settings.params = args.sampling.params_for(tokenizer)?;
    let constraint = grammar.as_ref().map(|grammar| StructureArgs::constraint(grammar, tokenizer)).transpose()?;
    let options = turn_options(&settings, &args.stop);
    let assistant = Assistant::new(session, template, options)?.with_constraint(constraint).with_draft(draft);
    let mut chat = Chat {
        assistant,
        conversation: Conversation::default(),
        settings,
        last: None,
        total: TurnStats::default(),
        screen,
        input,
        interrupt,
        file: None,
        grammar: grammar.as_ref().map(|grammar| grammar.what()),
        failed: false,
    };
    if chat.input.is_terminal() {
        chat.greet();
    }
    if let Some(conversation) = loaded {
        chat.resume(conversation)?;
        chat.file = args.load.clone();
    }
    if let Some(system) = system {
        chat.set_system(Some(system))?;
    }
    chat.run()
}

/// The part of the settings that the library knows.
fn turn_options(settings: &Settings, stop: &[String]) -> TurnOptions {
    TurnOptions { params: settings.params.clone(), max_tokens: settings.max_tokens, stop: stop.to_vec() }
}

fn load(args: &Args, interrupt: &Interrupt) -> anyhow::Result<(Session, Option<Draft>)> {
    let _busy = interrupt.busy();
    let options = args.speculation.session(args.machine.session(interrupt.flag()))?;
    let bar = Patient::new("loading", 1000);
    let loaded = args.machine.load_watched(&args.model, &options, move |part| bar.at((part * 1000.0) as u64));
    let model = interruptible(loaded)?;
    let draft = interruptible(args.speculation.draft(&args.machine, &model, &options))?;
    Ok((Session::new(&model, &options)?, draft))
}

/// A chat from its first prompt to its end.
struct Chat {
    assistant: Assistant,
    conversation: Conversation,
    settings: Settings,
    /// What the last answer cost.
    last: Option<TurnStats>,
    /// What all answers cost.
    total: TurnStats,
    screen: Screen,
    input: Input,
    interrupt: Interrupt,
    /// The file that the conversation was loaded from or last saved to.
    file: Option<PathBuf>,
    /// What answers have to satisfy, in words.
    grammar: Option<&'static str>,
    /// Whether anything has failed.
    failed: bool,
}

/// Why a command cannot be carried out: the conversation lacks what it would change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Nothing {
    #[error("there is no message to answer")]
    Answered,
    #[error("there is no message to edit")]
    Edited,
    #[error("there is nothing to undo")]
    Undone,
}

/// What to do after a line.
enum Next {
    /// Ask for another line, which begins with this text.
    Ask(String),
    /// Ask for a new version of the last message.
    Edit,
    /// End the chat.
    End,
}

impl Next {
    fn ask() -> Self {
        Self::Ask(String::new())
    }
}

impl Chat {
    fn greet(&self) {
        let model = self.assistant.model();
        let file = model.path().file_name().unwrap_or_default().to_string_lossy();
        let name = match model.metadata().str("general.name") {
            Some(name) => format!("{name} ({file})"),
            None => file.into_owned(),
        };
        // It comes from a file, and a hostile file can have a name of megabytes.
        let name: String = name.chars().take(200).collect();
        self.screen.say(&format!("{}, context of {} tokens", printable(&name), self.assistant.session().n_ctx()));
        self.screen.say("/help lists the commands; Ctrl-C stops an answer, Ctrl-D quits.\n");
    }

    fn run(mut self) -> anyhow::Result<()> {
        let (mut next, mut interrupted) = (Next::ask(), false);
        loop {
            let (prefill, editing) = match next {
                Next::Ask(prefill) => (prefill, false),
                Next::Edit => (self.conversation.last_question().unwrap_or_default().to_string(), true),
                Next::End => break,
            };
            let line = self.input.next(&prefill)?;
            let twice = std::mem::replace(&mut interrupted, line == Line::Interrupted);
            next = match line {
                Line::End => Next::End,
                Line::Interrupted if editing => {
                    self.screen.note("nothing was changed");
                    interrupted = false;
                    Next::ask()
                }
                Line::Interrupted if twice => Next::End,
                Line::Interrupted => {
                    self.screen.note("press Ctrl-C again, or Ctrl-D, to quit");
                    Next::ask()
                }
                Line::Text(text) if editing => self.edited(&text)?,
                Line::Text(text) => self.typed(&text)?,
            };
        }
        // The errors have been printed already.
        if self.failed && !self.input.is_terminal() { bail!("") } else { Ok(()) }
    }

    /// Prints an error. The chat continues, with `prefill` in the next line.
    fn fail(&mut self, why: impl Into<anyhow::Error>, prefill: &str) -> Next {
        self.failed = true;
        self.screen.show_error(&message(&why.into()));
        Next::Ask(prefill.to_string())
    }

    fn typed(&mut self, text: &str) -> anyhow::Result<Next> {
        match command::parse(text) {
            Ok(Typed::Nothing) => Ok(Next::ask()),
            Ok(Typed::Message(message)) => {
                let before = self.conversation.clone();
                self.conversation.ask(message);
                self.answer(before, text)
            }
            Ok(Typed::Command(command)) => self.command(command),
            Err(why) => Ok(self.fail(why, "")),
        }
    }

    /// Answers the last message again, which was edited to `text`.
    fn edited(&mut self, text: &str) -> anyhow::Result<Next> {
        let message = match command::parse(text) {
            Ok(Typed::Nothing) => {
                self.screen.note("nothing was changed");
                return Ok(Next::ask());
            }
            // Quotes that were opened while editing.
            Ok(Typed::Message(message)) if text.trim_start().starts_with(command::FENCE) => message,
            _ => text.to_string(),
        };
        let before = self.conversation.clone();
        self.conversation.edit(message);
        self.answer(before, text)
    }

    /// Answers the last message. If that fails, the conversation is `before` again, and `text` is back in the line.
    fn answer(&mut self, before: Conversation, text: &str) -> anyhow::Result<Next> {
        self.turn(before, text, Assistant::answer)
    }

    /// Continues the last answer.
    fn continue_answer(&mut self) -> anyhow::Result<Next> {
        self.turn(self.conversation.clone(), "", Assistant::continue_answer)
    }

    fn turn(
        &mut self,
        before: Conversation,
        text: &str,
        write: fn(&mut Assistant, &mut Conversation, &mut dyn EventSink) -> Result<Answer, TurnError>,
    ) -> anyhow::Result<Next> {
        let busy = self.interrupt.busy();
        let mut view = View::new(&mut self.screen, self.settings.wrap);
        let answer = write(&mut self.assistant, &mut self.conversation, &mut view);
        drop(view);
        let was_stopped = self.interrupt.is_set();
        drop(busy);
        self.after(answer, before, text, was_stopped)
    }

    /// Prints the remarks that follow an answer.
    fn after(
        &mut self,
        answer: Result<Answer, TurnError>,
        before: Conversation,
        text: &str,
        was_stopped: bool,
    ) -> anyhow::Result<Next> {
        match self.screen.take_error() {
            // The reader of the answers has closed the pipe.
            Some(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Next::End),
            Some(error) => return Err(error).context("cannot write to standard output"),
            None => {}
        }
        if was_stopped && !self.input.is_terminal() {
            return Err(Interrupted(String::new()).into());
        }
        let Answer { end, forgotten_turns, is_empty, is_complete, stats } = match answer {
            Ok(answer) => answer,
            Err(why) => {
                self.conversation = before;
                if let TurnError::Cancelled = why {
                    self.screen.note(match text {
                        "" => "stopped before the answer began",
                        _ => "stopped before the answer began; your message is back in the line",
                    });
                    return Ok(Next::Ask(text.to_string()));
                }
                return Ok(self.fail(why, text));
            }
        };
        self.total += &stats;
        match end {
            TurnEnd::Complete if is_empty => self.screen.note("the answer is empty"),
            TurnEnd::Complete | TurnEnd::Dropped => {}
            TurnEnd::Cancelled => self.screen.note("stopped; /continue continues the answer"),
            TurnEnd::MaxTokens => self.screen.note("reached max_tokens; /continue continues the answer"),
            TurnEnd::ContextFull => {
                self.screen.note("the context is full, so the answer ends here; --ctx sets a larger one");
            }
            TurnEnd::Failed(error) => drop(self.fail(error, "")),
        }
        if let (false, Some(grammar)) = (is_complete, self.grammar) {
            self.screen.note(&format!("the answer was cut short, so it does not satisfy {grammar}"));
        }
        if forgotten_turns > 0 {
            let turns = match forgotten_turns {
                1 => "turn was".to_string(),
                n => format!("{n} turns were"),
            };
            self.screen.note(&format!("the context was full, so the oldest {turns} forgotten"));
        }
        if self.settings.stats {
            self.screen.note(&format!("{}; {}", wrote(&stats), read(&stats)));
        }
        self.last = Some(stats);
        self.screen.gap();
        Ok(Next::ask())
    }

    fn command(&mut self, command: Command) -> anyhow::Result<Next> {
        let done = match command {
            Command::Exit => return Ok(Next::End),
            Command::Retry => {
                let before = self.conversation.clone();
                if self.conversation.take_answer() {
                    if self.settings.is_greedy() && before.last_answer().is_some() {
                        self.screen.note("at temperature 0, every answer is the same");
                    }
                    return self.answer(before, "");
                }
                Err(Nothing::Answered.into())
            }
            Command::Continue => return self.continue_answer(),
            Command::Edit => {
                if self.conversation.last_question().is_some() {
                    return Ok(Next::Edit);
                }
                Err(Nothing::Edited.into())
            }
            Command::Undo => self.undo(),
            Command::System(text) => self.system(text),
            Command::Save { file, replace } => self.save(file.as_deref(), replace),
            Command::Load(file) => self.load(&file),
            Command::Set(None) => {
                self.list_settings();
                Ok(())
            }
            Command::Set(Some((name, value))) => self.set(&name, &value),
            Command::Stats => {
                self.list_stats();
                Ok(())
            }
            Command::Clear => {
                self.conversation.clear();
                self.file = None;
                self.screen.note("a new conversation");
                Ok(())
            }
            Command::Help => {
                self.screen.list(command::KNOWN.iter().map(|known| {
                    (format!("/{} {}", known.name, known.takes).trim_end().to_string(), Cow::Borrowed(known.help))
                }));
                self.screen.say("");
                command::TYPING.iter().for_each(|line| self.screen.say(line));
                self.screen.gap();
                Ok(())
            }
        };
        Ok(match done {
            Ok(()) => Next::ask(),
            Err(why) => self.fail(why, ""),
        })
    }

    fn undo(&mut self) -> anyhow::Result<()> {
        if !self.conversation.undo() {
            return Err(Nothing::Undone.into());
        }
        match self.conversation.n_turns() {
            0 => self.screen.note("undone; the conversation is empty"),
            _ => {
                let last = excerpt(self.conversation.last_question().unwrap_or_default());
                self.screen.note(&format!("undone; the last message is now: {last}"));
            }
        }
        Ok(())
    }

    fn system(&mut self, text: Option<String>) -> anyhow::Result<()> {
        match text {
            None => match self.conversation.system() {
                Some(text) => self.screen.say(text),
                None => self.screen.note("there is no system message; /system TEXT sets one"),
            },
            Some(text) => {
                let text = (text != "-").then_some(text);
                let removed = text.is_none();
                self.set_system(text)?;
                self.screen.note(if removed { "removed the system message" } else { "set the system message" });
            }
        }
        Ok(())
    }

    fn set_system(&mut self, text: Option<String>) -> anyhow::Result<()> {
        let mut conversation = self.conversation.clone();
        conversation.set_system(text);
        self.assistant.prompt_tokens(&conversation)?;
        self.conversation = conversation;
        self.say_folded();
        Ok(())
    }

    /// Says so if the template takes no system message, and the conversation has one.
    fn say_folded(&self) {
        if self.conversation.system().is_some() && self.assistant.template().folds_system() {
            self.screen.note(FOLDED);
        }
    }

    fn set(&mut self, name: &str, value: &str) -> anyhow::Result<()> {
        let mut settings = self.settings.clone();
        settings.set(name, value)?;
        check_biases(&settings.params, self.assistant.model().tokenizer())?;
        let options = turn_options(&settings, &self.assistant.options().stop);
        self.assistant.set_options(options)?;
        self.settings = settings;
        Ok(())
    }

    fn save(&mut self, name: Option<&str>, replace: bool) -> anyhow::Result<()> {
        let file = match (name, &self.file) {
            (Some(name), _) => files::path(name),
            (None, Some(file)) => file.clone(),
            (None, None) => return Err(command::Error::NoFile("save").into()),
        };
        let model = self.assistant.model().path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = self.conversation.to_json(&model, self.settings.to_json());
        // The file holds an earlier state of the same conversation.
        let replace = replace || self.file.as_ref() == Some(&file);
        files::save(&file, &text, replace)?;
        self.screen.note(&format!("saved to {}", file.display()));
        self.file = Some(file);
        Ok(())
    }

    fn load(&mut self, name: &str) -> anyhow::Result<()> {
        let file = files::path(name);
        self.resume(files::load(&file)?)?;
        self.file = Some(file);
        Ok(())
    }

    /// Continues a loaded conversation, and shows how it ends.
    fn resume(&mut self, conversation: Conversation) -> anyhow::Result<()> {
        let n_tokens = self.assistant.prompt_tokens(&conversation)?;
        let n_turns = conversation.n_turns();
        self.conversation = conversation;
        let (conversation, screen) = (&self.conversation, &self.screen);
        screen.note(&format!("loaded: {}, {n_tokens} tokens", counted(n_turns, "turn")));
        self.say_folded();
        if self.input.is_terminal() {
            if let Some(question) = conversation.last_question() {
                screen.say(&format!("> {}", excerpt(question)));
            }
            match conversation.last_answer() {
                Some(answer) => screen.say(&format!("{}\n", answer.trim())),
                None if n_turns > 0 => screen.note("the last message has no answer yet; /retry answers it"),
                None => {}
            }
        }
        Ok(())
    }

    fn list_settings(&self) {
        let value = |name| self.settings.get(name).unwrap_or_default();
        let default = Settings::default();
        let (changed, others): (Vec<_>, Vec<_>) =
            settings::others().partition(|name| self.settings.get(name) != default.get(name));
        let known = settings::known().map(|known| (known.name, known.help));
        let lines = known.chain(changed.into_iter().map(|name| (name, "see 'nibble chat --help'")));
        self.screen.list(lines.map(|(name, help)| (format!("{name} {}", value(name)), Cow::Borrowed(help))));
        self.screen.say(&format!("\nMore settings, which 'nibble chat --help' explains: {}", others.join(", ")));
        self.screen.gap();
    }

    fn list_stats(&self) {
        let (session, conversation) = (self.assistant.session(), &self.conversation);
        let forgotten = match conversation.n_forgotten() {
            0 => String::new(),
            n => format!(", the first {n} of which the model no longer reads"),
        };
        let mut lines = vec![
            ("turns", format!("{}{forgotten}", conversation.n_turns())),
            (
                "context",
                format!("{} of {} tokens, room for {}", session.tokens().len(), session.n_ctx(), session.room()),
            ),
        ];
        if let Some(last) = &self.last {
            lines.push(("last answer", format!("{}; {}", wrote(last), read(last))));
            lines.push(("all answers", format!("{}; {}", wrote(&self.total), read(&self.total))));
            if self.assistant.has_draft() {
                lines.push(("drafted", speculation::line(&self.total.speculation)));
            }
        }
        self.screen.list(lines.into_iter().map(|(name, what)| (name.to_string(), Cow::Owned(what))));
        self.screen.gap();
    }
}

/// `212 tokens written, 9.8 tokens/s`
fn wrote(stats: &TurnStats) -> String {
    format!("{} written{}", counted(stats.written_tokens, "token"), speed(stats.evaluated_tokens, stats.write_time))
}

/// `23 read, 45.0 tokens/s, and 1180 reused`
fn read(stats: &TurnStats) -> String {
    format!(
        "{} read{}, and {} reused",
        units::count(stats.read_tokens as u64),
        speed(stats.read_tokens, stats.read_time),
        units::count(stats.reused_tokens as u64)
    )
}

fn speed(n: usize, time: std::time::Duration) -> String {
    if n == 0 { String::new() } else { format!(", {:.1} tokens/s", n as f64 / time.as_secs_f64().max(1e-9)) }
}

fn counted(n: usize, what: &str) -> String {
    format!("{} {what}{}", units::count(n as u64), if n == 1 { "" } else { "s" })
}

/// The beginning of a message, on one line.
fn excerpt(text: &str) -> String {
    const LONGEST: usize = 60;
    let line = text.trim().lines().next().unwrap_or_default();
    let cut: String = line.chars().take(LONGEST).collect();
    if cut.len() < text.trim().len() { format!("{cut}...") } else { cut }
}
