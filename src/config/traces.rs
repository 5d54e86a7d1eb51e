//! Where traces go, checked.

use std::time::Duration;

use ureq::http::{HeaderName, HeaderValue, Uri};

use super::{
    error::OptionError,
    options::TraceOptions,
    values::{ApiKey, Sampler},
};

/// Where traces go and which are recorded; each field is explained at its option in [`TraceOptions`].
#[derive(Debug, Clone, PartialEq)]
pub struct Traces {
    pub url: String,
    pub headers: Vec<(String, ApiKey)>,
    pub timeout: Duration,
    pub gzip: bool,
    /// Attributes of the process, its `service.name` among them.
    pub resource: Vec<(String, String)>,
    pub parent_based: bool,
    /// Share of the traces without a caller, or of all, 0 to 1.
    pub share: f64,
    /// Spans that may wait.
    pub queue: usize,
    /// How long they wait for others.
    pub delay: Duration,
    pub preferences: bool,
}

/// Beginning of the variables about sending.
const SENDING: &str = "OTEL_EXPORTER_OTLP_";
/// Those of them that are options, by their ends.
const KNOWN: [&str; 6] =
    ["ENDPOINT", "TRACES_ENDPOINT", "PROTOCOL", "HEADERS", "TIMEOUT", "COMPRESSION"];

/// Longest queue of spans; its places are taken from memory at the start.
const MOST_WAITING: usize = 1_000_000;

impl TraceOptions {
    /// Checks every bound; `None` where no collector is given. `variables` are the environment's.
    pub(super) fn check(
        &self,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Option<Traces>, OptionError> {
        let given = |option: &Option<String>| option.clone().filter(|text| !text.is_empty());
        let (option, url) = match (given(&self.otlp_traces_endpoint), given(&self.otlp_endpoint)) {
            (Some(whole), _) => ("otlp_traces_endpoint", whole),
            (None, Some(collector)) => {
                ("otlp_endpoint", format!("{}/v1/traces", collector.trim_end_matches('/')))
            }
            (None, None) => return Ok(None),
        };
        for (name, value) in variables {
            match (&name[..], &value[..]) {
                (_, "") => {}
                ("OTEL_SDK_DISABLED", "true") | ("OTEL_TRACES_EXPORTER", "none") => {
                    return Ok(None);
                }
                ("OTEL_TRACES_EXPORTER", exporter) if exporter != "otlp" => {
                    return Err(OptionError::Variable { name, hint: "set it to otlp or none" });
                }
                _ if name.strip_prefix(SENDING).is_some_and(is_unknown) => {
                    let hint = "unset it: of these, ENDPOINT, TRACES_ENDPOINT, PROTOCOL, HEADERS, \
                                TIMEOUT and COMPRESSION are known";
                    return Err(OptionError::Variable { name, hint });
                }
                _ => {}
            }
        }
        let refuse = |option, got: &str, expected: &str| {
            Err(OptionError::Value { option, got: got.to_owned(), expected: expected.to_owned() })
        };
        let address = url.parse::<Uri>().ok().filter(|uri| {
            uri.host().is_some() && matches!(uri.scheme_str(), Some("http" | "https"))
        });
        if address.is_none() {
            return refuse(option, &url, "an address such as http://127.0.0.1:4318");
        }
        let protocol = self.otlp_protocol();
        if protocol != "http/protobuf" {
            let expected = "http/protobuf, which collectors take at port 4318";
            return refuse("otlp_protocol", &protocol, expected);
        }
        let gzip = match &self.otlp_compression()[..] {
            "none" => false,
            "gzip" => true,
            other => return refuse("otlp_compression", other, "none or gzip"),
        };
        let Sampler { parent_based, share } = self.traces_sampler();
        let share = share.unwrap_or(self.traces_sampler_arg());
        if !(0.0..=1.0).contains(&share) {
            return refuse("traces_sampler_arg", &share.to_string(), "a share from 0 to 1");
        }
        let queue = self.trace_queue().get();
        if queue > MOST_WAITING {
            return refuse("trace_queue", &queue.to_string(), "at most 1000000");
        }
        let mut headers = Vec::new();
        let listed = self.otlp_headers.as_ref().map_or("", |headers| &headers.0);
        for (name, value) in pairs(listed) {
            let right = name.parse::<HeaderName>().is_ok() && HeaderValue::try_from(&value).is_ok();
            if !right {
                // Its value may be a secret.
                return refuse("otlp_headers", &name, "NAME=VALUE of an HTTP header");
            }
            headers.push((name, ApiKey(value)));
        }
        let mut resource = pairs(self.resource_attributes.as_deref().unwrap_or(""));
        if self.service_name.is_some() || !resource.iter().any(|(name, _)| name == "service.name") {
            resource.retain(|(name, _)| name != "service.name");
            resource.push(("service.name".to_owned(), self.service_name()));
        }
        resource.push(("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()));
        Ok(Some(Traces {
            url,
            headers,
            timeout: Duration::from_millis(self.otlp_timeout().get() as u64),
            gzip,
            resource,
            parent_based,
            share,
            queue,
            delay: Duration::from_millis(self.trace_delay().into()),
            preferences: self.trace_preferences(),
        }))
    }
}

/// Whether a variable is about sending traces and is no option; those for metrics and logs are not
/// ours.
fn is_unknown(end: &str) -> bool {
    !KNOWN.contains(&end) && !end.starts_with("METRICS_") && !end.starts_with("LOGS_")
}

/// `name=value,…` with percent-encoded values, as OpenTelemetry writes lists of pairs.
fn pairs(text: &str) -> Vec<(String, String)> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name.trim().to_owned(), decoded(value.trim()))
    };
    text.split(',').filter(|part| !part.trim().is_empty()).map(pair).collect()
}

/// Percent-encoded text; what is none stays as it is.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        let code = text.get(text.len() - more.len()..).and_then(|digits| digits.get(..2));
        let code = code.filter(|digits| !digits.starts_with('+'));
        match code.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &more[2..];
            }
            _ => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    fn check(options: TraceOptions, variables: &[(&str, &str)]) -> Result<Option<Traces>, String> {
        let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        options.check(variables).map_err(|error| error.to_string())
    }

    fn to_collector() -> TraceOptions {
        TraceOptions { otlp_endpoint: Some("http://collector:4318/".into()), ..Default::default() }
    }

    #[test]
    fn there_are_no_traces_unless_there_is_a_collector() {
        assert_eq!(check(TraceOptions::default(), &[("OTEL_SERVICE_NAME", "x")]), Ok(None));
        let empty = TraceOptions { otlp_endpoint: Some(String::new()), ..Default::default() };
        assert_eq!(check(empty, &[]), Ok(None));
        for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert_eq!(check(to_collector(), &[off]), Ok(None));
        }
        let traces = check(to_collector(), &[]).unwrap().unwrap();
        assert_eq!(traces.url, "http://collector:4318/v1/traces");
        assert!(traces.resource.contains(&("service.name".into(), "ladle".into())));
        assert_eq!((traces.parent_based, traces.share, traces.queue), (true, 1.0, 2048));
    }

    #[test]
    fn headers_and_attributes_are_pairs_with_encoded_values() {
        let options = TraceOptions {
            otlp_headers: Some(ApiKey("authorization=Bearer%20a%2Cb, x-scope = 100%".into())),
            resource_attributes: Some("service.name=soup,deployment=caf%C3%A9".into()),
            ..to_collector()
        };
        let traces = check(options, &[]).unwrap().unwrap();
        let header = |name: &str, value: &str| (name.to_owned(), ApiKey(value.to_owned()));
        assert_eq!(
            traces.headers,
            [header("authorization", "Bearer a,b"), header("x-scope", "100%")]
        );
        assert!(!format!("{traces:?}").contains("Bearer"));
        let attribute = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(traces.resource[0], attribute("service.name", "soup"));
        assert_eq!(traces.resource[1], attribute("deployment", "café"));
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        let grpc = TraceOptions { otlp_protocol: Some("grpc".into()), ..to_collector() };
        assert!(check(grpc, &[]).unwrap_err().contains("otlp_protocol is grpc, expected http"));
        let address =
            TraceOptions { otlp_endpoint: Some("collector:4318".into()), ..Default::default() };
        assert!(check(address, &[]).unwrap_err().contains("otlp_endpoint is collector:4318/v1"));
        let share = TraceOptions {
            traces_sampler: Some("traceidratio".parse().unwrap()),
            traces_sampler_arg: Some(1.5),
            ..to_collector()
        };
        assert!(check(share, &[]).unwrap_err().contains("traces_sampler_arg is 1.5"));
        let queue = TraceOptions { trace_queue: Some(NonZeroUsize::MAX), ..to_collector() };
        assert!(check(queue, &[]).unwrap_err().contains("trace_queue is"));
        let secret =
            TraceOptions { otlp_headers: Some(ApiKey("a b=secret".into())), ..to_collector() };
        let error = check(secret, &[]).unwrap_err();
        assert!(error.contains("otlp_headers is a b") && !error.contains("secret"), "{error}");
        assert!("sometimes".parse::<Sampler>().unwrap_err().contains("traceidratio"));
        for (name, value) in
            [("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"), ("OTEL_TRACES_EXPORTER", "zipkin")]
        {
            assert!(check(to_collector(), &[(name, value)]).unwrap_err().contains(name));
        }
        let metrics = ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc");
        assert!(check(to_collector(), &[metrics]).unwrap().is_some());
    }
}
