use std::collections::BTreeMap;
use std::sync::Arc;

use super::page::{Page, number};
use crate::base::Name;
use crate::host::Usage;
use crate::supervisor::ServiceStatus;

type ReadUsage = fn(&Usage) -> f64;

const FAMILIES: [(&str, ReadUsage); 7] = [
    ("machinist_service_cpu_seconds_total", |usage| usage.cpu_seconds),
    ("machinist_service_memory_bytes", |usage| number(usage.memory_bytes)),
    ("machinist_service_processes", |usage| f64::from(usage.processes)),
    ("machinist_service_threads", |usage| f64::from(usage.threads)),
    ("machinist_service_open_fds", |usage| number(usage.open_files)),
    ("machinist_service_read_bytes_total", |usage| number(usage.read_bytes)),
    ("machinist_service_written_bytes_total", |usage| number(usage.written_bytes)),
];

/// What the services' process trees use now.
pub(super) fn services(page: &mut Page, services: &BTreeMap<Name, Arc<ServiceStatus>>, usages: &BTreeMap<Name, Usage>) {
    for (name, read) in FAMILIES {
        let mut family = page.family(name);
        for (service, usage) in usages {
            family.sample(&[("service", service.as_str())], read(usage));
        }
    }
    let mut family = page.family("machinist_service_start_time_seconds");
    for (service, status) in services {
        let started = status.started.map(|started| number(started.as_millis()) / 1000.0);
        family.maybe(&[("service", service.as_str())], started);
    }
}
