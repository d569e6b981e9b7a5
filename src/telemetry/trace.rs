use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::time::SystemTime;

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Span as _, SpanBuilder, SpanContext, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::propagation::TraceContextPropagator;

use super::trace_export::Exporting;

pub use opentelemetry::trace::SpanKind;

const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";

/// The trace that some work belongs to, as W3C Trace Context hands it on; or none.
#[derive(Clone, PartialEq)]
pub struct Trace(SpanContext);

impl Trace {
    pub fn none() -> Self {
        Self(SpanContext::empty_context())
    }

    /// What is no `traceparent` is none, and a `tracestate` that is none is left out, as the standard has it.
    pub fn read(parent: Option<&str>, state: Option<&str>) -> Self {
        let Some(parent) = parent.filter(|parent| has_its_form(parent)) else { return Self::none() };
        let carrier: HashMap<String, String> = [(PARENT, Some(parent)), (STATE, state)]
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
            .collect();
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
        Self(context.span().span_context().clone())
    }

    pub fn is_none(&self) -> bool {
        !self.0.is_valid()
    }

    /// `traceparent`, where there is a trace.
    pub fn parent(&self) -> Option<String> {
        let Self(context) = self;
        let sampled = u8::from(context.is_sampled());
        context.is_valid().then(|| format!("00-{}-{}-{sampled:02x}", context.trace_id(), context.span_id()))
    }

    /// `tracestate`, where there is a trace and it has one.
    pub fn state(&self) -> Option<String> {
        let state = self.0.is_valid().then(|| self.0.trace_state().header());
        state.filter(|state| !state.is_empty())
    }

    /// Both, by the names that headers have.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let pairs = [(PARENT, self.parent()), (STATE, self.state())];
        pairs.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

/// Version, trace, span and flags in their lengths: the propagator takes ids that are too short.
fn has_its_form(parent: &str) -> bool {
    let mut parts = parent.split('-');
    let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let mut fits = |length| parts.next().is_some_and(|part: &str| part.len() == length && part.bytes().all(hex));
    [2, 32, 16, 2].into_iter().all(&mut fits)
}

impl Default for Trace {
    fn default() -> Self {
        Self::none()
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.parent().as_deref().unwrap_or("none"))
    }
}

/// Where spans go; nowhere, unless a setting says where. Clones are one.
#[derive(Clone, Default)]
pub struct Traces(pub(super) Option<Exporting>);

impl Traces {
    pub fn are_exported(&self) -> bool {
        self.0.is_some()
    }

    /// Begins a piece of work below `parent`, or a trace of its own where there is none. Where nothing is exported, what
    /// is below belongs to `parent` itself.
    pub fn begin(&self, name: impl Into<Cow<'static, str>>, kind: SpanKind, parent: &Trace) -> Span {
        let Some(exporting) = &self.0 else { return Span { inner: None, trace: parent.clone() } };
        let builder = SpanBuilder::from_name(name).with_kind(kind);
        let span = exporting.tracer.build_with_context(builder, &below(parent));
        Span { trace: Trace(span.span_context().clone()), inner: Some(span) }
    }

    /// A piece of work that is over.
    pub fn record(
        &self,
        name: impl Into<Cow<'static, str>>,
        parent: &Trace,
        (begun, ended): (SystemTime, SystemTime),
        attributes: Vec<(&'static str, String)>,
    ) {
        let Some(exporting) = &self.0 else { return };
        let attributes = attributes.into_iter().map(|(key, value)| KeyValue::new(key, value));
        let builder = SpanBuilder::from_name(name).with_start_time(begun).with_attributes(attributes);
        exporting.tracer.build_with_context(builder, &below(parent)).end_with_timestamp(ended.max(begun));
    }
}

fn below(parent: &Trace) -> Context {
    let none = Context::new();
    if parent.is_none() { none } else { none.with_remote_span_context(parent.0.clone()) }
}

/// A piece of work with a beginning and an end, which is when it is dropped.
pub struct Span {
    inner: Option<opentelemetry_sdk::trace::Span>,
    trace: Trace,
}

impl Span {
    /// What work below it belongs to.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// An attribute: never a secret, a payload, or an address with its query.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.inner {
            span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// It did not succeed; `kind` is one of few words.
    pub fn failed(&mut self, kind: &str) {
        if let Some(span) = &mut self.inner {
            span.set_attribute(KeyValue::new("error.type", kind.to_owned()));
            span.set_status(Status::error(kind.to_owned()));
        }
    }
}

/// What a script's work belongs to, and where its spans go.
#[derive(Clone, Default)]
pub struct TraceScope {
    pub traces: Traces,
    pub trace: Trace,
}

impl TraceScope {
    pub fn begin(&self, name: impl Into<Cow<'static, str>>, kind: SpanKind) -> Span {
        self.traces.begin(name, kind, &self.trace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_trace_is_handed_on_as_it_came() {
        let trace = Trace::read(Some(PARENT), Some("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"));
        assert_eq!(trace.parent().as_deref(), Some(PARENT));
        assert_eq!(trace.state().as_deref(), Some("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"));
        let span = Traces::default().begin("nothing is exported", SpanKind::Client, &trace);
        assert_eq!(span.trace(), &trace);
        let unsampled = PARENT.replace("-01", "-00");
        assert_eq!(Trace::read(Some(&unsampled), None).parent(), Some(unsampled));
        assert_eq!(Trace::read(Some(PARENT), None).headers().len(), 1);
    }

    #[test]
    fn what_is_no_trace_is_none() {
        for wrong in [
            "",
            "00-1-2-00",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nx: y",
        ] {
            let trace = Trace::read(Some(wrong), Some("a=b"));
            assert!(trace.is_none() && trace.headers().is_empty(), "{wrong}");
        }
        assert!(Trace::read(None, Some("a=b")).is_none());
        let odd = Trace::read(Some(PARENT), Some("no state at all"));
        assert_eq!((odd.parent().as_deref(), odd.state()), (Some(PARENT), None));
    }
}
