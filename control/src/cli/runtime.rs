//! `weir runtime`: where the workers' time goes, by stage, in the words of VPP's `show runtime`.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::Duration;

use serde::Serialize;
use weir_dataplane::admin::figures::{Runtime, StageRuntime, SystemCallCounts, WorkerRuntime};
use weir_dataplane::counters::{Stage, StageCounters};

use super::Answer;
use super::common::{AskArgs, Output, parse_duration, print_data, table};

/// Arguments of `weir runtime`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "calls: batches. vectors: packets. clocks: ticks of the time stamp counter. The stages of a worker add up to its time."
)]
pub(super) struct Args {
    #[command(flatten)]
    ask: AskArgs,
    /// Count from zero again, after showing what was counted
    #[arg(long)]
    clear: bool,
    /// Show the figures of each interval until interrupted, not those since the start
    #[arg(short, long, conflicts_with = "clear")]
    watch: bool,
    /// Length of an interval
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration, requires = "watch")]
    interval: Duration,
}

impl Args {
    pub(super) fn run(&self) -> anyhow::Result<Answer> {
        let mut client = self.ask.daemon.connect()?;
        if !self.watch {
            self.show(&client.runtime(self.clear)?)?;
            return Ok(Answer::Yes);
        }
        let mut before = client.runtime(false)?;
        loop {
            std::thread::sleep(self.interval);
            let now = client.runtime(false)?;
            self.show(&since(&now, &before))?;
            before = now;
        }
    }

    fn show(&self, runtime: &Runtime) -> anyhow::Result<()> {
        match self.ask.output {
            Output::Text | Output::Wide => io::stdout().write_all(text(runtime, self.ask.output == Output::Wide).as_bytes())?,
            // One after the other they stay readable by line.
            Output::Json if self.watch => writeln!(io::stdout(), "{}", serde_json::to_string(&report(runtime))?)?,
            Output::Yaml if self.watch => {
                writeln!(io::stdout(), "---")?;
                print_data(Output::Yaml, &report(runtime))?;
            }
            form => print_data(form, &report(runtime))?,
        }
        Ok(())
    }
}

/// What was counted between two answers. Where somebody cleared the figures in between, all of the later one.
pub(super) fn since(now: &Runtime, before: &Runtime) -> Runtime {
    if now.secs < before.secs {
        return now.clone();
    }
    let workers = now.workers.iter().map(|worker| {
        let Some(old) = before.workers.iter().find(|old| old.core == worker.core) else { return worker.clone() };
        let stage = |(now, before): (&StageRuntime, &StageRuntime)| StageRuntime {
            stage: now.stage,
            counters: StageCounters {
                calls: now.counters.calls.saturating_sub(before.counters.calls),
                vectors: now.counters.vectors.saturating_sub(before.counters.vectors),
                clocks: now.counters.clocks.saturating_sub(before.counters.clocks),
            },
        };
        WorkerRuntime {
            core: worker.core,
            rx: worker.rx.saturating_sub(old.rx),
            tx: worker.tx.saturating_sub(old.tx),
            drop: worker.drop.saturating_sub(old.drop),
            busy: worker.busy.saturating_sub(old.busy),
            system_calls: worker.system_calls.since(&old.system_calls),
            stages: worker.stages.iter().zip(&old.stages).map(stage).collect(),
        }
    });
    Runtime { secs: now.secs - before.secs, workers: workers.collect() }
}

/// What follows from the figures, as JSON and YAML have it beside them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    secs: f64,
    workers: Vec<WorkerReport>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WorkerReport {
    pub(super) core: u16,
    /// Part of the time that was not idle, 0 to 1.
    pub(super) busy: f64,
    /// Packets a second.
    pub(super) rx_rate: f64,
    pub(super) tx_rate: f64,
    pub(super) drop_rate: f64,
    /// Packets in a batch, on average.
    pub(super) vectors_per_call: Option<f64>,
    /// System calls a batch, those to sleep included, on average; by what for.
    pub(super) system_calls_per_batch: Option<f64>,
    system_calls: SystemCallCounts,
    /// Clocks of all stages but idle, by packet received.
    pub(super) clocks_per_packet: Option<f64>,
    stages: Vec<StageReport>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StageReport {
    #[serde(flatten)]
    runtime: StageRuntime,
    vectors_per_call: Option<f64>,
    clocks_per_packet: Option<f64>,
    nanos_per_packet: Option<f64>,
    /// Part of the worker's time, 0 to 1.
    share: f64,
}

fn ratio(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

fn report(runtime: &Runtime) -> Report {
    Report { secs: runtime.secs, workers: runtime.workers.iter().map(|worker| worker_report(worker, runtime.secs)).collect() }
}

pub(super) fn worker_report(worker: &WorkerRuntime, secs: f64) -> WorkerReport {
    let is_batch = |stage| !matches!(stage, Stage::Control | Stage::Idle);
    let sum =
        |of_batches| -> f64 { worker.stages.iter().filter(|s| is_batch(s.stage) == of_batches).map(|s| s.counters.clocks as f64).sum() };
    let idle: f64 = worker.stages.iter().filter(|s| s.stage == Stage::Idle).map(|s| s.counters.clocks as f64).sum();
    let batches = worker.busy as f64;
    let all = batches + sum(false);
    let busy = all - idle;
    // Of the batches a part was measured, which stands for all.
    let weight = ratio(batches, sum(true)).unwrap_or_default();
    let rate = |packets: u64| ratio(packets as f64, secs).unwrap_or_default();
    let stages = worker.stages.iter().map(|stage| {
        let StageCounters { calls, vectors, clocks } = stage.counters;
        let clocks = clocks as f64 * if is_batch(stage.stage) { weight } else { 1.0 };
        let clocks_per_packet = ratio(clocks, vectors as f64);
        StageReport {
            runtime: StageRuntime { stage: stage.stage, counters: StageCounters { calls, vectors, clocks: clocks as u64 } },
            vectors_per_call: ratio(vectors as f64, calls as f64).filter(|per_call| *per_call > 0.0),
            clocks_per_packet,
            nanos_per_packet: clocks_per_packet.and_then(|clocks| ratio(clocks * secs * 1e9, all)),
            share: ratio(clocks, all).unwrap_or_default(),
        }
    });
    let stages: Vec<StageReport> = stages.collect();
    let receive = stages.iter().find(|s| s.runtime.stage == Stage::Receive);
    WorkerReport {
        core: worker.core,
        busy: ratio(busy, all).unwrap_or_default(),
        rx_rate: rate(worker.rx),
        tx_rate: rate(worker.tx),
        drop_rate: rate(worker.drop),
        vectors_per_call: receive.and_then(|s| s.vectors_per_call),
        system_calls_per_batch: receive.and_then(|s| ratio(worker.system_calls.sum() as f64, s.runtime.counters.calls as f64)),
        system_calls: worker.system_calls,
        clocks_per_packet: ratio(busy, worker.rx as f64),
        stages,
    }
}

fn text(runtime: &Runtime, wide: bool) -> String {
    let mut out = String::new();
    let number = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.1}"));
    for worker in report(runtime).workers {
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "Worker on core {}: {:.1} s, {:.1} % busy, {} clocks/packet\n  vector rates in {:.0}, out {:.0}, drop {:.0} a second\n  system calls {} a batch: {}",
            worker.core,
            runtime.secs,
            worker.busy * 100.0,
            number(worker.clocks_per_packet),
            worker.rx_rate,
            worker.tx_rate,
            worker.drop_rate,
            number(worker.system_calls_per_batch),
            worker.system_calls.by_name().map(|(call, count)| format!("{call} {count}")).join(", "),
        );
        let rows = worker.stages.iter().map(|stage| {
            let StageCounters { calls, vectors, .. } = stage.runtime.counters;
            let mut row = vec![
                format!("{:?}", stage.runtime.stage).to_lowercase(),
                calls.to_string(),
                vectors.to_string(),
                number(stage.vectors_per_call),
                number(stage.clocks_per_packet),
                format!("{:.1}%", stage.share * 100.0),
            ];
            if wide {
                row.extend([number(stage.nanos_per_packet), stage.runtime.counters.clocks.to_string()]);
            }
            row
        });
        let mut headers = vec!["STAGE", "CALLS", "VECTORS", "VECTORS/CALL", "CLOCKS/PACKET", "TIME"];
        if wide {
            headers.extend(["NS/PACKET", "CLOCKS"]);
        }
        let _ = writeln!(out, "{}", table(&headers, rows));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime(secs: f64, calls: u64) -> Runtime {
        let stage = |stage, vectors, clocks| StageRuntime { stage, counters: StageCounters { calls, vectors, clocks } };
        let stages = vec![
            stage(Stage::Receive, calls * 32, calls * 800),
            stage(Stage::Apply, calls * 32, calls * 1_600),
            stage(Stage::Idle, 0, calls * 4_800),
        ];
        let system_calls = SystemCallCounts { send: calls, wait: calls / 2, ..SystemCallCounts::default() };
        // One batch in two was measured.
        Runtime {
            secs,
            workers: vec![WorkerRuntime {
                core: 1,
                rx: calls * 32,
                tx: calls * 31,
                drop: calls,
                busy: calls * 4_800,
                system_calls,
                stages,
            }],
        }
    }

    #[test]
    fn the_words_are_those_of_vpp_and_the_figures_follow_from_the_counters() {
        assert_eq!(
            text(&runtime(2.0, 100), false),
            "Worker on core 1: 2.0 s, 50.0 % busy, 150.0 clocks/packet\n  vector rates in 1600, out 1550, drop 50 a second\n  \
             system calls 1.5 a batch: send 100, fill 0, wait 50, watch 0, wake 0\n\
             STAGE     CALLS   VECTORS   VECTORS/CALL   CLOCKS/PACKET   TIME\n\
             receive   100     3200      32.0           50.0            16.7%\n\
             apply     100     3200      32.0           100.0           33.3%\n\
             idle      100     0         -              -               50.0%\n\n"
        );
        // 960,000 clocks in 2 s: 2083 ns each.
        let report = report(&runtime(2.0, 100));
        assert!((report.workers[0].stages[1].nanos_per_packet.unwrap() - 100.0 * 2e9 / 960_000.0).abs() < 1e-6);
    }

    #[test]
    fn a_worker_that_did_nothing_divides_by_nothing() {
        let text = text(&runtime(0.0, 0), true);
        assert!(text.contains("0.0 % busy, - clocks/packet"), "{text}");
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }

    #[test]
    fn an_interval_is_the_difference_of_two_answers_and_starts_anew_after_a_clear() {
        let interval = since(&runtime(3.0, 150), &runtime(2.0, 100));
        assert_eq!(interval, runtime(1.0, 50));
        assert_eq!(since(&runtime(0.5, 7), &runtime(2.0, 100)), runtime(0.5, 7));
    }
}
