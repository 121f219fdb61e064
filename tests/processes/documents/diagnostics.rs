//! The manual explains each warning and error that is logged, and nothing else; and what it tells an operator to
//! do helps.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::command::Command;
use crate::server::{Directory, Server, exited, install, signal_process, wait_for_end};

/// The lines that the manual explains.
fn entries() -> Vec<String> {
    let manual = include_str!("../../../man/handover.1").replace("\\\n", "").replace("\\-", "-");
    let section =
        manual.split_once("\n.Sh DIAGNOSTICS\n").unwrap().1.split("\n.Sh ").next().unwrap().to_owned();
    section.lines().filter_map(|line| line.strip_prefix(".It Sy ").map(str::to_owned)).collect()
}

/// The text of the source files, without tests and comments.
fn sources(directory: &Path) -> Vec<String> {
    let is_test = |path: &PathBuf| path.file_stem().is_some_and(|name| name == "tests");
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let sources = paths.filter(|path| !is_test(path)).flat_map(|path| match path.is_dir() {
        true => sources(&path),
        false => vec![fs::read_to_string(path).unwrap()],
    });
    let without_tests =
        sources.map(|text| text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned());
    let is_comment = |line: &&str| line.trim_start().starts_with("//");
    let lines = |text: String| {
        text.lines().filter(|line| !is_comment(line)).map(|line| line.to_owned() + "\n").collect()
    };
    without_tests.map(lines).collect()
}

/// The string literals of a source, each with where it begins.
fn literals(source: &str) -> Vec<(usize, String)> {
    let mut literals = Vec::new();
    let mut characters = source.char_indices();
    let mut before = ' ';
    while let Some((begin, character)) = characters.next() {
        if character == '"' && before != '\'' && before != '\\' {
            let mut literal = String::new();
            while let Some((_, character)) = characters.next().filter(|(_, character)| *character != '"') {
                match character {
                    // What it escapes is a quotation mark, or the end of a line with the indentation of the next.
                    '\\' => literal.extend(characters.next().map(|(_, escaped)| escaped)),
                    _ => literal.push(character),
                }
            }
            literals.push((begin, literal.split_whitespace().collect::<Vec<_>>().join(" ")));
        }
        before = character;
    }
    literals
}

/// The literals, or format strings, that follow such a beginning of a call.
fn literals_behind(beginning: &str) -> Vec<String> {
    let of_source = |source: String| -> Vec<String> {
        let literals: HashMap<usize, String> = literals(&source).into_iter().collect();
        let behind = |(begin, _): (usize, &str)| {
            let rest = source[begin + beginning.len()..].trim_start();
            let rest = rest.strip_prefix("format!(").unwrap_or(rest).trim_start();
            literals.get(&(source.len() - rest.len())).cloned()
        };
        source.match_indices(beginning).filter_map(behind).collect()
    };
    sources(Path::new("src")).into_iter().flat_map(of_source).collect()
}

/// The fixed parts of a format string, between what is filled in.
fn fixed_parts(format: &str) -> Vec<&str> {
    format
        .split('{')
        .enumerate()
        .map(|(index, part)| if index == 0 { part } else { part.split_once('}').unwrap().1 })
        .collect()
}

/// Whether a line can come of a format string.
fn comes_of(line: &str, format: &str) -> bool {
    let parts = fixed_parts(format);
    let (first, others) = parts.split_first().unwrap();
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    let (last, others) = match others.split_last() {
        Some((last, others)) => (*last, others),
        None => return rest.is_empty(),
    };
    others.iter().all(|part| rest.split_once(part).map(|(_, behind)| rest = behind).is_some())
        && rest.ends_with(last)
}

/// The format strings of what is logged as a warning or an error, and of the errors with which a start fails.
fn reports() -> Vec<String> {
    let logged = ["log::warn!(", "log::error!("].into_iter().flat_map(literals_behind);
    // The message of a panic has no words of its own.
    let logged = logged.filter(|format| fixed_parts(format).concat().contains(char::is_alphabetic));
    let failures = ["(Error::new(", " Error::new(", "let attempt = "].into_iter().flat_map(literals_behind);
    logged.chain(failures.map(|attempt| format!("cannot {attempt}: {{}}"))).collect()
}

#[test]
fn each_warning_and_error_is_explained_in_the_manual() {
    let (reports, entries) = (reports(), entries());
    assert!(reports.len() > 40, "{reports:#?}");
    for report in reports {
        assert!(entries.iter().any(|entry| comes_of(entry, &report)), "{report:?} is not in DIAGNOSTICS");
    }
}

#[test]
fn each_line_that_the_manual_explains_is_in_the_sources() {
    // The command has some beside those of the library.
    let all = sources(Path::new("src")).into_iter().flat_map(|source| literals(&source));
    let has_words = |text: &String| fixed_parts(text).concat().matches(char::is_alphabetic).count() >= 10;
    let command = all.map(|(_, text)| text).filter(|text| !text.contains("{{") && has_words(text));
    let formats: Vec<String> = reports().into_iter().chain(command).collect();
    for entry in entries() {
        assert!(formats.iter().any(|format| comes_of(&entry, format)), "nothing says {entry:?}");
    }
}

#[test]
fn a_pid_file_that_could_not_be_written_is_made_by_the_next_handover() {
    let directory = Directory::new();
    let (program, run) = (directory.join("program"), directory.join("run"));
    install(&program);
    fs::create_dir(&run).unwrap();
    let mut command = Command::new(program);
    command.args(["--listen", "127.0.0.1:0", "--pid-file"]).arg(run.join("pid"));
    let server = Server::start_command(command, directory);
    fs::remove_dir_all(&run).unwrap();
    server.signal(Signal::SIGUSR2);
    server.expect("cannot write the PID file ");
    let line = server.expect(" ERROR cannot write ");

    // What the manual tells the operator to do.
    fs::create_dir(&run).unwrap();
    let pid = line.split(' ').nth(1).unwrap().parse().unwrap();
    signal_process(pid, Signal::SIGUSR2);
    let successor = server.expect_handover();
    assert_eq!(fs::read_to_string(run.join("pid")).unwrap(), format!("{successor}\n"));
    assert_eq!(wait_for_end(pid), exited(pid, 0));
}
