//! The Rust that the documents show is what runs: it is that of an example, each of which is started as a process and
//! replaced under load, or it is a test itself.

use std::fs;
use std::path::Path;

use crate::documents::examples::files;
use crate::embedding::programs::start;
use crate::load::{Kind, Load};
use crate::server::{exited, wait_for_end};

/// The example whose clients do not speak HTTP: the same is done with it by
/// `each_line_is_answered_once_and_in_order_on_one_connection_over_twenty_handovers`.
const NO_HTTP: &str = "lines";

/// What stands between fences in Markdown, each with what the first fence says of it.
fn fenced<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<(&'a str, Vec<&'a str>)> {
    let mut blocks = Vec::new();
    let mut open: Option<(&str, Vec<&str>)> = None;
    for line in lines {
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(kind), None) => open = Some((kind, Vec::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some((_, block))) => block.push(line),
            (None, None) => {}
        }
    }
    blocks
}

/// A line of a comment that is documentation, without the slashes, or what is included in one.
fn documentation(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let text = line.strip_prefix("///").or(line.strip_prefix("//!"));
    let included = line.contains("doc = include_str!").then_some(line);
    text.map(|text| text.strip_prefix(' ').unwrap_or(text)).or(included)
}

/// Fails unless an example has these lines, one after the other, or is included in their place.
fn expect_excerpt(path: &Path, block: &[&str]) {
    let is_in = |example: &str, by: usize| {
        let indented = block.iter().map(|line| match *line {
            "" => "\n".to_owned(),
            _ => format!("{:by$}{line}\n", ""),
        });
        example.contains(&format!("\n{}", indented.collect::<String>()))
    };
    let is_excerpt = !block.is_empty()
        && files(Path::new("examples")).iter().any(|path| {
            let example = fs::read_to_string(path).unwrap();
            [0, 4, 8].iter().any(|by| is_in(&example, *by))
        });
    let is_included = block.len() == 1 && block[0].contains("include_str!(\"../examples/");
    assert!(is_excerpt || is_included, "{} shows what no example has:\n{}", path.display(), block.join("\n"));
}

#[test]
fn each_block_of_rust_in_the_readme_is_that_of_an_example() {
    let path = Path::new("README.md");
    let readme = fs::read_to_string(path).unwrap();
    let blocks = fenced(readme.lines()).into_iter().filter(|(kind, _)| *kind != "mermaid");
    let checked = blocks.map(|(_, block)| expect_excerpt(path, &block)).count();
    assert!(checked > 2, "{checked}");
}

#[test]
fn each_block_in_the_documentation_of_the_library_is_that_of_an_example_or_asserts_something() {
    let (mut excerpts, mut tests) = (0, 0);
    for path in files(Path::new("src")) {
        let source = fs::read_to_string(&path).unwrap();
        for (kind, block) in fenced(source.lines().filter_map(documentation)) {
            match kind {
                "no_run" => {
                    let is_shown = |line: &&str| *line != "#" && !line.starts_with("# ");
                    let shown: Vec<&str> = block.into_iter().filter(is_shown).collect();
                    expect_excerpt(&path, &shown);
                    excerpts += 1;
                }
                "" => {
                    // Not in a function that nothing calls.
                    let asserts = block.iter().any(|line| line.starts_with("assert"));
                    assert!(asserts, "{} shows what tests nothing:\n{}", path.display(), block.join("\n"));
                    tests += 1;
                }
                _ => panic!("{} has a block of {kind:?}:\n{}", path.display(), block.join("\n")),
            }
        }
    }
    assert!(excerpts > 2 && tests > 2, "{excerpts}, {tests}");
}

#[test]
fn each_example_is_replaced_under_load_and_no_connection_is_closed() {
    for path in files(Path::new("examples")) {
        let name = path.file_stem().unwrap().to_str().unwrap();
        if name == NO_HTTP {
            continue;
        }
        let server = start(name, "");
        let load = Load::start(server.address, &[Kind::KeepAlive, Kind::Naive, Kind::Poll], 2);
        for _ in 0..5 {
            let old = server.serving();
            server.hand_over();
            assert_eq!(wait_for_end(old), exited(old, 0), "{name}");
        }
        let clients = load.stop().len() as u32;
        assert_eq!((server.status("accepted="), server.status("lost=")), (clients, 0), "{name}");
        assert_eq!(server.stop(), exited(server.serving(), 0), "{name}");
    }
}
