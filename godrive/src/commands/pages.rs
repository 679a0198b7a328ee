//! Shell completions and manual pages, from the definition of the command line.

use crate::cli::Line;
use anyhow::{Context, Result};
use clap::CommandFactory;
use std::io::Write;
use std::path::Path;

pub fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Line::command(), "godrive", &mut text);
    std::io::stdout().write_all(&text).context("writing to standard output")
}

/// One page to standard output, or all of them into a folder.
pub fn man(out: Option<&Path>) -> Result<()> {
    match out {
        None => {
            let mut text = Vec::new();
            clap_mangen::Man::new(Line::command()).render(&mut text)?;
            std::io::stdout().write_all(&text).context("writing to standard output")
        }
        Some(folder) => {
            std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
            clap_mangen::generate_to(Line::command(), folder)
                .with_context(|| format!("writing manual pages into {}", folder.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_is_a_page_per_subcommand() {
        let folder = tempfile::tempdir().unwrap();
        super::man(Some(folder.path())).unwrap();
        for page in ["godrive.1", "godrive-up.1", "godrive-gateway.1"] {
            let text = std::fs::read_to_string(folder.path().join(page)).unwrap();
            assert!(text.contains(".TH"), "{page}");
        }
    }
}
