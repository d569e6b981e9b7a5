use std::path::Path;

use super::page::{Page, number};
use crate::host::{self, ContainerTotals, HostTotals};

/// What is read of the host at a scrape.
#[derive(Debug, Default)]
pub(super) struct HostReading {
    host: HostTotals,
    container: Option<ContainerTotals>,
    load: Option<[f64; 3]>,
    /// Bytes of the state directory's file system, and those that are free.
    disk: Option<(u64, u64)>,
    cpus: f64,
    memory_bytes: f64,
}

impl HostReading {
    /// Blocks for as long as `/proc` takes.
    pub fn take(state_dir: &Path) -> Self {
        let resources = host::resources();
        Self {
            host: HostTotals::read(),
            container: ContainerTotals::read(),
            load: host::load(),
            disk: host::disk_space(state_dir),
            cpus: resources.cpus,
            memory_bytes: resources.memory_gb * 1024.0 * 1024.0 * 1024.0,
        }
    }

    pub fn write(&self, page: &mut Page) {
        page.family("machinist_machine_cpus").sample(&[], self.cpus);
        page.family("machinist_machine_memory_bytes").sample(&[], self.memory_bytes);
        if let Some(container) = &self.container {
            write_container(page, container);
        }
        self.write_host(page);
        page.family("machinist_state_dir_total_bytes").maybe(&[], self.disk.map(|(total, _)| number(total)));
        page.family("machinist_state_dir_available_bytes").maybe(&[], self.disk.map(|(_, free)| number(free)));
    }

    fn write_host(&self, page: &mut Page) {
        page.family("machinist_host_cpus").sample(&[], f64::from(self.host.cpus));
        let mut family = page.family("machinist_host_cpu_seconds_total");
        for (mode, seconds) in &self.host.cpu_seconds {
            family.sample(&[("mode", mode)], *seconds);
        }
        let mut family = page.family("machinist_host_load");
        for (minutes, load) in ["1", "5", "15"].into_iter().zip(self.load.into_iter().flatten()) {
            family.sample(&[("minutes", minutes)], load);
        }
        let memory = &self.host.memory;
        page.family("machinist_host_memory_total_bytes").maybe(&[], memory.total.map(number));
        page.family("machinist_host_memory_available_bytes").maybe(&[], memory.available.map(number));
        page.family("machinist_host_swap_total_bytes").maybe(&[], memory.swap_total.map(number));
        page.family("machinist_host_swap_free_bytes").maybe(&[], memory.swap_free.map(number));
        let disks = &self.host.disks;
        let mut family = page.family("machinist_host_disk_read_bytes_total");
        for disk in disks {
            family.sample(&[("device", &disk.device)], number(disk.read_bytes));
        }
        let mut family = page.family("machinist_host_disk_written_bytes_total");
        for disk in disks {
            family.sample(&[("device", &disk.device)], number(disk.written_bytes));
        }
        let mut family = page.family("machinist_host_disk_busy_seconds_total");
        for disk in disks {
            family.sample(&[("device", &disk.device)], disk.busy_seconds);
        }
        let interfaces = &self.host.interfaces;
        let mut family = page.family("machinist_host_network_received_bytes_total");
        for one in interfaces {
            family.sample(&[("interface", &one.interface)], number(one.received_bytes));
        }
        let mut family = page.family("machinist_host_network_sent_bytes_total");
        for one in interfaces {
            family.sample(&[("interface", &one.interface)], number(one.sent_bytes));
        }
        let mut family = page.family("machinist_host_network_errors_total");
        for one in interfaces {
            for (direction, count) in ["received", "sent"].into_iter().zip(one.errors) {
                family.sample(&[("interface", &one.interface), ("direction", direction)], number(count));
            }
        }
        let mut family = page.family("machinist_host_network_dropped_total");
        for one in interfaces {
            for (direction, count) in ["received", "sent"].into_iter().zip(one.dropped) {
                family.sample(&[("interface", &one.interface), ("direction", direction)], number(count));
            }
        }
    }
}

fn write_container(page: &mut Page, container: &ContainerTotals) {
    let mut family = page.family("machinist_container_cpu_seconds_total");
    family.maybe(&[("mode", "user")], container.user_seconds);
    family.maybe(&[("mode", "system")], container.system_seconds);
    page.family("machinist_container_cpu_limit").maybe(&[], container.cpu_limit);
    page.family("machinist_container_cpu_throttled_seconds_total").maybe(&[], container.throttled_seconds);
    page.family("machinist_container_cpu_periods_total").maybe(&[], container.periods.map(number));
    page.family("machinist_container_cpu_throttled_periods_total").maybe(&[], container.throttled_periods.map(number));
    page.family("machinist_container_memory_bytes").maybe(&[], container.memory_bytes.map(number));
    page.family("machinist_container_memory_cache_bytes").maybe(&[], container.cache_bytes.map(number));
    page.family("machinist_container_memory_limit_bytes").maybe(&[], container.memory_limit.map(number));
    page.family("machinist_container_oom_kills_total").maybe(&[], container.oom_kills.map(number));
    page.family("machinist_container_disk_read_bytes_total").maybe(&[], container.read_bytes.map(number));
    page.family("machinist_container_disk_written_bytes_total").maybe(&[], container.written_bytes.map(number));
    page.family("machinist_container_processes").maybe(&[], container.processes.map(number));
    page.family("machinist_container_processes_limit").maybe(&[], container.processes_limit.map(number));
}
