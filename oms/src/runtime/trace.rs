//! Trace context by W3C Trace Context: the identity of a request on its way through several
//! services.
//!
//! **Invariants**
//! - A request without a valid `traceparent` gets no context, unless spans are exported.
//! - A header that is not exactly of the standard's form is ignored, as the standard requires.
//! - Context is bound to a task. Work that another task does for a request is part of the request's
//!   trace only if that task runs within the context (`TraceContext::scope`).
//!
//! Deliberately absent: `tracestate`, which is for vendors' own data, and a protocol for the export
//! of spans, which an implementation of `SpanSink` provides.

use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::runtime;

/// Name of the header with the trace context of a request.
pub(crate) const TRACEPARENT: &str = "traceparent";
/// Flag of a trace with recorded spans.
const SAMPLED: u8 = 1;

/// Identity of one span of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Identity of the trace. Never 0.
    pub trace: u128,
    /// Identity of the span. Never 0.
    pub span: u64,
    /// Trace flags of the standard. The lowest bit is set if the spans of the trace are recorded.
    pub flags: u8,
}

impl TraceContext {
    /// Parses the value of a `traceparent` header. `None` if the value is not of the standard's
    /// form.
    pub(crate) fn parse(text: &str) -> Option<TraceContext> {
        let mut parts = text.splitn(5, '-');
        let version = hex(parts.next()?, 2)?;
        let trace = hex(parts.next()?, 32)?;
        let span = hex(parts.next()?, 16)?;
        let flags = hex(parts.next()?, 2)?;
        // A later version of the standard may append parts. Version 255 is forbidden.
        let has_more = parts.next().is_some();
        let is_known = version < 0xff && (version > 0 || !has_more);
        (is_known && trace != 0 && span != 0).then_some(TraceContext {
            trace,
            span: span as u64,
            flags: flags as u8,
        })
    }

    /// Returns a context of these parts, or `None` if the trace or span is 0.
    pub(crate) fn of_parts(trace: u128, span: u64, flags: u8) -> Option<TraceContext> {
        (trace != 0 && span != 0).then_some(TraceContext { trace, span, flags })
    }

    /// Returns the first span of a new trace.
    pub(crate) fn root() -> TraceContext {
        let half = || u128::from(runtime::random_u64());
        TraceContext {
            trace: ((half() << 64) | half()).max(1),
            span: runtime::random_u64().max(1),
            flags: SAMPLED,
        }
    }

    /// Returns a new span of the same trace.
    pub(crate) fn child(self) -> TraceContext {
        TraceContext {
            span: runtime::random_u64().max(1),
            ..self
        }
    }

    /// Returns `true` if the spans of the trace are recorded.
    pub(crate) fn is_sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// Returns the id of the trace as text, for the log.
    pub(crate) fn trace_id(self) -> String {
        format!("{:032x}", self.trace)
    }

    /// Runs a future as part of this span.
    pub(crate) async fn scope<F: Future>(self, future: F) -> F::Output {
        CURRENT.scope(self, future).await
    }
}

/// Parses a fixed number of lower-case hexadecimal digits. `None` for any other text.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if text.len() != digits || !text.bytes().all(is_hex) {
        return None;
    }
    u128::from_str_radix(text, 16).ok()
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

tokio::task_local! {
    static CURRENT: TraceContext;
}

/// Returns the context of the running task. `None` outside of `TraceContext::scope`.
pub(crate) fn current() -> Option<TraceContext> {
    CURRENT.try_with(|context| *context).ok()
}

/// The role of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// A request that this process answered.
    Server,
    /// A call from this process to another node or service.
    Client,
}

/// The outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanOutcome {
    /// The request got a response with this HTTP status. For a call of the warehouse, 200 stands
    /// for every success and 409 for every final refusal.
    Status(u16),
    /// The request was answered on the channel between nodes. The span has no HTTP status.
    Answered,
    /// No answer to the request arrived, or the warehouse answered with neither a success nor a
    /// final refusal.
    Unanswered,
}

/// A span that has ended.
#[derive(Clone, Debug)]
pub struct FinishedSpan {
    /// Name of the operation, without ids in it.
    pub name: &'static str,
    /// Role of the span.
    pub kind: SpanKind,
    /// Identity of the span and its trace.
    pub context: TraceContext,
    /// Identity of the span that caused this span. `None` for the first span of a trace.
    pub parent: Option<u64>,
    /// Start of the span by the wall clock.
    pub started: SystemTime,
    /// Duration of the span.
    pub took: Duration,
    /// Outcome of the request.
    pub outcome: SpanOutcome,
    /// Further facts about the request, as names and values.
    pub attributes: Vec<(&'static str, String)>,
}

/// The start of a span, by the wall clock and by the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun {
    pub(crate) started: SystemTime,
    instant: Instant,
}

impl Begun {
    /// Returns a start at the present moment.
    pub(crate) fn now() -> Begun {
        Begun {
            started: SystemTime::now(),
            instant: Instant::now(),
        }
    }

    /// Returns the time since the start.
    pub(crate) fn elapsed(self) -> Duration {
        self.instant.elapsed()
    }
}

/// Receives spans that have ended. An implementation must not block.
pub trait SpanSink: Send + Sync {
    /// Receives one span that has ended.
    fn finished(&self, span: FinishedSpan);
}

struct Export {
    sink: Box<dyn SpanSink>,
    share: f64,
}

static EXPORT: OnceLock<Export> = OnceLock::new();

/// Exports the spans of this process to `sink`. A request without a trace begins a new trace with
/// the probability `share`. Returns `false` if spans are exported already.
pub fn export_spans(sink: Box<dyn SpanSink>, share: f64) -> bool {
    EXPORT.set(Export { sink, share }).is_ok()
}

/// The span of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestSpan {
    pub(crate) context: TraceContext,
    /// The caller's span. `None` if this request begins its trace.
    pub(crate) parent: Option<u64>,
}

/// Returns the span of a request, which is a child of the span in the header. Without a valid
/// header, a share of the requests begins a new trace while spans are exported. All other requests
/// have no span.
pub(crate) fn begin(header: Option<&[u8]>) -> Option<RequestSpan> {
    let given = header.and_then(|header| TraceContext::parse(std::str::from_utf8(header).ok()?));
    if let Some(parent) = given {
        return Some(RequestSpan {
            context: parent.child(),
            parent: Some(parent.span),
        });
    }
    let export = EXPORT.get()?;
    (runtime::random_share() < export.share).then(|| RequestSpan {
        context: TraceContext::root(),
        parent: None,
    })
}

/// Exports a span, if spans are exported and its trace is recorded.
pub(crate) fn finish(span: impl FnOnce() -> FinishedSpan, context: TraceContext) {
    if let Some(export) = EXPORT.get().filter(|_| context.is_sampled()) {
        export.sink.finished(span());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_header_of_the_standard_is_read_and_written() {
        let context = TraceContext::parse(HEADER).unwrap();
        assert_eq!(context.trace, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!((context.span, context.flags), (0x00f0_67aa_0ba9_02b7, 1));
        assert_eq!(context.to_string(), HEADER);
        let later = format!("cc{}-what-comes", &HEADER[2..]);
        assert_eq!(TraceContext::parse(&later), Some(context), "a later version");
        let child = context.child();
        assert_eq!((child.trace, child.flags), (context.trace, context.flags));
        assert_ne!(child.span, context.span);
    }

    #[test]
    fn a_header_of_another_form_is_ignored() {
        for wrong in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-+1",
        ] {
            assert_eq!(TraceContext::parse(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_context_is_bound_to_its_task() {
        assert_eq!(current(), None);
        let RequestSpan { context, parent } = begin(Some(HEADER.as_bytes())).unwrap();
        assert_eq!(parent, Some(0x00f0_67aa_0ba9_02b7));
        context
            .scope(async { assert_eq!(current(), Some(context)) })
            .await;
        assert_eq!(current(), None);
        assert_eq!(begin(Some(b"\xff\xfe")), None);
        assert_eq!(begin(None), None);
    }
}
