//! What a server says when it is ready.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Map, Value, json};

use super::served::Served;
use crate::{
    config::{Processor, ServeConfig},
    engine::CpuOptions,
};

/// Logs what is served, where and within which budgets, and a request to try.
pub fn announce(served: &Served, config: &ServeConfig, address: SocketAddr) {
    let ip = match address.ip() {
        ip if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        ip => ip,
    };
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{}", SocketAddr::new(ip, address.port()));
    let bounds = served.engine.bounds();
    let merge_cache = match (served.merge_cache, config.device) {
        (Some(bytes), _) => size(bytes),
        (None, Processor::Cpu) => size(CpuOptions::default().merged_bytes as u64),
        (None, Processor::Cuda(_)) => "what is left".to_owned(),
    };
    tracing::info!(
        url,
        soup = served.name,
        generation = served.generation,
        digest = served.digest,
        base = %served.base.display(),
        context = served.context(),
        sequences = config.max_sequences,
        kv_tokens = bounds.kv_blocks.saturating_mul(bounds.block_tokens),
        merge_cache,
        mode = ?config.merge_mode,
        device = ?config.device,
        pinned = (!config.pin.is_empty()).then(|| config.pin.join(",")),
        "ready"
    );
    let open = config.api_keys.is_empty() && config.named_keys.is_none();
    tracing::info!("try: {}", example(served, &url, open));
}

/// Bytes, to be read.
fn size(bytes: u64) -> String {
    format!("{:.1}GiB", bytes as f64 / (1u64 << 30) as f64)
}

/// A request to paste into a shell: the soup's own objectives, weighed alike. A server that is not
/// `open` asks for a key.
fn example(served: &Served, url: &str, open: bool) -> String {
    let objectives = served.menu.objectives.iter();
    let preference: Map<String, Value> = objectives.map(|name| (name.clone(), 1.into())).collect();
    let mut body = match served.chat {
        Some(_) => json!({"messages": [{"role": "user", "content": "Tell me about soup."}]}),
        None => json!({"prompt": "A soup is"}),
    };
    body["preference"] = preference.into();
    body["max_tokens"] = 64.into();
    let key = if open { "" } else { " -H \"authorization: Bearer $LADLE_API_KEY\"" };
    // A name of an objective may hold a quotation mark of the shell.
    let body = body.to_string().replace('\'', "'\\''");
    format!("curl {url}/generate{key} -H 'content-type: application/json' -d '{body}'")
}
