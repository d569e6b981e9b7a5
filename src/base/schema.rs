use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::{Name, Seconds, Timestamp};

/// How types that are written as text are described to others.
macro_rules! described {
    ($($type:ty, $name:literal, $schema:tt;)*) => {$(
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )*};
}

described! {
    Name, "Name", { "type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$" };
    Seconds, "Duration", {
        "description": "A duration with its unit, or a number of seconds.",
        "anyOf": [
            {
                "type": "string",
                "pattern": "^([0-9]+(\\.[0-9]+)?|([0-9]+ *(ns|us|ms|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?|w|weeks?) *)+)$",
                "examples": ["200ms", "10s", "1h 30m"],
            },
            { "type": "number", "minimum": 0 },
        ],
    };
    Timestamp, "Timestamp", { "type": "string", "format": "date-time" };
}
