//! The request that a server suggests when it is ready.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Map, Value, json};

use super::app::Served;

/// A request to paste into a shell: the soup's own objectives, weighed alike. `scheme` is http or
/// https; a server that is not `open` asks for a key.
pub fn example(served: &Served, scheme: &str, address: SocketAddr, open: bool) -> String {
    let ip = match address.ip() {
        ip if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        ip => ip,
    };
    let objectives = served.menu.objectives.iter();
    let preference: Map<String, Value> = objectives.map(|name| (name.clone(), 1.into())).collect();
    let mut body = match served.chat {
        Some(_) => json!({"messages": [{"role": "user", "content": "Tell me about soup."}]}),
        None => json!({"prompt": "A soup is"}),
    };
    body["preference"] = preference.into();
    body["max_tokens"] = 64.into();
    let key = if open { "" } else { " -H \"authorization: Bearer $LADLE_API_KEY\"" };
    let url = format!("{scheme}://{}/generate", SocketAddr::new(ip, address.port()));
    // A name of an objective may hold a quotation mark of the shell.
    let body = body.to_string().replace('\'', "'\\''");
    format!("curl {url}{key} -H 'content-type: application/json' -d '{body}'")
}
