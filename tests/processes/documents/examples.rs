//! The README and the manual are true as they stand: what they show is typed here, top to bottom, and has to
//! do what they show.
//!
//! Each document is run in a network namespace of its own, because what it shows is on port 3000.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Instant;
use std::{env, mem, thread};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::command::{Child, Command};
use crate::server::{BINARY, Directory, PATIENCE, expect_dead, install};
use crate::trace::Traces;
use crate::untested::is_installed;
use crate::untested::untested;

/// What stands for what it is in this place, beside the numbers, of which those of four digits or more are
/// process IDs, and the times.
const PLACEHOLDERS: [(&str, &str); 2] = [("/srv", "DIRECTORY"), ("0.1.0", env!("CARGO_PKG_VERSION"))];

/// The blocks that are not run, by their first lines, and why.
const NOT_RUN: [(&str, &str); 6] = [
    (
        "cargo run --release",
        "it builds the command, which the tests have, and runs it, as the next block does",
    ),
    ("cargo test", "it would be this test in itself"),
    (
        "#!/bin/sh",
        "it is a file for runit, and runit_sees_one_process_through_handovers is run with its like",
    ),
    (
        "#!/bin/sh -e",
        "it is a file, which what_a_script_runs_before_the_server_keeps_no_address_in_use_when_it_outlives_the_script \
         takes from here",
    ),
    (
        "2026-11-21T16:02:08.401Z 5568 INFO  127.0.0.1 40214 GET /hello 200 17",
        "it is one line, in two; the tests of the access log look at each field",
    ),
    (
        "goaccess --log-format='%dT%t.%^ %^ %^  %h %^ %m %U %s %b %L.%^ \"%v\" \"%u\"' \\",
        "it reads a log that is not named; goaccess_reads_the_access_log takes the format from here",
    ),
];

/// What is shown in one piece.
type Block = Vec<String>;

/// The blocks of Markdown: lines that four spaces indent, but for those of Rust between fences.
fn blocks_of_readme(text: &str) -> Vec<Block> {
    let outside_fences = text.split("\n```").step_by(2);
    blocks(outside_fences.flat_map(str::lines).map(|line| match line.strip_prefix("    ") {
        Some(shown) => Some(shown.to_owned()),
        None => line.is_empty().then(String::new),
    }))
}

/// Those of mdoc: what stands between `.Bd -literal` and `.Ed`.
fn blocks_of_manual(text: &str) -> Vec<Block> {
    let mut is_shown = false;
    blocks(text.lines().map(|line| {
        is_shown = line.starts_with(".Bd -literal") || is_shown && line != ".Ed";
        (is_shown && !line.starts_with(".Bd")).then(|| line.replace("\\e", "\\"))
    }))
}

/// Joins the lines of each block; `None` is a line between blocks.
fn blocks(lines: impl Iterator<Item = Option<String>>) -> Vec<Block> {
    let mut blocks = vec![Block::new()];
    for line in lines {
        let block = blocks.last_mut().unwrap();
        match line {
            Some(line) if !(line.is_empty() && block.is_empty()) => block.push(line),
            Some(_) => {}
            None => blocks.push(Block::new()),
        }
    }
    for block in &mut blocks {
        while block.pop_if(|line| line.is_empty()).is_some() {}
    }
    blocks.retain(|block| !block.is_empty());
    blocks
}

/// What a block shows, step by step.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// It is typed at a prompt, with the lines that the shell reads after it. What it prints follows, if that is shown.
    Command(String),
    /// It is typed at the prompt of another terminal.
    Elsewhere(String),
    /// It is typed into the program that runs.
    Typed(String),
    Printed(String),
}

fn steps(block: &Block) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut lines = block.iter();
    // What is typed into nc is a request, up to an empty line.
    let (mut is_nc, mut is_request) = (false, false);
    while let Some(line) = lines.next() {
        let elsewhere =
            line.trim().strip_prefix("(in another terminal: ").and_then(|line| line.strip_suffix(')'));
        if let Some(command) = line.strip_prefix("$ ") {
            let mut command = command.to_owned();
            if command.contains("<<END") {
                let rest = lines.by_ref().take_while(|line| *line != "END");
                rest.for_each(|line| command += &format!("\n{line}"));
                command += "\nEND";
            }
            is_nc = command.starts_with("nc ");
            is_request = is_nc;
            steps.push(Step::Command(command));
        } else if let Some(command) = elsewhere {
            is_request = is_nc;
            steps.push(Step::Elsewhere(command.to_owned()));
        } else if is_request {
            is_request = !line.is_empty();
            steps.push(Step::Typed(line.clone()));
        } else if !line.is_empty() {
            steps.push(Step::Printed(line.clone()));
        }
    }
    steps
}

/// What a stop logs at last.
const ENDS: &[&str] = &[" ends"];

/// What a command has to have logged before the next is typed: an operator looks whether it has taken effect.
fn effect(command: &str) -> &'static [&'static str] {
    let is_signal =
        |signals: &[&str]| signals.iter().any(|signal| command.contains(&format!("kill -{signal} ")));
    let is_handover = command.contains("-s restart") || command.contains("--takeover");
    if is_handover || is_signal(&["USR2", "HUP"]) {
        &["handed over to successor ", "both this process and successor ", "handover failed"]
    } else if is_server(command) {
        &[" is ready, version "]
    } else if is_signal(&["USR1"]) {
        &["configuration reloaded"]
    } else if is_signal(&["INT", "QUIT"]) || command.contains("-s stop") {
        ENDS
    } else if command.starts_with("curl ") && command.ends_with('&') {
        &[": GET /"]
    } else {
        &[]
    }
}

/// Whether a command starts a server, and does not ask one.
fn is_server(command: &str) -> bool {
    let program = command.split(' ').next().unwrap();
    ["handover", "target/release/handover", "./current_main"].contains(&program) && !command.contains(" -s ")
}

/// Whether a line is one of the log: it begins with a time.
fn is_logged(line: &str) -> bool {
    let is_at = |index: usize, expected: u8| line.as_bytes().get(index) == Some(&expected);
    is_at(4, b'-') && is_at(10, b'T') && is_at(19, b'.') && is_at(23, b'Z')
}

fn without_time(line: &str) -> &str {
    if is_logged(line) { &line[24..] } else { line }
}

/// A text, divided into numbers and what is between them.
fn pieces(text: &str) -> Vec<&str> {
    let both = |a: &u8, b: &u8| a.is_ascii_digit() == b.is_ascii_digit();
    text.as_bytes().chunk_by(both).map(|piece| str::from_utf8(piece).unwrap()).collect()
}

fn is_number(piece: &str) -> bool {
    piece.starts_with(|first: char| first.is_ascii_digit())
}

/// What the terminals show.
enum Output {
    Line(usize, String),
    /// The command has ended, with this status.
    Prompt(usize, String),
}

/// What stands before the status of a command when it has ended.
const PROMPT: &str = "the prompt is back: ";

struct Terminal {
    shell: Child,
    input: ChildStdin,
    is_busy: bool,
}

/// The session of a reader.
struct Session {
    directory: Directory,
    terminals: Vec<Terminal>,
    /// What is typed into a program: a FIFO, because a shell may read what is meant for the program.
    typed: Option<File>,
    sender: Sender<Output>,
    output: Receiver<Output>,
    /// What has been printed and not been compared yet, and all that has been logged.
    printed: Vec<String>,
    log: Vec<String>,
    traces: Traces,
    /// The numbers of the document, and what they stand for.
    numbers: HashMap<String, String>,
    /// All that has been typed and shown.
    transcript: Vec<String>,
}

impl Session {
    /// In a directory with what a reader has: the command, as it has been built and as it has been installed, and a
    /// new version of it.
    fn begin() -> Session {
        let directory = Directory::new();
        fs::create_dir_all(directory.join("target/release")).unwrap();
        fs::create_dir(directory.join("bin")).unwrap();
        for program in ["target/release/handover", "bin/handover", "handover.new"] {
            install(&directory.join(program));
        }
        mkfifo(&directory.join("typed"), Mode::S_IRWXU).unwrap();
        // On a terminal it shows no progress.
        fs::write(directory.join(".curlrc"), "silent\nshow-error\n").unwrap();
        let (sender, output) = mpsc::channel();
        Session {
            directory,
            terminals: Vec::new(),
            typed: None,
            sender,
            output,
            printed: Vec::new(),
            log: Vec::new(),
            traces: Traces::default(),
            numbers: HashMap::new(),
            transcript: Vec::new(),
        }
    }

    fn run(&mut self, block: &Block) {
        let steps = steps(block);
        for (index, step) in steps.iter().enumerate() {
            let shown = steps[index + 1..].iter().map_while(|step| match step {
                Step::Printed(line) => Some(line.as_str()),
                _ => None,
            });
            let shown: Vec<&str> = shown.collect();
            match step {
                Step::Command(command) => {
                    let is_interactive = matches!(steps.get(index + 1), Some(Step::Typed(_)));
                    self.command(command, &shown, is_interactive);
                }
                Step::Elsewhere(command) => self.command(command, &shown, false),
                Step::Typed(line) => {
                    self.expect_drained();
                    writeln!(self.typed.as_mut().unwrap(), "{line}").unwrap();
                    self.transcript.push(line.clone());
                    self.expect(&shown);
                }
                // It goes on a block from before.
                Step::Printed(_) if index == 0 => {
                    let mut all = vec![block[0].as_str()];
                    all.extend(shown);
                    self.expect(&all);
                }
                Step::Printed(_) => {}
            }
        }
    }

    /// Types a command at a prompt, and waits until it has ended, unless it is one that stays, and has taken
    /// effect, and has printed what is shown.
    fn command(&mut self, command: &str, shown: &[&str], is_interactive: bool) {
        let command = self.filled(command);
        let stays = is_interactive || is_server(&command) && !command.ends_with('&');
        let effect = effect(&command);
        if effect == ENDS || command.contains(" -s ") {
            self.expect_drained();
        }
        let index = self.idle_terminal();
        let terminal = &mut self.terminals[index];
        terminal.is_busy = true;
        let logged = self.log.len();
        self.transcript.push(format!("$ {command}"));
        // The shell reads all of it before it executes any.
        let input = if is_interactive { "<typed" } else { "" };
        writeln!(terminal.input, "{{ {command}\n}} {input}; echo \"{PROMPT}$?\"").unwrap();
        if is_interactive {
            self.typed = Some(File::create(self.directory.join("typed")).unwrap());
        }
        self.wait(&format!("{command:?} to end and to log one of {effect:?}"), |session| {
            let has_effect = |line: &String| effect.iter().any(|text| line.contains(text));
            (stays || !session.terminals[index].is_busy)
                && (effect.is_empty() || session.log[logged..].iter().any(has_effect))
        });
        if effect == ENDS {
            self.expect_drained();
        }
        self.expect(shown);
    }

    /// A terminal with a prompt.
    fn idle_terminal(&mut self) -> usize {
        if let Some(index) = self.terminals.iter().position(|terminal| !terminal.is_busy) {
            return index;
        }
        let path = format!("{}:{}", self.directory.join("bin").display(), env::var("PATH").unwrap());
        let mut command = Command::new("sh");
        // More than what is shown, so that what happens is known.
        command.args(["-c", "exec sh 2>&1"]).current_dir(self.directory.path()).env("PATH", path);
        command.env("HOME", self.directory.path()).env("RUST_LOG", "debug");
        let mut shell = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (index, sender, traces) = (self.terminals.len(), self.sender.clone(), self.traces.clone());
        let output = BufReader::new(shell.stdout.take().unwrap());
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok).filter(|line| !traces.take(line)) {
                let _ = sender.send(match line.strip_prefix(PROMPT) {
                    Some(status) => Output::Prompt(index, status.to_owned()),
                    None => Output::Line(index, line.trim_end().to_owned()),
                });
            }
        });
        self.terminals.push(Terminal { input: shell.stdin.take().unwrap(), shell, is_busy: false });
        index
    }

    /// Takes what the terminals show until something is true.
    fn wait(&mut self, what: &str, mut condition: impl FnMut(&mut Session) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(Output::Line(index, line)) => {
                    self.transcript.push(format!("{index}: {line}"));
                    if is_logged(&line) { self.log.push(line) } else { self.printed.push(line) }
                }
                Ok(Output::Prompt(index, status)) => {
                    self.terminals[index].is_busy = false;
                    assert_eq!(status, "0", "the status of a command\n{}", self.transcript.join("\n"));
                }
                Err(error) => panic!("{error} for {what}:\n{}", self.transcript.join("\n")),
            }
        }
    }

    /// Waits until the terminals have shown these lines. A line of the log may come before another, and between others
    /// that are not shown; a line of three dots stands for any number of lines. Nothing else may be
    /// printed, unless nothing is shown at all.
    fn expect(&mut self, shown: &[&str]) {
        let mut position = 0;
        let mut is_anything = false;
        for expected in shown {
            if *expected == "…" {
                is_anything = true;
            } else if is_logged(expected) {
                self.wait(expected, |session| {
                    let log = session.log.clone();
                    log.iter().any(|line| session.matches(expected, line))
                });
            } else {
                self.wait(expected, |session| {
                    while let Some(line) = session.printed.get(position).cloned() {
                        position += 1;
                        if session.matches(expected, &line) {
                            return true;
                        }
                        let transcript = || session.transcript.join("\n");
                        assert!(is_anything, "{line:?} instead of {expected:?}\n{}", transcript());
                    }
                    false
                });
                is_anything = false;
            }
        }
        let rest = self.printed.split_off(position);
        assert!(position == 0 || rest.is_empty(), "{rest:?} is not shown\n{}", self.transcript.join("\n"));
        self.printed.clear();
    }

    /// Whether a line is what is shown, with one process for each number.
    fn matches(&mut self, shown: &str, line: &str) -> bool {
        let shown = self.in_place(shown);
        let (shown, line) = (pieces(without_time(&shown)), pieces(without_time(line)));
        let mut numbers = self.numbers.clone();
        let mut before = "";
        let is_match = shown.len() == line.len()
            && shown.into_iter().zip(line).all(|(shown, line)| {
                let (before, is_number) =
                    (mem::replace(&mut before, shown), is_number(shown) && is_number(line));
                if is_number && ["uptime=", "since-handover="].iter().any(|name| before.ends_with(name)) {
                    true
                } else if is_number && shown.len() >= 4 && before != ":" {
                    let is_new = !numbers.values().any(|known| known == line);
                    let is_same = numbers.get(shown).map_or(is_new, |known| known == line);
                    numbers.insert(shown.to_owned(), line.to_owned());
                    is_same
                } else {
                    shown == line
                }
            });
        if is_match {
            self.numbers = numbers;
        }
        is_match
    }

    /// Waits until each process has ended that has said that it drains or ends: nobody types as fast as that.
    fn expect_drained(&mut self) {
        let pid = |line: &String| line.split(' ').nth(1).unwrap().parse().unwrap();
        let pids = |log: &[String], text: &str| -> Vec<u32> {
            log.iter().filter(|line| line.contains(text)).map(pid).collect()
        };
        self.wait("what drains to end", |Session { log, .. }| {
            let ended = pids(log, " ends");
            pids(log, "draining, ").iter().all(|pid| ended.contains(pid))
        });
        pids(&self.log, " ends").into_iter().for_each(expect_dead);
    }

    /// A text with what the placeholders and the numbers in it stand for.
    fn filled(&self, text: &str) -> String {
        let text = self.in_place(text);
        pieces(&text).into_iter().map(|piece| self.numbers.get(piece).map_or(piece, String::as_str)).collect()
    }

    /// A text with what the placeholders in it stand for.
    fn in_place(&self, text: &str) -> String {
        let directory = self.directory.path().to_str().unwrap();
        let replace = |text: String, (from, to): &(&str, &str)| {
            text.replace(from, if *to == "DIRECTORY" { directory } else { to })
        };
        PLACEHOLDERS.iter().fold(text.to_owned(), replace)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // What they have started ends with the namespace.
        for terminal in &mut self.terminals {
            let _ = terminal.shell.kill();
            let _ = terminal.shell.wait();
        }
    }
}

/// Runs a test that is ignored in a network namespace, in which nothing has port 3000, and in one of processes, which
/// end with it.
fn in_namespaces(test: &str) {
    if !["ip", "curl", "nc"].into_iter().all(is_installed) {
        return;
    }
    let unshare = ["--map-root-user", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"];
    let probe = Command::new("unshare").args(unshare).arg("true").output();
    if !probe.is_ok_and(|output| output.status.success()) {
        untested("no namespace is to be had");
        return;
    }
    let directory = Directory::new();
    let mut command = Command::new("unshare");
    command.args(unshare).args(["sh", "-c", "ip link set lo up && exec \"$@\"", "sh"]);
    command.arg(env::current_exe().unwrap()).args(["--ignored", "--exact", "--nocapture", test]);
    // There every test is process 1, but the directories are named by process.
    let output = command.env("TMPDIR", directory.path()).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stdout));
}

fn is_run(block: &Block) -> bool {
    !NOT_RUN.iter().any(|(first, _)| *first == block[0])
}

/// Runs the blocks of a document, after which nothing is left.
fn run(blocks: Vec<Block>) {
    let mut session = Session::begin();
    blocks.iter().filter(|block| is_run(block)).for_each(|block| session.run(block));
    let count = |text: &str| session.log.iter().filter(|line| line.contains(text)).count();
    assert_eq!(count(" is ready, version "), count(" ends"), "{}", session.transcript.join("\n"));
    session.traces.check().unwrap();
}

fn readme() -> Vec<Block> {
    blocks_of_readme(include_str!("../../../README.md"))
}

fn manual() -> Vec<Block> {
    blocks_of_manual(include_str!("../../../man/handover.1"))
}

#[test]
fn each_block_of_the_readme_does_what_it_shows() {
    in_namespaces("documents::examples::what_the_readme_shows");
}

#[test]
fn each_block_of_the_manual_does_what_it_shows() {
    in_namespaces("documents::examples::what_the_manual_shows");
}

/// No test, but what the one above starts.
#[test]
#[ignore = "another test starts it"]
fn what_the_readme_shows() {
    run(readme());
}

/// No test, but what the one above starts.
#[test]
#[ignore = "another test starts it"]
fn what_the_manual_shows() {
    run(manual());
}

#[test]
fn each_block_that_is_not_run_is_there() {
    let blocks = [readme(), manual()].concat();
    for (first, reason) in NOT_RUN {
        assert_eq!(blocks.iter().filter(|block| block[0] == first).count(), 1, "{first}, of which {reason}");
    }
    assert!(blocks.len() - NOT_RUN.len() > 8, "{blocks:#?}");
}

#[test]
fn each_option_of_the_help_is_in_the_synopsis_and_the_list_of_the_manual() {
    let manual = include_str!("../../../man/handover.1");
    let (synopsis, rest) = manual.split_once("\n.Sh DESCRIPTION\n").unwrap();
    let items: Vec<&str> = rest.lines().filter(|line| line.starts_with(".It Fl ")).collect();
    let help = Command::new(BINARY).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let options: Vec<&str> = help.lines().filter_map(option_of_help).collect();
    assert!(options.len() > 20, "{help}");
    for option in options {
        let is_named = |line: &str| line.split(' ').any(|word| word.strip_prefix('-') == Some(option));
        assert!(synopsis.lines().any(is_named), "--{option} is not in the synopsis");
        assert!(items.iter().any(|item| is_named(item)), "--{option} is not explained");
    }
}

/// The option that a line of the help is about, without the dashes.
fn option_of_help(line: &str) -> Option<&str> {
    let name = line.strip_prefix("  ")?.get(4..)?.strip_prefix("--")?;
    name.split(' ').next()
}

/// Every file below a directory.
pub fn files(directory: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn each_file_that_a_document_names_is_there() {
    let readme = include_str!("../../../README.md");
    let links = readme.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
    let links = links.filter(|link| !link.starts_with('#')).inspect(|link| {
        assert!(Path::new(link).exists(), "{link} is not there");
    });
    assert!(links.count() > 5);

    let library = include_str!("../../../src/lib.rs");
    let sources = files(Path::new("src"));
    let named = library.split('`').filter(|name| name.ends_with(".rs") && !name.starts_with("examples/"));
    let named = named.inspect(|name| {
        assert!(sources.iter().any(|path| path.ends_with(name)), "src/lib.rs names {name}");
    });
    assert!(named.count() > 20);
}

#[test]
fn the_diagram_of_the_readme_shows_words_of_the_protocol_in_their_order() {
    let readme = include_str!("../../../README.md");
    let diagram = readme.split("```").find(|block| block.starts_with("mermaid")).unwrap();
    let between = |line: &&str| ["O->>N: ", "N->>O: "].iter().any(|arrow| line.trim().starts_with(arrow));
    let words =
        diagram.lines().filter(between).map(|line| line.trim()[7..].split([' ', ',']).next().unwrap());
    assert_eq!(words.collect::<Vec<_>>(), ["posix_spawn", "ready", "go", "serving", "move", "took"]);
    let protocol = concat!(
        include_str!("../../../src/handover/mod.rs"),
        include_str!("../../../src/handover/moving.rs")
    );
    for word in ["handover 1", "ready", "go", "serving", "move", "took"] {
        assert!(diagram.contains(word), "{word} is missing");
        let is_word = |end| protocol.contains(&format!("`{word}{end}"));
        assert!(is_word('`') || is_word(' '), "{word} is no word");
    }
}
