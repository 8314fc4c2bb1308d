//! The command line: one file per command. Answers go to stdout, progress and logs to stderr; the
//! exit code is that of the error's kind ([`Error::exit_code`]). Only here is anything printed.
//!
//! A command is a file with `pub struct Args` (clap) and `pub fn run(args: &Args, ui: &Ui) ->
//! Result<()>`, a `mod` line, and an arm in [`Command`] and in `dispatch`.

pub mod avoid;
pub mod bench;
mod bench_files;
mod bench_image;
mod bench_ops;
mod bytes;
pub mod chat;
pub mod common;
pub mod compare;
mod compare_args;
mod compare_tables;
pub mod completions;
pub mod demo;
pub mod devices;
pub mod doctor;
mod doctor_report;
mod doctor_tiers;
pub mod generate;
mod generate_inputs;
mod generate_report;
pub mod json;
pub mod language;
pub mod perplexity;
pub mod progress;
pub mod quantize;
mod quantize_calibrate;
mod quantize_state;
pub mod recover;
pub mod repl;
pub mod report;
pub mod sampling;
pub mod session;
pub mod show;
mod show_gguf;
pub mod study;
pub mod test;
pub mod tune;
pub mod tuned;
pub mod verify;

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::{Error, Result, gpu};
use common::Ui;

const AFTER_HELP: &str = "\
Exit codes:
  0 ok                        4 bad model file
  1 runtime or file error     5 out of memory
  2 usage                     6 device lost or timed out
  3 no usable GPU adapter     7 comparison out of tolerance      130 interrupted

Environment: RUST_LOG sets the log level, WGPU_BACKEND and WGPU_ADAPTER_NAME narrow the adapters,
INKNIB_MODELS names a folder where `-m NAME` is looked for, INKNIB_CACHE one for what `doctor` and `tune` remember
and for compiled kernels.

Examples:
  inknib demo                 a picture and a conversation
  inknib devices              the GPUs that can be used
  inknib doctor               does this GPU compute right?
  inknib COMMAND --help       flags and examples of one command";

/// Everything on the command line.
#[derive(Parser, Debug)]
#[command(
    name = "inknib",
    version,
    about = "Pictures and text from quantized models on any GPU, held against FP16 references",
    after_help = AFTER_HELP
)]
pub struct Cli {
    /// Print the answer as JSON on stdout
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more on stderr; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Paint one picture and hold one short conversation with the models that ship with inknib
    Demo(demo::Args),
    /// Paint a picture from a prompt
    Generate(Box<generate::Args>),
    /// Talk with a language model
    Chat(chat::Args),
    /// Say what low-bit weights and fast kernels change against FP16 under reference kernels
    Compare(compare::Args),
    /// Put what is said of low-bit weights to the test, claim by claim, and write an article of it
    Study(study::Args),
    /// Measure how well a language model predicts a text, and what its weights cost
    Perplexity(perplexity::Args),
    /// Run every kernel in every form against an f64 oracle: is this GPU, with this driver, right?
    Test(test::Args),
    /// Measure the speed and memory of a model, or of every op
    Bench(bench::Args),
    /// Measure which kernels are fastest on a GPU, and remember it
    Tune(tune::Args),
    /// Lay results of `test` and `bench` of several adapters side by side
    Report(report::Args),
    /// List the GPUs that can be used, best first
    Devices(devices::Args),
    /// Test whether a GPU computes right, and say how it will be used
    Doctor(doctor::Args),
    /// Run nets on golden tensors of diffusers and transformers and compare
    Verify(verify::Args),
    /// Write a model folder with quantized weights
    Quantize(quantize::Args),
    /// Print how a picture was made, from its text chunks
    Show(show::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
}

fn dispatch(command: &Command, ui: &Ui) -> Result<()> {
    match command {
        Command::Demo(args) => demo::run(args, ui),
        Command::Generate(args) => generate::run(args, ui),
        Command::Chat(args) => chat::run(args, ui),
        Command::Compare(args) => compare::run(args, ui),
        Command::Study(args) => study::run(args, ui),
        Command::Perplexity(args) => perplexity::run(args, ui),
        Command::Test(args) => test::run(args, ui),
        Command::Bench(args) => bench::run(args, ui),
        Command::Tune(args) => tune::run(args, ui),
        Command::Report(args) => report::run(args, ui),
        Command::Devices(args) => devices::run(args, ui),
        Command::Doctor(args) => doctor::run(args, ui),
        Command::Verify(args) => verify::run(args, ui),
        Command::Quantize(args) => quantize::run(args, ui),
        Command::Show(args) => show::run(args, ui),
        Command::Completions(args) => completions::run(args, ui),
    }
}

/// The clap definition, for completion scripts and tests.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses the arguments, runs the command, prints the error if there is one.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    log_to_stderr(cli.verbose);
    handle_interrupts();
    let ui = Ui::new(cli.json);
    match dispatch(&cli.command, &ui) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if common::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string(), error.exit_code(), ui.json() && !ui.answered()),
    }
}

/// Prints one error: a line on stderr and, for scripts that read JSON, an object on stdout.
fn fail(message: &str, code: u8, as_json: bool) -> ExitCode {
    // Nobody is left to tell if these writes fail.
    let _ = writeln!(std::io::stderr(), "inknib: {message}");
    if as_json {
        let _ = writeln!(std::io::stdout(), "{}", json::error(message, code));
    }
    ExitCode::from(code)
}

/// What clap has to say: help and version as they are, a usage error as one line.
fn refuse(error: &clap::Error) -> ExitCode {
    let shown = matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if shown {
        // A closed pipe is no failure.
        let _ = error.print();
        return ExitCode::from(error.exit_code().clamp(0, 255) as u8);
    }
    // The flag itself may not have been parsed.
    let as_json = std::env::args().any(|a| a == "--json");
    fail(&one_line(&error.to_string()), Error::Usage(String::new()).exit_code(), as_json)
}

/// clap's message without its usage block, and where to read on.
fn one_line(text: &str) -> String {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let usage = text.lines().find_map(|l| l.strip_prefix("Usage: ")).unwrap_or("inknib");
    let known = |name: &String| command().find_subcommand(name).is_some();
    // clap shows the usage of some errors only.
    let words = usage.split_whitespace().map(str::to_string);
    let named = words.chain(std::env::args().skip(1)).find(known);
    let said: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|l| !l.starts_with("Usage: ") && !l.starts_with("For more information"))
        .filter(|l| !l.is_empty())
        .collect();
    let help = named.map_or("inknib --help".to_string(), |n| format!("inknib {n} --help"));
    format!("{}; see `{help}`", said.join(" ").trim_end_matches('.'))
}

/// RUST_LOG decides; without it warnings, or more with `-v`.
fn log_to_stderr(verbose: u8) {
    let default = ["warn", "warn,inknib=debug", "debug,inknib=trace"][verbose.min(2) as usize];
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Only fails when a subscriber is set already, which does no harm.
    let _ = subscriber.try_init();
}

/// The first Ctrl-C asks politely: every wait looks at the flag. A second one before anybody has
/// answered the first ends the program at once.
fn handle_interrupts() {
    let handler = || {
        if gpu::interrupt().swap(true, Ordering::Relaxed) {
            #[allow(clippy::disallowed_methods)] // a handler has nobody to return to
            std::process::exit(i32::from(Error::Interrupted.exit_code()));
        }
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        tracing::warn!("Ctrl-C ends the program without clean-up: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        for sub in command().get_subcommands() {
            let help = sub.get_after_help().map(|h| h.to_string()).unwrap_or_default();
            let examples = help.matches("  inknib ").count();
            assert!(examples >= 2, "{}: {examples} examples in its help", sub.get_name());
        }
    }

    #[test]
    fn usage_errors_become_one_line() {
        let parse = |args: &[&str]| one_line(&Cli::try_parse_from(args).unwrap_err().to_string());
        for args in [
            &["inknib", "devices", "--colour"][..],
            &["inknib", "show"],
            &["inknib", "completions", "cobol"],
            &["inknib", "paint"],
        ] {
            let line = parse(args);
            assert!(!line.contains('\n') && !line.contains("Usage"), "{line}");
            assert!(line.contains("--help`"), "{line}");
        }
        assert!(parse(&["inknib", "devices", "--colour"]).contains("'--colour'"));
        assert!(parse(&["inknib", "show"]).contains("`inknib show --help`"));
    }
}
