//! Metrics of the service, for Prometheus.

use std::time::Duration;

use metrics::{Counter, Gauge, Key, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

use super::ledger::Counted;

const METADATA: Metadata<'static> = Metadata::new("train-backbones", Level::INFO, None);
const REQUESTS: &str = "train_backbones_rewards_request_duration_seconds";
const ROWS: &str = "train_backbones_rewards_rows_total";
const PARTS: &str = "train_backbones_rewards_parts_total";
const STEP: &str = "train_backbones_rewards_step";
const WEIGHT: &str = "train_backbones_rewards_weight";
const MEAN: &str = "train_backbones_rewards_mean";
/// Seconds: a batch of rewards by rules takes milliseconds, one by a large model minutes.
const EDGES: &[f64] = &[0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0];

pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    rows: Counter,
    step: Gauge,
    /// Weight in force and mean reward of the last request, by objective.
    objectives: Vec<(Gauge, Gauge)>,
}

impl Metrics {
    pub fn new(objectives: &[String]) -> Result<Self, BuildError> {
        let builder = PrometheusBuilder::new();
        let builder = builder.set_buckets_for_metric(Matcher::Full(REQUESTS.into()), EDGES)?;
        let recorder = builder.build_recorder();
        let (seconds, count) = (Some(Unit::Seconds), Some(Unit::Count));
        recorder.describe_histogram(
            REQUESTS.into(),
            seconds,
            "From the head of a request to its answer, by route and status.".into(),
        );
        for (name, help) in [
            (ROWS, "Rows that were scored."),
            (PARTS, "Parts of steps, by whether they were new, came again or replaced others."),
        ] {
            recorder.describe_counter(name.into(), count, help.into());
        }
        for (name, help) in [
            (STEP, "The training step that is open."),
            (WEIGHT, "Weight in force, by objective."),
            (MEAN, "Mean raw reward of the last request, by objective."),
        ] {
            recorder.describe_gauge(name.into(), count, help.into());
        }
        let gauge = |metric, objective: &String| {
            let label = Label::new("objective", objective.clone());
            recorder.register_gauge(&Key::from_parts(metric, vec![label]), &METADATA)
        };
        let objectives = objectives.iter().map(|name| (gauge(WEIGHT, name), gauge(MEAN, name)));
        Ok(Self {
            rows: recorder.register_counter(&Key::from_static_name(ROWS), &METADATA),
            step: recorder.register_gauge(&Key::from_static_name(STEP), &METADATA),
            objectives: objectives.collect(),
            handle: recorder.handle(),
            recorder,
        })
    }

    pub fn request(&self, route: &str, status: u16, took: Duration) {
        let labels =
            vec![Label::new("route", route.to_owned()), Label::new("status", status.to_string())];
        let key = Key::from_parts(REQUESTS, labels);
        self.recorder.register_histogram(&key, &METADATA).record(took.as_secs_f64());
    }

    /// Notes the weights in force.
    pub fn weights(&self, step: Option<u64>, weights: &[f64]) {
        if let Some(step) = step {
            self.step.set(step as f64);
        }
        self.objectives.iter().zip(weights).for_each(|((gauge, _), weight)| gauge.set(*weight));
    }

    /// Notes rows that were scored.
    pub fn scored(&self, counted: Option<Counted>, rows: usize, means: &[Option<f64>]) {
        self.rows.increment(rows as u64);
        for ((_, gauge), mean) in self.objectives.iter().zip(means) {
            mean.iter().for_each(|mean| gauge.set(*mean));
        }
        let counted = match counted {
            None => return,
            Some(Counted::New) => "new",
            Some(Counted::Again) => "again",
            Some(Counted::Replaced) => "replaced",
        };
        let labels = vec![Label::from_static_parts("counted", counted)];
        self.recorder.register_counter(&Key::from_parts(PARTS, labels), &METADATA).increment(1);
    }

    pub fn render(&self) -> String {
        self.handle.run_upkeep();
        self.handle.render()
    }
}
