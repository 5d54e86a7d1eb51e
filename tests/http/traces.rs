//! Traces, as a collector gets them: an HTTP server that reads protobuf by the field numbers of
//! OpenTelemetry's `trace.proto`.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    thread,
};

use ladle::config::{ApiKey, MergeMode, ServeOptions, TraceOptions};
use serde_json::json;

use crate::{
    process::Process,
    server::{PATIENCE, Server, copied, greedy, options, with},
};

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Takes spans and tells of each message: its head and its body.
struct Collector {
    address: String,
    messages: mpsc::Receiver<(String, Vec<u8>)>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (tell, messages) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let tell = tell.clone();
                thread::spawn(move || while receive(&stream, &tell).is_some() {});
            }
        });
        Self { address, messages }
    }

    /// The spans of the next message, and its head.
    fn next(&self) -> (String, Vec<Span>) {
        let (head, body) = self.messages.recv_timeout(PATIENCE).expect("a message");
        let mut spans = Vec::new();
        for resource in messages(&body, 1) {
            for scope in messages(resource, 2) {
                spans.extend(messages(scope, 2).map(Span::read));
            }
        }
        (head, spans)
    }
}

fn receive(mut stream: &TcpStream, tell: &mpsc::Sender<(String, Vec<u8>)>) -> Option<()> {
    let (mut reader, mut head) = (BufReader::new(stream), String::new());
    while !head.ends_with("\r\n\r\n") {
        let before = head.len();
        reader.read_line(&mut head).ok()?;
        if head.len() == before {
            return None;
        }
    }
    let head = head.to_lowercase();
    let length = head.split("content-length: ").nth(1)?.split("\r\n").next()?.parse().ok()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()?;
    tell.send((head, body)).ok()
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Number and value of every field of a message.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut number = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        number
    }
    fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (taken, rest) = bytes.split_at(count);
        *bytes = rest;
        taken
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let field = match key & 7 {
            0 => Field::Number(varint(&mut bytes)),
            1 => Field::Number(u64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap())),
            2 => {
                let length = varint(&mut bytes) as usize;
                Field::Bytes(take(&mut bytes, length))
            }
            5 => Field::Number(u32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap()).into()),
            wire => panic!("wire type {wire}"),
        };
        found.push((key >> 3, field));
    }
    found
}

fn messages(bytes: &[u8], number: u64) -> impl Iterator<Item = &[u8]> {
    fields(bytes).into_iter().filter_map(move |(at, field)| match field {
        Field::Bytes(bytes) if at == number => Some(bytes),
        _ => None,
    })
}

fn number(bytes: &[u8], number: u64) -> Option<u64> {
    fields(bytes).into_iter().find_map(|(at, field)| match field {
        Field::Number(value) if at == number => Some(value),
        _ => None,
    })
}

fn text(bytes: &[u8], number: u64) -> String {
    let found = messages(bytes, number).next().unwrap_or_default();
    String::from_utf8(found.to_vec()).unwrap()
}

#[derive(Debug)]
struct Span {
    trace: Vec<u8>,
    id: Vec<u8>,
    state: String,
    parent: Vec<u8>,
    name: String,
    kind: u64,
    from: u64,
    to: u64,
    failed: bool,
    attributes: BTreeMap<String, String>,
}

impl Span {
    fn read(bytes: &[u8]) -> Self {
        let raw = |number| messages(bytes, number).next().unwrap_or_default().to_vec();
        let value = |any: &[u8]| match fields(any).into_iter().next().unwrap() {
            (1, Field::Bytes(text)) => String::from_utf8(text.to_vec()).unwrap(),
            (2 | 3, Field::Number(number)) => number.to_string(),
            (4, Field::Number(bits)) => f64::from_bits(bits).to_string(),
            (5, Field::Bytes(list)) => {
                messages(list, 1).map(|any| text(any, 1)).collect::<Vec<_>>().join(",")
            }
            (other, _) => panic!("value {other}"),
        };
        let pairs = messages(bytes, 9);
        let pair = |pair: &[u8]| (text(pair, 1), value(messages(pair, 2).next().unwrap()));
        Self {
            trace: raw(1),
            id: raw(2),
            state: text(bytes, 3),
            parent: raw(4),
            name: text(bytes, 5),
            kind: number(bytes, 6).unwrap(),
            from: number(bytes, 7).unwrap(),
            to: number(bytes, 8).unwrap(),
            failed: messages(bytes, 15).any(|status| number(status, 3) == Some(2)),
            attributes: pairs.map(pair).collect(),
        }
    }
}

fn traced(traces: TraceOptions) -> ServeOptions {
    // What is recorded is sent at once, or when the server ends.
    ServeOptions { traces: TraceOptions { trace_delay: Some(60_000), ..traces }, ..options() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_request_is_a_span_with_its_phases_below_it() {
    let collector = Collector::start();
    let mut server = Server::start(traced(TraceOptions {
        otlp_endpoint: Some(collector.address.clone()),
        otlp_headers: Some(ApiKey("authorization=Bearer%20key".into())),
        ..Default::default()
    }));
    let request = server.client.post(format!("{}/generate", server.url));
    let request = request.header("traceparent", CALLER).header("tracestate", "a=1");
    request.json(&with(greedy(), json!({"seed": 7}))).send().unwrap().text().unwrap();
    let streamed = json!({"prompt": "A spoon", "max_tokens": 3, "stream": true, "n": 2});
    server.send("/v1/completions", streamed).text().unwrap();
    server.get("/health");
    assert_eq!(server.post("/generate", json!({"prompt": ""})).status, 400);
    server.stop();
    server.join().unwrap();

    let (head, spans) = collector.next();
    assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
    assert!(head.contains("content-type: application/x-protobuf\r\n"), "{head}");
    assert!(head.contains("authorization: bearer key\r\n"), "{head}");
    let roots: Vec<&Span> = spans.iter().filter(|span| span.kind == 2).collect();
    let names: Vec<&str> = roots.iter().map(|span| &span.name[..]).collect();
    assert_eq!(names, ["POST /generate", "POST /v1/completions", "POST /generate"]);
    assert_eq!(format!("00-{}-{}-01", hex(&roots[0].trace), hex(&roots[0].parent)), CALLER);
    assert_eq!(roots[0].state, "a=1");
    assert!(roots[1].parent.is_empty() && roots[1].trace != roots[0].trace);
    for (root, expected) in [
        (roots[0], &["queue", "prefill", "decode"][..]),
        (roots[1], &["queue", "queue", "prefill", "prefill", "decode", "decode"]),
        (roots[2], &[]),
    ] {
        let parts: Vec<&Span> = spans.iter().filter(|span| span.parent == root.id).collect();
        let mut names: Vec<&str> =
            parts.iter().map(|part| &part.name[..]).filter(|name| *name != "merge").collect();
        names.sort_by_key(|name| expected.iter().position(|one| one == name));
        assert_eq!(names, expected);
        for part in parts {
            assert!(part.trace == root.trace && part.kind == 1 && !part.failed, "{part:?}");
            assert!(root.from <= part.from && part.from <= part.to && part.to <= root.to);
        }
    }
    let told = |root: &Span, name: &str| root.attributes[name].clone();
    for (name, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/generate"),
        ("http.response.status_code", "200"),
        ("gen_ai.operation.name", "text_completion"),
        ("gen_ai.provider.name", "ladle"),
        ("gen_ai.request.model", "soup-tiny"),
        ("gen_ai.request.max_tokens", "8"),
        ("gen_ai.request.temperature", "0"),
        ("gen_ai.request.seed", "7"),
        ("gen_ai.response.finish_reasons", "length"),
        ("gen_ai.usage.output_tokens", "8"),
    ] {
        assert_eq!(told(roots[0], name), value, "{name}");
    }
    assert_eq!(told(roots[1], "gen_ai.request.choice.count"), "2");
    assert_eq!(told(roots[1], "gen_ai.response.finish_reasons").split(',').count(), 2);
    assert_eq!(told(roots[2], "http.response.status_code"), "400");
    let all = format!("{spans:?}");
    assert!(!all.contains("spoon") && !all.contains("preference"), "{all}");
}

#[test]
fn what_is_recorded_is_as_configured() {
    let collector = Collector::start();
    let options = traced(TraceOptions {
        otlp_traces_endpoint: Some(format!("{}/own/path", collector.address)),
        traces_sampler: Some("parentbased_always_off".parse().unwrap()),
        trace_preferences: Some(true),
        ..Default::default()
    });
    let fused = ServeOptions { merge_mode: Some(MergeMode::Fused), ..options };
    let mut server = Server::start(fused);
    let ask = |caller: &str, preference: [f64; 3]| {
        let request = server.client.post(format!("{}/generate", server.url));
        let body = with(greedy(), json!({"preference": preference}));
        request.header("traceparent", caller).json(&body).send().unwrap().text().unwrap();
    };
    server.generate(greedy());
    ask(&CALLER.replace("-01", "-00"), [1.0, 0.0, 0.0]);
    ask(CALLER, [1.0, 3.0, 0.0]);
    server.stop();
    server.join().unwrap();
    let (head, spans) = collector.next();
    assert!(head.starts_with("post /own/path "), "{head}");
    assert!(spans.iter().all(|span| CALLER.contains(&hex(&span.trace))));
    let [root] = &spans.iter().filter(|span| span.kind == 2).collect::<Vec<_>>()[..] else {
        panic!("{spans:?}");
    };
    assert_eq!(root.attributes["ladle.preference.helpful"], "0.25");
    assert_eq!(root.attributes["ladle.mode"], "fused");
    let names: Vec<&str> = spans.iter().map(|span| &span.name[..]).collect();
    assert_eq!(names, ["queue", "merge", "prefill", "decode", "POST /generate"]);
}

#[test]
fn a_collector_that_hangs_or_is_gone_keeps_nobody_waiting() {
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
    let gone = TcpListener::bind("127.0.0.1:0").map(|listener| address(&listener)).unwrap();
    for collector in [address(&hanging), gone] {
        let mut server = Server::start(ServeOptions {
            traces: TraceOptions {
                otlp_endpoint: Some(collector),
                trace_queue: Some(4.try_into().unwrap()),
                trace_delay: Some(1),
                ..Default::default()
            },
            ..options()
        });
        let before = server.generate(greedy())["text"].clone();
        server.wait_until("spans are dropped", |server| {
            assert_eq!(server.generate(greedy())["text"], before);
            server.metric("ladle_trace_spans_dropped_total") > 0.0
        });
        assert_eq!(server.metric("ladle_trace_spans_exported_total"), 0.0);
        server.stop();
        server.join().unwrap();
    }
}

#[test]
fn the_log_names_the_trace_of_a_caller_without_a_collector_too() {
    let soup = copied("soup-tiny");
    let process = Process::start(soup.path(), &[]);
    let request = process.server.client.post(format!("{}/generate", process.server.url));
    request.header("traceparent", CALLER).json(&greedy()).send().unwrap().text().unwrap();
    process.wait_for(&["answered", "\"trace_id\":\"0af7651916cd43dd8448eb211c80319c\""]);
}
