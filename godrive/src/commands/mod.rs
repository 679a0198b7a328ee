//! The subcommands, one file each.

mod damaged;
mod down;
pub mod files;
mod intend;
mod mount;
mod pages;
mod status;
mod token;
mod trash;
mod up;

use crate::cli::Command;
use anyhow::Result;
use godrive_proto::admin::Intention;

pub async fn run(command: Command) -> Result<()> {
    match command {
        Command::Up(line) => up::run(line).await,
        Command::Down(home) => down::run(&home).await,
        Command::Mount(line) => mount::mount(line).await,
        Command::Umount(line) => mount::umount(&line).await,
        Command::Status(line) => status::run(&line).await,
        Command::Damaged(line) => damaged::run(&line).await,
        Command::Token(line) => token::run(&line).await,
        Command::Trash(line) => trash::run(&line).await,
        Command::Drain(line) => intend::run(&line.target, Intention::Drain, line.wait).await,
        Command::Undrain(line) => intend::run(&line, Intention::Undrain, false).await,
        Command::Decommission(line) => intend::run(&line.target, Intention::Decommission, line.wait).await,
        Command::Recommission(line) => intend::run(&line, Intention::Recommission, false).await,
        Command::Put(line) => files::put(line).await,
        Command::Get(line) => files::get(line).await,
        Command::Ls(line) => files::ls(&line).await,
        Command::Rm(line) => files::rm(&line).await,
        Command::Stat(line) => files::stat(&line).await,
        Command::Gateway(line) => crate::gateway::run(line).await,
        Command::Completions { shell } => pages::completions(shell),
        Command::Man { out } => pages::man(out.as_deref()),
    }
}
