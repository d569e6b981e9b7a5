use super::page::{Page, number};
use crate::host::open_files;

/// `USER_HZ`, fixed on Linux.
const TICKS: f64 = 100.0;
const PAGE: f64 = 4096.0;

/// The standard `process_*` metrics, as the client libraries of Prometheus name them.
pub(super) fn process(page: &mut Page) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect())
        .unwrap_or_default();
    // Numbered from the state, the third field of proc(5).
    let field = |number: usize| fields.get(number - 3).copied();
    let cpu = field(14).zip(field(15)).map(|(user, system)| (user + system) / TICKS);
    page.family("process_cpu_seconds_total").maybe(&[], cpu);
    page.family("process_virtual_memory_bytes").maybe(&[], field(23));
    page.family("process_resident_memory_bytes").maybe(&[], field(24).map(|pages| pages * PAGE));
    page.family("process_threads").maybe(&[], field(20));
    let boot = std::fs::read_to_string("/proc/stat")
        .ok()
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse::<f64>().ok());
    let start = field(22).zip(boot).map(|(since_boot, boot)| boot + since_boot / TICKS);
    page.family("process_start_time_seconds").maybe(&[], start);
    page.family("process_open_fds").sample(&[], number(open_files(std::process::id())));
    let max = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).ok();
    page.family("process_max_fds").maybe(&[], max.map(|(soft, _)| number(soft)));
}
