//! Exports the spans of a node to an OpenTelemetry collector, by OTLP over HTTP.
//!
//! Invariants:
//! - The work that a span measures never waits for the collector. Spans for which the queue has no
//!   room are dropped and counted. Spans of a failed export are lost without a count. A warning
//!   about failed exports states the number of dropped spans.
//! - A binary without the feature `otlp` rejects the flag `--otlp` instead of ignoring it.

#[cfg(not(feature = "otlp"))]
pub(crate) use absent::start;
#[cfg(feature = "otlp")]
pub(crate) use present::start;

/// Settings of the export of spans.
#[derive(clap::Args)]
#[command(next_help_heading = "Traces")]
pub(crate) struct OtlpArgs {
    /// Address of an OpenTelemetry collector for spans, such as http://127.0.0.1:4318 [default: no
    /// export]
    #[arg(long, env = "IMT_OTLP", value_name = "URL")]
    otlp: Option<String>,
    /// Share of the requests without a trace of their own that begin a trace, from 0 to 1
    #[arg(long, env = "IMT_OTLP_SHARE", default_value_t = 0.01, value_name = "SHARE", value_parser = share)]
    otlp_share: f64,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("must be a number from 0 to 1, such as 0.05".to_owned()),
    }
}

#[cfg(not(feature = "otlp"))]
mod absent {
    use super::OtlpArgs;
    use crate::error::CliError;

    /// Fails if `--otlp` is set, because this binary cannot export spans.
    pub(crate) fn start(args: &OtlpArgs, _node: &str) -> Result<(), CliError> {
        let _ = args.otlp_share;
        match &args.otlp {
            None => Ok(()),
            Some(_) => Err(CliError::Usage(
                "this imt was built without the export of spans; build it with: cargo build --profile dist \
                 --features otlp"
                    .to_owned(),
            )),
        }
    }
}

#[cfg(feature = "otlp")]
mod present {
    use super::OtlpArgs;
    use crate::error::CliError;
    use imt_oms::{FinishedSpan, SpanKind, SpanOutcome, SpanSink};
    use opentelemetry::trace::{
        SpanContext, SpanId, SpanKind as OtelKind, Status, TraceFlags, TraceId, TraceState,
    };
    use opentelemetry::{InstrumentationScope, KeyValue};
    use opentelemetry_otlp::{SpanExporter, WithExportConfig};
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;
    use tokio::sync::mpsc;

    /// Maximum number of spans that wait in the queue. The spans of the current request are not in
    /// it.
    const QUEUE_MAX: usize = 4_096;
    /// Maximum number of spans in one request to the collector.
    const BATCH_MAX: usize = 512;
    /// Maximum time to collect spans for one request, measured from the first span.
    const BATCH_TIME: Duration = Duration::from_secs(1);
    /// Minimum time between two warnings about failed exports.
    const WARN_EVERY: Duration = Duration::from_secs(60);
    /// Default path at which a collector accepts spans.
    const TRACES: &str = "/v1/traces";

    struct Queue {
        spans: mpsc::Sender<FinishedSpan>,
        dropped: Arc<AtomicU64>,
    }

    impl SpanSink for Queue {
        fn finished(&self, span: FinishedSpan) {
            if self.spans.try_send(span).is_err() {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Starts the task that exports spans, if the arguments name a collector. Must be called within
    /// a tokio runtime.
    pub(crate) fn start(args: &OtlpArgs, node: &str) -> Result<(), CliError> {
        let Some(url) = &args.otlp else {
            return Ok(());
        };
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_endpoint(endpoint(url)?)
            .build()
            .map_err(|error| CliError::because(format!("cannot export spans to {url}"), error))?;
        exporter.set_resource(&resource(node));
        let (sender, spans) = mpsc::channel(QUEUE_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let queue = Queue {
            spans: sender,
            dropped: Arc::clone(&dropped),
        };
        imt_oms::export_spans(Box::new(queue), args.otlp_share);
        tokio::spawn(export(exporter, spans, dropped));
        Ok(())
    }

    /// Returns the URL to send spans to. A URL without a path, or with the path `/`, gets the path
    /// [`TRACES`].
    fn endpoint(url: &str) -> Result<String, CliError> {
        let wrong = |problem: &str| {
            CliError::Usage(format!(
                "--otlp {url}: {problem}; it looks like http://127.0.0.1:4318"
            ))
        };
        let uri: hyper::Uri = url.parse().map_err(|_| wrong("not a URL"))?;
        if uri.scheme_str() != Some("http") || uri.host().is_none() {
            return Err(wrong("only http is supported"));
        }
        if uri.query().is_some() {
            return Err(wrong("a query is not supported"));
        }
        match uri.path() {
            "" | "/" => Ok(format!("{}{TRACES}", url.trim_end_matches('/'))),
            _ => Ok(url.to_owned()),
        }
    }

    fn resource(node: &str) -> Resource {
        Resource::builder()
            .with_service_name("imt-order")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", node.to_owned()))
            .build()
    }

    async fn export(
        exporter: SpanExporter,
        mut spans: mpsc::Receiver<FinishedSpan>,
        dropped: Arc<AtomicU64>,
    ) {
        let mut warned: Option<tokio::time::Instant> = None;
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while let Some(first) = spans.recv().await {
            batch.push(first);
            let until = tokio::time::Instant::now() + BATCH_TIME;
            while batch.len() < BATCH_MAX {
                match tokio::time::timeout_at(until, spans.recv()).await {
                    Ok(Some(span)) => batch.push(span),
                    Ok(None) | Err(_) => break,
                }
            }
            let data = batch.drain(..).map(span_data).collect();
            if let Err(error) = exporter.export(data).await
                && warned.is_none_or(|at| at.elapsed() > WARN_EVERY)
            {
                warned = Some(tokio::time::Instant::now());
                let dropped = dropped.load(Ordering::Relaxed);
                tracing::warn!(%error, dropped, "spans not exported");
            }
        }
    }

    fn span_data(span: FinishedSpan) -> SpanData {
        let is_failed = match span.outcome {
            SpanOutcome::Status(status) => status >= 500,
            SpanOutcome::Answered => false,
            SpanOutcome::Unanswered => true,
        };
        let mut attributes: Vec<KeyValue> = span
            .attributes
            .into_iter()
            .map(|(name, value)| KeyValue::new(name, value))
            .collect();
        if let SpanOutcome::Status(status) = span.outcome {
            attributes.push(KeyValue::new("http.response.status_code", i64::from(status)));
        }
        SpanData {
            span_context: SpanContext::new(
                TraceId::from(span.context.trace),
                SpanId::from(span.context.span),
                TraceFlags::new(span.context.flags),
                false,
                TraceState::default(),
            ),
            parent_span_id: span.parent.map_or(SpanId::INVALID, SpanId::from),
            parent_span_is_remote: span.kind == SpanKind::Server && span.parent.is_some(),
            span_kind: match span.kind {
                SpanKind::Server => OtelKind::Server,
                SpanKind::Client => OtelKind::Client,
            },
            name: span.name.into(),
            start_time: span.started,
            end_time: span.started + span.took,
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: match is_failed {
                true => Status::error(""),
                false => Status::Unset,
            },
            instrumentation_scope: InstrumentationScope::builder("imt-oms").build(),
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use imt_oms::TraceContext;
        use std::time::UNIX_EPOCH;

        #[test]
        fn a_collector_is_named_with_or_without_its_path() {
            assert_eq!(endpoint("http://c:4318").unwrap(), "http://c:4318/v1/traces");
            assert_eq!(endpoint("http://c:4318/").unwrap(), "http://c:4318/v1/traces");
            assert_eq!(endpoint("http://c/otlp").unwrap(), "http://c/otlp");
            for wrong in ["c:4318", "https://c", "ftp://c", ""] {
                assert!(endpoint(wrong).is_err(), "{wrong}");
            }
        }

        #[test]
        fn a_span_keeps_its_identity_and_fails_with_5xx_or_no_answer() {
            let span = |outcome| FinishedSpan {
                name: "POST /order",
                kind: SpanKind::Server,
                context: TraceContext {
                    trace: 7,
                    span: 8,
                    flags: 1,
                },
                parent: Some(9),
                started: UNIX_EPOCH,
                took: Duration::from_millis(5),
                outcome,
                attributes: vec![("order.id", "17".to_owned())],
            };
            let data = span_data(span(SpanOutcome::Status(200)));
            assert_eq!(data.span_context.trace_id(), TraceId::from(7_u128));
            assert_eq!(data.parent_span_id, SpanId::from(9_u64));
            assert_eq!(data.end_time, UNIX_EPOCH + Duration::from_millis(5));
            assert_eq!(data.status, Status::Unset);
            assert_eq!(span_data(span(SpanOutcome::Answered)).status, Status::Unset);
            for failed in [SpanOutcome::Status(503), SpanOutcome::Unanswered] {
                assert_eq!(span_data(span(failed)).status, Status::error(""));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn a_share_is_from_0_to_1() {
        for (text, expected) in [("0", Some(0.0)), ("0.5", Some(0.5)), ("1", Some(1.0))] {
            assert_eq!(share(text).ok(), expected);
        }
        for wrong in ["-0.1", "1.1", "nan", "inf", "x"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }
}
