use axum::Router;
use axum::handler::Handler;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodFilter, MethodRouter, on};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::Value;

use super::auth;
use super::server::AdminDeps;

pub(super) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// A reference to the type's schema among the document's, or the schema itself where it has no name.
pub(super) fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Post,
    Delete,
}

impl Method {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Delete => "DELETE",
        }
    }

    const fn filter(self) -> MethodFilter {
        match self {
            Self::Get => MethodFilter::GET,
            Self::Post => MethodFilter::POST,
            Self::Delete => MethodFilter::DELETE,
        }
    }
}

/// A method on a path: what answers it, and all that is said of it. The router, the `OpenAPI` document and the list at `/` are
/// made of these and of nothing else.
pub(super) struct Route {
    pub method: Method,
    pub path: &'static str,
    pub about: &'static str,
    handler: MethodRouter<AdminDeps>,
    /// A type whose fields are the parameters of the query.
    pub query: Option<SchemaOf>,
    /// Headers that are heeded: name, meaning.
    pub headers: Vec<(&'static str, &'static str)>,
    pub body: Vec<Content>,
    /// Left out, the body stands for something.
    pub body_needed: bool,
    pub answers: Vec<Answer>,
}

/// A media type and what is in it.
pub(super) struct Content {
    pub media_type: &'static str,
    pub schema: SchemaOf,
    pub example: Option<Value>,
}

pub(super) struct Answer {
    pub status: u16,
    pub about: &'static str,
    pub content: Vec<Content>,
}

pub(super) const JSON: &str = "application/json";
pub(super) const TEXT: &str = "text/plain";
pub(super) const LINES: &str = "application/x-ndjson";
pub(super) const EVENTS: &str = "text/event-stream";

impl Route {
    fn new<H: Handler<T, AdminDeps>, T: 'static>(method: Method, path: &'static str, handler: H) -> Self {
        let handler = on(method.filter(), handler);
        Self {
            method,
            path,
            about: "",
            handler,
            query: None,
            headers: Vec::new(),
            body: Vec::new(),
            body_needed: true,
            answers: Vec::new(),
        }
    }

    pub fn get<H: Handler<T, AdminDeps>, T: 'static>(path: &'static str, handler: H) -> Self {
        Self::new(Method::Get, path, handler).fails(&[403])
    }

    pub fn post<H: Handler<T, AdminDeps>, T: 'static>(path: &'static str, handler: H) -> Self {
        Self::new(Method::Post, path, handler).fails(&[401, 403])
    }

    pub fn delete<H: Handler<T, AdminDeps>, T: 'static>(path: &'static str, handler: H) -> Self {
        Self::new(Method::Delete, path, handler).fails(&[401, 403])
    }

    pub const fn about(mut self, about: &'static str) -> Self {
        self.about = about;
        self
    }

    pub fn query<T: JsonSchema>(mut self) -> Self {
        self.query = Some(T::json_schema);
        self.fails(&[400])
    }

    pub fn header(mut self, name: &'static str, meaning: &'static str) -> Self {
        self.headers.push((name, meaning));
        self
    }

    /// With an example of what is taken.
    pub fn body<T: JsonSchema>(mut self, media_type: &'static str, example: Value) -> Self {
        self.body.push(Content { media_type, schema: schema::<T>, example: Some(example) });
        self.fails(&[400, 413])
    }

    pub fn json<T: JsonSchema>(self, status: u16, about: &'static str) -> Self {
        self.answers::<T>(status, JSON, about)
    }

    pub fn text(self, status: u16, about: &'static str) -> Self {
        self.answers::<String>(status, TEXT, about)
    }

    /// A second media type of the same status is said once more in the same words.
    pub fn answers<T: JsonSchema>(mut self, status: u16, media_type: &'static str, about: &'static str) -> Self {
        let content = Content { media_type, schema: schema::<T>, example: None };
        match self.answers.iter_mut().find(|answer| answer.status == status) {
            Some(answer) => answer.content.push(content),
            None => self.answers.push(Answer { status, about, content: vec![content] }),
        }
        self
    }

    /// Server-sent events, where the client accepts them, from a cursor on.
    pub fn streams(self, about: &'static str) -> Self {
        self.answers::<String>(200, EVENTS, about)
            .header("Accept", "`text/event-stream` for whatever follows too.")
            .header("Last-Event-ID", "The id of the last event seen: what comes after it. What is no id is not heeded.")
    }

    /// Answers without content.
    pub fn switches(mut self, status: u16, about: &'static str) -> Self {
        self.answers.push(Answer { status, about, content: Vec::new() });
        self
    }

    /// Statuses with an error in the API's form.
    pub fn fails(mut self, statuses: &[u16]) -> Self {
        for status in statuses {
            if !self.answers.iter().any(|answer| answer.status == *status) {
                let content = Content { media_type: JSON, schema: schema::<super::error::ErrorBody>, example: None };
                self.answers.push(Answer { status: *status, about: meaning(*status), content: vec![content] });
            }
        }
        self
    }

    /// Needs the queue, which may be away or damaged.
    pub fn asks_queue(self) -> Self {
        self.fails(&[500, 503])
    }

    /// What is no GET changes something, and needs the token.
    pub fn changes(&self) -> bool {
        self.method != Method::Get
    }

    /// The names in braces.
    pub fn path_parameters(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
    }
}

/// What a status says, wherever it is an error.
const fn meaning(status: u16) -> &'static str {
    match status {
        400 => "The request cannot be read.",
        401 => "The token is missing or wrong.",
        403 => "Not from here: without the token only requests of this host to a loopback address are taken.",
        404 => "There is no such thing.",
        409 => "It is in a state that does not allow this.",
        413 => "The body is larger than 64 MiB.",
        422 => "It was read, and is refused for what it says.",
        426 => "This is for WebSockets.",
        500 => "What the queue has stored is damaged.",
        503 => "The queue, or the machine, is not available now; try again.",
        _ => "It failed.",
    }
}

/// The routes, those that change something behind the token, and those that do not for this host where only this host is meant.
pub(super) fn router(routes: Vec<Route>, deps: &AdminDeps) -> Router<AdminDeps> {
    routes.into_iter().fold(Router::new(), |router, route| {
        let changes = route.changes();
        let guarded = |handler: MethodRouter<AdminDeps>| {
            if changes {
                handler.route_layer(from_fn_with_state(deps.clone(), auth::require))
            } else {
                handler.route_layer(from_fn_with_state(deps.clone(), auth::readable))
            }
        };
        router.route(route.path, guarded(route.handler))
    })
}
