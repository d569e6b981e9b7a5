/// A function of a script that the engine calls by its name.
#[derive(Clone, Copy, Debug)]
pub(in crate::script) struct Hook {
    pub name: &'static str,
    pub parameters: &'static [&'static str],
    pub required: bool,
    /// It computes from its arguments and does nothing else.
    pub pure: bool,
    /// For the reference: how long it may take.
    pub limit: &'static str,
    /// For the reference: when it is called, what it returns.
    pub doc: &'static str,
}

impl Hook {
    /// `on_event(m, event)`.
    pub fn signature(&self) -> String {
        format!("{}({})", self.name, self.parameters.join(", "))
    }

    pub fn arity(&self) -> usize {
        self.parameters.len()
    }
}

/// Of `machine.rhai`.
pub(in crate::script) const MACHINE_HOOKS: [Hook; 6] = [
    Hook {
        name: "services",
        parameters: &["m"],
        required: true,
        pure: true,
        limit: "5 s, 5 million operations",
        doc: "Returns the array of services that there are to be, as maps. Called at every reading of the machine's files.",
    },
    Hook {
        name: "workers",
        parameters: &["m"],
        required: false,
        pure: true,
        limit: "5 s, 5 million operations",
        doc: "Returns the array of workers, as maps. Without it there are none.",
    },
    Hook {
        name: "startup",
        parameters: &["m"],
        required: false,
        pure: false,
        limit: "24 h",
        doc: "The start-up sequence. What it does not start is started after it; an error ends the boot.",
    },
    Hook {
        name: "on_event",
        parameters: &["m", "event"],
        required: false,
        pure: false,
        limit: "30 s",
        doc: "Called for each event of the machine, one after the other. What it returns counts for nothing.",
    },
    Hook {
        name: "recover",
        parameters: &["m", "shortage"],
        required: false,
        pure: false,
        limit: "5 min",
        doc: "Called when a resource is short, and every minute while it is.",
    },
    Hook {
        name: "shutdown",
        parameters: &["m"],
        required: false,
        pure: false,
        limit: "the grace period",
        doc: "Called when the machine begins to drain, before services are stopped.",
    },
];

/// Of a connector.
pub(in crate::script) const CONNECTOR_HOOKS: [Hook; 5] = [
    Hook {
        name: "check",
        parameters: &["ctx"],
        required: false,
        pure: false,
        limit: "10 s",
        doc: "Whether the backend can take jobs: `false` or an error says no, and the worker claims nothing until it holds.",
    },
    Hook {
        name: "capabilities",
        parameters: &["ctx"],
        required: false,
        pure: false,
        limit: "30 s",
        doc: "Returns what the backend has that jobs may ask for, `#{ models: [..], labels: #{..} }`, either or both. Called when \
            `check` has held: before the first claim, after the backend was gone, with another connector, and then once a minute.",
    },
    Hook {
        name: "run",
        parameters: &["job", "ctx"],
        required: true,
        pure: false,
        limit: "the job's time",
        doc: "Does the job and returns its result, any plain data. What it throws decides what becomes of the job.",
    },
    Hook {
        name: "cancel",
        parameters: &["job", "ctx"],
        required: false,
        pure: false,
        limit: "10 s",
        doc: "Called when a job was cancelled or its time is over, after `run` was stopped: tells the backend to stop.",
    },
    Hook {
        name: "resume",
        parameters: &["job", "ctx"],
        required: false,
        pure: false,
        limit: "the job's time",
        doc: "Called instead of `run` when an earlier attempt gave something to `job.save`; it is in `job.saved`.",
    },
];
