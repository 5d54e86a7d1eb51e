//! W3C Trace Context: what a caller says about its trace, and whether ours is recorded.

use axum::http::HeaderMap;

/// Longest `tracestate` that is passed on, bytes: what the standard asks for at least.
const MAX_STATE: usize = 512;

/// The span of a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    pub trace: [u8; 16],
    pub span: [u8; 8],
    pub sampled: bool,
    /// `tracestate`.
    pub state: Option<String>,
}

/// The caller's span, if its headers name one; headers that are not right are as good as none.
pub fn remote(headers: &HeaderMap) -> Option<Remote> {
    let mut parents = headers.get_all("traceparent").iter();
    let (parent, None) = (parents.next()?, parents.next()) else { return None };
    let parts: Vec<&str> = parent.to_str().ok()?.split('-').collect();
    let [version, trace, span, flags, more @ ..] = &parts[..] else { return None };
    let [version] = hex::<1>(version)?;
    // Later versions may add fields.
    if version == 0xff || version == 0 && !more.is_empty() {
        return None;
    }
    let (trace, span, [flags]) = (hex::<16>(trace)?, hex::<8>(span)?, hex::<1>(flags)?);
    if trace == [0; 16] || span == [0; 8] {
        return None;
    }
    let states: Vec<&str> =
        headers.get_all("tracestate").iter().filter_map(|state| state.to_str().ok()).collect();
    let state = Some(states.join(",")).filter(|state| (1..=MAX_STATE).contains(&state.len()));
    Some(Remote { trace, span, sampled: flags & 1 == 1, state })
}

/// Bytes from lower-case hexadecimal digits.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes();
    if pairs.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(pairs.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// The digits of an id.
pub fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a trace is among a share of all. They are chosen by their ids, so that every service
/// chooses the same.
pub fn in_share(share: f64, trace: [u8; 16]) -> bool {
    let low = u64::from_be_bytes(std::array::from_fn(|at| trace[8 + at])) >> 1;
    share >= 1.0 || (low as f64) < share * (1u64 << 63) as f64
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_caller_is_understood_as_the_standard_writes_it() {
        let given = [("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")];
        let caller = remote(&headers(&given)).unwrap();
        assert_eq!(digits(&caller.trace), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(digits(&caller.span), "b7ad6b7169203331");
        assert!(caller.sampled);
        assert_eq!(caller.state.as_deref(), Some("a=1,b=2"));
        let later = "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-02-what-comes";
        assert!(!remote(&headers(&[("traceparent", later)])).unwrap().sampled);
    }

    #[test]
    fn a_caller_that_is_not_right_is_none() {
        for parent in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0x",
        ] {
            assert_eq!(remote(&headers(&[("traceparent", parent)])), None, "{parent}");
        }
        let twice = [("traceparent", PARENT), ("traceparent", PARENT)];
        assert_eq!(remote(&headers(&twice)), None);
    }

    #[test]
    fn a_share_of_traces_is_recorded_by_their_ids() {
        let chosen = |share, low: u64| {
            let mut trace = [0; 16];
            trace[8..].copy_from_slice(&low.to_be_bytes());
            in_share(share, trace)
        };
        assert!(chosen(1.0, u64::MAX) && !chosen(0.0, 0));
        assert!(chosen(0.5, 1 << 62) && !chosen(0.5, 3 << 62));
    }
}
