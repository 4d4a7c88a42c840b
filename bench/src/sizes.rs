//! Which sizes a run measures.

/// Numbers of flows, up to what `WEIR_BENCH_FLOWS_MAX` (default 10,000,000) allows and the memory holds.
pub fn flows() -> Vec<u32> {
    let limit = limit().min(fitting(available_bytes()));
    [1_000, 100_000, 1_000_000, 10_000_000].into_iter().filter(|flows| *flows <= limit).collect()
}

/// As many flows as asked for, or as the run is limited to.
pub fn up_to(flows: u32) -> u32 {
    flows.min(limit())
}

fn limit() -> u32 {
    std::env::var("WEIR_BENCH_FLOWS_MAX").ok().and_then(|text| text.parse().ok()).unwrap_or(u32::MAX)
}

/// A flow takes 171 bytes in the connection table and up to 430 in the hash map beside it, where both directions are keys.
const BYTES_PER_FLOW: u64 = 640;

fn fitting(bytes: u64) -> u32 {
    u32::try_from(bytes / BYTES_PER_FLOW).unwrap_or(u32::MAX)
}

/// Memory that can be had without swapping, as the kernel estimates it.
fn available_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()).map_or(u64::MAX, |kib| kib << 10)
}
