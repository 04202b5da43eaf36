//! `nibble serve`: models over HTTP, by the APIs that other programs speak.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::builder::FalseyValueParser;
use clap::{Arg, ArgMatches, CommandFactory, ValueEnum, ValueHint};
use tokio::net::TcpListener;

use super::convert::parse_size;
use super::interrupt;
use super::serving::ServingArgs;
use super::{Cli, settings};
use crate::base::display::printable;
use crate::gguf;
use crate::placement::Machine;
use crate::serve::app::App;
use crate::serve::log::{Format, Log};
use crate::serve::models::{Models, Place, Sharing};
use crate::serve::options::Options;
use crate::serve::server;
use crate::serve::supervisor::{Launch, Limits, Program};

/// Serve a model, or all models of a folder, over HTTP
///
/// Programs that know OpenAI's or Anthropic's API, or llama.cpp's server, can use the model at http://127.0.0.1:8080.
/// Every flag can be in an environment variable, such as NIBBLE_PORT, and in a TOML file for --config, too. What is typed
/// counts most, then the environment, then the file.
#[derive(Debug, clap::Args)]
#[command(args_override_self = true)]
pub struct Args {
    /// The model: a GGUF file, or any part of a split one
    #[arg(value_hint = ValueHint::FilePath, required_unless_present = "models_dir")]
    model: Option<PathBuf>,

    /// Serve all GGUF files of this folder by their names. DIR/NAME.toml has flags for one of them
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, conflicts_with = "model")]
    models_dir: Option<PathBuf>,

    /// Read flags from this TOML file, by the same names
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,

    #[command(flatten)]
    listening: ListeningArgs,

    /// End a model's process when nobody has used it for so many minutes; 0 keeps it
    #[arg(long, value_name = "MINUTES", help_heading = "Serving",
          default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    unload_after: u32,

    /// The most models that are loaded at a time
    #[arg(long, value_name = "N", help_heading = "Serving",
          default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    most_models: u32,

    /// The most that the files of loaded models may take together, such as 24G [default: 80% of the memory]
    #[arg(long, value_name = "SIZE", help_heading = "Serving", value_parser = parse_size)]
    models_memory: Option<u64>,

    #[command(flatten)]
    serving: ServingArgs,

    /// What was said about how models run, for their processes.
    #[arg(skip)]
    said: Vec<OsString>,
}

impl Args {
    /// Keeps what was said about how models run.
    pub(super) fn keep_said(&mut self, matches: &ArgMatches) {
        self.said = forwarded(matches, &engine_command());
    }
}

/// Who can use the server.
#[derive(Debug, clap::Args)]
struct ListeningArgs {
    /// Address to listen on; other than 127.0.0.1, it needs --api-key or --no-auth
    #[arg(long, value_name = "ADDRESS", help_heading = "Listening",
          default_value = "127.0.0.1", value_parser = parse_host)]
    host: IpAddr,

    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "N", help_heading = "Listening", default_value_t = 8080)]
    port: u16,

    /// A key that requests need; can be given several times
    #[arg(long, value_name = "KEY", hide_env_values = true, help_heading = "Listening",
          action = clap::ArgAction::Append)]
    api_key: Vec<String>,

    /// A file with such keys, one a line
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Listening")]
    api_key_file: Option<PathBuf>,

    /// Let everybody who reaches the address use the server
    #[arg(long, help_heading = "Listening")]
    no_auth: bool,

    /// Let web pages of this origin use the server, such as http://localhost:3000; * for all
    #[arg(long, value_name = "ORIGIN", help_heading = "Listening", action = clap::ArgAction::Append)]
    cors_origin: Vec<String>,

    /// A name by which the server is reached, such as that of this machine in the network
    #[arg(long, value_name = "NAME", help_heading = "Listening", action = clap::ArgAction::Append)]
    allow_host: Vec<String>,

    /// End answers that take longer than so many seconds; 0 lets them
    #[arg(long, value_name = "SECONDS", help_heading = "Listening", default_value_t = 0)]
    timeout: u64,

    /// Do not tell at /slots what is being done
    #[arg(long, help_heading = "Listening")]
    no_slots: bool,

    /// Refuse requests that name no model, or another one
    ///
    /// Otherwise a server with one model uses that for all requests, because many clients have names
    /// of models of their own, and no setting for them.
    #[arg(long, help_heading = "Listening")]
    strict_models: bool,

    /// Form of the log, which has no prompts in it
    #[arg(long, value_name = "FORMAT", help_heading = "Listening",
          value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
    Off,
}

/// The address of a host. Names other than `localhost` are not looked up: what they mean can change.
fn parse_host(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(IpAddr::from([127, 0, 0, 1])),
        _ => text.trim_matches(['[', ']']).parse().map_err(|_| "expected an IP address, such as 127.0.0.1".to_string()),
    }
}

impl ListeningArgs {
    fn options(&self) -> anyhow::Result<Options> {
        let mut api_keys = self.api_key.clone();
        if let Some(path) = &self.api_key_file {
            let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
            api_keys.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_string));
        }
        let options = Options {
            address: SocketAddr::new(self.host, self.port),
            api_keys,
            no_auth: self.no_auth,
            cors_origins: self.cors_origin.clone(),
            hosts: self.allow_host.clone(),
            any_model_name: !self.strict_models,
            needs_model_name: self.strict_models,
            request_timeout: (self.timeout > 0).then(|| Duration::from_secs(self.timeout)),
            log_format: match self.log_format {
                LogFormat::Text => Format::Text,
                LogFormat::Json => Format::Json,
                LogFormat::Off => Format::Off,
            },
            slots: !self.no_slots,
            ..Options::default()
        };
        options.check()?;
        Ok(options)
    }
}

/// Parses a line for this command, with the environment and the file for `--config`. Ends the program if it is wrong.
pub(super) fn of_line(line: Vec<OsString>) -> Cli {
    let command = with_variables(Cli::command(), names_models(&line));
    let line = configured(line, &command).unwrap_or_else(|error| {
        super::report(&error);
        std::process::exit(1)
    });
    Cli::of(command, &line)
}

/// Whether a line says where models are. What it says replaces what the environment and the file say.
fn names_models(line: &[OsString]) -> bool {
    line.iter().skip(2).any(|word| {
        let word = word.to_string_lossy();
        word.to_lowercase().ends_with(".gguf") || word == "--models-dir" || word.starts_with("--models-dir=")
    })
}

fn is_place(argument: &Arg) -> bool {
    matches!(argument.get_id().as_str(), "model" | "models_dir")
}

/// Gives each argument of this command an environment variable: NIBBLE_, and the name of its flag.
pub(super) fn with_variables(cli: clap::Command, names_models: bool) -> clap::Command {
    let with = |argument: Arg| {
        let name = format!("NIBBLE_{}", argument.get_id().as_str().to_uppercase());
        // An empty one means none.
        let is_empty = std::env::var_os(&name).is_some_and(|value| value.is_empty());
        if is_empty || (names_models && is_place(&argument)) {
            return argument;
        }
        let argument = argument.env(name);
        // A switch: 0, false, no and off leave it off.
        match argument.get_action().takes_values() {
            true => argument,
            false => argument.value_parser(FalseyValueParser::new()),
        }
    };
    cli.mut_subcommand("serve", |command| command.mut_args(with))
}

/// Returns a line with what its `--config` file says in front of what was typed.
///
/// # Errors
/// If the file cannot be used.
fn configured(line: Vec<OsString>, cli: &clap::Command) -> anyhow::Result<Vec<OsString>> {
    let typed = |at: usize| {
        let word = line[at].to_str()?;
        let value = word.strip_prefix("--config=").map(OsString::from);
        value.or_else(|| (word == "--config").then(|| line.get(at + 1).cloned()).flatten())
    };
    let end = line.iter().position(|word| word == "--").unwrap_or(line.len());
    let Some(path) = (2..end).rev().find_map(typed).or_else(|| std::env::var_os("NIBBLE_CONFIG")) else {
        return Ok(line);
    };
    let command = cli.find_subcommand("serve").context("there is no such command")?;
    let places = names_models(&line);
    let more = settings::arguments(Path::new(&path), command, &|argument| places && is_place(argument))?;
    let (start, typed) = line.split_at(2);
    Ok(start.iter().cloned().chain(more).chain(typed.iter().cloned()).collect())
}

/// Returns what was said on the command line, in the environment or in a file about how models run, as flags.
fn forwarded(matches: &ArgMatches, command: &clap::Command) -> Vec<OsString> {
    use clap::parser::ValueSource;
    let mut flags = Vec::new();
    for argument in command.get_arguments() {
        let (id, Some(long)) = (argument.get_id().as_str(), argument.get_long()) else { continue };
        let is_said = matches!(matches.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable));
        if !is_said {
            continue;
        }
        if !argument.get_action().takes_values() {
            if matches.get_flag(id) {
                flags.push(format!("--{long}").into());
            }
            continue;
        }
        for value in matches.get_raw(id).into_iter().flatten() {
            let mut flag = OsString::from(format!("--{long}="));
            flag.push(value);
            flags.push(flag);
        }
    }
    flags
}

/// The flags of a model's process.
fn engine_command() -> clap::Command {
    <ServingArgs as clap::Args>::augment_args(clap::Command::new("engine"))
}

/// Returns the flags that `DIR/NAME.toml` has for a model.
fn own_flags(model: &Path) -> anyhow::Result<Vec<OsString>> {
    let path = model.with_extension("toml");
    match path.is_file() {
        true => settings::arguments(&path, &engine_command(), &|_| false),
        false => Ok(Vec::new()),
    }
}

/// A process for a model of a folder, whose settings are read when it starts.
struct WithSettings {
    program: PathBuf,
    model: PathBuf,
    flags: Vec<OsString>,
    has_own: bool,
}

impl Launch for WithSettings {
    fn launch(&self) -> std::io::Result<crate::serve::supervisor::Launched> {
        let mut arguments = vec![OsString::from("engine"), self.model.clone().into_os_string()];
        arguments.extend(self.flags.iter().cloned());
        if self.has_own {
            let own = own_flags(&self.model).map_err(|error| std::io::Error::other(format!("{error:#}")))?;
            arguments.extend(own);
        }
        let log = Arc::new(|line: &str| eprintln!("{}", printable(line)));
        Program { path: self.program.clone(), arguments, log }.launch()
    }
}

/// How long processes of models may take to write prefixes to the disk when the server stops.
const LAST_WRITING: Duration = Duration::from_secs(10);

pub fn run(args: Args) -> anyhow::Result<()> {
    let options = args.listening.options()?;
    let place = match (&args.model, &args.models_dir) {
        (_, Some(folder)) => Place::Folder(folder.clone()),
        (Some(model), None) => {
            // What is wrong with the file is said now, not to the first client.
            gguf::Gguf::open(model)?;
            Place::File(model.clone())
        }
        (None, None) => bail!("there is nothing to serve: give a GGUF file, or --models-dir"),
    };
    let flags = args.said;
    let program = std::env::current_exe().context("the program's own file cannot be found")?;
    let has_own = matches!(place, Place::Folder(_));
    let starts = Box::new(move |model: &Path| {
        let (program, model, flags) = (program.clone(), model.to_path_buf(), flags.clone());
        Arc::new(WithSettings { program, model, flags, has_own }) as Arc<dyn Launch>
    });
    let idle = (args.unload_after > 0).then(|| Duration::from_secs(60 * u64::from(args.unload_after)));
    let most_bytes = args.models_memory.or_else(|| Machine::this().map(|machine| machine.total / 5 * 4));
    let sharing = Sharing {
        limits: Limits { idle, ..Limits::default() },
        most_bytes: most_bytes.unwrap_or(u64::MAX),
        most_models: args.most_models as usize,
    };
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    interrupt::listen_and(move || {
        stop.send_replace(true);
    })?;
    // Two pass on what the models write without getting into the way of those who compute.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async move {
        let shown = match &place {
            Place::File(path) | Place::Folder(path) => path.display().to_string(),
        };
        let models = Arc::new(Models::new(place, sharing, starts).with_context(|| shown.clone())?);
        let address = options.address;
        let listener = TcpListener::bind(address).await.with_context(|| match address.port() {
            0 => format!("cannot listen on {address}"),
            port => {
                format!("cannot listen on {address}; is another program using port {port}? '--port 0' takes a free one")
            }
        })?;
        let address = listener.local_addr()?;
        eprintln!("nibble: serving {} at http://{address}", printable(&shown));
        models.load_first();
        let log = Log::to_stderr(options.log_format);
        let app = App::new(models.clone(), options, log);
        server::serve(app, listener, async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
            eprintln!("nibble: stopping; answers that are being written may end");
        })
        .await?;
        models.close(LAST_WRITING).await;
        anyhow::Ok(())
    })
}
