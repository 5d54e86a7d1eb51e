use std::collections::BTreeMap;

use ladle::config::ServeOptions;
use serde_json::json;

use crate::server::{Server, greedy, options, with};

#[test]
fn counters_follow_the_requests() {
    let server = Server::start(options());
    let answer = server.generate(with(greedy(), json!({"preference": [1, 0, 0]})));
    server.post("/generate", json!({"prompt": ""}));
    server.get("/nowhere");
    server.wait_until_idle();
    let metric = |name: &str| server.metric(name);
    assert_eq!(metric("ladle_generated_tokens_total"), 8.0);
    assert_eq!(
        metric("ladle_prompt_tokens_total"),
        answer["usage"]["prompt_tokens"].as_f64().unwrap()
    );
    assert_eq!(metric("ladle_time_to_first_token_seconds_count"), 1.0);
    assert_eq!(metric("ladle_inter_token_latency_seconds_count"), 7.0);
    assert_eq!(metric("ladle_request_success_total{finished_reason=\"length\"}"), 1.0);
    assert_eq!(metric("ladle_request_success_total{finished_reason=\"stop\"}"), 0.0);
    let prompt = answer["usage"]["prompt_tokens"].as_f64().unwrap();
    assert_eq!(metric("ladle_request_prompt_tokens_sum"), prompt);
    assert_eq!(metric("ladle_request_generation_tokens_sum"), 8.0);
    assert_eq!(metric("ladle_prefix_cache_queries_total"), prompt);
    assert_eq!(metric("ladle_prefix_cache_hits_total"), 0.0);
    assert_eq!(metric("ladle_preemptions_total"), 0.0);
    assert_eq!((metric("ladle_ready"), metric("ladle_requests_failed_total")), (1.0, 0.0));
    assert_eq!(metric("ladle_requests_cancelled_total"), 0.0);
    assert_eq!(metric("ladle_merge_cache_models"), metric("ladle_merge_seconds_count"));
    assert!(metric("ladle_kv_blocks_cached") <= metric("ladle_kv_blocks"));
    assert!(metric("ladle_kv_blocks") > 0.0 && metric("ladle_kv_block_tokens") > 0.0);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(metric(&format!("ladle_build_info{{version=\"{version}\"}}")), 1.0);
    let digest = answer["soup"]["digest"].as_str().unwrap();
    let model = format!("ladle_model_info{{model_name=\"soup-tiny\",digest=\"{digest}\"}}");
    assert_eq!(metric(&model), 1.0);
    assert!(metric("process_cpu_seconds_total") > 0.0 && metric("process_threads") > 1.0);
    assert!(metric("process_resident_memory_bytes") > 1e6);
    assert!(metric("process_open_fds") > 3.0 && metric("process_start_time_seconds") > 1e9);
    assert_eq!(metric("ladle_queue_time_seconds_count"), 1.0);
    assert_eq!(metric("ladle_preference_weight_bucket{objective=\"helpful\",le=\"0.9\"}"), 0.0);
    assert_eq!(metric("ladle_preference_weight_bucket{objective=\"helpful\",le=\"1\"}"), 1.0);
    assert_eq!(
        metric("ladle_request_duration_seconds_count{route=\"/generate\",status=\"200\"}"),
        1.0
    );
    assert_eq!(
        metric("ladle_request_duration_seconds_count{route=\"/generate\",status=\"400\"}"),
        1.0
    );
    assert_eq!(
        metric("ladle_request_duration_seconds_count{route=\"unmatched\",status=\"404\"}"),
        1.0
    );
    assert_eq!(metric("ladle_requests_rejected_total{reason=\"invalid\"}"), 2.0);
    let steps =
        metric("ladle_steps_total{mode=\"fused\"}") + metric("ladle_steps_total{mode=\"mixed\"}");
    assert!(steps >= 8.0);
    assert!(
        metric("ladle_step_rows_count") >= 8.0 && metric("ladle_step_preferences_count") >= 8.0
    );
}

#[test]
fn no_preference_and_no_prompt_becomes_a_label() {
    let server = Server::shared();
    server.generate(with(
        greedy(),
        json!({"preference": [0.123, 0.456, 0.421], "prompt": "secret words"}),
    ));
    let text = server.client.get(format!("{}/metrics", server.url)).send().unwrap().text().unwrap();
    let labelled = text.lines().filter(|line| !line.starts_with('#'));
    let labelled: Vec<&str> = labelled
        .filter_map(|line| line.split_once('{')?.1.rsplit_once('}').map(|(labels, _)| labels))
        .collect();
    let told = labelled.join(" ");
    assert!(!told.contains("0.123") && !told.contains("secret"), "{told}");
    let pairs = labelled.iter().flat_map(|labels| labels.split(','));
    let labels: std::collections::BTreeSet<&str> =
        pairs.filter_map(|pair| pair.split_once('=').map(|(name, _)| name)).collect();
    let known = [
        "digest",
        "finished_reason",
        "le",
        "mode",
        "model_name",
        "objective",
        "preset",
        "reason",
        "route",
        "status",
        "version",
    ];
    assert!(labels.iter().all(|label| known.contains(label)), "{labels:?}");
}

#[test]
fn every_answer_carries_a_request_id() {
    let server = Server::shared();
    let request =
        server.client.get(format!("{}/health", server.url)).header("x-request-id", "mine-1");
    assert_eq!(request.send().unwrap().headers()["x-request-id"], "mine-1");
    let reply = server.get("/nowhere");
    assert!(!reply.headers["x-request-id"].is_empty());
}

/// llm-d's `core-metrics-extractor` reads, for each of its specifications, a gauge of that name; it
/// keeps one series and adds none together.
#[test]
fn what_llm_ds_router_is_told_to_read_is_what_the_server_says() {
    let page = include_str!("../../deploy/llm-d/values.yaml");
    let lines = page.lines().filter_map(|line| line.trim().split_once("Spec: "));
    let specs: BTreeMap<&str, &str> = lines.filter(|(_, metric)| *metric != "\"\"").collect();
    let known =
        ["cacheBlockSize", "cacheNumBlocks", "kvUsage", "queuedRequests", "runningRequests"];
    assert_eq!(specs.keys().copied().collect::<Vec<_>>(), known);
    let lanes = Some(1.try_into().unwrap());
    let server = Server::start(ServeOptions { max_sequences: lanes, ..options() });
    let look = || {
        let url = format!("{}/metrics", server.url);
        let text = server.client.get(url).send().unwrap().text().unwrap();
        known.map(|spec| {
            let name = specs[spec];
            assert!(text.contains(&format!("# TYPE {name} gauge\n")), "{name} is no gauge");
            let series = text.lines().filter_map(|line| line.strip_prefix(name));
            let series: Vec<&str> = series.filter(|rest| rest.starts_with([' ', '{'])).collect();
            assert_eq!(series.len(), 1, "{name} has several series, or labels: {series:?}");
            series[0].trim().parse::<f64>().unwrap()
        })
    };
    let idle @ [tokens, blocks, ..] = look();
    let context = server.get("/v1/models").ok()["data"][0]["max_model_len"].as_f64().unwrap();
    assert!(blocks.fract() == 0.0 && tokens.fract() == 0.0 && blocks * tokens >= context);
    assert_eq!(idle[2..], [0.0; 3]);
    // Of several one runs, and others wait for its lane.
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| server.generate(with(greedy(), json!({"max_tokens": 200}))));
        }
        server.wait_until("one runs and others wait", |_| {
            let [now_tokens, now_blocks, usage, waiting, running] = look();
            assert_eq!([now_tokens, now_blocks], [tokens, blocks]);
            running == 1.0 && waiting >= 1.0 && usage > 0.0 && usage <= 1.0
        });
    });
    server.wait_until_idle();
    assert_eq!(look(), idle);
}
