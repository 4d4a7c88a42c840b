//! What the parts of the way cost, each alone.
//!
//! Answers: where do the nanoseconds of `pipeline` go? A part alone misleads about the whole (an inline hash map ties with the
//! best table in it, and is several times slower inside the path); read these beside `pipeline`, not instead of it. Each
//! module's head says what its rows answer.

mod edit;
mod lookup;
mod parse;
mod table;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

/// Questions that are prepared ahead, so that making them is not measured.
const QUESTIONS: usize = 1 << 16;

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    targets = parse::rows, edit::nat, edit::overlay, lookup::policy, lookup::service, lookup::prefixes,
        table::sizes, table::loads, table::threads
}
criterion_main!(benches);
