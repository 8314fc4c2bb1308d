//! `inknib completions SHELL`

use clap_complete::Shell;

use super::common::Ui;
use crate::Result;

const EXAMPLES: &str = "\
Examples:
  inknib completions bash > ~/.local/share/bash-completion/completions/inknib
  inknib completions zsh > ~/.zfunc/_inknib
  inknib completions fish > ~/.config/fish/completions/inknib.fish";

/// Flags of `inknib completions`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The shell to write for
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Prints the script; with `--json` as `{shell, script}`.
pub fn run(args: &Args, ui: &Ui) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "inknib", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    if ui.json() {
        return ui.answer(&serde_json::json!({
            "shell": args.shell.to_string(),
            "script": script,
        }));
    }
    ui.print(&script)
}
