//! Replays every scenario folder and compares bytes, verdicts and counters. `UPDATE=1` rewrites the goldens.

use weir_control::sim::scenario;

#[test]
fn every_scenario_gives_its_golden_output() {
    let update = std::env::var_os("UPDATE").is_some();
    let mut failures = Vec::new();
    let folders = weir_fixtures::scenarios();
    assert!(folders.len() >= 7, "the scenarios are gone: {folders:?}");
    for folder in folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        assert!(folder.join("README.md").is_file(), "{name} does not say why it is there");
        match scenario::run(&folder, update) {
            Ok(compared) => failures.extend(compared.differences.iter().map(|difference| format!("{name}: {difference}"))),
            Err(error) => failures.push(format!("{name}: {error}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
