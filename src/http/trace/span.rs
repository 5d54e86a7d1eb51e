//! Spans, and how OTLP writes them: the messages of opentelemetry-proto's `trace.proto`, with its
//! field numbers, in protobuf's wire format.

/// A value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Text(String),
    Whole(i64),
    Real(f64),
    Flag(bool),
    Texts(Vec<String>),
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Whole(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<f32> for Value {
    fn from(number: f32) -> Self {
        Self::Real(number.into())
    }
}

pub type Attribute = (String, Value);

/// A span that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    pub trace: [u8; 16],
    pub id: [u8; 8],
    pub parent: Option<[u8; 8]>,
    /// `tracestate` of the caller, whose child the span then is.
    pub state: Option<String>,
    pub name: String,
    /// The span of a request that came from elsewhere, not of a part of it.
    pub server: bool,
    /// Nanoseconds since 1970.
    pub from: u64,
    pub to: u64,
    pub attributes: Vec<Attribute>,
    /// Why it failed, if it did.
    pub failure: Option<String>,
}

/// Name and version of what made the spans.
const SCOPE: (&str, &str) = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
/// Flags of a span: it is sampled, and it is known whether its parent is remote.
const SAMPLED: u32 = 0x001 | 0x100;
/// Its parent is remote.
const REMOTE: u32 = 0x200;
const INTERNAL: u64 = 1;
const SERVER: u64 = 2;
const ERROR: u64 = 2;

/// `ExportTraceServiceRequest` of the spans of one process.
pub fn encode(resource: &[(String, String)], spans: &[Span]) -> Vec<u8> {
    let mut request = Message::default();
    request.message(1, |of_resource| {
        of_resource.message(1, |described| {
            for (name, value) in resource {
                described.message(1, |pair| attribute(pair, name, &Value::Text(value.clone())));
            }
        });
        of_resource.message(2, |of_scope| {
            of_scope.message(1, |scope| {
                scope.bytes(1, SCOPE.0.as_bytes());
                scope.bytes(2, SCOPE.1.as_bytes());
            });
            for span in spans {
                of_scope.message(2, |written| write(written, span));
            }
        });
    });
    request.0
}

fn write(message: &mut Message, span: &Span) {
    message.bytes(1, &span.trace);
    message.bytes(2, &span.id);
    if let Some(state) = &span.state {
        message.bytes(3, state.as_bytes());
    }
    if let Some(parent) = &span.parent {
        message.bytes(4, parent);
    }
    message.bytes(5, span.name.as_bytes());
    message.number(6, if span.server { SERVER } else { INTERNAL });
    message.fixed64(7, span.from);
    message.fixed64(8, span.to);
    for (name, value) in &span.attributes {
        message.message(9, |pair| attribute(pair, name, value));
    }
    if let Some(failure) = &span.failure {
        message.message(15, |status| {
            status.bytes(2, failure.as_bytes());
            status.number(3, ERROR);
        });
    }
    let remote = span.server && span.parent.is_some();
    message.fixed32(16, SAMPLED | if remote { REMOTE } else { 0 });
}

fn attribute(pair: &mut Message, name: &str, value: &Value) {
    pair.bytes(1, name.as_bytes());
    pair.message(2, |any| any_value(any, value));
}

fn any_value(any: &mut Message, value: &Value) {
    match value {
        Value::Text(text) => any.bytes(1, text.as_bytes()),
        Value::Flag(flag) => any.number(2, (*flag).into()),
        // A negative number is its two's complement.
        Value::Whole(number) => any.number(3, *number as u64),
        Value::Real(number) => any.fixed64(4, number.to_bits()),
        Value::Texts(texts) => any.message(5, |list| {
            for text in texts {
                list.message(1, |any| any.bytes(1, text.as_bytes()));
            }
        }),
    }
}

/// A message under construction. Fields that have no value are left out by the caller.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn key(&mut self, field: u32, wire: u32) {
        self.varint(u64::from(field << 3 | wire));
    }

    fn number(&mut self, field: u32, number: u64) {
        self.key(field, 0);
        self.varint(number);
    }

    fn fixed64(&mut self, field: u32, bits: u64) {
        self.key(field, 1);
        self.0.extend(bits.to_le_bytes());
    }

    fn fixed32(&mut self, field: u32, bits: u32) {
        self.key(field, 5);
        self.0.extend(bits.to_le_bytes());
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.key(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn message(&mut self, field: u32, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(field, &inner.0);
    }
}
