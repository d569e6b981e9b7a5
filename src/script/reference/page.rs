use std::fmt::Write as _;

use super::entry::{Entry, Form, entries};
use super::language;
use crate::base::{Field, fields};
use crate::host::Level;
use crate::script::api::{Place, Section, sections};
use crate::script::hooks::{CONNECTOR_HOOKS, Hook, MACHINE_HOOKS};
use crate::script::{ConnectorContext, MachineContext};
use crate::telemetry::{Event, EventKind};

const HEAD: &str = "\
# Script API

Everything that scripts can use beyond the language itself. Written by `machinist api --write` from the comments in the source: change
those.

Scripts are [Rhai](https://rhai.rs/book/). Types below: `string`, `int` (64 bits), `float`, `bool`, `array`, `map`, `Fn` (a closure or
function), `any`, and `()`, which is nothing. A `float` parameter takes no `int`: write `1.0`, or `n.to_float()`. Durations are texts such as
`\"200ms\"`, `\"1.5s\"`, `\"2m\"`.

Every call of a hook has a time limit, and ends within it wherever it waits. A text has at most 8 MiB, an array or a map 100,000 entries, a
chain of calls 64 levels. The top level of a script and the hooks marked *pure* compute only: functions that act or look at the world fail
there.
";

const IMPORTS: &str = "\
`import \"lib/name\" as name;` loads `lib/name.rhai` from the machine's directory or, when it is not there, from the scripts directory;
`name::function(..)` calls it. Functions see no variables of their script: constants (`const LIMIT = 5;` at the top level) are
`global::LIMIT` inside of functions, everything else is passed as an argument.
";

/// The page `docs/script-api.md`.
pub fn reference(events: &[EventKind]) -> String {
    let mut page = HEAD.to_owned();
    page.push_str("\n## Hooks of a machine\n\nFunctions of `machine.rhai`, see [the machine script](machine.md).\n\n");
    hooks(&mut page, &MACHINE_HOOKS);
    page.push_str("\n### `m`\n\n");
    keys(&mut page, &fields::<MachineContext>().1);
    page.push_str("\n### `event`\n\n");
    keys(&mut page, &fields::<Event>().1);
    page.push_str("\n### `shortage`\n\n");
    keys(&mut page, &fields::<Level>().1);
    page.push_str("\n## Hooks of a connector\n\nFunctions of `connectors/NAME.rhai`. `job` is a [Job](#job).\n\n");
    hooks(&mut page, &CONNECTOR_HOOKS);
    page.push_str("\n### `ctx`\n\n");
    keys(&mut page, &fields::<ConnectorContext>().1);
    let _ = write!(page, "\n## Imports\n\n{IMPORTS}");
    let sections = sections();
    let part = |page: &mut String, heading: &str, wanted: fn(Place) -> bool| {
        let _ = write!(page, "\n## {heading}\n");
        sections.iter().filter(|section| wanted(section.place)).for_each(|found| section(page, found));
    };
    part(&mut page, "Namespaces", |place| matches!(place, Place::Namespace(_)));
    part(&mut page, "Functions without a namespace", |place| matches!(place, Place::Words(_)));
    part(&mut page, "Types", |place| matches!(place, Place::Type(_)));
    page.push_str("\n## Events\n\nWhat `on_event` is called with and `machinist events` shows: `event.kind`, and the keys of `event.data`.\n\n");
    page.push_str("| kind | when | data |\n|---|---|---|\n");
    let mut events: Vec<&EventKind> = events.iter().collect();
    events.sort_by_key(|event| event.kind);
    for event in events {
        let data: Vec<String> = event.fields.iter().map(|field| format!("`{}`", field.name)).collect();
        let _ = writeln!(page, "| `{}` | {} | {} |", event.kind, event.about, data.join(", "));
    }
    page.push_str("\n## From the language\n\nWhat Rhai itself brings, see [its book](https://rhai.rs/book/).\n\n");
    for (about, names) in language::functions() {
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        let _ = writeln!(page, "**{about}.** {}\n", names.join(", "));
    }
    page.truncate(page.trim_end().len());
    page.push('\n');
    page
}

fn hooks(page: &mut String, hooks: &[Hook]) {
    page.push_str("| hook | | time limit |\n|---|---|---|\n");
    for hook in hooks {
        let need = if hook.required { "Required. " } else { "" };
        let pure = if hook.pure { "*Pure.* " } else { "" };
        let _ = writeln!(page, "| `{}` | {need}{pure}{} | {} |", hook.signature(), hook.doc, hook.limit);
    }
}

fn keys(page: &mut String, fields: &[Field]) {
    page.push_str("| key | type | |\n|---|---|---|\n");
    for field in fields {
        let _ = writeln!(page, "| `{}` | {} | {} |", field.name, field.kind, field.about);
    }
}

fn section(page: &mut String, section: &Section) {
    let heading = match section.place {
        Place::Namespace(name) => format!("`{name}::`"),
        Place::Type(name) | Place::Words(name) => name.to_owned(),
    };
    let comment: Vec<&str> = section.module.doc().lines().collect();
    let _ = write!(page, "\n### {heading}\n\n{}\n", super::entry::text_of(&comment));
    let mut entries = entries(section);
    entries.sort_by_key(|entry| entry.form);
    let (properties, others): (Vec<&Entry>, Vec<&Entry>) =
        entries.iter().partition(|entry| entry.form == Form::Property);
    if !properties.is_empty() {
        page.push_str("\n| property | |\n|---|---|\n");
    }
    for entry in properties {
        let about: Vec<&str> = entry.doc.split_whitespace().collect();
        let _ = writeln!(page, "| `{}` | {} |", entry.signature, about.join(" "));
    }
    for entry in others {
        let _ = write!(page, "\n#### `{}`\n\n{}\n", entry.signature, entry.doc);
    }
}
