//! An independent oracle: a slow, plain evaluator straight from the Kubernetes objects, and random clusters that go through
//! it and through the real pipeline.
//!
//! `WEIR_SEED` starts elsewhere, `WEIR_PAIRS` asks more or fewer questions (`ci/fuzz.sh`). Every difference is printed as a
//! case file with the seed of its cluster; `WEIR_SEED=<that> WEIR_PAIRS=1` repeats it.

mod cases;
mod cluster;
mod compare;
mod minimal;
mod packets;
mod policies;
mod policy;
mod question;
mod run;
mod service;
mod services;
mod sessions;
mod standing;
mod who;

/// A number from the environment.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
fn the_oracle_agrees_with_every_conformance_case() {
    let report = cases::run();
    println!("{} expectations of the conformance cases", report.checked);
    assert!(report.differences.is_empty(), "{} differ:\n{}", report.differences.len(), report.differences.join("\n"));
    assert!(report.checked > 90_000);
}

#[test]
fn tables_and_oracle_agree_on_random_clusters_that_change() {
    let (seed, pairs) = (number("WEIR_SEED", 1), number("WEIR_PAIRS", 1_000_000));
    let report = run::questions(seed, pairs);
    println!("{report}");
    assert!(report.failures.is_empty(), "{}", report.failures.join("\n"));
    assert!(report.kept > 0 && report.anew > 0, "no client came again");
    let after = report.standing;
    assert!(after.kept > 0 && after.anew > 0 && after.cut > 0, "no connection met a change: {after:?}");
}

#[test]
fn the_order_of_objects_changes_no_byte_and_no_answer() {
    let seed = number("WEIR_SEED", 1);
    let (count, failures) = run::orders(seed, 50);
    println!("{count} orders of the objects of the clusters {seed}..{}", seed + 50);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
