//! Every metric that the engine shows. What describes them at `/metrics` and the page `docs/metrics.md` are made of this list;
//! a test holds it against the code that counts and writes them.

use std::fmt::Write as _;

/// One family of series.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: MetricKind,
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

/// Metrics that come from one place.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    pub title: &'static str,
    /// Where the values come from, and when series begin and end.
    pub about: &'static str,
    pub metrics: &'static [Metric],
}

impl MetricKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Counter, labels, help }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Gauge, labels, help }
}

const fn histogram(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Histogram, labels, help }
}

const GPU: &[&str] = &["uuid", "index"];
const DCGM: &[&str] = &["gpu", "UUID", "device", "modelName", "Hostname"];

/// All of them.
pub const GROUPS: &[Group] = &[
    Group {
        title: "Machine",
        about: "The engine's own state, read at the scrape.",
        metrics: &[
            gauge("machinist_build_info", &["version"], "The version of the engine; always 1."),
            gauge("machinist_machine_state", &["state"], "1 for the state that the machine is in."),
            gauge(
                "machinist_machine_cpus",
                &[],
                "CPUs that the machine may use: the container's limit, else the host's.",
            ),
            gauge(
                "machinist_machine_memory_bytes",
                &[],
                "Memory that the machine may use: the container's limit, else the host's.",
            ),
            gauge(
                "machinist_resource_used_ratio",
                &["resource"],
                "How much of a resource is in use, of 1, at the latest look (`resources.every`).",
            ),
            counter("machinist_resource_shortages_total", &["resource"], "How often a resource became short."),
        ],
    },
    Group {
        title: "Scripts and reloads",
        about: "Counted where it happens. What scripts count themselves is named `machinist_script_` and theirs, ends after an hour \
                without a change, and is limited to 1,000 series.",
        metrics: &[
            gauge("machinist_generation", &[], "The number of the generation that runs."),
            counter("machinist_reloads_total", &["result"], "Reloads: `committed`, `rejected` or `rolled_back`."),
            gauge(
                "machinist_last_reload_success",
                &[],
                "1 when the latest reload was committed, 0 when it was refused or rolled back.",
            ),
            gauge(
                "machinist_last_reload_success_timestamp_seconds",
                &[],
                "When a generation last passed its probation, since the epoch.",
            ),
            counter("machinist_script_errors_total", &["hook"], "Failed calls of hooks."),
            counter("machinist_script_events_skipped_total", &[], "Events that on_event was not called for."),
            counter("machinist_script_metrics_dropped_total", &[], "Changes of scripts' series beyond the thousandth."),
        ],
    },
    Group {
        title: "Services",
        about: "By the name of the service; a series ends when the service is gone from the script. Usage is of the whole process tree, \
                read from `/proc` at the scrape. Memory of GPUs is what the driver says of the tree's processes, where it shows them.",
        metrics: &[
            gauge("machinist_service_up", &["service"], "1 while the service has a process."),
            gauge("machinist_service_ready", &["service"], "1 while the service is ready or completed."),
            counter("machinist_service_starts_total", &["service"], "Processes started."),
            counter(
                "machinist_service_exits_total",
                &["service", "outcome"],
                "Processes that ended: `stopped`, `success`, `failure`, `signal`, `out_of_memory` or `not_started`.",
            ),
            counter("machinist_service_restarts_total", &["service"], "Restarts that nobody asked for."),
            counter("machinist_service_strays_total", &["service"], "Processes left behind that were ended."),
            counter("machinist_service_over_limit_total", &["service"], "Restarts for using more than it may."),
            counter(
                "machinist_service_log_dropped_lines_total",
                &["service"],
                "Lines that a limit or a full disk took.",
            ),
            gauge("machinist_service_start_time_seconds", &["service"], "When its process started, since the epoch."),
            counter("machinist_service_cpu_seconds_total", &["service"], "CPU time of the tree."),
            gauge("machinist_service_memory_bytes", &["service"], "Memory of the tree, shared pages divided (PSS)."),
            gauge("machinist_service_processes", &["service"], "Processes of the tree."),
            gauge("machinist_service_threads", &["service"], "Threads of the tree."),
            gauge("machinist_service_open_fds", &["service"], "Open file descriptors of the tree."),
            counter("machinist_service_read_bytes_total", &["service"], "Read from storage by the tree."),
            counter("machinist_service_written_bytes_total", &["service"], "Written to storage by the tree."),
            gauge(
                "machinist_service_gpu_memory_bytes",
                &["service", "uuid", "index"],
                "GPU memory of the tree, by GPU.",
            ),
        ],
    },
    Group {
        title: "Jobs",
        about: "What this machine submitted and ran, counted where it happens. `service` is the job's: the first 200 have series of their \
                own, the others are `other`.",
        metrics: &[
            counter("machinist_jobs_submitted_total", &["service"], "Jobs queued through this machine."),
            counter(
                "machinist_jobs_finished_total",
                &["service", "outcome"],
                "Jobs that came to an end here: `completed`, `failed` or `cancelled`.",
            ),
            counter("machinist_jobs_retried_total", &["service"], "Attempts that failed here and are made again."),
            counter(
                "machinist_job_failures_total",
                &["connector", "class"],
                "Attempts that failed here, by what kind of failure it was.",
            ),
            histogram("machinist_job_wait_seconds", &["service"], "From when a job could be claimed to its claim."),
            histogram(
                "machinist_job_duration_seconds",
                &["connector", "outcome"],
                "Attempts: `completed`, `failed`, `timeout`, `cancelled` or `released`.",
            ),
            gauge("machinist_worker_slots", &["worker"], "Jobs that the worker may run at once."),
            gauge("machinist_worker_busy", &["worker"], "Jobs that the worker runs now."),
            counter(
                "machinist_connector_usage_total",
                &["connector", "unit"],
                "What jobs used up, as their connector reports it: tokens, seconds, images; failed attempts included.",
            ),
            counter(
                "machinist_connector_cost_dollars_total",
                &["connector"],
                "What jobs cost, as their connector reports or reckons it; failed attempts included.",
            ),
            counter(
                "machinist_account_holds_total",
                &["account", "cause"],
                "How often a job here had its account held for all machines: `rate`, `account` or `failures` (several jobs in a row).",
            ),
        ],
    },
    Group {
        title: "Traces",
        about: "Spans that are exported where `telemetry.otlp_endpoint` says so, counted where it happens.",
        metrics: &[
            counter("machinist_spans_exported_total", &[], "Spans that the receiver took."),
            counter(
                "machinist_spans_dropped_total",
                &["reason"],
                "Spans that were not exported: `queue_full`, or `export_failed` where the receiver did not take them.",
            ),
        ],
    },
    Group {
        title: "Queue",
        about: "The whole queue, the same on every machine that shares it, read at the scrape; absent while the queue cannot be reached. \
                The 200 services and pools with the most jobs have series of their own, the others are `other`.",
        metrics: &[
            gauge("machinist_queue_jobs", &["state"], "Jobs in the queue."),
            gauge(
                "machinist_queue_service_jobs",
                &["service", "state"],
                "Jobs that are not over: `pending`, `running` or `later` (delayed or blocked).",
            ),
            gauge(
                "machinist_queue_pool_jobs",
                &["pool", "state"],
                "Jobs that are not over: `pending`, `running` or `later` (delayed or blocked).",
            ),
            gauge("machinist_queue_oldest_seconds", &["service"], "The age of the pending job that waits longest."),
            gauge("machinist_queue_pool_oldest_seconds", &["pool"], "The age of the pending job that waits longest."),
            gauge("machinist_queue_unmatched_jobs", &[], "Jobs that wait although no worker matches them."),
            gauge(
                "machinist_account_held",
                &["account"],
                "1 while nobody may claim with the account: it is paused or held.",
            ),
            gauge("machinist_account_running_jobs", &["account"], "Jobs that run with the account, on all machines."),
            gauge(
                "machinist_account_waiting_workers",
                &["account"],
                "Workers that would claim, and wait for the account's hold or limit.",
            ),
        ],
    },
    Group {
        title: "GPUs",
        about: "NVIDIA's NVML, looked at every `gpu.every` by a thread of its own. What a GPU does not tell has no series; all but \
                `info`, `up`, `withheld`, `xid_errors_total` end while it is lost, and while the driver does not answer.",
        metrics: &[
            gauge("machinist_gpu_sampler_up", &[], "1 while the NVIDIA driver answers; absent without one."),
            gauge("machinist_gpu_info", &["uuid", "index", "name"], "What the GPU is; always 1."),
            gauge("machinist_gpu_up", GPU, "0 while the GPU is lost: it does not answer any more."),
            gauge("machinist_gpu_withheld", GPU, "1 while the GPU gets no jobs after an error."),
            gauge("machinist_gpu_sample_timestamp_seconds", GPU, "When the values were taken, since the epoch."),
            gauge("machinist_gpu_utilization_ratio", GPU, "Share of time in which a kernel ran, of 1."),
            gauge(
                "machinist_gpu_memory_utilization_ratio",
                GPU,
                "Share of time in which its memory was read or written, of 1.",
            ),
            gauge("machinist_gpu_memory_total_bytes", GPU, "Its memory."),
            gauge("machinist_gpu_memory_used_bytes", GPU, "Memory in use, by all processes of the host."),
            gauge("machinist_gpu_memory_free_bytes", GPU, "Memory that is free."),
            gauge("machinist_gpu_processes", GPU, "Processes that have memory on it, as far as the driver shows them."),
            gauge("machinist_gpu_temperature_celsius", GPU, "Its temperature."),
            gauge("machinist_gpu_power_watts", GPU, "The power it draws."),
            gauge("machinist_gpu_power_limit_watts", GPU, "The power it may draw."),
            counter("machinist_gpu_energy_joules_total", GPU, "The energy it took since the driver was loaded."),
            gauge("machinist_gpu_sm_clock_hertz", GPU, "The clock of its multiprocessors."),
            gauge("machinist_gpu_memory_clock_hertz", GPU, "The clock of its memory."),
            gauge(
                "machinist_gpu_throttle_active",
                &["uuid", "index", "reason"],
                "1 while this holds its clocks down: `idle`, `setting`, `power_cap`, `thermal`, `hardware_thermal`, `power_brake`, \
                 `hardware_slowdown` or `sync_boost`.",
            ),
            counter(
                "machinist_gpu_ecc_errors_total",
                &["uuid", "index", "type", "since"],
                "Errors of memory, `corrected` or `uncorrected`, since the driver was loaded (`load`) and ever (`ever`).",
            ),
            counter("machinist_gpu_pcie_replays_total", GPU, "Transfers over PCIe that were made again."),
            counter(
                "machinist_gpu_xid_errors_total",
                &["uuid", "index", "xid"],
                "Errors that the driver reported in this life of the engine.",
            ),
            counter("machinist_gpu_losses_total", &[], "How often a GPU was lost."),
        ],
    },
    Group {
        title: "GPUs, under the names of dcgm-exporter",
        about: "With `gpu.dcgm_names`: the same values in the units and with the labels that dashboards for dcgm-exporter expect.",
        metrics: &[
            gauge("DCGM_FI_DEV_SM_CLOCK", DCGM, "SM clock frequency (in MHz)."),
            gauge("DCGM_FI_DEV_MEM_CLOCK", DCGM, "Memory clock frequency (in MHz)."),
            gauge("DCGM_FI_DEV_GPU_TEMP", DCGM, "GPU temperature (in C)."),
            gauge("DCGM_FI_DEV_POWER_USAGE", DCGM, "Power draw (in W)."),
            counter("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", DCGM, "Total energy consumption since boot (in mJ)."),
            counter("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", DCGM, "Total number of PCIe retries."),
            gauge("DCGM_FI_DEV_GPU_UTIL", DCGM, "GPU utilization (in %)."),
            gauge("DCGM_FI_DEV_MEM_COPY_UTIL", DCGM, "Memory utilization (in %)."),
            gauge("DCGM_FI_DEV_XID_ERRORS", DCGM, "Value of the last XID error encountered."),
            gauge("DCGM_FI_DEV_FB_FREE", DCGM, "Framebuffer memory free (in MiB)."),
            gauge("DCGM_FI_DEV_FB_USED", DCGM, "Framebuffer memory used (in MiB)."),
            counter("DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", DCGM, "Single-bit volatile ECC errors."),
            counter("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", DCGM, "Double-bit volatile ECC errors."),
            counter("DCGM_FI_DEV_ECC_SBE_AGG_TOTAL", DCGM, "Single-bit persistent ECC errors."),
            counter("DCGM_FI_DEV_ECC_DBE_AGG_TOTAL", DCGM, "Double-bit persistent ECC errors."),
        ],
    },
    Group {
        title: "Container",
        about: "The control group that `/sys/fs/cgroup` shows, v2 or v1, read at the scrape: the container's own. Absent where the engine \
                runs in none; limits are absent where there are none.",
        metrics: &[
            counter("machinist_container_cpu_seconds_total", &["mode"], "CPU time, in `user` and `system` mode."),
            gauge("machinist_container_cpu_limit", &[], "CPUs that the container may use."),
            counter(
                "machinist_container_cpu_throttled_seconds_total",
                &[],
                "Time in which the limit of CPU held it up.",
            ),
            counter("machinist_container_cpu_periods_total", &[], "Periods in which the limit of CPU was looked at."),
            counter("machinist_container_cpu_throttled_periods_total", &[], "Periods in which the limit was reached."),
            gauge(
                "machinist_container_memory_bytes",
                &[],
                "Memory that the kernel cannot take back by itself: without idle page cache.",
            ),
            gauge("machinist_container_memory_cache_bytes", &[], "Page cache."),
            gauge("machinist_container_memory_limit_bytes", &[], "Memory that the container may use."),
            counter("machinist_container_oom_kills_total", &[], "Processes killed for want of memory."),
            counter("machinist_container_disk_read_bytes_total", &[], "Read from storage."),
            counter("machinist_container_disk_written_bytes_total", &[], "Written to storage."),
            gauge("machinist_container_processes", &[], "Processes and threads."),
            gauge("machinist_container_processes_limit", &[], "Processes and threads that there may be."),
        ],
    },
    Group {
        title: "Host",
        about: "The host's totals, from `/proc`, read at the scrape; in a container they are of the whole host, but for the network, which \
                is the container's. The first 64 disks and interfaces are shown.",
        metrics: &[
            gauge("machinist_host_cpus", &[], "CPUs of the host."),
            counter("machinist_host_cpu_seconds_total", &["mode"], "CPU time of all CPUs, by mode."),
            gauge(
                "machinist_host_load",
                &["minutes"],
                "Processes that run or want to, on average over 1, 5 and 15 minutes.",
            ),
            gauge("machinist_host_memory_total_bytes", &[], "Memory of the host."),
            gauge("machinist_host_memory_available_bytes", &[], "Memory that programs can still get without swapping."),
            gauge("machinist_host_swap_total_bytes", &[], "Swap space."),
            gauge("machinist_host_swap_free_bytes", &[], "Swap space that is free."),
            counter("machinist_host_disk_read_bytes_total", &["device"], "Read from the disk."),
            counter("machinist_host_disk_written_bytes_total", &["device"], "Written to the disk."),
            counter("machinist_host_disk_busy_seconds_total", &["device"], "Time in which the disk did something."),
            counter("machinist_host_network_received_bytes_total", &["interface"], "Received."),
            counter("machinist_host_network_sent_bytes_total", &["interface"], "Sent."),
            counter(
                "machinist_host_network_errors_total",
                &["interface", "direction"],
                "Packets that were wrong, `received` or `sent`.",
            ),
            counter(
                "machinist_host_network_dropped_total",
                &["interface", "direction"],
                "Packets that were dropped, `received` or `sent`.",
            ),
            gauge("machinist_state_dir_total_bytes", &[], "The size of the file system of the state directory."),
            gauge("machinist_state_dir_available_bytes", &[], "What is free there for the engine."),
        ],
    },
    Group {
        title: "Engine",
        about: "The engine's own process, from `/proc` at the scrape, as the client libraries of Prometheus name it.",
        metrics: &[
            counter("process_cpu_seconds_total", &[], "User and system CPU time of the engine."),
            gauge("process_virtual_memory_bytes", &[], "Virtual memory of the engine."),
            gauge("process_resident_memory_bytes", &[], "Resident memory of the engine."),
            gauge("process_threads", &[], "Threads of the engine."),
            gauge("process_start_time_seconds", &[], "When the engine started, since the epoch."),
            gauge("process_open_fds", &[], "Open file descriptors of the engine."),
            gauge("process_max_fds", &[], "The limit of open file descriptors."),
        ],
    },
];

/// The metric of this name.
pub fn metric(name: &str) -> Option<&'static Metric> {
    GROUPS.iter().flat_map(|group| group.metrics).find(|metric| metric.name == name)
}

impl Metric {
    /// The unit that its name says.
    pub fn unit(&self) -> &'static str {
        const UNITS: [(&str, &str); 7] = [
            ("_seconds", "seconds"),
            ("_bytes", "bytes"),
            ("_ratio", "of 1"),
            ("_celsius", "°C"),
            ("_watts", "watts"),
            ("_joules", "joules"),
            ("_hertz", "hertz"),
        ];
        let name = self.name.strip_suffix("_total").unwrap_or(self.name);
        UNITS.iter().find(|(suffix, _)| name.ends_with(suffix)).map_or("", |(_, unit)| unit)
    }
}

const INTRO: &str = include_str!("metrics.md");

/// `docs/metrics.md`.
pub fn metrics_page() -> String {
    let mut page = INTRO.to_owned();
    for group in GROUPS {
        let _ = write!(page, "\n## {}\n\n{}\n\n", group.title, group.about);
        page.push_str("| metric | type | unit | labels | what |\n|---|---|---|---|---|\n");
        for metric in group.metrics {
            let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            let (kind, unit, labels) = (metric.kind.as_str(), metric.unit(), labels.join(" "));
            let _ = writeln!(page, "| `{}` | {kind} | {unit} | {labels} | {} |", metric.name, metric.help);
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn sources(dir: &Path, found: &mut String) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("telemetry/catalogue.rs") {
                found.push_str(&std::fs::read_to_string(&path).unwrap());
            }
        }
    }

    /// What is counted or written stands as a literal where that is done.
    #[test]
    fn the_catalogue_is_what_the_code_counts_and_writes() {
        let mut text = String::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
        let names = regex::Regex::new(r#"[\[(]\s*"((?:machinist|DCGM|process)_[A-Za-z_]+)""#).unwrap();
        let used: BTreeSet<String> = names.captures_iter(&text).map(|found| found[1].to_owned()).collect();
        let listed: BTreeSet<&str> = GROUPS.iter().flat_map(|group| group.metrics).map(|metric| metric.name).collect();
        assert!(used.len() > 50, "the sources are read: {used:?}");
        let used: BTreeSet<&str> = used.iter().map(String::as_str).collect();
        let used_only: Vec<_> = used.difference(&listed).collect();
        let listed_only: Vec<_> = listed.difference(&used).collect();
        assert!(used_only.is_empty() && listed_only.is_empty(), "not listed: {used_only:?}; not used: {listed_only:?}");
    }

    #[test]
    fn names_say_what_they_are() {
        let mut seen = BTreeSet::new();
        for metric in GROUPS.iter().flat_map(|group| group.metrics) {
            assert!(seen.insert(metric.name), "{} stands twice", metric.name);
            let dcgm = metric.name.starts_with("DCGM_");
            assert_eq!(metric.name.ends_with("_total"), metric.kind == MetricKind::Counter && !dcgm, "{}", metric.name);
            assert!(metric.help.ends_with('.') && !metric.help.contains('|'), "{}", metric.name);
        }
    }
}
