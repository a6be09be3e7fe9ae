//! Completions and manual pages, made from the same definition as the help.

use std::fs;
use std::io;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::arguments::Arguments;
use super::{Exit, Failure, print_bytes};

/// `quarantine completions`.
pub(super) fn completions(shell: Shell) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "quarantine", &mut script);
    print_bytes(&script);
    Exit::Done
}

/// `quarantine man`.
pub(super) fn man(out: Option<&Path>) -> Result<Exit, Failure> {
    match out {
        None => page().map(|page| print_bytes(&page)).map(drop),
        Some(directory) => fs::create_dir_all(directory).and_then(|()| write_pages(directory)),
    }
    .map_err(|error| Failure::new(Exit::NotDone, format!("cannot write the manual pages: {error}")))?;
    Ok(Exit::Done)
}

fn page() -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Arguments::command()).section("8").render(&mut page)?;
    Ok(page)
}

fn write_pages(directory: &Path) -> io::Result<()> {
    fs::write(directory.join("quarantine.8"), page()?)?;
    let mut command = Arguments::command().disable_help_subcommand(true);
    // Gives the commands their full names.
    command.build();
    for subcommand in command.get_subcommands() {
        let mut page = Vec::new();
        let manual = clap_mangen::Man::new(subcommand.clone()).section("8");
        manual.render(&mut page)?;
        fs::write(directory.join(manual.get_filename()), page)?;
    }
    Ok(())
}
