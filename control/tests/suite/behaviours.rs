//! `docs/swarm-behaviours.md` speaks of tests, scenarios and files: all of them exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// How many behaviours the inventory has in each section that is about orchestration.
const SECTIONS: [(char, usize); 6] = [('C', 9), ('D', 24), ('E', 14), ('F', 20), ('G', 12), ('H', 8)];

#[test]
fn the_page_of_swarms_behaviours_names_what_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace");
    let page = fs::read_to_string(root.join("docs/swarm-behaviours.md")).expect("the page");
    let mut source = String::new();
    for folder in ["control", "raft", "netoverlay", "proto", "node", "chaos-tests"] {
        gather(&root.join(folder), &mut source);
    }
    let scenarios = root.join("control/tests/scenarios");
    // What is between backticks is at the odd places.
    for quoted in page.lines().flat_map(|line| line.split('`').skip(1).step_by(2)) {
        let is_name = quoted.matches('_').count() >= 2
            && quoted.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if is_name {
            let exists =
                source.contains(&format!("fn {quoted}(")) || scenarios.join(format!("{quoted}.txt")).exists();
            assert!(exists, "there is no test and no scenario `{quoted}`");
        } else if quoted.ends_with(".rs") {
            assert!(root.join(quoted).exists(), "there is no file `{quoted}`");
        }
    }
}

#[test]
fn each_of_swarms_behaviours_in_orchestration_has_a_row() {
    let page = include_str!("../../../docs/swarm-behaviours.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
    let told: BTreeSet<String> = rows.flat_map(ids).collect();
    for (section, count) in SECTIONS {
        for number in 1..=count {
            let id = format!("{section}{number:02}");
            assert!(told.contains(&id), "{id} has no row");
        }
    }
}

/// `G04`, `G05, G06` and `G01 to G03`, each by itself.
fn ids(cell: &str) -> Vec<String> {
    match cell.split_once(" to ") {
        Some((first, last)) if first.len() == 3 && last.len() == 3 && first.is_char_boundary(1) => {
            let (Ok(from), Ok(until)) = (first[1..].parse::<u32>(), last[1..].parse::<u32>()) else {
                return Vec::new();
            };
            (from..=until).map(|number| format!("{}{number:02}", &first[..1])).collect()
        }
        _ => cell.split(", ").map(str::to_owned).collect(),
    }
}

fn gather(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).expect("a folder of the sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            gather(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(&path).expect("a source"));
        }
    }
}
